"""Compiled plans on disk: where they lie, whether one may be used, and when it is built again.

A plan is machine code for one GPU and one TensorRT. Each has a manifest beside it, written after it, that says what it was
built from; a plan whose manifest or hash does not fit is never handed to TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.build import PlanOptions, Progress, build_plan, prepare_onnx
from engine.contract import INPUT_NAME, OUTPUT_NAME, ModelContract

SCHEMA = "freespace-plan/1"
ANY_GPU = "any"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What a plan runs on.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        version: of TensorRT.
        gpu: name of the GPU; plans of TensorRT for RTX fit every GPU of their compute capability, so there `ANY_GPU`.
        compute_capability: of the GPU.
    """

    flavour: str
    version: str
    gpu: str
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        gpu = "SM{}{}".format(*self.compute_capability) if self.gpu == ANY_GPU else self.gpu
        return f"{gpu}, {self.flavour} {self.version}"


@dataclass(frozen=True)
class Plan:
    """A plan to run: its bytes, where it lies (None where it could not be kept) and whether it was built just now."""

    data: bytes
    path: Path | None
    built: bool


def plans_folder() -> Path:
    from platformdirs import user_cache_path

    return Path(user_cache_path("freespace")) / "plans"


def plan_path(folder: Path, contract: ModelContract, options: PlanOptions, target: Target) -> Path:
    """One file per model name, size, precision and GPU: another version of the same thing takes its place."""
    width, height = contract.input_size
    parts = [
        contract.path.stem,
        f"{width}x{height}",
        f"b{options.batch}",
        options.precision,
        *(["dla" + str(options.dla_core)] if options.dla_core >= 0 else []),
        *(["vc"] if options.version_compatible else []),
        target.flavour,
        "sm{}{}".format(*target.compute_capability),
        target.gpu,
    ]
    return folder / (re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)) + ".plan")


def manifest(contract: ModelContract, options: PlanOptions, target: Target) -> dict[str, Any]:
    """Everything a plan depends on, as it is kept beside it (there with ``plan_sha256``)."""
    width, height = contract.input_size
    shapes = {INPUT_NAME: [options.batch, height, width, 3], OUTPUT_NAME: [options.batch, len(contract.planes), height, width]}
    return {
        "schema": SCHEMA,
        "model": contract.path.name,
        "model_sha256": contract.sha256,
        **json.loads(json.dumps(asdict(target))),
        "precision": options.precision,
        "workspace_mib": options.workspace_mib,
        "dla_core": options.dla_core,
        "version_compatible": options.version_compatible,
        "tensors": {name: {"shape": shape, "dtype": "uint8"} for name, shape in shapes.items()},
    }


def obtain_plan(
    trt: ModuleType,
    contract: ModelContract,
    options: PlanOptions,
    target: Target,
    folder: Path | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
    force: bool = False,
    timing_cache: Path | None = None,
) -> Plan:
    """The plan for a model on a GPU, from disk where one fits, else built and kept. Processes that want the same one wait.

    Args:
        say: gets one line when something is built, with the reason.
        force: build even where one fits.
        timing_cache: file of build timings to use and update; one in ``folder`` by default.

    Raises:
        ModelError, EngineError: as `engine.build.build_plan`.
    """
    from filelock import FileLock

    folder = folder or plans_folder()
    path = plan_path(folder, contract, options, target)
    wanted = manifest(contract, options, target)
    source = prepare_onnx(contract, options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        say(f"building {contract.path.name} for {target}, and not keeping it: {error}")
        return Plan(build_plan(trt, source, options, b"", progress)[0], None, True)
    try:
        data, reason = (None, "asked for") if force else read_plan(path, wanted)
        if data is not None:
            return Plan(data, path, False)
        say(f"building {contract.path.name} in {options.precision} for {target}: {reason}")
        cache_path = timing_cache or folder / f"timing_{target.flavour}_{target.version}_{plan_slug(target)}.cache"
        data, learned = build_plan(trt, source, options, read_timing_cache(cache_path), progress)
        try:
            write_plan(path, data, wanted)
            if learned:
                with FileLock(cache_path.with_suffix(".lock")):
                    write_whole(cache_path, learned)
        except OSError as error:
            say(f"the plan is not kept: {error}")
            return Plan(data, None, True)
        return Plan(data, path, True)
    finally:
        lock.release()


def plan_slug(target: Target) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{target.gpu}-sm{target.compute_capability[0]}{target.compute_capability[1]}")


def read_plan(path: Path, wanted: dict[str, Any]) -> tuple[bytes | None, str]:
    """The plan's bytes, or None and the reason why it must not be used."""
    manifest_path = path.with_suffix(".json")
    try:
        data, kept = path.read_bytes(), json.loads(manifest_path.read_text())
    except FileNotFoundError:
        return None, "there is no plan yet"
    except (OSError, ValueError) as error:
        return None, f"the plan or its manifest cannot be read ({error})"
    if not isinstance(kept, dict) or kept.get("schema") != SCHEMA:
        return None, "the plan's manifest is of another kind"
    for key, value in wanted.items():
        if kept.get(key) != value:
            return None, f"{key} is {short(value)} now, the plan was built for {short(kept.get(key))}"
    if hashlib.sha256(data).hexdigest() != kept.get("plan_sha256"):
        return None, "the plan is not the one that its manifest describes, it is damaged or has been changed"
    return data, ""


def short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "…" if re.fullmatch(r"[0-9a-f]{64}", text) else text


def write_plan(path: Path, data: bytes, wanted: dict[str, Any]) -> None:
    """The plan first, its manifest last: a manifest never speaks of a plan that is not there whole."""
    write_whole(path, data)
    described = {**wanted, "plan_sha256": hashlib.sha256(data).hexdigest()}
    write_whole(path.with_suffix(".json"), (json.dumps(described, indent=2) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # a vehicle's power may go at any time
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_timing_cache(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""
