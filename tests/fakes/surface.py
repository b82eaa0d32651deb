"""Python classes held to the surface of a real release: names it lacks are missing, calls it refuses are refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent
Signatures = list[list[str]]


def read_surface(name: str) -> dict[str, Any]:
    """The surface of release ``name``, such as ``tensorrt_10_3``; see `fakes.extract_surface` for its form."""
    return dict(json.loads((FOLDER / f"{name}.json").read_text("utf-8")))


class Member:
    """One member of an enum, as pybind11 makes them: equal to itself alone, with ``int()``, ``name`` and ``value``."""

    name: str
    value: int
    _ordered = False
    __members__: dict[str, Member]

    def __init__(self, value: int) -> None:
        for name, member in type(self).__members__.items():
            if member.value == value:
                self.name, self.value = name, member.value
                return
        raise ValueError(f"{value} is not a valid {type(self).__name__}")

    def __int__(self) -> int:
        return self.value

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and other.value == self.value

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.value))

    def __le__(self, other: Member) -> bool:
        return self._compare(other, self.value <= int(other))

    def __lt__(self, other: Member) -> bool:
        return self._compare(other, self.value < int(other))

    def __ge__(self, other: Member) -> bool:
        return self._compare(other, self.value >= int(other))

    def __gt__(self, other: Member) -> bool:
        return self._compare(other, self.value > int(other))

    def _compare(self, other: Member, result: bool) -> bool:
        if not (self._ordered and type(other) is type(self)):
            raise TypeError(f"{type(self).__name__} has no order")
        return result

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self.value}>"

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


def make_enum(name: str, described: Mapping[str, Any]) -> type[Member]:
    kind: type[Member] = type(name, (Member,), {"__members__": {}, "_ordered": described["ordered"]})
    for label, value in described["members"].items():
        member = object.__new__(kind)
        member.name, member.value = label, value
        kind.__members__[label] = member
        setattr(kind, label, member)
    return kind


def fits(value: object, kind: str, classes: Mapping[str, type]) -> bool:
    """Whether a C++ signature with ``kind`` takes ``value``: an enum is no int, an int is no enum."""
    if kind == "int":
        return hasattr(value, "__index__") and not isinstance(value, Member)
    if kind == "float":
        return hasattr(value, "__float__") or hasattr(value, "__index__")
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, (str, bytes))
    if kind == "buffer":
        try:
            memoryview(value)  # type: ignore[arg-type]
        except TypeError:
            return False
        return True
    if kind == "Dims" and isinstance(value, (tuple, list)):  # made into one on the way in
        return all(fits(n, "int", classes) for n in value)
    return kind not in classes or value is None or isinstance(value, classes[kind])


def accepts(signature: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], classes: Mapping[str, type]) -> bool:
    """Whether a call matches one signature; names that the docstring made up (``arg0``) go by position only."""
    if len(args) > len(signature):
        return False
    left = dict(kwargs)
    for place, parameter in enumerate(signature):
        name, _, kind = parameter.partition(":")
        made_up = name[:3] == "arg" and name[3:].isdigit()
        if place < len(args):
            value = args[place]
        elif name in left and not made_up:
            value = left.pop(name)
        elif kind.endswith("="):
            continue
        else:
            return False
        optional = kind.endswith("=")
        if not (fits(value, kind.rstrip("="), classes) or (optional and value is None)):
            return False
    return not left


def checked(
    name: str, body: Callable[..., Any], signatures: Signatures, classes: Mapping[str, type], method: bool
) -> Callable[..., Any]:
    """``body`` behind the check of its real signatures. The wrapper raises TypeError as the real function does."""

    @functools.wraps(body)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = args[1:] if method else args
        if not any(accepts(s, given, kwargs, classes) for s in signatures):
            wanted = " or ".join(f"{name}({', '.join(s)})" for s in signatures)
            raise TypeError(f"{name}(): incompatible function arguments, wanted {wanted}, got {given} {kwargs}")
        return body(*args, **kwargs)

    return call


def missing(name: str) -> Callable[..., Any]:
    """The body of what the real release has and the fake does not do."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"the fake has the name {name}, as the release does, but not what it does")

    return refuse


