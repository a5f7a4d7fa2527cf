"""What a setting, a configuration and a report are made of."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlic.values import Workers


def setting(default: Any, help: str, *, cli: str = "", place: bool = False, **limits: Any) -> Any:
    """Declare one setting.

    `cli` is "argument", "flag" or "" (reached by --set alone). `place` marks what only says where a command runs and
    where its files lie: it may differ when a stopped run is started again. What input files hold is compared by
    their fingerprints instead.
    """
    return Field(default, description=help, json_schema_extra={"cli": cli, "place": place}, **limits)


class Model(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(Model):
    """What every command that runs on Ray has."""

    address: str | None = setting(
        None, "Ray cluster to use; default: RAY_ADDRESS, else Ray inside this process", cli="flag", place=True
    )
    workers: Workers = setting("auto", "Parallel workers, or auto", cli="flag", place=True)
    fresh: bool = setting(
        False, "Throw away what an earlier run of this name left and start again", cli="flag", place=True
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


def cli_kind(field: Any) -> str:
    """ "argument", "flag" or "" for a field of a configuration."""
    return str(_extra(field).get("cli", ""))
