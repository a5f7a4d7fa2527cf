"""Runs in Weights & Biases, on its server or, with WANDB_MODE=offline, in files that `wandb sync` sends later."""

from __future__ import annotations

import json
import os
from typing import Any

from mlic.log.contents import Contents
from mlic.runs.files import write_atomic

_SENT = "wandb-sent.json"


class WandbRuns:
    """The runs of the project that WANDB_PROJECT names. Raises what wandb raises."""

    def __init__(self) -> None:
        self.where = f"wandb, {os.environ.get('WANDB_MODE', 'online')}"
        self._open = dict[str, Any]()

    def send(self, run: Contents, parent: Contents | None = None) -> None:
        """Send the epochs that were not sent yet. The trials of a search are a group of their own."""
        place = parent or run
        sent = _sent(place)
        last = sent.get(run.identity, 0)
        new = sorted(number for number in run.rows if number > last)
        if not new and parent is not None:
            return
        opened = self._opened(run, parent)
        for step in new:
            opened.log(dict(run.rows[step]), step=step)
            sent[run.identity] = step
            write_atomic(place.folder / _SENT, json.dumps(sent).encode())

    def close(self, run: Contents, files: bool) -> None:
        """Send measurements and files, and say that the run ended."""
        if run.kind == "trial" and run.identity not in self._open:  # nothing new was sent
            return
        opened = self._opened(run, None)
        opened.summary.update(run.summary)
        if files and run.files:
            import wandb

            artifact = wandb.Artifact(f"{run.name}-{run.identity[:8]}", type="model")
            for path, folder in run.files:
                artifact.add_file(str(path), name=f"{folder}/{path.name}".lstrip("/"))
            opened.log_artifact(artifact)
        self._open.pop(run.identity).finish(exit_code=0 if run.status != "failed" else 1)

    def _opened(self, run: Contents, parent: Contents | None) -> Any:
        if run.identity not in self._open:
            import wandb

            self._open[run.identity] = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mlic"),
                id=run.identity,
                name=run.name,
                group=(parent or run).identity if parent or run.kind == "tune" else None,
                job_type=run.kind,
                config={**run.params, **run.tags},
                dir=str((parent or run).folder),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", init_timeout=20),
            )
        return self._open[run.identity]


def _sent(run: Contents) -> dict[str, int]:
    try:
        stored: dict[str, int] = json.loads((run.folder / _SENT).read_text())
    except (OSError, ValueError):
        return {}
    return stored
