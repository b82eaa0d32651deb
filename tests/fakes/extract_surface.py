"""Write down what a real release exposes: the surface that the fakes are held to.

Run from ``tests/``, with a wheel of bindings or the name of a module that is installed:

    pip download --no-deps tensorrt-cu12-bindings==10.3.0
    pip download --no-deps tensorrt-cu13-bindings==10.13.3.9.post1
    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
    python -m fakes.extract_surface tensorrt_cu12_bindings-10.3.0-*.whl fakes/tensorrt_10_3.json
    python -m fakes.extract_surface tensorrt_cu13_bindings-10.13.*.whl fakes/tensorrt_10_13.json
    python -m fakes.extract_surface tensorrt_cu13_bindings-11.4.*.whl fakes/tensorrt_11_4.json
    python -m fakes.extract_surface tensorrt_rtx_bindings fakes/tensorrt_rtx_1_7.json
    python -m fakes.extract_surface pycuda.driver fakes/pycuda_2026_1.json

No GPU is needed: where ``libnvinfer`` and its kin or ``libcuda`` are missing, empty libraries of those names are compiled
(``gcc``, ``nm``, ``readelf``) and loaded first. Nothing of the release is called but its docstrings.

The JSON: ``classes`` name -> {``bases``, ``init`` (a list of signatures or null where Python cannot construct it),
``attributes`` name -> ``"get"``, ``"get set"``, ``"value"`` or its number, ``"method"`` or ``"static"``, or a list of
signatures where the class is one that the fakes implement, with ``"static"`` as the first item of a static method's};
``enums`` (nested ones with a dot) -> {``members``, ``ordered``}; ``functions`` -> signatures or null; ``aliases`` such as
``float32`` -> ``DataType.FLOAT``; ``values``, the plain numbers. A signature is a list of ``name:type``, ``=`` added where it
has a default.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

TENSORRT_CLASSES = {
    *("Builder", "IBuilderConfig", "INetworkDefinition", "ITensor", "IOptimizationProfile", "ITimingCache", "IHostMemory"),
    *("OnnxParser", "ParserError", "Runtime", "ICudaEngine", "IExecutionContext", "IProgressMonitor", "ILogger", "Logger"),
    *("Dims", "IRuntimeConfig", "EngineInspector"),
}
SYSTEM_LIBRARIES = ("libc.", "libm.", "libstdc++.", "libgcc_s.", "libdl.", "libpthread.", "librt.", "ld-linux")


def load_stand_ins(extension: Path, folder: Path) -> None:
    """Load an empty library for every one that ``extension`` needs and the system lacks, with all symbols it may want."""
    dynamic = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    undefined = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True).stdout
    names = sorted({line.split()[-1] for line in undefined.splitlines()})
    wanted = [n for n in names if re.match(r"cu[A-Z]|create\w+_INTERNAL|get\w*PluginRegistry|getNvOnnx|initLibNvInfer", n)]
    source = "".join(f"int {n}(void) {{ return 0; }}\n" for n in wanted)
    for library in re.findall(r"Shared library: \[(.*?)\]", dynamic):
        if library.startswith(SYSTEM_LIBRARIES):
            continue
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            target = folder / library
            command = ["gcc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-x", "c", "-", "-o", target]
            subprocess.run(command, input=source, text=True, check=True)
            ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


def load(what: str, folder: Path) -> ModuleType:
    """The module of a wheel file or of a module's name, imported without its libraries if need be."""
    if what.endswith(".whl"):
        with zipfile.ZipFile(what) as wheel:
            wheel.extractall(folder)
        sys.path.insert(0, str(folder))
        what = next(p.parent.name for p in folder.glob("*/__init__.py"))
    try:
        return importlib.import_module(what)
    except ImportError:
        spec = importlib.util.find_spec(what.partition(".")[0])
        assert spec is not None, f"{what} is not installed"
        assert spec.origin is not None
        for extension in Path(spec.origin).parent.glob("*.so"):
            load_stand_ins(extension, folder)
        return importlib.import_module(what)


