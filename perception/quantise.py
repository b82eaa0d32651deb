"""``freespace calibrate quantize`` as a person sees it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.quantization import SENSITIVE, QuantisationOptions, measure, named, network_input, with_scales
from calibration.sensitivity import keep_to_lose, keep_worst, sensitivities, table
from engine import DEFAULT_MODEL, open_engine, read_contract
from engine.contract import ModelContract
from engine.graph import load
from engine.parity import Parity
from perception.capture import Selection, open_source
from perception.errors import BadInput, tell
from perception.sinks import check_output
from perception.sinks.base import write_whole

NONE = "none"
MOST_FRAMES = 1000  # they are all held in memory, at the network's size


def quantise_command(
    sources: list[str],
    out: Path,
    model: str | None,
    every: int,
    method: str,
    activations: str,
    keep: tuple[str, ...],
    overwrite: bool,
    sensitivity: bool = False,
    worst: int | None = None,
    lose: float | None = None,
) -> None:
    """Quantise ``model`` on the frames of ``sources``, write it, and say how far it agrees with the float model on them.

    Args:
        keep: parts of the names of nodes that stay in float; ``none`` alone for no node.
        sensitivity: print what INT8 does to each layer.
        worst: measure that, and keep as many of the worst layers in float, instead of ``keep``.
        lose: measure it, and keep as many as it takes for the scores to move by at most this on average, 0 to 1.

    Raises:
        BadInput, ModelError: with one sentence for the user.
    """
    if sum((bool(keep), worst is not None, lose is not None)) > 1:
        raise BadInput("give one of --keep, --keep-worst and --lose: each says which layers stay in float")
    if lose is not None and not 0 <= lose <= 1:
        raise BadInput(f"--lose {lose:g}: wanted how far the scores may move on average, 0 to 1")
    if worst is not None and worst < 0:
        raise BadInput(f"--keep-worst {worst}: wanted how many layers, 0 or more")
    check_output(out, overwrite)
    contract = read_contract(Path(model) if model else DEFAULT_MODEL)
    if keep and keep != (NONE,):
        check_names(contract, keep)
    images = [network_input(contract, image)[0] for image in frames_of(sources, every)]
    if not images:
        raise BadInput("no frames to measure ranges on")
    measured = measure(contract, images, QuantisationOptions(method, activations))
    kept = [] if keep == (NONE,) else named(measured.model, keep or SENSITIVE)
    if sensitivity or worst is not None or lose is not None:
        found = sensitivities(measured, tell)
        print(table(found))
        if worst is not None:
            kept = keep_worst(found, worst)
        elif lose is not None:
            kept = keep_to_lose(measured, found, lose)
        print(f"in float: {', '.join(kept) or 'nothing'}")
    write_whole(out, with_scales(measured, kept).SerializeToString())
    row = Parity("", "int8")
    with open_engine(contract.path, "onnxruntime") as reference, open_engine(out, "onnxruntime") as engine:
        for image in images[:: max(1, len(images) // 50)]:
            row.add(engine.segment([image]).values[0], reference.segment([image]).values[0], contract.planes)
    agreement = ", ".join(f"{plane} {iou:.4f}" for plane, iou in row.iou.items())
    print(
        f"{out}: int8 from {len(measured.inputs)} frames; on these very frames it overlaps with the float model by IoU "
        f"{agreement}, and the scores move by {row.mean / 255:.5f} on average"
    )


def check_names(contract: ModelContract, parts: tuple[str, ...]) -> None:
    """That each of these is part of the name of a node. Raises BadInput, ModelError."""
    model = load(contract)
    for part in parts:
        if not named(model, [part]):
            weighted = [node.name or node.output[0] for node in model.graph.node if node.op_type == "Conv"]
            raise BadInput(
                f"--keep {part!r}: no node has that in its name; there are {', '.join(weighted[:3])} and others, and "
                f"--sensitivity names them all; --keep {NONE} keeps no node in float"
            )


def frames_of(sources: list[str], every: int) -> Iterator[NDArray[np.uint8]]:
    """Images of all sources in turn. Raises BadInput: more than `MOST_FRAMES`."""
    count = 0
    for uri in sources:
        with open_source(uri, Selection(every=every)) as source:
            for frame in source.frames():
                count += 1
                if count > MOST_FRAMES:
                    raise BadInput(f"more than {MOST_FRAMES} frames; take fewer with --every")
                yield frame.image
            for problem in source.problems:
                tell(problem)
