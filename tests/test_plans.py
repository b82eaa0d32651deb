"""Plans on disk: built once, used again, never used where anything differs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import Fakes, install

from engine import plans, read_contract, tensorrt_api
from engine.build import BuildCancelled, PlanOptions
from engine.contract import EngineError, ModelContract, ModelError
from engine.plans import Plan, Target, obtain_plan, plan_path

ORIN = Target("tensorrt", "11.4.0.106", "Orin", (8, 7))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return install(monkeypatch, "11.4")


@pytest.fixture
def contract(tiny_model: Path) -> ModelContract:
    return read_contract(tiny_model)


class Cache:
    """A folder of plans, and what was said while it was used."""

    def __init__(self, folder: Path, contract: ModelContract) -> None:
        self.folder, self.contract, self.said = folder, contract, []  # type: ignore[var-annotated]

    def obtain(self, options: PlanOptions | None = None, target: Target = ORIN, **more: object) -> Plan:
        self.said.clear()
        trt = tensorrt_api.load("tensorrt")
        options = options or PlanOptions()
        return obtain_plan(trt, self.contract, options, target, self.folder, self.said.append, **more)  # type: ignore[arg-type]

    def files(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if p.suffix not in (".lock", ".cache"))


@pytest.fixture
def cache(tmp_path: Path, contract: ModelContract, fakes: Fakes) -> Cache:
    return Cache(tmp_path / "plans", contract)


def test_built_once_and_used_again(cache: Cache, fakes: Fakes) -> None:
    first, second = cache.obtain(), cache.obtain()
    assert (first.built, second.built) == (True, False)
    assert first.data == second.data
    assert len(fakes.trt.builds) == 1
    assert cache.said == [], "nothing is worth a line the second time"
    assert [name.rsplit(".")[-1] for name in cache.files()] == ["json", "plan"]
    assert first.path is not None
    described = json.loads(first.path.with_suffix(".json").read_text())
    assert described["model_sha256"] == cache.contract.sha256
    assert described["plan_sha256"] == hashlib.sha256(first.data).hexdigest()
    assert (described["gpu"], described["compute_capability"], described["version"]) == ("Orin", [8, 7], "11.4.0.106")
    assert described["tensors"]["image"] == {"shape": [1, 32, 64, 3], "dtype": "uint8"}
    assert described["tensors"]["scores"] == {"shape": [1, 2, 32, 64], "dtype": "uint8"}


def test_the_builder_gets_what_was_asked_for(cache: Cache, fakes: Fakes) -> None:
    fakes.trt.dla_cores = 2
    cache.obtain(PlanOptions("fp32", workspace_mib=64, dla_core=1, version_compatible=True))
    (build,) = fakes.trt.builds
    assert build["strongly_typed"]
    assert build["workspace"] == 64 << 20
    assert (str(build["device_type"]).rsplit(".")[-1], build["DLA_core"]) == ("DLA", 1)
    assert {"VERSION_COMPATIBLE", "GPU_FALLBACK"} <= {str(flag).rsplit(".")[-1] for flag in build["flags"]}


@pytest.mark.parametrize("release", ["10.3", "10.13", "11.4"])
def test_every_release_builds_strongly_typed(
    release: str, tmp_path: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = install(monkeypatch, release)
    assert Cache(tmp_path, contract).obtain().built
    assert fakes.trt.builds[0]["strongly_typed"]


def test_run_takes_a_plan_however_it_was_built(cache: Cache, fakes: Fakes) -> None:
    fakes.trt.dla_cores = 1
    on_purpose = PlanOptions(workspace_mib=64, dla_core=0, version_compatible=True)
    assert cache.obtain(on_purpose, exact=True).built
    found = cache.obtain()
    assert (found.built, found.dla_core, found.version_compatible) == (False, 0, True)
    assert cache.obtain(PlanOptions(), exact=True).built, "asked for by name it is built as asked for"


def test_version_compatible_plans_outlive_an_update(cache: Cache) -> None:
    cache.obtain(PlanOptions(version_compatible=True), exact=True)
    assert not cache.obtain(target=replace(ORIN, version="11.5.0.1")).built
    assert cache.obtain(target=replace(ORIN, version="12.0.0.1")).built, "another major version"
    cache.obtain(PlanOptions(version_compatible=True), replace(ORIN, version="11.5.0.1"), exact=True, force=True)
    assert cache.obtain(target=ORIN).built, "an older runtime does not load a newer plan"


def test_a_plan_in_a_folder_that_cannot_be_written_is_used(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.obtain()

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    again = cache.obtain()
    assert (again.built, again.data) == (False, first.data)


def test_models_of_one_name_do_not_displace_each_other(tmp_path: Path, tiny_model: Path, fakes: Fakes) -> None:
    caches = []
    for name in ("front", "rear"):
        (tmp_path / name).mkdir()
        shutil.copy(tiny_model, tmp_path / name / "model.onnx")
        caches.append(Cache(tmp_path / "plans", read_contract(tmp_path / name / "model.onnx")))
    assert all(cache.obtain().built for cache in caches)
    assert not any(cache.obtain().built for cache in caches)


def test_one_line_while_another_process_builds(cache: Cache, tiny_model: Path) -> None:
    other = start(tiny_model, cache.folder, 2.0)
    assert other.stdout is not None
    assert other.stdout.readline() == "building\n"
    plan = cache.obtain()
    assert "another process is building" in cache.said[0]
    assert other.wait(timeout=120) == 0
    assert not plan.built


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"version": "11.5.0.1"}, "version is 11.5.0.1 now, the plan was built for 11.4.0.106"),
        ({"model": "0" * 64}, "model_sha256 is 000000000000… now"),
        ({"multiprocessors": 16}, "multiprocessors is 16 now, the plan was built for 0"),
        ({"workspace_mib": 32}, "workspace_mib is 32 now, the plan was built for 0"),
    ],
)
def test_built_again_with_one_line_when_something_differs(cache: Cache, change: dict[str, object], line: str) -> None:
    cache.obtain()
    if "model" in change:
        cache.contract = replace(cache.contract, sha256=str(change["model"]))
    known = {key: value for key, value in change.items() if key in ("version", "multiprocessors")}
    target = replace(ORIN, **known)  # type: ignore[arg-type]
    options = PlanOptions(workspace_mib=int(str(change.get("workspace_mib", 0))))
    assert cache.obtain(options, target, exact=True).built
    assert len(cache.said) == 1
    assert line in cache.said[0]
    assert len(cache.files()) == 2, "it takes the old one's place"
    assert not cache.obtain(options, target, exact=True).built


def test_other_gpus_sizes_and_precisions_have_plans_of_their_own(cache: Cache) -> None:
    variants = [
        (PlanOptions(), ORIN),
        (PlanOptions("fp32"), ORIN),
        (PlanOptions(batch=4), ORIN),
        (PlanOptions(), replace(ORIN, gpu="NVIDIA H200", compute_capability=(9, 0))),
    ]
    assert all(cache.obtain(*variant).built for variant in variants)
    assert not any(cache.obtain(*variant).built for variant in variants)
    paths = {plan_path(cache.folder, cache.contract, *variant) for variant in variants}
    assert len(paths) == len(variants)


def damage_plan(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_plan(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty_plan(path: Path) -> None:
    path.write_bytes(b"")


def break_manifest(path: Path) -> None:
    path.with_suffix(".json").write_text('{"schema": "freespace-plan/1", ')


def other_manifest(path: Path) -> None:
    path.with_suffix(".json").write_text("[]")


def lose_manifest(path: Path) -> None:
    path.with_suffix(".json").unlink()


def swap_plan_and_hash(path: Path) -> None:
    """Somebody else's plan with a manifest that fits it, but for what it was built from."""
    path.write_bytes(b"other")
    described = json.loads(path.with_suffix(".json").read_text())
    described |= {"plan_sha256": hashlib.sha256(b"other").hexdigest(), "model_sha256": "1" * 64}
    path.with_suffix(".json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    "harm", [damage_plan, cut_plan, empty_plan, break_manifest, other_manifest, lose_manifest, swap_plan_and_hash]
)
def test_what_does_not_fit_is_never_handed_out(cache: Cache, fakes: Fakes, harm: object) -> None:
    first = cache.obtain()
    assert first.path is not None
    harm(first.path)  # type: ignore[operator]
    again = cache.obtain()
    assert again.built
    assert again.data == first.data
    assert len(cache.said) == 1
    assert not cache.obtain().built


