"""What a setting, a configuration and a report are made of."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlic.values import Workers

Group = Literal["", "data", "model", "optimisation", "resources", "run"]


def setting(default: Any, help: str, *, cli: str = "", place: bool = False, group: Group = "", **limits: Any) -> Any:
    """Declare one setting.

    `cli` is "argument", "flag" or "" (reached by --set alone). `place` marks what only says where a command runs and
    where its files lie: it may differ when a stopped run is started again. What input files hold is compared by
    their fingerprints instead. `group` is the heading that its flag stands under in the help.
    """
    extra: dict[str, Any] = {"cli": cli, "place": place} | ({"group": group} if group else {})
    return Field(default, description=help, json_schema_extra=extra, **limits)


class Model(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(Model):
    """What every command that runs on Ray has."""

    address: str | None = setting(
        None, "Ray cluster to use; default: RAY_ADDRESS, else Ray inside this process", cli="flag", place=True,
        group="resources",
    )  # fmt: skip
    workers: Workers = setting("auto", "Parallel workers, or auto", cli="flag", place=True, group="resources")
    fresh: bool = setting(
        False, "Throw away what an earlier run of this name left and start again", cli="flag", place=True, group="run"
    )

    @model_validator(mode="after")
    def _workers_are_positive(self) -> Self:
        if isinstance(self.workers, int) and self.workers < 1:
            raise ValueError(f"workers should be auto or at least 1, not {self.workers}")
        return self


def result_settings(config: BaseModel) -> dict[str, Any]:
    """The settings that decide a stage's result, as plain values: all but those of where and how often it runs."""
    plain = config.model_dump(mode="json")
    return {key: plain[key] for key, field in type(config).model_fields.items() if not _extra(field).get("place")}


def _extra(field: Any) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def group_of(field: Any) -> Group:
    """The heading that the flag of a field stands under in the help, "" for none."""
    found: Group = _extra(field).get("group", "")
    return found


def cli_kind(field: Any) -> str:
    """ "argument", "flag" or "" for a field of a configuration."""
    return str(_extra(field).get("cli", ""))
