"""Command-line options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Optional

import typer

from perception.errors import BadInput

if TYPE_CHECKING:
    from calibration.boards import Board

Backend = Annotated[Optional[str], typer.Option(help="auto, tensorrt, tensorrt_rtx, openvino, onnxruntime or torch.")]
Model = Annotated[Optional[str], typer.Option(help="Model file (.onnx); the shipped one by default.")]
InputSize = Annotated[Optional[str], typer.Option(help="WIDTHxHEIGHT of the network's input; the file's own by default.")]
Precision = Annotated[
    Optional[str],
    typer.Option(help="auto, fp32, bf16 (openvino), fp16 (tensorrt) or int8; auto is fp32 for a named CPU backend."),
]


def parse_pair(text: str, separator: str, option: str, example: str) -> tuple[int, int]:
    """Two whole numbers. Raises BadInput: ``text`` is something else."""
    first, found, second = text.partition(separator)
    if not (found and first.isdigit() and second.isdigit()):
        raise BadInput(f"{option} {text!r}: wanted something like {example}")
    return int(first), int(second)


def board_of(
    pattern: str, size: str, square_m: float, marker_m: float | None = None, dictionary: str = "DICT_5X5_100"
) -> Board:
    """The calibration board that options describe, ``size`` as ``9x6``. Raises BadInput: there is none such."""
    from calibration.boards import Board

    columns, rows = parse_pair(size, "x", "--size", "9x6")
    try:
        return Board(pattern, columns, rows, square_m, marker_m, dictionary)
    except ValueError as error:
        raise BadInput(str(error)) from error
