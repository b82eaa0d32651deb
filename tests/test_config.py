"""The configuration file: what it sets, and how it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.base import Engine
from engine.settings import read_yaml
from perception.capture import Selection, open_source
from perception.config import Config, HealthConfig, LoopConfig, PolygonConfig, StabiliseConfig, load_config
from perception.errors import BadInput
from perception.node import process


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "freespace.yaml"
    path.write_text(text)
    return path


def test_defaults_without_a_file() -> None:
    assert load_config(None, {"engine.backend": None}) == Config()


def test_file_sets_and_options_win(tmp_path: Path) -> None:
    path = write(tmp_path, "polygons: {plane: ego, tolerance_px: 2}\nengine:\n  backend: openvino\n")
    config = load_config(path, {"engine.backend": "onnxruntime", "capture.every": 3})
    assert (config.polygons.plane, config.polygons.tolerance_px) == ("ego", 2.0)
    assert config.engine.backend == "onnxruntime"
    assert config.capture.every == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("polygons: {tolerence_px: 1}", "polygons.tolerence_px: unknown key; known here: plane, threshold"),
        ("polygon: {}", "polygon: unknown key; known here: capture, engine"),
        ("capture: {every: two}", "capture.every: .*integer.*'two'"),
        ("capture: {every: 1.5}", "capture.every: .*1.5"),
        ("capture: {every: 0}", "capture.every: .*greater than or equal to 1, got 0"),
        ("engine: {threads: true}", "engine.threads: .*True"),
        ("polygons: {plane: sky}", "polygons.plane: .*'freespace' or 'ego'"),
        ("polygons: {threshold: .nan}", "polygons.threshold: .*finite"),
        ("polygons: 3", "polygons: "),
        ("- a\n- b", "wanted keys"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_mistakes_are_named_by_their_path(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadInput, match=message) as error:
        load_config(path, {})
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"capture\.every.*; .*engine\.nope"):
        load_config(write(tmp_path, "capture: {every: 0}\nengine: {nope: 1}\n"), {})


def test_a_section_that_is_no_section(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="wanted a section"):
        load_config(write(tmp_path, "engine: fast"), {"engine.backend": "torch"})


def test_a_key_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'every' stands twice, line 3"):
        load_config(write(tmp_path, "capture:\n  every: 1\n  every: 2\n"), {})
    with pytest.raises(BadInput, match="'capture' stands twice"):
        load_config(write(tmp_path, "capture: {}\nengine: {}\ncapture: {}\n"), {})


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load_config(tmp_path / "none.yaml", {})


def numbers(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The numbers that a key's value may be, or be made of."""
    for branch in schema.get("anyOf", [schema]):
        if branch.get("type") == "array":
            yield from numbers(branch["items"])
        elif branch.get("type") in ("integer", "number"):
            yield branch


def test_every_number_has_a_largest_and_a_smallest_value() -> None:
    for section, keys in Config.model_json_schema()["$defs"].items():
        for key, schema in keys["properties"].items():
            for number in numbers(schema):
                least = number.get("minimum", number.get("exclusiveMinimum"))
                most = number.get("maximum", number.get("exclusiveMaximum"))
                assert least is not None, f"{section}.{key}"
                assert most is not None, f"{section}.{key}"
                assert abs(most) <= 1e9, f"{section}.{key}"


EXTREMES = [
    (section, key, value)
    for section, of in (
        ("polygons", PolygonConfig),
        ("loop", LoopConfig),
        ("health", HealthConfig),
        ("stabilise", StabiliseConfig),
    )
    for key, schema in of.model_json_schema()["properties"].items()
    for number in numbers(schema)
    for value in {number.get("minimum"), number.get("maximum")} - {None}
]


@pytest.mark.parametrize(("section", "key", "value"), EXTREMES)
def test_the_loop_takes_every_number_that_is_allowed(section: str, key: str, value: float, tiny_engine: Engine) -> None:
    config = load_config(None, {f"{section}.{key}": value, "stabilise.enabled": True})
    with open_source("synthetic://drive?size=128x64&seconds=1", Selection(every=10)) as source:
        results = [output.result for output in process(source, tiny_engine, config)]
    assert len(results) > 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("polygons.tolerance_px", 1e300),
        ("health.blind_after", 2**62),
        ("stabilise.settle_s", 1e308),
        ("loop.invalid_hz", 1e-310),
    ],
)
def test_numbers_that_no_loop_can_take_are_refused(key: str, value: float) -> None:
    with pytest.raises(BadInput, match=key):
        load_config(None, {key: value})


def test_the_launch_file_lists_every_default() -> None:
    path = Path(__file__).parents[1] / "launch" / "freespace.yaml"
    assert load_config(path, {}) == Config()
    assert {k: set(v) for k, v in read_yaml(Config, path).items()} == {
        name: set(type(section).model_fields) for name, section in Config()
    }


@pytest.mark.parametrize(
    "text",
    [
        "capture: rtsp://admin:hunter2@camera/",
        "capture: {source: [rtsp://admin:hunter2@camera/]}",
        "capture: {source: rtsp://admin:hunter2@camera/\nloop: [",
        "output: {token: [hunter2]}",
        "output: {token: 1234}\ncapture: {source: 5, every: hunter2}".replace("every: hunter2", "every: 0"),
    ],
)
def test_what_is_secret_is_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_config(write(tmp_path, text), {})
    assert "hunter2" not in str(caught.value)
    assert "1234" not in str(caught.value)
    assert "hunter2" not in repr(load_config(None, {"capture.source": "rtsp://admin:hunter2@camera/"}))


# -- Whatever stands in the file ---------------------------------------------------------------------------------------

SECTIONS = list(Config.model_fields)
KEYS = sorted({key for _, section in Config() for key in type(section).model_fields})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["640x384", "ego"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
TREES = st.dictionaries(
    st.sampled_from(SECTIONS) | st.text(max_size=5),
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), VALUES, max_size=4) | VALUES,
    max_size=4,
)


def taken_or_refused(path: Path) -> None:
    try:
        config = load_config(path, {})
    except BadInput as error:
        config, said = Config(), str(error)
        assert (said.startswith(str(path)), "\n" in said) == (True, False), said
    assert isinstance(config, Config)


@given(TREES)
def test_any_tree_is_taken_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    taken_or_refused(write(tmp_path_factory.mktemp("tree"), yaml.safe_dump(tree)))


@given(st.binary(max_size=60) | st.text("{}[]:,-!&*#|>'\"% \n\tabcengine0.1", max_size=60).map(str.encode))
def test_any_file_is_taken_or_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "freespace.yaml"
    path.write_bytes(data)
    taken_or_refused(path)
