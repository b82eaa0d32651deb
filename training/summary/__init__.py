"""What a network is made of: sizes, parameters, multiply-adds, memory and receptive field, layer by layer.

==========  =================================================================
module      what it holds
==========  =================================================================
by_name     networks as a person asks for them: name, checkpoint, ONNX file
base        `Layer` and `Summary`; peak of memory, stride
fields      what the rows and columns of a tensor depend on
taps        which input positions every output position reads
network     a network of torch, watched while it runs
aten        fields through torch's operations
onnx_file   an ONNX file, node by node
onnx_graph  reading it, with every shape at one input size
table       a summary for people and for programs
==========  =================================================================

A network is run once on tensors without content (torch's ``meta`` device), and every operation is watched, those between
the modules as well; an ONNX file is gone through node by node with its inferred shapes.

**Multiply-adds** are those of convolutions and matrix products, as usual; FLOPs are two for each. Norms, activations, sums and
resizes are not counted. **Peak of activations**: every tensor lives from the operation that makes it to the last one that
reads it, one that is written in place is no new one, and no operation needs scratch memory. **Theoretical receptive field**:
all input pixels that some weights would let an output pixel depend on, as the width and height of the rectangle around them.
It is followed exactly, position by position: for every row and column of every tensor the first and last input row or column
it sees (Araujo et al. 2019, "Computing receptive fields of convolutional neural networks", do it in closed form). What
gathers from the whole image whatever its size (global pooling, attention) is said beside it and not in it, and the
statistics of a norm are taken as constants.
"""

from training.summary.base import Layer, Summary
from training.summary.by_name import open_network, summarise
from training.summary.network import field_at, summarise_network
from training.summary.onnx_file import summarise_onnx
from training.summary.table import as_json, print_summary

__all__ = [
    "Layer",
    "Summary",
    "as_json",
    "field_at",
    "open_network",
    "print_summary",
    "summarise",
    "summarise_network",
    "summarise_onnx",
]
