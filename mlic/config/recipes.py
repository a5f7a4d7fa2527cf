"""Recipes: configuration files that come with mlic, and what was reported of them."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from mlic.errors import ConfigError


class Recipe(NamedTuple):
    """A configuration file that comes with mlic: what it is, and what was reported of it (empty: no numbers)."""

    name: str
    path: Path
    what: str
    reported: str


def recipes() -> list[Recipe]:
    """The recipes of the reference systems: beside this file in an installed package, in jobs/ in a clone.

    Raises ConfigError when they are in neither place.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "recipes", here.parent / "jobs" / "reference"):
        if folder.is_dir():
            return [_recipe(path) for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)]
    raise ConfigError(f"the recipes are missing beside {here}.", "install mlic again.")


def backbones() -> list[Recipe]:
    """The recipes for pretrained backbones; `reported` is what was measured of each.

    Raises ConfigError when they are missing.
    """
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "recipes" / "backbones", here.parent / "jobs" / "backbones"):
        if folder.is_dir():
            return [_recipe(path, "Measured: ") for path in sorted(folder.glob("*.yaml"))]
    raise ConfigError(f"the recipes are missing beside {here}.", "install mlic again.")


class Told(NamedTuple):
    """What a report tells of a recipe's numbers: the pack recipe that it is for, with settings over it, what was
    `reported` by metric, and why a measurement may differ."""

    pack: str
    pack_settings: dict[str, Any]
    reported: dict[str, float]
    why: str


def reported() -> dict[str, Told]:
    """What was reported of each recipe of the reference systems, by its name. Raises ConfigError as `recipes` does."""
    file = recipes()[0].path.with_name("reported.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return {
        name: Told(row["pack"], row.get("pack_settings", {}), row["reported"], row["why"]) for name, row in rows.items()
    }


def _recipe(path: Path, begins: str = "Reported: ") -> Recipe:
    """A recipe's first sentence is what it is; one that begins with the word `begins` says what was measured."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    what, _, rest = head.partition(". ")
    _, _, reported = rest.partition(begins)
    return Recipe(path.stem, path, what.rstrip("."), re.split(r"\.(?= |$)", reported)[0])


def near_recipe(name: str) -> str:
    """A hint for a name that no recipe has."""
    near = difflib.get_close_matches(name, [recipe.name for recipe in (*backbones(), *recipes())], n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else "mlic recipes lists those that come with it."
