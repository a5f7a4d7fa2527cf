"""The command line: one click command a stage, made from the stage's configuration model.

Nothing here computes. A command builds a configuration, calls the stage and prints its report; PyTorch, Ray and pandas
are imported by the stages alone, so that help and mistakes answer at once.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

import click
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticUndefined

from mlic import __version__, config, schema, settings
from mlic.errors import ConfigError, MlicError, PartialError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

# command -> (its configuration, module and function of its stage, examples for its help)
_STAGES: dict[str, tuple[type[BaseModel], str, str, Sequence[str]]] = {
    "pack": (config.PackConfig, "mlic.stages.pack", "pack", ["mlic pack photos/ --labels annotations/ --out shards/"]),
    "explore": (
        config.ExploreConfig, "mlic.stages.explore", "explore",
        ["mlic explore shards/", "mlic explore photos/ --labels annotations/ --out look/"],
    ),
    "doctor": (config.DoctorConfig, "mlic.stages.doctor", "doctor", ["mlic doctor shards/"]),
    "train": (
        config.TrainConfig, "mlic.stages.train", "train",
        ["mlic train shards/ --arch resnet18 --epochs 20", "mlic train --config jobs/train.yaml shards/ --set lr=1e-4"],
    ),
    "tune": (config.TuneConfig, "mlic.stages.tune", "tune", ["mlic tune shards/ --num-samples 50"]),
    "noise": (
        config.NoiseConfig, "mlic.stages.noise", "noise",
        ["mlic noise shards/ --epochs 10", "mlic pack photos/ --labels annotations/ --corrections noise/suspects.tsv"],
    ),
    "batch-predict": (
        config.PredictConfig, "mlic.stages.predict", "predict",
        ["mlic batch-predict runs/small test-photos/ --out preds.tsv"],
    ),
    "average": (
        config.AverageConfig, "mlic.stages.average", "average",
        ["mlic average runs/resnet18 runs/small --out runs/both"],
    ),
    "export": (
        config.ExportConfig, "mlic.stages.export", "export",
        ["mlic export runs/small --to onnx", "mlic batch-predict runs/small/export-onnx test-photos/ --out preds.tsv"],
    ),
    "evaluate": (
        config.EvaluateConfig, "mlic.stages.evaluate", "evaluate",
        ["mlic evaluate runs/small", "mlic evaluate preds.tsv --labels annotations/"],
    ),
    "threshold": (
        config.ThresholdConfig, "mlic.stages.threshold", "threshold",
        ["mlic threshold runs/small --policy per-label", "mlic threshold runs/small --policy recall=0.9"],
    ),
    "report": (
        config.ReportConfig, "mlic.stages.report", "report",
        ["mlic report runs/small", "mlic report runs/small runs/resnet18 --out comparison/"],
    ),
    "demo": (config.DemoConfig, "mlic.stages.demo", "demo", ["mlic demo"]),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _terminated)
    code = 0
    try:
        result = cli.main(args=None if arguments is None else list(arguments), prog_name="mlic", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        hint = "mlic --help lists the commands, mlic COMMAND --help their settings."
        click.echo(f"Error: {_sentence(error.format_message())}\nHint: {hint}", err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = _fail(_stopped(), as_json=False)
    if code == PartialError.exit_code:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End the process at once: threads that were stopped in native code may crash one that ends at leisure."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@click.group(context_settings=_CONTEXT)
@click.version_option(__version__)
def cli() -> None:
    """From label files to a defensible multi-label image tagger, here, on SLURM or on a Ray cluster.

    Exit codes: 0 done, 1 a bug, 2 configuration, 3 data, 4 cluster, 5 the run failed by itself, 6 stopped or finished
    in part: run the same command again.
    """


def _stage_command(name: str) -> click.Command:
    model, module, function, examples = _STAGES[name]

    def run(**given: Any) -> int:
        as_json = given.pop("json")
        _set_up_logging(given.pop("verbose") - given.pop("quiet"))
        try:
            settings = _settings(model, given)
            import_module("mlic.stages.preflight").check(settings)
            report = getattr(import_module(module), function)(settings)
        except MlicError as error:
            return _fail(error, as_json)
        except KeyboardInterrupt:
            return _fail(_stopped(), as_json)
        except ModuleNotFoundError as error:  # of an installation that is for predicting with exports alone
            if (error.name or "mlic").partition(".")[0] == "mlic":
                raise
            return _fail(ConfigError(f"this needs {error.name}, which is not installed.", "pip install mlic."), as_json)
        except Exception:
            traceback.print_exc()
            click.echo("Error: this is a bug in mlic.\nHint: report it with the lines above.", err=True)
            return 1
        _end_transient()
        click.echo(report.model_dump_json() if as_json else report.text())
        return int(getattr(report, "exit_code", 0))

    text = f"{model.__doc__}\n\n\b\nExample{'s' if len(examples) > 1 else ''}:\n" + "\n".join(
        f"  {e}" for e in examples
    )
    return click.Command(name, callback=run, params=[*_parameters(model), *_common()], help=text)


def _settings(model: type[BaseModel], given: dict[str, Any]) -> Any:
    """Defaults < the recipe's stem as the run's name < --config < --set < flags."""
    path, sets = given.pop("config"), given.pop("set")
    layers: list[dict[str, Any]] = []
    if path is not None:
        file = settings.find_file(path)
        if "name" in model.model_fields:
            layers.append({"name": file.stem})
        layers.append(settings.read_file(file))
    layers.append(settings.read_sets(sets))
    layers.append({key: value for key, value in given.items() if value not in (None, ())})
    return settings.build(model, *layers)


def _parameters(model: type[BaseModel]) -> list[click.Parameter]:
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


def _common() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config"], type=click.Path(dir_okay=False), help="YAML or JSON file of settings, or a recipe's name"
        ),
        click.Option(["--set"], multiple=True, metavar="KEY=VALUE", help="Any setting, as in the configuration file"),
        click.Option(["--json"], is_flag=True, help="Print the report as one JSON object"),
        click.Option(["-v", "--verbose"], count=True, help="Say more, Ray's own log included"),
        click.Option(["-q", "--quiet"], count=True, help="Print the report, warnings and errors alone"),
    ]


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


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--launcher", is_flag=True, help="Print the path of with-ray.sh and stop")
@click.option("--json", "as_json", is_flag=True, help="Print the script as one JSON object")
@click.pass_context
def slurm(context: click.Context, /, launcher: bool, as_json: bool, **given: Any) -> int:
    """Print the sbatch file of a stage, fit for `sbatch`.

    \b
    Example:
      mlic slurm tune --nodes 4 --gpus-per-node 4 > tune.sbatch && sbatch tune.sbatch shards/ --num-samples 50
    """
    from mlic.cluster import slurm as cluster_slurm

    try:
        if launcher:
            click.echo(cluster_slurm.launcher())
            return 0
        given = {key: value for key, value in given.items() if value is not None}
        if not given:
            raise click.UsageError("name a stage", context)
        script = cluster_slurm.render(settings.build(config.SlurmConfig, given))
    except MlicError as error:
        return _fail(error, as_json)
    click.echo(json.dumps({"script": script}) if as_json else script, nl=as_json)
    return 0


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the recipes as one JSON object")
def recipes(name: str | None, as_json: bool) -> int:
    """List the recipes of the reference systems with what was reported of each, or print the one that is named.

    \b
    Examples:
      mlic recipes
      mlic train shards/ --config a-cnn1-2
    """
    try:
        found = settings.recipes()
        if name is not None:
            file = settings.find_file(name)
            click.echo(file.read_text(encoding="utf-8") if file.is_file() else _no_recipe(name, found), nl=False)
            return 0
    except MlicError as error:
        return _fail(error, as_json)
    if as_json:
        plain = [{"name": r.name, "path": str(r.path), "what": r.what, "reported": r.reported} for r in found]
        click.echo(json.dumps({"recipes": plain}))
        return 0
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        click.echo(f"{recipe.name:{width}}  {recipe.what}" + (f": {recipe.reported}" if recipe.reported else ""))
    return 0


def _no_recipe(name: str, found: Sequence[settings.Recipe]) -> NoReturn:
    near = difflib.get_close_matches(name, [recipe.name for recipe in found], n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else "mlic recipes lists them."
    raise ConfigError(f"there is no recipe {name!r}.", hint)


slurm.params = [*_parameters(config.SlurmConfig), *slurm.params]
for _name in _STAGES:
    cli.add_command(_stage_command(_name))
cli.add_command(slurm)
cli.add_command(recipes)


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


def _set_up_logging(verbosity: int) -> None:
    root = logging.getLogger("mlic")
    root.setLevel(logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG)
    root.propagate = False
    if not root.handlers:
        handler = _Handler()
        handler.setFormatter(_Formatter())
        root.addHandler(handler)


def _end_transient() -> None:
    if _Handler.open_lines:
        sys.stderr.write("\n")
        _Handler.open_lines = 0


def _fail(error: MlicError, as_json: bool) -> int:
    _end_transient()
    click.echo(f"Error: {_sentence(error.message)}", err=True)
    if error.hint:
        click.echo(f"Hint: {error.hint}", err=True)
    if as_json:
        click.echo(json.dumps({"error": error.message, "hint": error.hint, "exit_code": error.exit_code}))
    logging.getLogger(__name__).debug("where it was raised", exc_info=error)
    return error.exit_code


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?")) else text + "."


def _stopped() -> PartialError:
    return PartialError("stopped.", "run the same command again to go on.")


def _terminated(_number: int, _frame: Any) -> NoReturn:
    """SIGTERM and SIGUSR1 mean what Ctrl-C means: stop in good order. Training writes a checkpoint at SIGUSR1 first."""
    raise KeyboardInterrupt
