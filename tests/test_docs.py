"""What the documents promise exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from perception.cli import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("engine/zoo/*.md")])


def known_options() -> dict[str, set[str]]:
    def options(command: Any) -> set[str]:
        own = {o for p in command.params for o in p.opts} | {"--help"}
        return own.union(*(options(c) for c in getattr(command, "commands", {}).values()))

    return {name: options(command) for name, command in typer.main.get_command(app).commands.items()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_commands_and_options_exist(document: Path) -> None:
    options = known_options()
    for command, rest in re.findall(r"^\s*(?:\$ )?freespace ([a-z]+)([^#\n]*)", document.read_text(encoding="utf-8"), re.M):
        assert command in options, f"freespace {command}"
        for option in re.findall(r"--[a-z][a-z-]*", rest.partition("--ros-args")[0]):  # what follows is ROS's own
            assert option in options[command], f"freespace {command} {option}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_readme_names_every_option_of_run() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for option in known_options()["run"] - {"--help", "SOURCE", "source"}:
        assert option in text, option
