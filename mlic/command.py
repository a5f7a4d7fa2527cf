"""Packages of commands that can be called: `mlic.train(epochs=5)` does what `mlic train --epochs 5` does."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Command(ModuleType):
    """A package whose call runs its command; `_stage` and `_settings` are its function and its settings."""

    _stage: tuple[str, str]
    _settings: tuple[str, str]

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Run the command with settings as its configuration file has them; returns its report.

        Positional arguments are those of the command line. Raises the errors of mlic.errors.
        """
        _show_progress()
        model = getattr(import_module(self._settings[0]), self._settings[1])
        named = _named(self.__name__, model, arguments)
        config = import_module("mlic.config.load").build(model, named, settings)
        preflight = import_module("mlic.cluster.preflight")
        preflight.check(config)
        preflight.begin_ray(config)
        return getattr(import_module(self._stage[0]), self._stage[1])(config)


def make_callable(package: str, stage: str, settings: str) -> None:
    """Let a package be called; `stage` and `settings` are `module:name` of the command's function and settings."""
    module = sys.modules[package]
    module.__class__ = _Command
    vars(module).update(_stage=tuple(stage.split(":")), _settings=tuple(settings.split(":")))


def _named(package: str, model: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The settings that positional arguments are, as on the command line. Raises TypeError for too many of them."""
    names = [
        name
        for name, field in model.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("cli") == "argument"
    ]
    if len(arguments) > len(names):
        raise TypeError(
            f"{package}() takes {len(names)} positional arguments ({', '.join(names)}), not {len(arguments)}"
        )
    return dict(zip(names, arguments, strict=False))


def _show_progress() -> None:
    """Show what commands say, unless the program has set up logging itself."""
    if not logging.getLogger("mlic").handlers and not logging.getLogger().handlers:
        import_module("mlic.cli.console").set_up_logging(0)
