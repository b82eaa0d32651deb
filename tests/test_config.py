"""The configuration file: what it sets, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.settings import read_yaml
from perception.config import Config, load_config
from perception.errors import BadInput


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


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load_config(tmp_path / "none.yaml", {})


def test_the_launch_file_lists_every_default() -> None:
    path = Path(__file__).parents[1] / "launch" / "freespace.yaml"
    assert load_config(path, {}) == Config()
    assert {k: set(v) for k, v in read_yaml(Config, path).items()} == {
        name: set(type(section).model_fields) for name, section in Config()
    }
