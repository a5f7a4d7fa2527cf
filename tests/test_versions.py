"""The versions that pyproject.toml claims are those that `make test-oldest` runs."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
NOT_RUN = {"torch", "torchvision", "simplejpeg"}  # old builds that do not fit beside the others


def test_the_oldest_versions_are_those_that_are_claimed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = {}
    for text in project["dependencies"]:
        requirement = Requirement(text)
        (lowest,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
        claimed[requirement.name] = Version(lowest)
    lines = [line.partition("#")[0].strip() for line in (ROOT / "oldest.txt").read_text().splitlines()]
    pinned = {line.partition("==")[0]: Version(line.partition("==")[2]) for line in lines if line}
    assert {name: pinned.get(name) for name in claimed.keys() - NOT_RUN} == {
        name: version for name, version in claimed.items() if name not in NOT_RUN
    }
