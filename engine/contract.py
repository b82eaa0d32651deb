"""What a model file must say about itself, and how it is read.

One ONNX file, self-contained:

- input ``image``: uint8 ``(N, h, w, 3)``, BGR as OpenCV gives it; h and w fixed, N fixed or free;
- output ``scores``: uint8 ``(N, K, h, w)``, ``round(255 * p)`` for each of K planes;
- ``metadata_props``: the keys below. Colour order, scaling and layout are inside the graph.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

CONTRACT_VERSION = "1"
QUANTISING = ("QuantizeLinear", "DequantizeLinear")
KNOWN_PLANES = ("freespace", "ego")
ZOO = Path(__file__).parent / "zoo"  # models that ship with the package
INPUT_NAME, OUTPUT_NAME = "image", "scores"
KEY_VERSION, KEY_PLANES, KEY_RESIZE = "freespace.contract", "freespace.planes", "freespace.resize"

ResizeMode = Literal["stretch", "letterbox"]


class ModelError(ValueError):
    """A model file that cannot be used; the message says why and what to do."""


class Mismatch(ModelError):
    """What was asked for does not go together, whatever is installed: a file that breaks the contract, or a precision or a
    size that is not for it."""


class EngineError(RuntimeError):
    """The device or its runtime failed; the message holds what it said."""


@dataclass(frozen=True)
class ModelContract:
    """A checked model file.

    Attributes:
        path: the ONNX file.
        sha256: of its bytes; identifies the model everywhere.
        planes: names of the score planes, in the order of the output's channels.
        input_size: (width, height) in pixels.
        batch: 1 where the file takes one image at a time, None where it takes any number.
        resize: how a frame is brought to ``input_size``.
        quantised: whether it computes in int8 (Q/DQ nodes).
        resized: whether ``input_size`` is another than the file's own (`engine.graph.at_size`).
        metadata: every metadata property of the file.
    """

    path: Path
    sha256: str
    planes: tuple[str, ...]
    input_size: tuple[int, int]
    batch: int | None
    resize: ResizeMode
    quantised: bool = False
    resized: bool = False
    metadata: dict[str, str] = field(default_factory=dict)

    def plane_index(self, plane: str) -> int:
        """Channel of ``plane``. Raises `Mismatch` where the model has no such plane."""
        if plane not in self.planes:
            raise Mismatch(f"{self.path}: the model has no plane {plane!r}; it has {', '.join(self.planes)}")
        return self.planes.index(plane)


def read_contract(path: Path) -> ModelContract:
    """Read and check a model file, or by its name one that ships with the package, such as ``nano``.

    Raises:
        ModelError: the file is missing.
        Mismatch: it is no ONNX model, or breaks the contract.
    """
    import onnx
    from google.protobuf.message import DecodeError

    shipped = {found.stem: found for found in sorted(ZOO.glob("*.onnx"))}
    if not path.exists():
        path = shipped.get(str(path), path)
    if not path.is_file():
        raise ModelError(f"{path}: no such model file; shipped ones are called {', '.join(shipped)}")
    data = path.read_bytes()
    try:
        model = onnx.load_from_string(data)
    except (DecodeError, ValueError) as error:
        raise Mismatch(f"{path}: not an ONNX file; give a model made by 'freespace export'") from error
    if not model.graph.node:
        raise Mismatch(f"{path}: not an ONNX file; give a model made by 'freespace export'")
    metadata = {p.key: p.value for p in model.metadata_props}
    version = metadata.get(KEY_VERSION)
    if version is None:
        raise Mismatch(
            f"{path}: no {KEY_VERSION!r} in its metadata, so its colours and planes are unknown; "
            "make the file with 'freespace export'"
        )
    if version != CONTRACT_VERSION:
        raise Mismatch(f"{path}: contract version {version}, this program reads {CONTRACT_VERSION}; export it again")
    initializers = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in initializers]
    image = shape_of(path, inputs, INPUT_NAME, "input")
    scores = shape_of(path, list(model.graph.output), OUTPUT_NAME, "output")
    batch, height, width, channels = image
    if channels != 3 or not height or not width:
        raise Mismatch(f"{path}: input {INPUT_NAME!r} is {image}, wanted (N, h, w, 3) with h and w fixed; export it again")
    if batch not in (None, 1):
        raise Mismatch(f"{path}: takes {batch} images at a time and no other number; export it again")
    planes = tuple(p.strip() for p in metadata.get(KEY_PLANES, "").split(",") if p.strip())
    unknown = [p for p in planes if p not in KNOWN_PLANES]
    if not planes or unknown or len(set(planes)) != len(planes):
        raise Mismatch(
            f"{path}: planes {metadata.get(KEY_PLANES)!r} in {KEY_PLANES!r}, wanted a list out of {', '.join(KNOWN_PLANES)}; "
            "export it again with those names"
        )
    if scores[1:] != (len(planes), height, width):
        raise Mismatch(
            f"{path}: output {OUTPUT_NAME!r} is {scores}, wanted (N, {len(planes)}, {height}, {width}) "
            f"for the planes {', '.join(planes)}; export it again"
        )
    resize = metadata.get(KEY_RESIZE, "")
    if resize not in ("stretch", "letterbox"):
        raise Mismatch(f"{path}: {KEY_RESIZE!r} is {resize!r}, wanted 'stretch' or 'letterbox'; export it again")
    quantised = any(node.op_type in QUANTISING for node in model.graph.node)
    return ModelContract(
        path,
        hashlib.sha256(data).hexdigest(),
        planes,
        (width, height),
        batch,
        cast(ResizeMode, resize),
        quantised,
        False,
        metadata,
    )


def shape_of(path: Path, values: list[object], name: str, what: str) -> tuple[int | None, ...]:
    """Shape of the one input or output called ``name``, checked to be uint8 of rank 4; free dimensions are None."""
    import onnx

    names = [v.name for v in values]  # type: ignore[attr-defined]
    if names != [name]:
        raise Mismatch(f"{path}: {what}s are {', '.join(names) or 'none'}, wanted one named {name!r}; export it again")
    tensor = values[0].type.tensor_type  # type: ignore[attr-defined]
    if tensor.elem_type != onnx.TensorProto.UINT8:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise Mismatch(f"{path}: {what} {name!r} is {kind}, wanted uint8; export it with 'freespace export'")
    shape = tuple(d.dim_value or None for d in tensor.shape.dim)
    if len(shape) != 4:
        raise Mismatch(f"{path}: {what} {name!r} has {len(shape)} dimensions, wanted 4; export it again")
    return shape
