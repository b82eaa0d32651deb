"""``freespace build`` as a person sees it: compiles a model, shows how far it is, says where the plan lies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from engine import tensorrt_api
from engine.build import BuildCancelled, PlanOptions
from engine.contract import ModelContract, ModelError
from engine.plans import ANY_GPU, Plan, Target, obtain_plan
from perception import service
from perception.errors import FreespaceError, tell


def build(
    contract: ModelContract, options: PlanOptions, flavour: str, timing_cache: Path | None = None, force: bool = False
) -> None:
    """Build and keep the plan for the GPU at hand, or for ``options.compute_capabilities``.

    Raises:
        ModelError, EngineError: as `engine.plans.obtain_plan`.
        FreespaceError: the plan was built and could not be kept.
    """
    trt = tensorrt_api.load(flavour)
    target = find_target(flavour, trt.__version__, options)
    started = time.perf_counter()
    with progress_bar() as progress, interrupted():
        plan = obtain_plan(
            trt, contract, options, target, say=tell, progress=progress, exact=True, force=force, timing_cache=timing_cache
        )
    if plan.path is None:
        raise FreespaceError("the plan was built and could not be kept")
    print(describe(plan, time.perf_counter() - started))


@contextmanager
def interrupted() -> Iterator[None]:
    """Nobody stops this build but Ctrl-C, which TensorRT turns into a cancelled build."""
    try:
        yield
    except BuildCancelled as error:
        raise KeyboardInterrupt from error


def find_target(flavour: str, version: str, options: PlanOptions) -> Target:
    """The GPU at hand, or the one asked for. Raises `ModelError`: there is none, or more than one is asked for."""
    if options.compute_capabilities:
        if flavour != "tensorrt_rtx" or len(options.compute_capabilities) != 1:
            raise ModelError("one target at a time, and with TensorRT for RTX only; TensorRT builds for the GPU at hand")
        return Target(flavour, version, ANY_GPU, options.compute_capabilities[0])
    from engine.cuda.driver import Gpu
    from engine.tensorrt_engine import target_of

    gpu = Gpu()
    try:
        return target_of(version, flavour, gpu)
    finally:
        gpu.close()


def describe(plan: Plan, seconds: float) -> str:
    size = f"{len(plan.data) / 1e6:.1f} MB"
    done = f"built in {seconds:.1f} s" if plan.built else "fits already, nothing to build; --force builds it again"
    return f"plan {plan.path}, {size}, {done}"


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], bool]]:
    """Yields what TensorRT's phases are reported to; a bar for each on stderr, where that is a terminal."""
    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, disable=not console.is_terminal
    ) as bars:

        def report(phase: str, done: int, steps: int) -> bool:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=steps)
            service.notify(f"STATUS={phase}: {100 * done // max(steps, 1)} %")
            return True

        yield report
