"""Recipes: every shipped one fits its network, and mistakes are named by their key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from training.recipe import Recipe, load_recipe, parse_overrides, parse_size, phases_of, recipe_names


def test_there_is_one_recipe_for_every_network() -> None:
    pytest.importorskip("torch", reason="the extra 'train' is not installed")
    from training.models import MODELS

    assert {load_recipe(name, {}).model for name in recipe_names()} == set(MODELS)
    assert set(MODELS) <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_fit_their_networks(name: str) -> None:
    pytest.importorskip("torch", reason="the extra 'train' is not installed")
    from training.augment import parse_augmentation
    from training.checkpoints import shipped_checkpoint
    from training.losses import parse_loss
    from training.models import build_model, freeze
    from training.optimisers import build_schedule
    from training.phases import expand, phase_optimiser

    recipe = load_recipe(name, {})
    network = build_model(recipe.model, 2)
    if recipe.init:
        assert shipped_checkpoint(Path(recipe.init)).exists()
    if recipe.pretrained is True:
        assert network.encoder.packaged_weights().exists()
    for phase in phases_of(recipe):
        parse_loss(phase.loss)
        parse_augmentation(phase.augment)
        assert all(side % network.stride == 0 for size in phase.sizes for side in parse_size(size))
        freeze(network, expand(phase.freeze, network))
        settings = phase.schedule.model_dump()
        build_schedule(phase_optimiser(network, None, phase), steps=100, **(settings | {"every": None}))


def test_phases_change_single_keys_of_sections() -> None:
    recipe = load_recipe(
        None, {"phases": [{"epochs": 2, "optimiser": {"rate": 0.5}}, {"freeze": ["stem"]}], "optimiser.l1": 0.25}
    )
    first, second = phases_of(recipe)
    assert (first.epochs, first.optimiser.rate, first.optimiser.l1, first.freeze) == (2, 0.5, 0.25, [])
    assert (second.epochs, second.optimiser.rate, second.freeze) == (recipe.epochs, recipe.optimiser.rate, ["stem"])
    assert first.phases == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimiser.rat": 1.0}, "optimiser.rat: unknown key; known here: name, rate"),
        ({"sizes": ["448*256"]}, "sizes.0: wanted WIDTHxHEIGHT"),
        ({"batch": 1}, "batch: "),
        ({"schedule.name": "cosinus"}, "schedule.name: "),
        ({"phases": [{"model": "unet"}]}, "phase 1 changes model"),
        ({"phases": [{}, {"epoch": 3}]}, "phase 2: epoch: unknown key"),
        ({"model.name": "x"}, "model: wanted a section|model: "),
    ],
)
def test_mistakes_are_named_by_their_key(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("small", overrides)


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'smal'; there are .*small.*or give a \.yaml file"):
        load_recipe("smal", {})
    with pytest.raises(ValueError, match="no such recipe file"):
        load_recipe("nowhere.yaml", {})


def test_file_and_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: unet\noptimiser: {rate: 1e-4}\nsizes: [64x64]\n")
    changed = parse_overrides(["optimiser.rate=3e-4", "freeze=[stem, stage1]", "pretrained=false", "augment={rain: 0.5}"])
    recipe = load_recipe(str(tmp_path / "mine.yaml"), changed)
    assert recipe.optimiser.rate == 3e-4, "a number as YAML 1.2 has it, without a dot"
    assert (recipe.model, recipe.freeze, recipe.pretrained, recipe.augment) == (
        "unet",
        ["stem", "stage1"],
        False,
        {"rain": 0.5},
    )
    with pytest.raises(ValueError, match="KEY=VALUE"):
        parse_overrides(["epochs"])
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_overrides(["epochs=[1"])
    assert load_recipe(None, {}) == Recipe()


def test_shipped_weights_say_where_they_come_from_and_name_no_machine() -> None:
    pytest.importorskip("torch", reason="the extra 'train' is not installed")
    from training.checkpoints import network_of, read_checkpoint, shipped_checkpoint

    state = read_checkpoint(shipped_checkpoint(Path("small")))
    assert network_of(state) == "small"
    assert state["images"].keys() == {"bdd100k", "camvid", "idd_lite"}
    told = str({key: value for key, value in state.items() if key != "average"})
    assert not re.search(r"/(root|home|work|tmp|Users)/", told)


def test_folder_called_as_shipped_weights_does_not_hide_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the extra 'train' is not installed")
    from training.checkpoints import shipped_checkpoint

    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()
    assert shipped_checkpoint(Path("small")).name == "small.pt"
