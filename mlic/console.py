"""What commands have in common at a terminal: parameters made of a model's fields, the story on stderr, and errors."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticUndefined

from mlic import schema
from mlic.errors import MlicError


def parameters(model: type[BaseModel]) -> list[click.Parameter]:
    """Arguments and flags in the order of the fields, those of where the command runs last."""
    parameters: list[click.Parameter] = []
    inherited = schema.Settings.model_fields
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] in inherited):
        kind = schema.cli_kind(field)
        if kind == "argument":
            several = get_origin(field.annotation) is tuple
            metavar = f"{name.upper().removesuffix('S')}..." if several else name.upper()
            count = -1 if several else 1
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


def _type(field: Any) -> Any:
    """The click type of a setting; what click cannot express is left to the configuration model to check."""
    annotation = field.annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = [option for option in options if option is not type(None)]
    if Path in plain:  # or the URL of an object store
        return click.Path()
    if len(plain) == 1:
        if get_origin(plain[0]) is Literal:
            return click.Choice(get_args(plain[0]))
        if any(isinstance(item, BeforeValidator) for item in field.metadata):
            return click.STRING
        found = {int: click.INT, float: click.FLOAT}.get(plain[0])
        if found is not None:
            return found
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
