"""Compiled plans on disk: where they lie, whether one may be used, and when it is built again.

A plan is machine code for one GPU and one TensorRT. Each has a manifest beside it, written after it, that says what it was
built from; a plan whose manifest or hash does not fit is never handed to TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.build import PlanOptions, Progress, build_plan, prepare_onnx
from engine.contract import INPUT_NAME, OUTPUT_NAME, ModelContract
from engine.files import write_whole

SCHEMA = "freespace-plan/1"
ANY_GPU = "any"
HOW_BUILT = ("workspace_mib", "dla_core", "version_compatible")  # a plan does the same whatever these were

Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What a plan runs on.

    Attributes:
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        version: of TensorRT.
        gpu: name of the GPU; plans of TensorRT for RTX fit every GPU of their compute capability, so there `ANY_GPU`.
        compute_capability: of the GPU.
        multiprocessors: how many it has, 0 for any: all Jetson Orin call themselves the same.
    """

    flavour: str
    version: str
    gpu: str
    compute_capability: tuple[int, int]
    multiprocessors: int = 0

    def __str__(self) -> str:
        gpu = "SM{}{}".format(*self.compute_capability) if self.gpu == ANY_GPU else self.gpu
        return f"{gpu}, {self.flavour} {self.version}"


@dataclass(frozen=True)
class Plan:
    """A plan to run.

    Attributes:
        data: for TensorRT.
        path: where it lies, None where it could not be kept.
        built: whether it was built just now.
        dla_core, version_compatible: as in `engine.build.PlanOptions`; loading it takes them into account.
    """

    data: bytes
    path: Path | None
    built: bool
    dla_core: int = -1
    version_compatible: bool = False


def plans_folder() -> Path:
    from platformdirs import user_cache_path

    return Path(user_cache_path("freespace")) / "plans"


def plan_path(folder: Path, contract: ModelContract, options: PlanOptions, target: Target) -> Path:
    """One file per model file, size, precision and GPU: another version of the same thing takes its place."""
    width, height = contract.input_size
    parts = [
        contract.path.stem,
        hashlib.sha256(str(contract.path.resolve()).encode()).hexdigest()[:6],  # of where it lies, not of what it is
        f"{width}x{height}",
        f"b{options.batch}",
        options.precision,
        target.flavour,
        "sm{}{}".format(*target.compute_capability),
        target.gpu,
    ]
    return folder / (slug("_".join(parts)) + ".plan")


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def manifest(contract: ModelContract, source: bytes, options: PlanOptions, target: Target) -> dict[str, Any]:
    """Everything a plan depends on, as it is kept beside it (there with ``plan_sha256``)."""
    width, height = contract.input_size
    shapes = {INPUT_NAME: [options.batch, height, width, 3], OUTPUT_NAME: [options.batch, len(contract.planes), height, width]}
    return {
        "schema": SCHEMA,
        "model": contract.path.name,
        "model_sha256": contract.sha256,
        "onnx_sha256": hashlib.sha256(source).hexdigest(),  # as it went into TensorRT: other precision, fixed shapes
        **json.loads(json.dumps(asdict(target))),
        "precision": options.precision,
        "tensors": {name: {"shape": shape, "dtype": "uint8"} for name, shape in shapes.items()},
        **{key: getattr(options, key) for key in HOW_BUILT},
    }


