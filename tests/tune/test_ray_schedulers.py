"""What is kept of the trials that a scheduler of Ray Tune stops, pauses and copies."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune import Checkpoint
from ray.tune.experiment import Trial

from mlic.tune.ray_schedulers import Recorder, why_lost

pytestmark = pytest.mark.ray


def trial(checkpoint: Checkpoint | None, status: str = Trial.PAUSED) -> Mock:
    finished = status == Trial.TERMINATED
    return Mock(spec=Trial, checkpoint=checkpoint, status=status, is_finished=Mock(return_value=finished))


def test_a_copy_that_a_trial_has_yet_to_take_over_is_kept(tmp_path: Path) -> None:
    """Its worker may start slowly, while the trial that left the copy goes on and leaves more of them."""
    copies = [Checkpoint(tmp_path / f"{number}") for number in range(5)]
    good, slow, ended = trial(copies[4]), trial(copies[0]), trial(copies[1], Trial.TERMINATED)
    recorder = Recorder(Mock())

    def left() -> list[int]:
        recorder.on_step_end(1, [good, slow, ended])
        return sorted(int(path.name) for path in tmp_path.iterdir())

    for copy in copies:
        Path(copy.path).mkdir()
        recorder.on_checkpoint(1, [good, slow, ended], good, copy)
    assert left() == [0, 3, 4]
    assert left() == [0, 3, 4]
    slow.checkpoint = copies[3]
    assert left() == [3, 4]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "its process died"),
        (ActorDiedError(), "its process died"),
        (RayTaskError("restore", "a traceback", ValueError("no copy")), "ValueError: no copy"),
    ],
)
def test_why_a_trial_lost_its_worker(tmp_path: Path, error: Exception | None, reason: str) -> None:
    path = tmp_path / "error.pkl"
    if error is not None:
        path.write_bytes(cloudpickle.dumps(error))
    failed = Mock(spec=Trial, pickled_error_file=None if error is None else str(path))
    assert why_lost(failed) == reason
