"""The kernels as machine code for one GPU architecture: compiled once, kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from engine.contract import ModelError
from engine.files import write_whole

KERNELS = Path(__file__).parent / "kernels"
FLAGS = ("-O3", "-std=c++17", "-cubin")
ARCHITECTURES = ("sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")
DEFAULT_HOME = "/usr/local/cuda"
ERROR_LINES = 5


def cubin(arch: str, fresh: bool = False) -> bytes:
    """The kernels for ``arch``, as in ``sm_87``; from the cache where the sources have not changed since.

    Args:
        fresh: compile again, because the driver does not load what is in the cache.

    Raises:
        ModelError: there is no CUDA compiler, or it fails.
    """
    path = user_cache_path("freespace") / "cubins" / f"{arch}-{_fingerprint(arch)}.cubin"
    if not fresh:
        with suppress(OSError):
            return path.read_bytes()
    compiler = find_nvcc()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "module.cubin")
        _run([compiler, *FLAGS, f"-arch={arch}", "-o", str(made), str(KERNELS / "module.cu")], f"the kernels for {arch}")
        data = made.read_bytes()
    with suppress(OSError):  # where the cache cannot be written they are compiled at every start
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    return data


def find_nvcc() -> str:
    """Path of the CUDA compiler: in ``$CUDA_HOME``, ``$CUDA_PATH``, on ``$PATH`` or in ``/usr/local/cuda``.

    Raises:
        ModelError: there is none.
    """

    def within(home: str | None) -> str | None:
        return shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None

    homes = os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")
    found = within(homes[0]) or within(homes[1]) or shutil.which("nvcc") or within(DEFAULT_HOME)
    if found:
        return found
    raise ModelError(
        "nvcc, which compiles the CUDA kernels, is not there; install the CUDA toolkit (Debian and Ubuntu: "
        "nvidia-cuda-toolkit, Jetson: nvidia-jetpack) or set CUDA_HOME to where it is"
    )


def supported(nvcc: str) -> list[str]:
    """Those of `ARCHITECTURES` that this compiler knows.

    Raises:
        ModelError: it cannot be asked.
    """
    known = set(_run([nvcc, "--list-gpu-code"], "the list of architectures").split())
    return [arch for arch in ARCHITECTURES if arch in known]


def _fingerprint(arch: str) -> str:
    """Of everything that decides what is compiled."""
    digest = hashlib.sha256(repr((FLAGS, arch)).encode())
    for source in sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")]):
        data = source.read_bytes()
        digest.update(f"{source.name} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:16]


def _run(command: list[str], what: str) -> str:
    """Standard output of the compiler. Raises `ModelError` with its first lines where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ModelError(f"{command[0]}: cannot be run: {error.strerror}") from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        said = "\n".join(lines[:ERROR_LINES]) or f"exit code {done.returncode}"
        raise ModelError(f"{command[0]}: failed to make {what}:\n{said}")
    return done.stdout