def obtain_plan(
    trt: ModuleType,
    contract: ModelContract,
    options: PlanOptions,
    target: Target,
    folder: Path | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
    exact: bool = False,
    force: bool = False,
    timing_cache: Path | None = None,
) -> Plan:
    """The plan for a model on a GPU, from disk where one fits, else built and kept. Processes that want the same one wait.

    Args:
        say: gets one line when something is built, with the reason.
        exact: take only a plan that was built as ``options`` say; else one with another workspace, on a deep learning
            accelerator or version compatible does as well: somebody has built it so on purpose.
        force: build even where one fits.
        timing_cache: file of build timings to use and update; one in ``folder`` by default.

    Raises:
        ModelError, EngineError: as `engine.build.build_plan`.
    """
    from filelock import FileLock, Timeout

    folder = folder or plans_folder()
    path = plan_path(folder, contract, options, target)
    source = prepare_onnx(contract, options)
    wanted = manifest(contract, source, options, target)
    plan, reason = read_plan(path, wanted, exact)
    if plan and not force:  # before any lock: the folder may be read-only
        return plan
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting: another process is building {contract.path.name} for {target}")
            lock.acquire()
    except OSError as error:
        say(f"building {contract.path.name} for {target}, and not keeping it: {error}")
        return Plan(
            build_plan(trt, source, options, b"", progress)[0], None, True, options.dla_core, options.version_compatible
        )
    try:
        plan, reason = (None, "asked for") if force else read_plan(path, wanted, exact)
        if plan:
            return plan
        say(f"building {contract.path.name} in {options.precision} for {target}: {reason}")
        cache_path = timing_cache or folder / slug(f"timing_{target.flavour}_{target.version}_{target.gpu}.cache")
        data, learned = build_plan(trt, source, options, read_timing_cache(cache_path), progress)
        kept: Path | None = path
        try:
            write_plan(path, data, wanted)
        except OSError as error:
            say(f"the plan is not kept: {error}")
            kept = None
        try:
            if learned:
                with FileLock(cache_path.with_suffix(".lock")):
                    write_whole(cache_path, learned)
        except OSError as error:
            say(f"the build's timings are not kept: {error}")
        return Plan(data, kept, True, options.dla_core, options.version_compatible)
    finally:
        lock.release()


def read_plan(path: Path, wanted: dict[str, Any], exact: bool = False) -> tuple[Plan | None, str]:
    """The plan on disk, or None and the reason why it must not be used."""
    try:
        data, kept = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    except FileNotFoundError:
        return None, "there is no plan yet"
    except (OSError, ValueError) as error:
        return None, f"the plan or its manifest cannot be read ({error})"
    if not isinstance(kept, dict) or kept.get("schema") != SCHEMA:
        return None, "the plan's manifest is of another kind"
    for key, value in wanted.items():
        if kept.get(key) == value or (key in HOW_BUILT and not exact) or (key == "version" and still_loads(kept, value)):
            continue
        return None, f"{key} is {short(value)} now, the plan was built for {short(kept.get(key))}"
    if hashlib.sha256(data).hexdigest() != kept.get("plan_sha256"):
        return None, "the plan is not the one that its manifest describes, it is damaged or has been changed"
    return Plan(data, path, False, int(kept.get("dla_core", -1)), bool(kept.get("version_compatible"))), ""


def still_loads(kept: dict[str, Any], version: str) -> bool:
    """Whether a version-compatible plan is from the same major release of TensorRT, and from no later one."""
    try:
        built, now = (tuple(int(part) for part in text.split(".")[:3]) for text in (str(kept.get("version")), version))
    except ValueError:
        return False
    return bool(kept.get("version_compatible")) and built[0] == now[0] and built <= now


def short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "…" if re.fullmatch(r"[0-9a-f]{64}", text) else text


def write_plan(path: Path, data: bytes, wanted: dict[str, Any]) -> None:
    """The plan first, its manifest last: a manifest never speaks of a plan that is not there whole."""
    write_whole(path, data)
    described = {**wanted, "plan_sha256": hashlib.sha256(data).hexdigest()}
    write_whole(path.with_suffix(".json"), (json.dumps(described, indent=2) + "\n").encode())


def read_timing_cache(path: Path) -> bytes:
    """What earlier builds learned, nothing where there is no such file or it cannot be read."""
    from filelock import FileLock

    with suppress(OSError):
        if path.exists():
            with FileLock(path.with_suffix(".lock")):
                return path.read_bytes()
    return b""