class Meta(type):
    """The type of every held class: what Python may not construct cannot be, and ``__init__`` must be called."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls._described["init"] is None and cls._module_class is cls and not issubclass(cls, BaseException):
            raise TypeError(f"{cls.__name__}: No constructor defined!")
        made = super().__call__(*args, **kwargs)
        if cls._described["init"] is not None and not getattr(made, "_constructed", False):
            raise TypeError(f"{cls._module_class.__name__}.__init__() must be called when overriding __init__")
        return made

    _described: Mapping[str, Any]
    _module_class: Any


class Held:
    """Base of held classes: no attribute can be set that the release lacks, save in Python subclasses."""

    _described: Mapping[str, Any]
    _module_class: Any

    def __setattr__(self, name: str, value: object) -> None:
        if type(self) is type(self)._module_class and name[0] != "_" and name not in self._described["attributes"]:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        super().__setattr__(name, value)


def hold(name: str, body: type | None, described: Mapping[str, Any], base: type, classes: Mapping[str, type]) -> type:
    """The class ``name`` of the release: what ``body`` does, cut and filled up to the real surface."""
    space: dict[str, Any] = {"_described": described, "__module__": "fake"}
    for kind in reversed(body.__mro__[:-1] if body else ()):
        space.update({n: v for n, v in vars(kind).items() if n[0] == "_" and n not in ("__dict__", "__weakref__")})
    init = space.get("__init__")
    if described["init"] is not None:
        inner = checked(name, init or (lambda *_, **__: None), described["init"], classes, method=True)

        def construct(self: Any, *args: Any, **kwargs: Any) -> None:
            object.__setattr__(self, "_constructed", True)
            inner(self, *args, **kwargs)

        space["__init__"] = construct
    for label, what in described["attributes"].items():
        own = next((vars(k)[label] for k in (body.__mro__ if body else ()) if label in vars(k)), None)
        path = f"{name}.{label}"
        if isinstance(what, int):
            space[label] = what
        elif what in ("get", "get set"):
            space[label] = hold_property(own, path, what == "get set")
        elif what == "value":
            if own is not None:
                space[label] = own
        else:
            static = what == "static" or (isinstance(what, list) and what[0] == "static")
            function = own.__func__ if isinstance(own, staticmethod) else own
            signatures = what[1:] if static and isinstance(what, list) else what
            function = function or missing(path)
            if isinstance(signatures, list):
                function = checked(path, function, signatures, classes, method=not static)
            space[label] = staticmethod(function) if static else function
    made = Meta(name, (base,), space)
    made._module_class = made
    return made


def hold_property(own: Any, path: str, writable: bool) -> property:
    """A property as the release has it: read-only where that is; a plain default in the body makes a stored one."""
    if isinstance(own, property):
        return property(own.fget, (own.fset or missing(path)) if writable else None)
    if own is None:
        return property(missing(path), missing(path) if writable else None)
    slot = f"_{path.rpartition('.')[2]}"

    def store(self: Any, value: object) -> None:
        setattr(self, slot, value)

    return property(lambda self: getattr(self, slot, own), store if writable else None)


def build_module(name: str, surface: Mapping[str, Any], bodies: Mapping[str, Any], bases: Mapping[str, type]) -> ModuleType:
    """A module of exactly the public names of ``surface``.

    Args:
        name: of the module.
        surface: see `read_surface`.
        bodies: classes and functions that the fake implements; those that the release lacks are left out.
        bases: Python bases of classes that need one, such as exceptions.
    """
    module = ModuleType(name)
    enums: dict[str, type] = {}
    classes: dict[str, type] = {}
    nested = []
    for path, described in surface["enums"].items():
        owner, _, label = path.rpartition(".")
        twin = next((e for p, e in enums.items() if p.endswith(f".{label}") and owner), None)
        enums[path] = twin or bodies.get("make_enum", make_enum)(label, described)
        if owner:
            nested.append((owner, label, enums[path]))
        else:
            setattr(module, path, enums[path])
    known = _Names(classes, enums)
    waiting = dict(surface["classes"])
    while waiting:
        for label in [n for n, d in waiting.items() if not set(d["bases"]) & set(waiting)]:
            described = waiting.pop(label)
            base = classes[described["bases"][0]] if described["bases"] else bases.get(label, Held)
            if issubclass(base, BaseException):
                classes[label] = type(label, (base,), {"__module__": name})
            else:
                classes[label] = hold(label, bodies.get(label), described, base, known)
            setattr(module, label, classes[label])
    for owner, label, kind in nested:
        setattr(classes[owner], label, kind)
        for member, value in kind.__members__.items():  # type: ignore[attr-defined]
            if surface["classes"][owner]["attributes"].get(member) == "value":
                setattr(classes[owner], member, value)
    for label, signatures in surface["functions"].items():
        function = bodies.get(label) or missing(label)
        setattr(module, label, checked(label, function, signatures, known, method=False) if signatures else function)
    for label, origin in surface["aliases"].items():
        owner, _, member = origin.rpartition(".")
        setattr(module, label, getattr(enums[owner], member))
    for label, value in surface["values"].items():
        setattr(module, label, value)
    return module


class _Names(dict[str, type]):
    """Classes and enums by name, also of those that are made later."""

    def __init__(self, *parts: Mapping[str, type]) -> None:
        super().__init__()
        self.parts = parts

    def __contains__(self, name: object) -> bool:
        return any(name in p for p in self.parts)

    def __getitem__(self, name: str) -> type:
        return next(p[name] for p in self.parts if name in p)
