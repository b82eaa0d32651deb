"""``freespace calibrate quantize`` as a person sees it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.quantization import SENSITIVE, QuantisationOptions, network_input, quantise
from engine import DEFAULT_MODEL, open_engine, read_contract
from engine.parity import Parity
from perception.capture import Selection, open_source
from perception.errors import BadInput, tell
from perception.sinks import check_output
from perception.sinks.base import write_whole

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
) -> None:
    """Quantise ``model`` on the frames of ``sources``, write it, and say how far it agrees with the float model on them.

    Raises:
        BadInput, ModelError: with one sentence for the user.
    """
    check_output(out, overwrite)
    contract = read_contract(Path(model) if model else DEFAULT_MODEL)
    images = [network_input(contract, image)[0] for image in frames_of(sources, every)]
    if not images:
        raise BadInput("no frames to measure ranges on")
    quantised = quantise(contract, images, QuantisationOptions(method, activations, keep or SENSITIVE))
    write_whole(out, quantised.SerializeToString())
    row = Parity("", "int8")
    with open_engine(contract.path, "onnxruntime") as reference, open_engine(out, "onnxruntime") as engine:
        for image in images[:: max(1, len(images) // 50)]:
            row.add(engine.segment([image]).values[0], reference.segment([image]).values[0], contract.planes)
    agreement = ", ".join(f"{plane} {iou:.4f}" for plane, iou in row.iou.items())
    print(f"{out}: int8 from {len(images)} frames; on these very frames it overlaps with the float model by IoU {agreement}")


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
