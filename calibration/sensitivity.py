"""Which layers suffer from INT8, measured: each is quantised alone, and the scores are compared with the float model's.

A layer is a node with the clipping that follows it. What its quantisation alone does to the scores ranks the layers; how many
of the worst stay in float is decided by what the whole INT8 model then does to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.quantization import QUANTISED, Measured, with_scales
from engine.contract import INPUT_NAME, OUTPUT_NAME, ModelError
from engine.parity import Parity

FOLLOWERS = ("Clip", "Relu")
MOST_FRAMES = 16  # that models are compared on

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Sensitivity:
    """What INT8 does to the scores.

    Attributes:
        layer: names of the nodes that were quantised, the one that computes first.
        kind: its operator.
        difference: mean absolute difference of the scores from the float model's, 0 to 1, over planes, pixels and frames.
        iou: per plane, of the masks at 0.5 with the float model's.
    """

    layer: tuple[str, ...]
    kind: str
    difference: float
    iou: dict[str, float]


def layers(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """Names of the nodes that can be quantised, each with the Clip or Relu that alone reads it; in the graph's order."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[tuple[str, ...]] = []
    for node in model.graph.node:
        if node.op_type not in QUANTISED or node.op_type in FOLLOWERS:
            continue
        after = readers.get(node.output[0], [])
        follower = after[0] if len(after) == 1 and after[0].op_type in FOLLOWERS else None
        found.append((node.name, follower.name) if follower else (node.name,))
    return found


def sensitivities(measured: Measured, say: Callable[[str], None] = lambda line: None) -> list[Sensitivity]:
    """What quantising each layer alone does to the scores on the frames the ranges were measured on; the worst first.

    ``say`` gets a line now and then.
    """
    comparison = Comparison(measured)
    kinds = {node.name: node.op_type for node in measured.model.graph.node}
    found = []
    every = layers(measured.model)
    for done, layer in enumerate(every):
        row = comparison.of(with_scales(measured, only=layer))
        found.append(Sensitivity(layer, kinds[layer[0]], row.mean / 255, row.iou))
        if done % 10 == 9:
            say(f"{done + 1} of {len(every)} layers measured")
    return sorted(found, key=lambda s: -s.difference)


def keep_worst(found: Sequence[Sensitivity], number: int) -> list[str]:
    """Names of the nodes of the ``number`` worst layers."""
    return [name for s in found[:number] for name in s.layer]


def keep_to_lose(measured: Measured, found: Sequence[Sensitivity], most: float) -> list[str]:
    """Names of the fewest nodes, worst layers first, without which INT8 moves the scores by at most ``most`` on average.

    Found by bisection, as more layers in float hardly ever make it worse.

    Args:
        most: mean absolute difference of the scores from the float model's, 0 to 1.

    Raises:
        ModelError: it cannot be reached with any layer quantised.
    """
    comparison = Comparison(measured)

    def loses(number: int) -> float:
        return comparison.of(with_scales(measured, keep_worst(found, number))).mean / 255

    low, high = -1, len(found) - 1  # with ``high`` layers in float it is reached, with ``low`` not
    if (least := loses(high)) > most:
        raise ModelError(f"with one layer in int8 the scores already move by {least:.5f} on average, more than {most:g}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if loses(middle) <= most else (middle, high)
    return keep_worst(found, high)


class Comparison:
    """Compares models with the float one on the same frames."""

    def __init__(self, measured: Measured) -> None:
        self.planes = measured.contract.planes
        self.inputs = measured.inputs[:: max(1, len(measured.inputs) // MOST_FRAMES)][:MOST_FRAMES]
        self.wanted = list(scores_of(measured.model, self.inputs))

    def of(self, model: onnx.ModelProto) -> Parity:
        row = Parity("onnxruntime", "int8")
        for scores, wanted in zip(scores_of(model, self.inputs), self.wanted, strict=True):
            row.add(scores, wanted, self.planes)
        return row


def scores_of(model: onnx.ModelProto, inputs: Sequence[U8]) -> Iterator[U8]:
    """Scores uint8 ``(K, h, w)`` of each input ``(1, h, w, 3)``, by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for image in inputs:
        yield session.run([OUTPUT_NAME], {INPUT_NAME: image})[0][0]


def table(found: Sequence[Sensitivity]) -> str:
    """A line for each layer, the worst first."""
    planes = list(found[0].iou) if found else []
    head = ["layer", "operator", "scores move by", *(f"IoU {plane}" for plane in planes)]
    lines = [[s.layer[0], s.kind, f"{s.difference:.6f}", *(f"{s.iou[plane]:.5f}" for plane in planes)] for s in found]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in (head, *lines)]
    return "\n".join(["each layer quantised alone, against the float model", *rows])