def test_killed_between_plan_and_manifest(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new plan is there, the manifest is still the old one's."""
    cache.obtain()
    whole = plans.write_whole

    def die(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        whole(path, data + b"newer")

    monkeypatch.setattr(plans, "write_whole", die)
    with pytest.raises(KeyboardInterrupt):
        cache.obtain(force=True)
    monkeypatch.undo()
    install(monkeypatch, "11.4")
    assert cache.obtain().built
    assert "damaged or has been changed" in cache.said[0]


def test_killed_while_writing_leaves_a_part_that_nobody_reads(cache: Cache) -> None:
    path = plan_path(cache.folder, cache.contract, PlanOptions(), ORIN)
    path.parent.mkdir(parents=True)
    part = path.with_name(f".{path.name}.1-2.part")
    part.write_bytes(b"half")
    assert cache.obtain().built
    assert not cache.obtain().built
    assert cache.files() == sorted([part.name, path.with_suffix(".json").name, path.name])


def test_full_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(plans, "write_whole", full)
    plan = cache.obtain()
    assert plan.built
    assert plan.data
    assert plan.path is None
    assert "No space left" in cache.said[-1]
    assert cache.files() == []


def test_folder_that_cannot_be_written(tmp_path: Path, contract: ModelContract, fakes: Fakes) -> None:
    (tmp_path / "plans").write_text("a file where the folder should be")
    cache = Cache(tmp_path / "plans", contract)
    plan = cache.obtain()
    assert plan.built
    assert plan.path is None
    assert "not keeping it" in cache.said[0]


def test_build_that_fails_leaves_nothing(cache: Cache, fakes: Fakes) -> None:
    fakes.trt.fail_build = "no tactics"
    with pytest.raises(EngineError, match="no tactics"):
        cache.obtain()
    assert cache.files() == []
    fakes.trt.fail_build = ""
    assert cache.obtain().built


def test_build_can_be_stopped(cache: Cache) -> None:
    phases: list[tuple[str, int, int]] = []

    def stop_at_second_step(phase: str, done: int, steps: int) -> bool:
        phases.append((phase, done, steps))
        return len(phases) < 2

    with pytest.raises(BuildCancelled):
        cache.obtain(progress=stop_at_second_step)
    assert cache.files() == []
    assert all(0 < done <= steps for _, done, steps in phases)


def test_build_timings_are_kept_and_used(cache: Cache, fakes: Fakes, tmp_path: Path) -> None:
    cache.obtain()
    cache.obtain(PlanOptions(batch=2))
    assert not fakes.trt.builds[0]["timing_cache"]
    assert fakes.trt.builds[1]["timing_cache"], "the second build began with what the first had learned"
    own = tmp_path / "own.cache"
    cache.obtain(PlanOptions(batch=3), timing_cache=own)
    assert own.stat().st_size > 0
    own.write_bytes(b"rubbish")
    assert cache.obtain(PlanOptions(batch=4), timing_cache=own).built, "a broken one is passed over"


def test_threads_that_want_the_same_plan_build_it_once(cache: Cache, fakes: Fakes) -> None:
    built: list[bool] = []
    trt = tensorrt_api.load("tensorrt")

    def work() -> None:
        built.append(obtain_plan(trt, cache.contract, PlanOptions(), ORIN, cache.folder).built)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(built) == [False, False, False, True]


PROCESS = """
import sys, time
sys.path[:0] = [{tests!r}]
import pytest
from pathlib import Path
from fakes import install
with pytest.MonkeyPatch.context() as patch:
    install(patch, "11.4")
    from engine import plans, read_contract, tensorrt_api
    from engine.build import PlanOptions, build_plan
    def slow(*arguments):
        print("building", flush=True)
        time.sleep(float(sys.argv[3]))
        return build_plan(*arguments)
    plans.build_plan = slow
    target = plans.Target("tensorrt", "11.4.0.106", "Orin", (8, 7))
    contract = read_contract(Path(sys.argv[1]))
    plan = plans.obtain_plan(tensorrt_api.load("tensorrt"), contract, PlanOptions(), target, Path(sys.argv[2]))
    print("built" if plan.built else "found", flush=True)
"""


def start(model: Path, folder: Path, seconds: float) -> subprocess.Popen[str]:
    script = PROCESS.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script, str(model), str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_processes_that_want_the_same_plan_build_it_once(tmp_path: Path, tiny_model: Path) -> None:
    first = start(tiny_model, tmp_path / "plans", 3.0)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    second = start(tiny_model, tmp_path / "plans", 3.0)
    assert [process.communicate(timeout=120)[0].split() for process in (first, second)] == [["built"], ["found"]]


def test_killed_in_the_middle_of_a_build(tmp_path: Path, tiny_model: Path) -> None:
    first = start(tiny_model, tmp_path / "plans", 600.0)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    first.kill()
    first.wait()
    outputs = start(tiny_model, tmp_path / "plans", 0.0).communicate(timeout=120)[0].split()
    assert outputs == ["building", "built"], "the lock of a dead process holds nobody up"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PlanOptions("int8"), "Q/DQ"),
        (PlanOptions("fp8"), "fp32, fp16, int8"),
        (PlanOptions(batch=0), "1 or more"),
        (PlanOptions(dla_core=0), "this machine has 0"),
        (PlanOptions(compute_capabilities=((8, 6),)), "TensorRT for RTX"),
    ],
)
def test_what_cannot_be_had_is_said(cache: Cache, options: PlanOptions, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        cache.obtain(options)
    assert not cache.folder.exists() or cache.files() == []


@pytest.mark.parametrize("version", ["8.6.1", "7.1.3"])
def test_old_releases_are_refused(fakes: Fakes, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fakes.tensorrt, "__version__", version)
    with pytest.raises(ModelError, match=f"TensorRT {version} is too old"):
        tensorrt_api.load()


def test_build_command(
    tmp_path: Path,
    tiny_model: Path,
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from perception.cli import app

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    app(["build", str(tiny_model), "--precision", "fp32"], standalone_mode=False)
    first = capsys.readouterr()
    assert "built in" in first.out
    assert "there is no plan yet" in first.err
    (plan,) = (tmp_path / "freespace/plans").glob("tiny_??????_64x32_b1_fp32_tensorrt_sm87_Orin.plan")
    assert str(plan) in first.out
    app(["build", str(tiny_model), "--precision", "fp32"], standalone_mode=False)
    assert "fits already" in capsys.readouterr().out
    app(["build", str(tiny_model), "--precision", "fp32", "--force"], standalone_mode=False)
    assert "asked for" in capsys.readouterr().err
    assert len(fakes.trt.builds) == 2
    app(["build", str(tiny_model), "--input-size", "128x96", "--batch", "2"], standalone_mode=False)
    assert list((tmp_path / "freespace/plans").glob("tiny_??????_128x96_b2_fp16_tensorrt_sm87_Orin.plan"))
    assert fakes.leaks() == []
