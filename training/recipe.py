"""What a training run is: one YAML file, one typed tree. The files in ``training/recipes`` can be given by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from engine.settings import Section, parse_yaml, read_settings

Size = Annotated[str, Field(pattern=r"^[1-9]\d*x[1-9]\d*$")]
Rate = Annotated[float, Field(gt=0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Factors = dict[str, Annotated[float, Field(ge=0)]]

RECIPES = resources.files("training") / "recipes"


class DataConfig(Section):
    """How the data are split and kept."""

    seed: Seed = 1  # of the split of data sets that bring none
    dev: Fraction = 0.05  # shares of the sequences kept for choices,
    val: Fraction = 0.2  # and for the report alone
    cache_width: Annotated[int, Field(ge=32)] = 576  # wider images are shrunk once, pixels
    cache_mb: Annotated[int, Field(ge=0)] = 8000  # decoded images kept in memory

    @property
    def fractions(self) -> dict[str, float]:
        return {"train": 1 - self.dev - self.val, "dev": self.dev, "val": self.val}


class OptimiserConfig(Section):
    """How weights follow gradients."""

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    rate: Rate = 2e-3  # at the peak of the schedule
    stages: Factors = Field(default={})  # factor of the rate by stage; "encoder" names all but the decoder
    momentum: Fraction = 0.9  # sgd
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.01  # L2; none on norms and biases
    l1: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = 5.0  # norm of all gradients together


class ScheduleConfig(Section):
    """How the rate goes: see `training.optimisers.build_schedule`. Shares are of the phase, or of the peak rate."""

    name: Literal["constant", "step", "cosine", "poly", "one_cycle", "plateau"] = "cosine"
    warmup: Fraction | None = None
    final: Annotated[float, Field(ge=0, le=1)] | None = None
    every: Positive | None = None  # step: epochs between two cuts; a third of the phase where not given
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1  # step, plateau: of a cut
    power: Rate = 0.9  # poly
    patience: Annotated[int, Field(ge=0)] = 5  # plateau: epochs without a better dev IoU


class HintConfig(Section):
    """Learning from a teacher's features, see `training.hints`."""

    weight: Annotated[float, Field(ge=0)] = 0.0  # beside the loss; 0: none
    layer: str = "mix8"  # what comes into this layer of the network predicts them


class Recipe(Section):
    """One training run, or the common part of its phases. Sizes are WIDTHxHEIGHT in pixels."""

    model: str = "small"  # a name in `training.models.MODELS`
    planes: list[Literal["freespace", "ego"]] = Field(default=[])  # what it says; []: what the labels say
    init: str | None = None  # checkpoint that all of it starts from, or the name of a shipped one
    pretrained: bool | str = True  # encoder: ImageNet weights from a package, from this file, or none
    initialisation: Literal["default", "he", "xavier", "normal", "orthogonal"] = "default"
    dropout: Fraction | None = None  # None: the network's own
    freeze: list[str] = Field(default=[])  # stages that keep their weights; "encoder" names all but the decoder

    epochs: Positive = 24
    samples_per_epoch: Annotated[int, Field(ge=2)] | None = None  # None: as many as there are images, at least 30 batches
    batch: Annotated[int, Field(ge=2)] = 12  # over all processes together
    sizes: list[Size] = Field(default=["384x224", "448x256"], min_length=1)  # each batch has one; the last is for measuring
    shares: Factors = Field(default={})  # of the samples by data set; {}: every image alike

    loss: str = "bce + 0.5*dice"  # see `training.losses.parse_loss`
    augment: str | dict[str, Any] = "default"  # a preset, or probabilities by effect: `training.augment.parse_augmentation`
    data: DataConfig = DataConfig()
    hints: HintConfig = HintConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: Fraction = 0.998  # of the moving average that is deployed; 0: the weights themselves
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # bf16 on a CPU, fp16 on a GPU without bf16
    stop_after: Annotated[int, Field(ge=0)] = 0  # end the run after so many epochs without a better dev IoU; 0: never
    seed: Seed = 1

    phases: list[dict[str, Any]] = Field(default=[])  # settings that each phase changes, one after the other; []: one phase


def recipe_names() -> list[str]:
    return sorted(Path(p.name).stem for p in RECIPES.iterdir() if p.name.endswith(".yaml"))


def load_recipe(name: str | None, overrides: dict[str, Any]) -> Recipe:
    """A shipped recipe by name, a YAML file by path, or the defaults; then ``overrides`` by the key's path.

    Raises:
        ValueError: there is no such recipe or file, a key is unknown or has a value of the wrong type or range, or a phase
            changes what has to stay.
    """
    path = None
    if name is not None:
        path = Path(name)
        if path.suffix not in (".yaml", ".yml"):
            path = Path(str(RECIPES / f"{name}.yaml"))
            if not path.exists():
                raise ValueError(f"no recipe {name!r}; there are {', '.join(recipe_names())}, or give a .yaml file")
    if path is not None and not path.exists():
        raise ValueError(f"{path}: no such recipe file")
    recipe = read_settings(Recipe, path, overrides)
    phases_of(recipe)
    if "epochs" in overrides and any("epochs" in phase for phase in recipe.phases):
        shown = ", ".join("{" + ", ".join(f"{k}: {v}" for k, v in phase.items()) + "}" for phase in recipe.phases)
        raise ValueError(
            f"epochs: the phases of {name} have theirs; give --set 'phases=[{shown}]' with other numbers".replace(
                "'encoder'", "encoder"
            )
        )
    return recipe


# What holds for the whole run.
FIXED = {"model", "init", "planes", "pretrained", "initialisation", "dropout", "data", "hints", "seed", "phases", "precision"}
FIXED |= {"stop_after", "ema"}


def phases_of(recipe: Recipe) -> list[Recipe]:
    """The recipe of each phase, in order: what the recipe says, and on top of it what the phase does.

    Raises:
        ValueError: a phase has an unknown key or a wrong value, or changes what holds for the whole run.
    """
    common = recipe.model_dump(exclude={"phases"})
    phases = []
    for number, changes in enumerate(recipe.phases or [{}], 1):
        if dotted := [key for key in changes if "." in key]:
            raise ValueError(f"phases: phase {number}: {dotted[0]}: write it as a section, such as optimiser: {{rate: 1e-4}}")
        if fixed := [key for key in changes if key in FIXED]:
            raise ValueError(f"phases: phase {number} changes {', '.join(fixed)}, which hold for the whole run")
        try:
            phases.append(read_settings(Recipe, None, merge(common, changes)))
        except ValueError as error:
            raise ValueError(f"phases: phase {number}: {error}") from error
    return phases


def merge(common: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``changes`` over ``common``, sections key by key."""
    merged = dict(common)
    for key, value in changes.items():
        section = key in ("optimiser", "schedule") and isinstance(value, dict)
        merged[key] = merge(common[key], value) if section else value
    return merged


def parse_size(text: str) -> tuple[int, int]:
    """``"448x256"`` as (width, height)."""
    width, height = text.split("x")
    return int(width), int(height)


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """``["optimiser.rate=1e-3", "freeze=[stem]"]`` as a dictionary, values as YAML reads them. Raises ValueError: no ``=``."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise ValueError(f"setting {setting!r}: wanted KEY=VALUE, such as optimiser.rate=0.001")
        try:
            overrides[key.strip()] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ValueError(f"setting {setting!r}: the value is not valid YAML") from error
    return overrides
