"""Every private or undocumented name of Ray that mlic uses, with the reason. A test checks that each still exists.

The comment or docstring of each name says what breaks without it.
"""

from __future__ import annotations

from typing import Any

# Ray starts workers before they are needed and makes the driver wait for them: for ever, when one of them is killed.
# Without this option a killed worker can block the start of an embedded Ray. No public option does the same.
INIT_OPTIONS: dict[str, Any] = {"_system_config": {"prestart_worker_first_driver": False}}

# A program that fails with AuthenticationError if the cluster at sys.argv[1] requires a token. `ray.init` would show
# this only by its own failure, and after that the process can no longer connect with a token.
# Without these names a cluster with tokens refuses drivers that are given host:port.
ASK_CLUSTER = (
    "import sys; from ray._private.services import canonicalize_bootstrap_address as where;"
    "from ray._raylet import GcsClient; GcsClient(address=where(sys.argv[1]))"
)


def reload_authentication() -> None:
    """Make Ray read RAY_AUTH_MODE and RAY_AUTH_TOKEN again. It reads them once, when it is imported.

    Without it, an embedded Ray fails to start in a program that has imported Ray before mlic sets its token.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def placement_group(hex_id: str) -> Any:
    """The placement group with an id of `ray.util.placement_group_table()`, which `remove_placement_group` takes.

    Ray has a public function that finds a group by name, but none that finds it by id. Without this function, the
    resources of a Ray Train controller that died stay reserved until this process ends.
    """
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(bytes.fromhex(hex_id)))


# Makes an actor that hands out data sets of Ray Data, which no training of mlic has. It would take a process at every
# start of a group, 1.2 s of a CPU, and wake a hundred times a second.
DATA_SETS = "DatasetsCallback"
# Makes an actor that frees placement groups after a crash. It asks Ray's dashboard, which an embedded Ray lacks,
# and an embedded Ray ends with this process anyway: the actor would start, fail, and take a process and seconds.
GROUP_CLEANER = "PlacementGroupCleanerCallback"


def trainer_class(embedded: bool) -> Any:
    """`TorchTrainer` without `DATA_SETS`; for an embedded Ray without `GROUP_CLEANER`, too.

    Ray Train has no public way to leave out what it does not need. Without the private method, both actors would start.
    """
    from ray.train.torch import TorchTrainer

    left_out = (DATA_SETS, GROUP_CLEANER) if embedded else (DATA_SETS,)

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ not in left_out]

    return Trainer


def stop_trial(tune_controller: Any, trial: Any) -> None:
    """Stop a trial that is paused or waits for a worker.

    The controller that Ray Tune hands to schedulers has no documented interface, although its own schedulers stop
    trials by this method. Without it, a trial that is paused until earlier ones have reported could never be stopped.
    """
    tune_controller.stop_trial(trial)


def pause_trial(tune_controller: Any, trial: Any) -> None:
    """Pause a running trial whose own folder has its checkpoint.

    The answer `PAUSE` of a scheduler makes Ray Tune write a checkpoint of its own, too. Its schedulers use this method
    where they need none. Without it, every pause of a trial would copy a checkpoint to storage that all nodes share.
    """
    tune_controller.pause_trial(trial, should_checkpoint=False)
