"""Settings from a YAML file: one typed tree; unknown keys and wrong types are refused with the key's path."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

S = TypeVar("S", bound="Section")


class Section(BaseModel):
    """Keys with types, defaults and ranges."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Loader(yaml.SafeLoader):
    """YAML 1.1 with 1.2's numbers: ``1e-3`` without a dot is one, not a text; and a key may stand once, as YAML has it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def parse_yaml(text: str) -> Any:
    """What ``yaml.safe_load`` gives, but for `Loader`'s numbers. Raises yaml.YAMLError."""
    return yaml.load(text, Loader)  # a SafeLoader


def read_settings(kind: type[S], path: Path | None, overrides: dict[str, Any]) -> S:
    """The defaults of ``kind``, then the YAML file, then ``overrides`` by the key's path (``"engine.backend"``).

    Raises:
        ValueError: the file is missing or no YAML, or a key is unknown or has a value of the wrong type or range; the
            message names the key by its path.
    """
    tree = read_yaml(kind, path) if path else {}
    for key, value in overrides.items():
        put(tree, key, value, path)
    try:
        return kind.model_validate(tree, strict=True)
    except ValidationError as error:
        sentences = (place(path, overrides, e) + describe(kind, e) for e in error.errors())
        raise ValueError("; ".join(" ".join(sentence.split()) for sentence in sentences)) from error  # keys can hold line ends


def place(path: Path | None, overrides: dict[str, Any], error: Any) -> str:
    """The file that a mistake is in, "" where it is in the overrides."""
    key = ".".join(map(str, error["loc"]))
    given = any(f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}.") for name in overrides)
    return "" if given or path is None else f"{path}: "


def put(tree: dict[str, Any], key: str, value: Any, path: Path | None) -> None:
    """Set ``tree["a"]["b"]`` for the key ``a.b``."""
    *sections, name = key.split(".")
    for section in sections:
        branch = tree.setdefault(section, {})
        if not isinstance(branch, dict):
            where = f"{path}: " if path else ""
            raise ValueError(f"{where}{section}: wanted a section with keys, got {branch!r}")
        tree = branch
    tree[name] = value


def read_yaml(kind: type[Section], path: Path) -> dict[str, Any]:
    """The tree in a YAML file, {} for an empty one. Raises ValueError: it cannot be read, or holds something else."""
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:  # without the line itself: there may be a password in it
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error.problem).split())}{where}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: wanted keys {', '.join(kind.model_fields)}, got a {type(tree).__name__}")
    return tree


def describe(kind: type[Section], error: Any) -> str:
    """One phrase for one validation error: the key's path, what is wrong, what would be right. Secrets (fields that are not
    in ``repr``) are not quoted."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = getattr(annotation_of(kind, error["loc"][:-1]), "model_fields", None)
        return f"{key}: unknown key" + (f"; known here: {', '.join(known)}" if known else "")
    if error["type"] == "missing":
        return f"{key}: missing"
    if error["type"] == "string_pattern_mismatch":
        return f"{key}: wanted WIDTHxHEIGHT such as 640x384, got {error['input']!r}"
    fields = getattr(annotation_of(kind, error["loc"][:-1]), "model_fields", {})
    secret = bool(error["loc"]) and error["loc"][-1] in fields and not fields[error["loc"][-1]].repr
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"{key}: {message}" + ("" if secret else f", got {error['input']!r}")


def annotation_of(kind: type[Section], place: tuple[Any, ...]) -> Any:
    """The type of what lies at ``place`` in the tree ``kind``; None where that is no section."""
    section: Any = kind
    for part in place:
        fields = getattr(section, "model_fields", None)
        section = fields[part].annotation if fields and part in fields else None
    return section
