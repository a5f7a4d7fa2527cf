"""The commands `mlic weights list`, `fetch` and `where`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from mlic.cli import console
from mlic.errors import MlicError, PartialError


@click.group()
def weights() -> None:
    """List and fetch the published weights of architectures.

    Training never fetches weights: fetch them where there is a network, such as a login node, into a folder that all
    nodes see, and give --weights default. HF_HOME and TORCH_HOME say where they lie, HF_ENDPOINT names a mirror.

    \b
    Examples:
      mlic weights list dinov3
      mlic weights fetch timm/vit_small_patch16_dinov3
      mlic train --config dinov3
    """


def _command(name: str, function: str, parameter: click.Argument, text: str) -> click.Command:
    def run(as_json: bool, **given: Any) -> int:
        console.set_up_logging(0)
        try:
            call: Callable[..., Any] = getattr(import_module("mlic.weights.weights"), function)
            report = call(*given.values())
        except MlicError as error:
            return console.fail(error, as_json)
        except KeyboardInterrupt:
            return console.fail(PartialError("stopped.", "run the same command again."), as_json)
        click.echo(report.model_dump_json() if as_json else report.text())
        return 0

    as_json = click.Option(["--json", "as_json"], is_flag=True, help="Print the result as one JSON object")
    return click.Command(name, callback=run, params=[parameter, as_json], help=text)


for _name, _function, _parameter, _text in (
    ("list", "list_weights", click.Argument(["text"], default=""), "List architectures whose names contain a text."),
    (
        "fetch",
        "fetch_weights",
        click.Argument(["arch"], nargs=-1, required=True),
        "Fetch the weights of architectures, if they are not on this machine.",
    ),
    (
        "where",
        "find_weights",
        click.Argument(["arch"], nargs=-1, required=True),
        "Print the files of architectures on this machine.",
    ),
):
    weights.add_command(_command(_name, _function, _parameter, _text))
