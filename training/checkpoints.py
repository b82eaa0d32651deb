"""Checkpoints: reading and writing them, what they say, and their weights for another network."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.files import write_whole
from training.datasets import PLANES
from training.models import OLD_NAMES
from training.recipe import Recipe, parse_size
from training.run_data import read_origin

DEFAULT_SIZE = (448, 256)  # of a network's input, where no training says another


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `training.trainer.train` saved: ``average`` (weights), ``config`` (the recipe), ``planes``, ``epoch``, ``earlier``
    (the recipes of trainings before), ``images`` (how many per data set), ``views`` (``views.json`` of a distillation), and
    more to resume.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no such file.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give the checkpoint in it, such as {path / 'last.pt'}")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"average", "config", "earlier", "epoch", "images"} - state.keys()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise ValueError(f"{path}: not a checkpoint of 'freespace train'") from error
    if missing:
        raise ValueError(f"{path}: not a checkpoint of 'freespace train': no {', '.join(sorted(missing))}")
    return state


def read_resumable(path: Path, recipe: Recipe, views: Path | None) -> dict[str, Any]:
    """What `read_checkpoint` says of an earlier run with the same settings, to go on from.

    Args:
        views: folder that is trained on as well.

    Raises:
        ValueError: the file is broken, or the run had other settings.
    """
    state = read_checkpoint(path)
    if "steps" not in state:
        raise ValueError(f"{path}: cannot be resumed; start from it in another --out by --init")
    wanted, earlier = recipe.model_dump(), state["config"]
    changed = [k for k in wanted if json.dumps(wanted[k], sort_keys=True) != json.dumps(earlier.get(k), sort_keys=True)]
    changed += ["--views"] if state["views"] != read_origin(views) else []
    if changed:
        first = changed[0]
        before = f"; {first} was {earlier.get(first)!r}" if first in wanted else ""
        raise ValueError(
            f"{path}: that run had other settings ({', '.join(changed)}{before}); give them again, or another --out"
        )
    return state


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write the whole file, or leave what was there."""
    data = io.BytesIO()
    torch.save(state, data)
    write_whole(path, data.getvalue())


def shipped_checkpoint(path: Path) -> Path:
    """``path``, or where no file is called so, the checkpoint of that name that comes with the package, such as ``small``.

    Raises:
        FileNotFoundError: there is neither.
    """
    shipped = {found.stem: found for found in sorted((Path(__file__).parent / "weights").glob("*.pt"))}
    if str(path) in shipped and not path.is_file():  # a folder may be called so, such as a run's
        return shipped[str(path)]
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such checkpoint; shipped ones are called {', '.join(shipped)}")
    return path


def network_of(state: dict[str, Any]) -> str:
    """The network's name in `training.models.MODELS`."""
    name: str = state["config"]["model"]
    return OLD_NAMES.get(name, name)


def planes_of(state: dict[str, Any]) -> tuple[str, ...]:
    """What the network says, in the order of its output; both planes of ``{}``."""
    return tuple(state.get("planes", PLANES))  # checkpoints once said both planes, always


def size_of(state: dict[str, Any]) -> tuple[int, int]:
    """(width, height) that a checkpoint's network was measured at last; `DEFAULT_SIZE` of ``{}``, a network without one."""
    if "config" not in state:
        return DEFAULT_SIZE
    size = state.get("size") or state["config"]["sizes"][-1]
    return parse_size(size) if isinstance(size, str) else (size[0], size[1])  # older checkpoints have two numbers


def images_of(states: Sequence[dict[str, Any]], own: Mapping[str, int]) -> dict[str, int]:
    """Images by data set of several trainings together; of a data set in more than one, the most that one saw."""
    return {
        name: max(n.get(name, 0) for n in (own, *(s["images"] for s in states)))
        for name in sorted({*own, *(name for s in states for name in s["images"])})
    }


def mean_of(states: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The mean of checkpoints' weights ("model soup", Wortsman et al. 2022). Raises ValueError: their networks differ."""
    first = states[0]
    if any(network_of(s) != network_of(first) or planes_of(s) != planes_of(first) for s in states):
        raise ValueError("checkpoints of different networks cannot be averaged")
    averages = [s["average"] for s in states]
    return {k: (sum(a[k].double() for a in averages) / len(averages)).to(v.dtype) for k, v in first["average"].items()}


def with_planes(weights: dict[str, Tensor], network: nn.Module, old: Sequence[str], new: Sequence[str]) -> dict[str, Tensor]:
    """The weights of a network that says the planes ``old``, for one that says ``new``: the rest of the last layer is left out.

    Raises:
        ValueError: there are new planes.
    """
    if tuple(old) == tuple(new):
        return weights
    if missing := [plane for plane in new if plane not in old]:
        raise ValueError(f"init: that network does not say {', '.join(missing)}, only {', '.join(old)}; leave init out")
    kept = torch.tensor([old.index(plane) for plane in new])
    wanted, fitted = network.state_dict(), {}
    for name, tensor in weights.items():
        for axis, (has, wants) in enumerate(zip(tensor.shape, wanted[name].shape, strict=True)):
            if has != wants:  # channels by plane, each plane's together
                channels = torch.arange(has).reshape(len(old), -1)[kept].flatten()
                tensor = tensor.index_select(axis, channels)
        fitted[name] = tensor
    return fitted
