"""What every benchmark says of itself: its clip, the machine, the command."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from perception.bench.machine import describe_machine
from perception.demo import ClipUnavailable, fetch_clip


def demo_clip(parser: argparse.ArgumentParser) -> Path:
    """The demo's clip; ends the program with a sentence where it cannot be had."""
    try:
        return fetch_clip()
    except ClipUnavailable as error:
        parser.error(f"no clip ({error}); give one with --clip")


def machine() -> dict[str, Any]:
    """Processor, memory, GPUs, versions, as `perception.bench.schema.Machine` has them."""
    return describe_machine().model_dump()


def command(module: str, arguments: list[str] | None) -> str:
    """As it was typed (``sys.argv`` for None), of paths only their names: others are nobody's business."""
    typed = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", "-m", module, *(Path(a).name if "/" in a and "://" not in a else a for a in typed)])
