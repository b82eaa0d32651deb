"""The CUDA kernels as host code: the same sources through the host's C++ compiler, launched in the same way."""

from __future__ import annotations

import atexit
import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.cuda.compile import KERNELS

HEADER = Path(__file__).with_name("cuda_host.h")
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-fPIC", "-shared")
LETTERS = {np.dtype(np.uint64): "p", np.dtype(np.int32): "i", np.dtype(np.float32): "f"}


def host_compiler() -> str | None:
    """Path of a C++ compiler, None where there is none."""
    return shutil.which("g++") or shutil.which("clang++")


class HostModule:
    """A `engine.cuda.launch.KernelModule` on the CPU: addresses are of this process, a launch returns when it is done.

    Attributes:
        path: of the shared library. For each kernel it exports ``NAME__run(const unsigned grid[3], const unsigned block[3],
            const void *packed)``, the parameters packed as the CUDA driver packs them, and ``const char *NAME__parameters()``,
            one letter each: p pointer, i int, f float.
        names: of the kernels.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = tuple(names)
        self._library = ctypes.CDLL(str(path))

    def parameters(self, name: str) -> str:
        """One letter for each parameter of the kernel: p pointer, i int, f float."""
        function = getattr(self._library, f"{name}__parameters")
        function.restype = ctypes.c_char_p
        return function().decode()

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[np.generic],
        stream: object = None,
    ) -> None:
        """Run the kernel on every thread of the grid.

        Raises:
            KeyError: there is no such kernel.
            TypeError: the arguments are not of the types of its parameters; a GPU would not notice.
        """
        if name not in self.names:
            raise KeyError(name)
        given = "".join(LETTERS.get(arg.dtype, "?") for arg in args)
        if given != self.parameters(name):
            raise TypeError(f"{name}: takes {self.parameters(name)}, given {given}")
        self.launch_packed(name, grid, block, pack(args))

    def launch_packed(self, name: str, grid: tuple[int, int, int], block: tuple[int, int, int], packed: bytes) -> None:
        """The same with the parameters as one buffer, which is taken as it is."""
        dim3 = ctypes.c_uint * 3
        getattr(self._library, f"{name}__run")(dim3(*grid), dim3(*block), packed)


def pack(args: Sequence[np.generic]) -> bytes:
    """The arguments in a row, each aligned to its own size."""
    packed = b""
    for arg in args:
        packed += bytes(-len(packed) % arg.itemsize) + arg.tobytes()
    return packed


@functools.cache
def host_kernels() -> HostModule:
    """The kernels, compiled once per process.

    Raises:
        FileNotFoundError: there is no C++ compiler.
        subprocess.CalledProcessError: it refuses the kernels; why is on its standard error.
    """
    compiler = host_compiler()
    if compiler is None:
        raise FileNotFoundError("no g++ or clang++")
    folder = tempfile.TemporaryDirectory(prefix="freespace-kernels-")
    atexit.register(folder.cleanup)
    source, library = Path(folder.name, "kernels.cpp"), Path(folder.name, "kernels.so")
    names = kernel_names()
    exports = "\n".join(f"HOST_KERNEL({name})" for name in names)
    source.write_text(f'#include "{HEADER}"\n#include "{KERNELS / "module.cu"}"\n{exports}\n', encoding="utf-8")
    subprocess.run([compiler, *FLAGS, "-o", str(library), str(source)], check=True)
    return HostModule(library, names)


def kernel_names() -> list[str]:
    """Names of all kernels, as the sources have them."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.cu")))
    return re.findall(r"__global__\s+void\s+(\w+)", sources)
