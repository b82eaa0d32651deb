"""The reference: the same ONNX file, operator by operator in PyTorch. For parity checks, not for speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.base import Engine
from engine.contract import INPUT_NAME, OUTPUT_NAME, ModelContract, ModelError


class TorchEngine(Engine):
    """Interprets the ONNX graph with PyTorch operators in float32.

    It shares no code with the other runtimes, so agreement between them means something. It knows the operators that
    Freespace's own networks export to and refuses others by name.
    """

    name = "torch"

    def __init__(self, contract: ModelContract, precision: str = "fp32", threads: int = 0) -> None:
        super().__init__(contract)
        import onnx
        import torch
        from onnx import numpy_helper

        if threads:
            torch.set_num_threads(threads)
        graph = onnx.load(str(contract.path)).graph
        unknown = sorted({n.op_type for n in graph.node} - set(OPERATORS))
        if unknown:
            raise ModelError(f"{contract.path}: backend torch does not know {', '.join(unknown)}; use another backend")
        self._constants = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
        self._nodes = [
            (
                n.op_type,
                list(n.input),
                list(n.output),
                {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute},
            )
            for n in graph.node
        ]

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.uint8]:
        import torch

        values: dict[str, Any] = {**self._constants, INPUT_NAME: torch.from_numpy(batch), "": None}
        with torch.inference_mode():
            for kind, inputs, outputs, attributes in self._nodes:
                values[outputs[0]] = OPERATORS[kind](attributes, *[values[i] for i in inputs])
        return np.array(values[OUTPUT_NAME].contiguous().numpy())

    def close(self) -> None:
        self._constants, self._nodes = {}, []


def _cast(attributes: dict[str, Any], x: Any) -> Any:
    import onnx
    import torch

    wanted = onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    return x.to(getattr(torch, wanted.name))


def _constant(attributes: dict[str, Any]) -> Any:
    import torch
    from onnx import numpy_helper

    return torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())


def _conv(attributes: dict[str, Any], x: Any, weight: Any, bias: Any = None) -> Any:
    import torch

    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    return torch.nn.functional.conv2d(
        x, weight, bias, attributes.get("strides", 1), 0, attributes.get("dilations", 1), attributes.get("group", 1)
    )


def _clip(attributes: dict[str, Any], x: Any, low: Any = None, high: Any = None) -> Any:
    import torch

    return torch.clamp(x, low, high)


def _pad(attributes: dict[str, Any], x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
    import torch

    counts = [int(n) for n in pads]
    if attributes.get("mode", b"constant") != b"edge" or axes is not None or len(counts) != 8 or any(counts[:2] + counts[4:6]):
        raise ModelError("backend torch pads images by repeating their edge, and knows no other padding")
    return torch.nn.functional.pad(x, (counts[3], counts[7], counts[2], counts[6]), mode="replicate")


def _resize(attributes: dict[str, Any], x: Any, roi: Any, scales: Any, sizes: Any = None) -> Any:
    import torch

    mode, centres = attributes.get("mode", b"nearest"), attributes.get("coordinate_transformation_mode", b"half_pixel")
    if mode != b"linear" or centres not in (b"half_pixel", b"pytorch_half_pixel"):
        raise ModelError(f"backend torch resizes linearly with half-pixel centres, not {mode!r} {centres!r}")
    size = (
        tuple(int(s) for s in sizes[2:])
        if sizes is not None
        else tuple(round(n * float(s)) for n, s in zip(x.shape[2:], scales[2:], strict=True))
    )
    return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)


def _depth_to_space(attributes: dict[str, Any], x: Any) -> Any:
    import torch

    if attributes.get("mode", b"DCR") != b"CRD":
        raise ModelError("backend torch knows DepthToSpace in mode CRD only")
    return torch.nn.functional.pixel_shuffle(x, attributes["blocksize"])


OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": lambda a, x, y: x + y,
    "Cast": _cast,
    "Clip": _clip,
    "Constant": _constant,
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "GlobalAveragePool": lambda a, x: x.mean(dim=(2, 3), keepdim=True),
    "Mul": lambda a, x, y: x * y,
    "Pad": _pad,
    "Relu": lambda a, x: x.relu(),
    "Resize": _resize,
    "Round": lambda a, x: x.round(),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
}
