"""Event files of TensorBoard, in the folder `tensorboard` of a run, by tensorboardX, which Ray Tune brings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlic.log.contents import Contents
from mlic.runs.files import fingerprint, write_atomic

_SENT = "sent.json"


class TensorboardFiles:
    """The event files of runs. What a stopped process wrote beyond the last noted epoch is purged by the next one."""

    where = "tensorboard in the run's folder"

    def send(self, run: Contents, parent: Contents | None = None) -> None:
        """Write the epochs that are not written yet. The trials of a search are folders below it."""
        folder = _folder(run, parent)
        sent = _sent(folder)
        new = sorted(number for number in run.rows if number > sent["epochs"])
        if new:
            _write(folder, {step: run.rows[step] for step in new}, "", sent["epochs"] + 1)
            write_atomic(folder / _SENT, json.dumps({**sent, "epochs": new[-1]}).encode())

    def close(self, run: Contents, files: bool) -> None:
        """Write the measurements, if they are new. TensorBoard has no place for files."""
        del files
        folder, known_by = _folder(run, None), fingerprint(sorted(run.summary.items()))
        sent, step = _sent(folder), max(run.rows, default=0)
        if run.summary and sent["measured"] != known_by:
            _write(folder, {step: run.summary}, ".measured", step + 1)
            write_atomic(folder / _SENT, json.dumps({**sent, "measured": known_by}).encode())


def _write(folder: Path, rows: Mapping[int, Mapping[str, float]], suffix: str, purge_step: int) -> None:
    from tensorboardX import SummaryWriter

    # Names have seconds alone: two files of one second would be one.
    of_file = f".{min(rows):08d}{suffix}"
    with SummaryWriter(str(folder), purge_step=purge_step, filename_suffix=of_file) as writer:
        for step, row in rows.items():
            for name, value in row.items():
                writer.add_scalar(name, value, step)


def _folder(run: Contents, parent: Contents | None) -> Path:
    if parent is not None:
        return parent.folder / "tensorboard" / run.folder.name
    return run.folder / "tensorboard"


def _sent(folder: Path) -> dict[str, Any]:
    """The last epoch that was written, and which measurements were."""
    nothing = {"epochs": 0, "measured": ""}
    try:
        stored: dict[str, Any] = json.loads((folder / _SENT).read_text())
    except (OSError, ValueError):
        return nothing
    return nothing | stored
