"""Every row of docs/label-files.md, with label files that are made up in its layout."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mlic.config.data import PackConfig
from mlic.config.load import build
from mlic.pack.inputs import find
from tests.data import layouts
from tests.golden import ROOT

PAGE = (ROOT / "docs" / "label-files.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"\| `mlic pack (.*)` \|$", PAGE, re.M)


def settings(command: str, folder: Path) -> dict[str, str]:
    """The settings of a command of the page, with its paths below `folder`."""
    images, *flags = shlex.split(command)
    given = {flag[2:].replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    given["labels"] = str(folder / given["labels"])
    if given.get("label_names", "").endswith(".csv"):
        given["label_names"] = str(folder / given["label_names"])
    return given | {"images": str(folder / images), "out": str(folder / "out")}


def test_the_page_has_every_layout() -> None:
    assert sorted(re.findall(r"--labels (\S+)", " ".join(COMMANDS))) == sorted(layouts.LAYOUTS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_row_of_the_page(tmp_path: Path, command: str) -> None:
    layouts.photos(tmp_path)
    layouts.write(tmp_path, re.findall(r"--labels (\S+)", command)[0])
    listing = find(build(PackConfig, settings(command, tmp_path)))
    assert set(listing.labels) >= set(layouts.LABELS)
    assert not listing.missing
    places = [listing.labels.index(label) for label in layouts.LABELS]
    read = {}
    for i, row in enumerate(listing.targets.tolist()):
        key = re.sub(r"\.image$", "", Path(listing.listing.path(i)).stem.removeprefix("0"))
        values = [row[place] for place in places]
        assert -1 not in values
        read[key] = [label for label, value in zip(layouts.LABELS, values, strict=True) if value]
    if ".json" in command and "by-label" not in command:
        assert not listing.about.not_annotated or listing.about.treatment == "leave-out"
    if not command.startswith("files"):
        assert read == {key: labels for key, labels in layouts.TRUTH.items() if labels or key in read}
        assert set(layouts.POSITIVE) <= set(read)
    else:
        assert sorted(read.values()) == sorted(layouts.TRUTH.values())
    others = set(listing.labels) - set(layouts.LABELS)
    assert not any(listing.about.labels[listing.labels.index(name)].positive for name in others)
