"""Whether the installed Ray still has every private name that mlic uses."""

from __future__ import annotations

import importlib
import subprocess
import sys
from inspect import signature

import pytest
import ray
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient, PlacementGroupID
from ray.train.torch import TorchTrainer
from ray.tune.execution.tune_controller import TuneController
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from mlic.cluster import ray_private


def test_the_environment_is_read_again() -> None:
    assert callable(Config.initialize)
    assert callable(AuthenticationTokenLoader.instance().reset_cache)


def test_a_cluster_is_asked_without_a_token() -> None:
    assert GcsClient.__name__ in ray_private.ASK_CLUSTER
    asked = subprocess.run(
        [sys.executable, "-c", ray_private.ASK_CLUSTER, "nobody:here"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "ImportError" not in asked.stderr


@pytest.mark.ray
def test_a_placement_group_is_found_by_its_id(ray_cluster: None) -> None:
    made = placement_group([{"CPU": 0.01}])
    ray.get(made.ready())
    (name,) = (name for name, group in placement_group_table().items() if group["state"] == "CREATED")
    assert isinstance(ray_private.placement_group(name).id, PlacementGroupID)
    remove_placement_group(ray_private.placement_group(name))
    assert placement_group_table()[name]["state"] == "REMOVED"


def test_actors_that_nobody_needs_are_left_out_of_a_training() -> None:
    module = "ray.train.v2._internal.callbacks"
    callbacks = pytest.importorskip(
        f"{module}.placement_group_callback", reason="older versions of Ray have no such actor"
    )
    assert hasattr(callbacks, ray_private.GROUP_CLEANER)
    assert hasattr(importlib.import_module(f"{module}.datasets"), ray_private.DATA_SETS)
    names = {type(callback).__name__ for callback in TorchTrainer(print)._create_default_callbacks()}
    for embedded, left_out in (
        (True, {ray_private.GROUP_CLEANER, ray_private.DATA_SETS}),
        (False, {ray_private.DATA_SETS}),
    ):
        trainer = ray_private.trainer_class(embedded)(print)
        assert {type(callback).__name__ for callback in trainer._create_default_callbacks()} == names - left_out


def test_a_scheduler_can_stop_and_pause_trials() -> None:
    assert list(signature(TuneController.stop_trial).parameters) == ["self", "trial"]
    assert "should_checkpoint" in signature(TuneController.pause_trial).parameters