def split(parameters: str) -> list[str]:
    """Cut a pybind11 parameter list at its commas, leaving those inside brackets."""
    parts, depth = [""], 0
    for letter in parameters:
        depth += (letter in "[(<{") - (letter in "])>}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [p.strip() for p in parts if p.strip()]


def pybind_signatures(name: str, doc: str) -> list[list[str]]:
    """Signatures in a pybind11 docstring, ``self`` left out."""
    found = []
    for match in re.finditer(rf"^(?:\d+\. )?{re.escape(name)}\((.*)\) -> .*$", doc, re.MULTILINE):
        parameters = []
        for part in split(match[1]):
            label, _, rest = part.partition(":")
            kind, _, default = rest.partition(" = ")
            if label != "self":
                parameters.append(f"{label.strip()}:{simple_type(kind.strip())}" + ("=" if default else ""))
        if match[1] != "*args, **kwargs":
            found.append(parameters)
    return found


def simple_type(kind: str) -> str:
    """One word for a type in a docstring: int, float, bool, str, buffer, the name of a class, or nothing for the rest."""
    kind = kind.replace("typing_extensions.Buffer", "buffer").replace("typing.SupportsInt", "int")
    kind = kind.replace("typing.SupportsFloat", "float").replace(" | int.SupportsIndex", "")
    if kind.startswith(("tensorrt_bindings.", "tensorrt_rtx_bindings.")):
        return kind.split(".", 2)[2]
    return kind if kind in ("int", "float", "bool", "str", "buffer") else ""


def boost_signatures(name: str, doc: str, method: bool) -> list[list[str]]:
    """Signatures in a Boost.Python docstring; numpy and DeviceAllocation arguments are of type object there."""
    found = []
    for match in re.finditer(rf"^{re.escape(name)}\((.*)\) -> ", doc, re.MULTILINE):
        optional = match[1].find("[")
        parameters = []
        for part in re.finditer(r"\((\w+)\)(\w+)", match[1]):
            kind = part[1] if part[1] in ("int", "float", "bool", "str") else ""
            parameters.append(f"{part[2]}:{kind}" + ("=" if 0 <= optional < part.start() else ""))
        found.append(parameters[1:] if method else parameters)
    return found


def signatures(name: str, member: object, method: bool) -> list[list[str]] | None:
    """Signatures of a function in whatever way its maker wrote them down; None where it did not."""
    if isinstance(member, FunctionType):
        parameters = list(inspect.signature(member).parameters.values())[1 if method else 0 :]
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            return None
        return [[f"{p.name}:" + ("" if p.default is p.empty else "=") for p in parameters]]
    doc = getattr(member, "__doc__", None) or ""
    return (boost_signatures(name, doc, method) if "C++ signature" in doc else pybind_signatures(name, doc)) or None


def is_enum(thing: object) -> bool:
    """Whether ``thing`` is an enum of pybind11 (``__members__``) or of Boost.Python (``names``)."""
    return isinstance(thing, type) and (hasattr(thing, "__members__") or isinstance(vars(thing).get("names"), dict))


def describe_enum(kind: Any) -> dict[str, Any]:
    members = dict(getattr(kind, "__members__", None) or kind.names)
    first = next(iter(members.values()))
    try:
        ordered = bool(first <= first)
    except TypeError:
        ordered = False
    return {"members": {n: int(m) for n, m in members.items()}, "ordered": ordered}


def describe_class(name: str, kind: Any, classes: dict[str, type], detailed: bool) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for label in dir(kind):
        if label.startswith("_") or hasattr(BaseException, label):
            continue
        raw = inspect.getattr_static(kind, label)
        if isinstance(raw, property):
            attributes[label] = "get set" if raw.fset else "get"
        elif isinstance(raw, staticmethod):
            found = signatures(label, raw.__func__, method=False) if detailed else None
            attributes[label] = ["static", *found] if found else "static"
        elif callable(getattr(kind, label)) and not isinstance(raw, type):
            attributes[label] = (signatures(label, raw, method=True) if detailed else None) or "method"
        elif not isinstance(raw, type):
            attributes[label] = raw if isinstance(raw, int) else "value"
    init = vars(kind).get("__init__")
    constructor = signatures("__init__", init, method=True) if init is not None else None
    bases = [n for n, c in classes.items() if c in kind.__mro__[1:]]
    return {"bases": bases[:1], "init": constructor, "attributes": attributes}


def describe(module: ModuleType) -> dict[str, Any]:
    """The whole surface of ``module``."""
    public = {n: getattr(module, n) for n in dir(module) if not n.startswith("_")}
    pycuda = module.__name__.startswith("pycuda")
    surface: dict[str, Any] = {"version": getattr(module, "__version__", ""), "classes": {}, "enums": {}, "functions": {}}
    surface |= {"aliases": {}, "values": {}}
    enums = {n: v for n, v in public.items() if is_enum(v)}
    classes = {n: v for n, v in public.items() if isinstance(v, type) and n not in enums}
    for name, kind in classes.items():
        for label in dir(kind):
            if is_enum(inspect.getattr_static(kind, label)) and label in vars(kind):
                enums[f"{name}.{label}"] = getattr(kind, label)
    qualified: dict[type, str] = {}
    for name, kind in enums.items():
        surface["enums"][name] = describe_enum(kind)
        qualified.setdefault(kind, name)
    for name, kind in classes.items():
        surface["classes"][name] = describe_class(name, kind, classes, detailed=pycuda or name in TENSORRT_CLASSES)
    for name, value in public.items():
        if name in enums or name in classes or isinstance(value, ModuleType):
            continue
        if type(value) in qualified:
            surface["aliases"][name] = f"{qualified[type(value)]}.{value.name}"
        elif isinstance(value, (FunctionType, BuiltinFunctionType)) or "function" in type(value).__name__:
            surface["functions"][name] = signatures(name, value, method=False)
        elif isinstance(value, (int, float)):
            surface["values"][name] = value
    return surface


def main(what: str, target: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        surface = describe(load(what, Path(folder)))
    Path(target).write_text(json.dumps(surface, separators=(",", ":"), sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
