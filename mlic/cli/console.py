"""What all commands share on a terminal: options from a settings model, messages on stderr, and errors."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticUndefined

from mlic.config import base
from mlic.errors import MlicError


def parameters(model: type[BaseModel]) -> list[click.Parameter]:
    """Arguments and flags in the order of the fields, those of where the command runs last."""
    parameters: list[click.Parameter] = []
    inherited = base.Settings.model_fields
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] in inherited):
        kind = base.cli_kind(field)
        if kind == "argument":
            several = get_origin(field.annotation) is tuple
            metavar = f"{name.upper().removesuffix('S')}..." if several else name.upper()
            count = -1 if several else 1
            if not field.is_required() and not several:
                metavar = f"[{metavar}]"
            parameters.append(click.Argument([name], nargs=count, required=False, metavar=metavar, type=_type(field)))
        elif kind == "flag":
            flag = "--" + name.replace("_", "-")
            help_text = f"{field.description}{_default(field)}"
            if field.annotation is bool:
                names = [f"{flag}/--no-{flag[2:]}" if field.default else flag, name]
                parameters.append(click.Option(names, is_flag=True, default=None, help=help_text))
            else:
                parameters.append(click.Option([flag, name], type=_type(field), help=help_text))
    return parameters


_TITLES: dict[base.Group, str] = {
    "labels": "Labels",
    "search": "Search",
    "data": "Data",
    "model": "Model",
    "optimisation": "Optimisation",
    "resources": "Resources",
    "run": "Run",
    "": "Run",
}


class StageCommand(click.Command):
    """A command whose options stand in groups in its help, where their settings have some; `model` are the settings."""

    def __init__(self, *arguments: Any, model: type[BaseModel], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.model = model

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by group, those of the run and of all commands last."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            field = self.model.model_fields.get(str(parameter.name))
            if record is not None and isinstance(parameter, click.Option):
                title = _TITLES[base.group_of(field) if field is not None else ""]
                groups.setdefault(title, []).append(record)
        for title in dict.fromkeys(_TITLES.values()):
            if title in groups:
                alone = len(groups) == 1
                with formatter.section("Options" if alone else title):
                    formatter.write_dl(groups[title])


def near_option(command: click.Command, option: str) -> str | None:
    """What leads on from an option that a command does not have: the nearest flag, or --set of the nearest setting."""
    flags = {str(parameter.name): parameter.opts[0] for parameter in command.params if parameter.opts[0][:1] == "-"}
    model = getattr(command, "model", None)
    near = base.near_setting(option, [*flags, *(model.model_fields if model is not None else ())])
    if near is None:
        return None
    return flags.get(near) or (
        f"--set {near}=VALUE" if model and base.cli_kind(model.model_fields[near]) == "" else near
    )


def _type(field: Any) -> Any:
    """The click type of a setting; what click cannot express is left to the configuration model to check."""
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    types = [option for option in options if option is not type(None)]
    if Path in types:  # or the URL of an object store
        return click.Path()
    if len(types) == 1:
        if get_origin(types[0]) is Literal:
            return click.Choice(get_args(types[0]))
        if any(isinstance(item, BeforeValidator) for item in field.metadata):
            return click.STRING
        click_type = {int: click.INT, float: click.FLOAT}.get(types[0])
        if click_type is not None:
            return click_type
    return click.STRING


def _default(field: Any) -> str:
    if field.default in (None, PydanticUndefined, (), {}) or isinstance(field.default, bool):
        return ""
    value = field.default
    if isinstance(value, dict):
        value = ",".join(f"{key}={item}" for key, item in value.items())
    elif isinstance(value, tuple):
        value = ",".join(str(item) for item in value)
    return f"  [default: {value}]"


class _Handler(logging.Handler):
    """Lines to stderr; transient ones, several at a time perhaps, in place on a terminal and not at all elsewhere."""

    open_lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        transient = getattr(record, "transient", False)
        if transient and not sys.stderr.isatty():
            return
        start = "\r\x1b[2K" + "\x1b[1A\x1b[2K" * (_Handler.open_lines - 1) if _Handler.open_lines else ""
        if transient:  # a line that wraps, or more of them than fit, could not be taken back
            width, height = os.get_terminal_size(sys.stderr.fileno())
            lines = [line[: max(1, width - 1)] for line in text.splitlines()][-max(1, height - 1) :]
            text = "\n".join(lines)
        _Handler.open_lines = len(lines) if transient else 0
        sys.stderr.write(start + text + ("" if transient else "\n"))
        sys.stderr.flush()


class _Formatter(logging.Formatter):
    """Stories without ornament; warnings and worse with their level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.capitalize()}: {text}" if record.levelno >= logging.WARNING else text


def set_up_logging(verbosity: int) -> None:
    root = logging.getLogger("mlic")
    root.setLevel(logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG)
    root.propagate = False
    if not root.handlers:
        handler = _Handler()
        handler.setFormatter(_Formatter())
        root.addHandler(handler)


@contextlib.contextmanager
def only_results(verbose: bool) -> Iterator[None]:
    """Keep what libraries print off stdout, which is for the result alone: it goes to stderr, or nowhere."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(sys.stderr if verbose else nowhere):
        yield


def end_transient() -> None:
    if _Handler.open_lines:
        sys.stderr.write("\n")
        _Handler.open_lines = 0


def fail(error: MlicError, as_json: bool) -> int:
    end_transient()
    click.echo(f"Error: {sentence(error.message)}", err=True)
    if error.hint:
        click.echo(f"Hint: {error.hint}", err=True)
    if as_json:
        click.echo(json.dumps({"error": error.message, "hint": error.hint, "exit_code": error.exit_code}))
    logging.getLogger(__name__).debug("where it was raised", exc_info=error)
    return error.exit_code


def sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else text + "."
