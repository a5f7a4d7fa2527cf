"""Settings of `mlic tune`, and checks of its search space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError, model_validator

from mlic.config.base import near_setting, setting
from mlic.config.fit import MOVABLE, FitSettings, RunSettings
from mlic.config.fit_checks import TRAINING
from mlic.config.space import Dimension, Value, draw, grid, nested, order
from mlic.config.train import ModelSettings, TrainConfig
from mlic.config.types import Seconds

# What `mlic tune` searches when it is told nothing else.
DEFAULT_SPACE = {
    "arch": Dimension(choice=("small", "b-final")),
    "loss": Dimension(choice=("bce", "asymmetric")),
    "pos_weight_power": Dimension(uniform=(0.0, 1.0)),
    "lr": Dimension(loguniform=(5e-4, 8e-3)),
    "rand_augment": Dimension(choice=(0, 1, 2)),
    "threshold_policy": Dimension(choice=("global", "per-label")),
}
# Settings that all trials share: the data, where and how long they run, and by what they are compared.
_NOT_DRAWN = (
    "address",
    "workers",
    "fresh",
    "name",
    "runs",
    "shards",
    "fold",
    "cross_validate",
    "epochs",
    "objective",
    "doctor",
    "min_workers",
    "max_failures",
    "checkpoint_copy",
    "checkpoint_minutes",
    "changes",
    "keep_epoch",
)
_SCHEDULED = {"grace_epochs": 1, "reduction_factor": 3}
_TRIED = 50  # draws that are made before a search begins, to see that they make sense


class TuneConfig(ModelSettings, FitSettings, RunSettings):
    """Search architecture, loss, weighting, thresholds or any other setting of mlic train; weak trials stop early."""

    num_samples: int | None = setting(
        None,
        "Number of trials, which you can increase later; default: 10, or all of a grid",
        cli="flag",
        group="search",
        ge=1,
        runtime=True,
    )
    budget: Seconds | None = setting(
        None,
        "Time budget, such as 4h or 30m, over all restarts; no epoch starts after it",
        cli="flag",
        group="search",
        runtime=True,
    )
    space: dict[str, Dimension] = setting(
        DEFAULT_SPACE,
        "Search space: choice, grid, uniform, loguniform, int or logint for each setting, and when it applies",
    )
    searcher: Literal["random", "grid", "tpe"] = setting(
        "random", "How trials are drawn; tpe learns from earlier trials (needs optuna)", cli="flag", group="search"
    )
    scheduler: Literal["asha", "hyperband", "median", "pbt", "none"] = setting(
        "asha",
        "How weak trials stop early; asha: the same trials on any cluster and after a restart; hyperband, median and "
        "pbt (weak trials copy better ones) are Ray Tune's: they depend on timing and begin anew after a restart",
        cli="flag",
        group="search",
    )
    cross_validate: bool = setting(
        False,
        "Train each trial once per fold and compare trials over all folds",
        cli="flag",
        group="data",
    )
    grace_epochs: int = setting(
        _SCHEDULED["grace_epochs"], "Minimum epochs of every trial; with pbt, epochs between two copies", ge=1
    )
    reduction_factor: int = setting(
        _SCHEDULED["reduction_factor"],
        "asha and hyperband continue one in this many trials; with pbt, one in this many copies a better one",
        ge=2,
    )
    workers_per_trial: int = setting(
        1, "Number of workers per trial, on one or several nodes", cli="flag", group="resources", ge=1
    )
    cpus_per_trial: float | None = setting(
        None,
        "CPUs per trial, or per worker of a trial; default: 1, or the CPUs that belong to its fraction of a GPU",
        cli="flag",
        group="resources",
        gt=0,
    )
    gpus_per_trial: float | None = setting(
        None,
        "GPUs per trial, or per worker of a trial, such as 0.5; default: 1 if the cluster has GPUs",
        cli="flag",
        group="resources",
        ge=0,
    )
    confirm: int = setting(
        0,
        "Retrain winner, runner-up and the defaults with this many new seeds and test the difference",
        cli="flag",
        group="search",
        ge=0,
        le=50,
        runtime=True,
    )
    ensemble: int = setting(
        0,
        "Write RUN/ensemble, which averages the scores of this many best trials; 0: none",
        cli="flag",
        group="search",
        ge=0,
        runtime=True,
    )
    keep: int = setting(3, "Number of best trials that keep their checkpoints; at least those of the ensemble", ge=1)

    @model_validator(mode="before")
    @classmethod
    def _search_over_what_is_open(cls, values: Any) -> Any:
        """Without a space, the default one is searched, without the settings that are given."""
        if not isinstance(values, dict) or values.get("space") is not None:
            return values
        is_deep = str(values.get("channels", 0)) != "0" or str(values.get("bits", 8)) == "16"
        fixed = {*values, *(["rand_augment"] if values.get("train") == "head" or is_deep else [])}
        fixed |= {*TRAINING} if values.get("train") == "none" else set()
        return values | {"space": {name: dimension for name, dimension in DEFAULT_SPACE.items() if name not in fixed}}

    @model_validator(mode="after")
    def _space_makes_sense(self) -> Self:
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs is {self.grace_epochs}, more than epochs, which is {self.epochs}")
        if self.cross_validate and self.fold is not None:
            raise ValueError("cross_validate goes over all folds; leave fold out")
        if self.confirm == 1:
            raise ValueError("confirm 1 cannot measure the spread between seeds; give 2 seeds or more, or 0")
        if self.ensemble == 1 or (self.ensemble and self.cross_validate):
            raise ValueError(
                "ensemble averages models that share a validation split; leave cross_validate out"
                if self.cross_validate
                else "an ensemble has 2 trials or more; leave ensemble at 0 for none"
            )
        odd = [name for name in ("grace_epochs", "reduction_factor") if getattr(self, name) != _SCHEDULED[name]]
        if self.scheduler == "median" and "reduction_factor" in odd:
            raise ValueError("with scheduler median there is no reduction_factor; leave it out")
        if self.scheduler == "hyperband" and "grace_epochs" in odd:
            raise ValueError("with scheduler hyperband there is no grace_epochs; leave it out")
        if self.scheduler == "none" and odd:
            raise ValueError(f"with scheduler none no trial is stopped; leave {odd[0]} out")
        if not self.space:
            raise ValueError("space is empty; give it a setting to search over")
        if self.searcher == "tpe" and any(one.grid is not None for one in self.space.values()):
            raise ValueError("tpe chooses values by itself; give those of a grid as choice")
        order(self.space)
        if self.scheduler in ("hyperband", "pbt"):
            self._check_all_at_once()
        if self.scheduler == "pbt":
            self._check_population()
        if self.min_workers is not None and self.min_workers > self.workers_per_trial:
            raise ValueError(f"min_workers is {self.min_workers}, and a trial has {self.workers_per_trial} workers")
        for name in self.space:
            self._check_name(name)
        drawn = [self.draws()(number) for number in range(min(_TRIED, self.trials))]
        for name, dimension in self.space.items():
            for value in dimension.ends:
                needed = {other: allowed[0] for other, allowed in dimension.when.items()}
                self._try_one_of(
                    f"space.{name}", [{**needed, name: value}, *({**d, **needed, name: value} for d in drawn)]
                )
        for settings in drawn:
            self._try("space", settings)
        self._try_one_of("space", drawn, strict=True)
        return self

    def _try_one_of(self, where: str, draws: Sequence[Mapping[str, Value]], strict: bool = False) -> None:
        """Raise ValueError where none of some draws can be trained; `strict` where each ignores a fixed setting."""
        first: ValueError | None = None
        for drawn in draws:
            try:
                self._try(where, drawn, strict)
            except ValueError as error:
                first = first or error
            else:
                return
        if first is not None:
            raise first

    @property
    def folder(self) -> Path:
        """The folder of the search."""
        return self.runs / (self.name or "tune")

    @property
    def movable(self) -> tuple[str, ...]:
        """What of the space can change while a trial is trained."""
        return tuple(name for name in self.space if name in MOVABLE)

    def _check_all_at_once(self) -> None:
        """HyperBand and populations compare all trials, so Ray Tune has all of them from the start."""
        if self.searcher == "tpe":
            raise ValueError(f"with scheduler {self.scheduler} all trials begin together; leave searcher tpe out")
        if self.workers != "auto":
            raise ValueError(f"with scheduler {self.scheduler} Ray Tune uses the whole cluster; leave workers out")

    def _check_population(self) -> None:
        if not self.movable:
            raise ValueError(f"with scheduler pbt the space needs a setting that can change: {', '.join(MOVABLE)}")
        if self.trials < self.reduction_factor:
            raise ValueError(f"a population of {self.trials} has no 1/{self.reduction_factor}; raise num_samples")
        odd = next((name for name in ("cross_validate", "checkpoint_copy", "changes") if getattr(self, name)), None)
        if odd is not None:
            raise ValueError(f"with scheduler pbt trials change; leave {odd} out")
        tied = next((name for name in self.movable if self.space[name].when), None)
        if tied is not None:
            raise ValueError(f"with scheduler pbt every trial has {tied}, since it may change; leave its when out")

    @property
    def trials(self) -> int:
        """How many trials there are."""
        if self.searcher != "grid":
            return 10 if self.num_samples is None else self.num_samples
        whole = len(grid(self.space))
        return whole if self.num_samples is None else min(whole, self.num_samples)

    def drawn(self, number: int) -> dict[str, Value]:
        """The settings that trial `number` is given; with tpe, those that it would be given by chance."""
        return self.draws()(number)

    def draws(self) -> Callable[[int], dict[str, Value]]:
        """`drawn` of many trials: the combinations of a grid are made once."""
        if self.searcher == "grid":
            return grid(self.space).__getitem__
        return lambda number: draw(self.space, self.seed, number)

    def plan(self, drawn: Mapping[str, Value], strict: bool = False) -> TrainConfig:
        """The configuration of a trial: this one's settings, those drawn over them. Raises ValidationError.

        A fixed setting that this draw has no use for, such as momentum beside adamw, is there for other draws, unless
        `strict`.
        """
        fixed = {name: getattr(self, name) for name in TrainConfig.model_fields if name in type(self).model_fields}
        settings = nested(drawn)
        for name, value in settings.items():
            if isinstance(value, dict):
                settings[name] = {**fixed[name], **value}
        left_out = ("address", "workers", "fresh", "name", "cross_validate")
        plain = {**{name: value for name, value in fixed.items() if name not in left_out}, **settings}
        unused = () if strict else [name for name in plain if name not in settings]
        return TrainConfig.model_validate(plain, context={"fixed": unused})

    def _check_name(self, name: str) -> None:
        head, *rest = name.split(".")
        known = [setting_name for setting_name in TrainConfig.model_fields if setting_name not in _NOT_DRAWN]
        if head in _NOT_DRAWN:
            raise ValueError(f"space.{name}: {head} cannot differ between trials")
        if head not in known:
            near = near_setting(head, known)
            hint = f"did you mean {near}?" if near else "mlic train --help lists the settings"
            raise ValueError(f"space.{name}: there is no setting {head!r}; {hint}")
        if len(rest) > 1 or (rest and not isinstance(getattr(self, head), dict)):
            raise ValueError(f"space.{name}: {head} has no parts")

    def _try(self, where: str, drawn: Mapping[str, Value], strict: bool = False) -> None:
        try:
            self.plan(drawn, strict)
        except ValidationError as error:
            first = error.errors()[0]
            what = first["msg"].removeprefix("Value error, ")
            name = ".".join(str(part) for part in first["loc"])
            drew = ", ".join(f"{key}={value}" for key, value in drawn.items())
            raise ValueError(f"{where} can draw {drew}: {name + ': ' if name else ''}{what}") from None
