"""Receptive fields through torch's own operations (ATen)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from training.summary.fields import Field, Shape, gathered, moved, reshaped, sliced, union
from training.summary.taps import (
    Taps,
    block_taps,
    padding_taps,
    resize_taps,
    shuffle_taps,
    transposed_taps,
    window_taps,
    windowed,
)

# Torch marks most element-wise operations as such; these are element-wise in an image, too.
ELEMENTWISE = {
    *("native_batch_norm", "native_group_norm", "native_layer_norm"),
    *("_prelu_kernel", "hardswish", "_to_copy", "copy", "expand"),
}
VIEWS = {"view", "_unsafe_view", "unsqueeze", "squeeze", "detach"}
REDUCTIONS = {  # where the dimensions stand among the arguments
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "var", "std", "logsumexp"), 1),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum"), 1),
    "linalg_vector_norm": 2,
}


def both(value: Any, default: Any = 0) -> Shape:
    """An argument for rows and columns: torch takes one number, one in a list, two, or none for the default."""
    if isinstance(value, int):
        return value, value
    items = [int(v) for v in value]
    return (items[0], items[-1]) if items else both(default)


def filled(arguments: Sequence[Any], *defaults: Any) -> tuple[Any, ...]:
    """The arguments, missing ones by default."""
    return (*arguments, *defaults[len(arguments) :])[: len(defaults)]


def torch_field(operation: Any, arguments: tuple[Any, ...], out: Shape, seen: Sequence[tuple[Field, Shape]]) -> Field:
    """Of the output of an ATen operation.

    Args:
        operation: an overload of it.
        arguments: as torch gives them, positional ones only.
        out: the output's shape.
        seen: fields and shapes of those tensors among the arguments that depend on the image.
    """
    name = operation._schema.name.removeprefix("aten::").rstrip("_")
    field, shape = seen[0]
    ndim = len(shape)

    def window(taps: Taps) -> Field:
        return windowed(field, shape, out, taps, name)

    if name == "max_unpool2d":  # every value goes back to its own window
        return windowed(union([(f, len(s)) for f, s in seen], ndim), shape, out, resize_taps("nearest"), name)
    if torch.Tag.pointwise in operation.tags or name in ELEMENTWISE:
        return union([(f, len(s)) for f, s in seen], len(out))
    if name == "cat":
        dim = filled(arguments[1:], 0)[0] % ndim
        fields = [(f.unknown("cat along the image") if dim in f.dims else f, ndim) for f, _ in seen]
        return union(fields, ndim)
    if name == "stack":
        new = filled(arguments[1:], 0)[0] % len(out)
        return union([(moved(f, {d: d + (d >= new) for d in f.dims}), len(out)) for f, _ in seen], len(out))
    if len(seen) > 1:  # such as the product of two matrices
        return field.unknown(name)
    match name:
        case "convolution" if len(out) == 4:
            _, weight, _, stride, padding, dilation, transposed = arguments[:7]
            kind = transposed_taps if transposed else window_taps
            return window(kind(tuple(weight.shape[2:]), both(stride), both(padding), both(dilation)))
        case "max_pool2d_with_indices":
            kernel, stride, padding, dilation = filled(arguments[1:5], 1, [], 0, 1)
            return window(window_taps(both(kernel), both(stride, kernel), both(padding), both(dilation)))
        case "avg_pool2d":
            kernel, stride, padding = filled(arguments[1:4], 1, [], 0)
            return window(window_taps(both(kernel), both(stride, kernel), both(padding), (1, 1)))
        case "_adaptive_avg_pool2d" | "adaptive_max_pool2d":
            return gathered(field, field.dims)
        case "upsample_nearest2d":
            return window(resize_taps("nearest", "asymmetric"))
        case "_upsample_nearest_exact2d":
            return window(resize_taps("nearest"))
        case "upsample_bilinear2d" | "upsample_bicubic2d":
            mode = "linear" if name == "upsample_bilinear2d" else "cubic"
            return window(resize_taps(mode, "align_corners" if arguments[2] else "half_pixel"))
        case "constant_pad_nd" if len(arguments[1]) == 4:
            return window(padding_taps((arguments[1][2], arguments[1][0]), "constant"))
        case "reflection_pad2d" | "replication_pad2d":
            mode = "reflect" if name == "reflection_pad2d" else "edge"
            return window(padding_taps((arguments[1][2], arguments[1][0]), mode))
        case "pixel_shuffle":
            return window(shuffle_taps(arguments[1]))
        case "pixel_unshuffle":
            return window(block_taps(arguments[1]))
        case "permute":
            order = [d % ndim for d in arguments[1]]
            return moved(field, {d: order.index(d) for d in field.dims})
        case "transpose" | "t":
            first, second = (d % ndim for d in filled(arguments[1:], 0, 1))
            return moved(field, {d: {first: second, second: first}.get(d, d) for d in field.dims})
        case "slice":
            dim, start, _, step = filled(arguments[1:], 0, None, None, 1)
            start = 0 if start is None else start + shape[dim] * (start < 0)
            return sliced(field, dim % ndim, max(0, start), step, out[dim])
        case "flip":
            mirrored = {d % ndim for d in arguments[1]}
            return field.each(lambda dim, e: replace(e, low=e.low[::-1], high=e.high[::-1]) if dim in mirrored else e)
        case "split" | "split_with_sizes" | "unbind" | "select":
            place = 1 if name in ("unbind", "select") else 2
            dim = filled(arguments, None, 0, 0)[place] % ndim
            gone = len(out) < ndim
            return field.unknown(name) if dim in field.dims else moved(field, {d: d - (gone and d > dim) for d in field.dims})
        case _ if name in VIEWS:
            return reshaped(field, shape, out, name)
        case _ if name in REDUCTIONS:
            given = filled(arguments, None, None, None)[REDUCTIONS[name]]
            given = [given] if isinstance(given, int) else given or range(ndim)
            return gathered(field, {d % ndim for d in given}, kept=len(out) == ndim)
    return field.unknown(name)
