"""Model files that break the contract are refused with one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from engine import DEFAULT_MODEL, ModelError, open_engine, read_contract


def changed(tiny_model: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    model = onnx.load(str(tiny_model))
    change(model)
    path = tmp_path / "changed.onnx"
    onnx.save(model, str(path))
    return path


def set_property(key: str, value: str | None) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        kept = {p.key: p.value for p in model.metadata_props if p.key != key}
        onnx.helper.set_model_props(model, kept if value is None else {**kept, key: value})

    return change


def set_input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def set_output_channels(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3


def free_height(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "h"


def rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "x"


BROKEN = {
    "no version": (set_property("freespace.contract", None), "freespace.contract"),
    "other version": (set_property("freespace.contract", "9"), "version 9"),
    "no planes": (set_property("freespace.planes", None), "planes"),
    "unknown plane": (set_property("freespace.planes", "freespace,sky"), "freespace, ego"),
    "plane twice": (set_property("freespace.planes", "ego,ego"), "planes"),
    "one plane too few": (set_property("freespace.planes", "ego"), "wanted \\(N, 1, 32, 64\\)"),
    "resize": (set_property("freespace.resize", "crop"), "'stretch' or 'letterbox'"),
    "float input": (set_input_type, "input 'image' is float, wanted uint8"),
    "channels": (set_output_channels, "output 'scores'"),
    "free height": (free_height, "h and w fixed"),
    "input name": (rename_input, "wanted one named 'image'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_violation_is_named(case: str, tiny_model: Path, tmp_path: Path) -> None:
    change, message = BROKEN[case]
    path = changed(tiny_model, tmp_path, change)
    with pytest.raises(ModelError, match=message) as error:
        read_contract(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_other_files_are_no_models(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX file"):
        read_contract(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        read_contract(tmp_path / "none.onnx")


def test_contract_says_what_the_file_says(tiny_model: Path) -> None:
    contract = read_contract(tiny_model)
    assert contract.planes == ("freespace", "ego")
    assert contract.input_size == (64, 32)
    assert contract.batch is None
    assert contract.resize == "stretch"
    assert len(contract.sha256) == 64
    assert contract.plane_index("ego") == 1
    with pytest.raises(ModelError, match="has no plane 'sky'"):
        contract.plane_index("sky")


def test_unknown_backend_and_precision(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="unknown backend 'tpu'"):
        open_engine(tiny_model, "tpu")
    with pytest.raises(ModelError, match="fp32 or int8, not bf16"):
        open_engine(tiny_model, "onnxruntime", "bf16")


def test_shipped_models_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_contract(Path("freespace")).path == DEFAULT_MODEL
    with pytest.raises(ModelError, match=r"no such model file; shipped ones are called .*freespace"):
        read_contract(Path("freespac"))
