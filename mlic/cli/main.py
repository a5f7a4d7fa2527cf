"""The command line: one click command per stage, made from the settings model of the stage.

Nothing here computes. A command builds a configuration, calls the stage and prints its report; PyTorch, Ray and pandas
are imported by the stages alone, so that help and mistakes answer at once.
"""

from __future__ import annotations

import difflib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click
from pydantic import BaseModel

from mlic import __version__
from mlic.cli import cluster_commands, console, weights_commands
from mlic.config import load, recipes
from mlic.config.data import DoctorConfig, ExploreConfig, PackConfig
from mlic.config.evaluate import CardConfig, EvaluateConfig, ReportConfig, ThresholdConfig
from mlic.config.examples import DemoConfig, ReproduceConfig
from mlic.config.log import LogConfig
from mlic.config.predict import AverageConfig, EmbedConfig, ExportConfig, PredictConfig
from mlic.config.review import ReviewConfig
from mlic.config.select import SelectConfig
from mlic.config.train import DistillConfig, NoiseConfig, TrainConfig
from mlic.config.tune import TuneConfig
from mlic.errors import ConfigError, MlicError, PartialError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

# command -> (its configuration, module and function of its stage, examples for its help)
_STAGES: dict[str, tuple[type[BaseModel], str, str, Sequence[str]]] = {
    "pack": (PackConfig, "mlic.pack.pack", "pack", ["mlic pack photos/ --labels annotations/"]),
    "explore": (
        ExploreConfig,
        "mlic.explore.explore",
        "explore",
        ["mlic explore", "mlic explore photos/ --labels annotations/ --out look/"],
    ),
    "doctor": (DoctorConfig, "mlic.doctor.doctor", "doctor", ["mlic doctor"]),
    "train": (
        TrainConfig,
        "mlic.train.train",
        "train",
        ["mlic train --arch resnet18 --epochs 20", "mlic train shards/ --config jobs/train.yaml --set lr=1e-4"],
    ),
    "tune": (TuneConfig, "mlic.tune.tune", "tune", ["mlic tune --num-samples 50"]),
    "distill": (
        DistillConfig,
        "mlic.distill.distill",
        "distill",
        ["mlic distill runs/both shards/ --images more-photos/ --config frozen --weights lite0.pth"],
    ),
    "noise": (
        NoiseConfig,
        "mlic.noise.noise",
        "noise",
        ["mlic noise shards/ --epochs 10", "mlic pack photos/ --labels annotations/ --corrections noise/suspects.tsv"],
    ),
    "batch-predict": (
        PredictConfig,
        "mlic.batch_predict.predict",
        "predict",
        ["mlic batch-predict runs/tune test-photos/", "mlic batch-predict runs/tune photo.jpg"],
    ),
    "embed": (
        EmbedConfig,
        "mlic.embed.embed",
        "embed",
        ["mlic embed runs/small photos/", "mlic embed runs/small photos/ --near photo.jpg"],
    ),
    "average": (
        AverageConfig,
        "mlic.average.average",
        "average",
        ["mlic average runs/resnet18 runs/small --out runs/both"],
    ),
    "export": (
        ExportConfig,
        "mlic.export.export",
        "export",
        ["mlic export runs/small --to onnx", "mlic batch-predict runs/small/export-onnx test-photos/ --out preds.tsv"],
    ),
    "evaluate": (
        EvaluateConfig,
        "mlic.evaluate.evaluate",
        "evaluate",
        ["mlic evaluate runs/small", "mlic evaluate preds.tsv --labels annotations/"],
    ),
    "threshold": (
        ThresholdConfig,
        "mlic.threshold.threshold",
        "threshold",
        ["mlic threshold runs/small --policy per-label", "mlic threshold runs/small --policy recall=0.9"],
    ),
    "report": (
        ReportConfig,
        "mlic.report.report",
        "report",
        ["mlic report runs/small", "mlic report runs/small runs/resnet18 --out comparison/"],
    ),
    "log": (LogConfig, "mlic.log.log", "log", ["mlic log runs/small --to mlflow"]),
    "select": (
        SelectConfig,
        "mlic.select.select",
        "select",
        ["mlic select runs/small new-photos/ --count 200 --out batch.tsv"],
    ),
    "review": (
        ReviewConfig,
        "mlic.review.review",
        "review",
        ["mlic review noise/suspects.tsv --images photos/", "mlic review batch.tsv --images new-photos/"],
    ),
    "card": (CardConfig, "mlic.card.card", "card", ["mlic card runs/small"]),
    "reproduce": (
        ReproduceConfig,
        "mlic.reproduce.reproduce",
        "reproduce",
        ["mlic reproduce a --images photos/ --labels annotations/", "mlic reproduce e all --epochs 2 --limit 500"],
    ),
    "demo": (DemoConfig, "mlic.demo.demo", "demo", ["mlic demo"]),
}


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
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        hint = _leads_on(error) or "mlic --help lists the commands, mlic COMMAND --help their settings."
        message = error.message if isinstance(error, click.NoSuchOption) else error.format_message()
        click.echo(f"Error: {console.sentence(message)}\nHint: {hint}", err=True)
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = console.fail(_stopped(), as_json=False)
    if code == PartialError.exit_code:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End the process at once: threads that were stopped in native code may crash one that ends at leisure."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# The commands in the order of the work, each with what it is for, in at most 62 characters.
_GROUPS = {
    "Data": {
        "pack": "Images and label files to shards",
        "explore": "What a data set is like, as a page with figures",
        "doctor": "Do the labels of shards belong to their images?",
        "noise": "List labels that are probably wrong",
    },
    "Models": {
        "train": "Fit one model, over all workers of a cluster",
        "tune": "Search settings for the best model; weak trials stop early",
        "average": "Make one model of several trained ones",
        "distill": "Train a model on the scores of others, and on images without labels",
        "threshold": "Fit decision thresholds again, without training",
        "export": "Write a model for another engine, without PyTorch",
        "weights": "List and fetch published weights to begin with",
    },
    "Predictions and numbers": {
        "batch-predict": "Predict a folder of images, shards or one image",
        "embed": "A vector for each image, and the images nearest to one",
        "select": "Which images without labels to label next",
        "review": "A page on which a person decides about labels",
        "evaluate": "Measure predictions, beside baselines and intervals",
        "report": "The page of a run, or of several beside each other",
        "card": "A model card, for people who did not train the model",
        "log": "Send runs to MLflow, Weights & Biases or TensorBoard",
    },
    "Elsewhere": {
        "slurm": "The same commands as SLURM jobs",
        "submit": "The same commands as jobs of a Ray cluster",
        "cluster": "See whether the nodes of a cluster can work together",
    },
    "Examples": {
        "demo": "The whole pipeline on a small generated corpus",
        "recipes": "Configurations for backbones, and of reference systems",
        "reproduce": "A reference system anew, its reported numbers beside ours",
    },
}

# What commands are called elsewhere.
_ALSO_CALLED = {
    "predict": "batch-predict",
    "infer": "batch-predict",
    "inference": "batch-predict",
    "prepare": "pack",
    "shard": "pack",
    "convert": "export",
    "fit": "train",
    "finetune": "train",
    "search": "tune",
    "sweep": "tune",
    "hpo": "tune",
    "eval": "evaluate",
    "test": "evaluate",
    "measure": "evaluate",
    "calibrate": "threshold",
    "thresholds": "threshold",
    "eda": "explore",
    "analyze": "explore",
    "analyse": "explore",
    "check": "doctor",
    "validate": "doctor",
    "clean": "noise",
    "ensemble": "average",
    "features": "embed",
    "embeddings": "embed",
    "similar": "embed",
}


class _Hinted(click.UsageError):
    """A mistake on the command line with something to do that leads on."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class _Commands(click.Group):
    """The commands, listed in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """All of them, in the order in which they are listed."""
        return [name for names in _GROUPS.values() for name in names if name in self.commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write them by group, each description whole."""
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                width = max(len(name) for names in _GROUPS.values() for name in names)
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named. Raises UsageError with the name of the one that is probably meant."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            near = _ALSO_CALLED.get(name) or next(iter(difflib.get_close_matches(name, self.commands, n=1)), None)
            hint = f"did you mean mlic {near}?" if near else "mlic --help lists the commands."
            raise _Hinted(f"there is no command {name!r}.", hint)
        return super().resolve_command(ctx, args)


def _leads_on(error: click.ClickException) -> str | None:
    """What to do about a mistake on the command line, where that is known."""
    if isinstance(error, _Hinted):
        return error.hint
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        near = console.near_option(error.ctx.command, error.option_name)
        return None if near is None else f"did you mean {near}?"
    return None


@click.group(cls=_Commands, context_settings=_CONTEXT)
@click.version_option(__version__)
def cli() -> None:
    """From label files to a defensible multi-label image tagger, here, on SLURM or on a Ray cluster.

    Exit codes: 0 done, 1 a bug, 2 configuration, 3 data, 4 cluster, 5 the run failed by itself, 6 stopped or finished
    in part: run the same command again.
    """


def _stage_command(name: str) -> click.Command:
    model, module, function, examples = _STAGES[name]

    def run(**given: Any) -> int:
        as_json, verbosity = given.pop("json"), given.pop("verbose") - given.pop("quiet")
        console.set_up_logging(verbosity)
        try:
            settings = _settings(model, given)
            # The result is all that stdout gets: what a library prints there meanwhile goes to stderr with -v.
            with console.only_results(verbosity > 0):
                preflight = import_module("mlic.cluster.preflight")
                preflight.check(settings)
                preflight.begin_ray(settings)
                report = getattr(import_module(module), function)(settings)
        except MlicError as error:
            return console.fail(error, as_json)
        except KeyboardInterrupt:
            return console.fail(_stopped(), as_json)
        except ModuleNotFoundError as error:  # of an installation that is for predicting with exports alone
            if (error.name or "mlic").partition(".")[0] == "mlic":
                raise
            return console.fail(
                ConfigError(f"this needs {error.name}, which is not installed.", f"pip install {error.name}."), as_json
            )
        except Exception:
            traceback.print_exc()
            click.echo("Error: this is a bug in mlic.\nHint: report it with the lines above.", err=True)
            return 1
        console.end_transient()
        click.echo(report.model_dump_json() if as_json else report.text())
        return int(getattr(report, "exit_code", 0))

    text = f"{model.__doc__}\n\n\b\nExample{'s' if len(examples) > 1 else ''}:\n" + "\n".join(
        f"  {e}" for e in examples
    )
    return console.StageCommand(
        name, callback=run, params=[*console.parameters(model), *_common()], help=text, model=model
    )


def _settings(model: type[BaseModel], options: dict[str, Any]) -> Any:
    """Defaults < the recipe's stem as the run's name < --config < --set < flags."""
    path, sets = options.pop("config"), options.pop("set")
    layers: list[dict[str, Any]] = []
    if path is not None:
        file = load.find_file(path)
        if "name" in model.model_fields:
            layers.append({"name": file.stem})
        layers.append(load.read_file(file))
    layers.append(load.read_sets(sets))
    layers.append({key: value for key, value in options.items() if value not in (None, ())})
    return load.build(model, *layers)


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


@click.command("recipes")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the recipes as one JSON object")
def _recipes(name: str | None, as_json: bool) -> int:
    """List the recipes with what was measured or reported of each, or print the one that is named.

    Those for pretrained backbones come first, then those of five reference systems, which reported their numbers.

    \b
    Examples:
      mlic recipes
      mlic train --config lite
      mlic train shards/ --config a-cnn1-2
    """
    try:
        if name is not None:
            file = load.find_file(name)
            if not file.is_file():
                raise ConfigError(f"there is no recipe {name!r}.", recipes.near_recipe(name))
            click.echo(file.read_text(encoding="utf-8"), nl=False)
            return 0
        recipe_names = [*recipes.backbones(), *recipes.recipes()]
    except MlicError as error:
        return console.fail(error, as_json)
    if as_json:
        rows = [{"name": r.name, "path": str(r.path), "what": r.what, "reported": r.reported} for r in recipe_names]
        click.echo(json.dumps({"recipes": rows}))
        return 0
    width = max(len(recipe.name) for recipe in recipe_names)
    for recipe in recipe_names:
        click.echo(f"{recipe.name:{width}}  {recipe.what}" + (f": {recipe.reported}" if recipe.reported else ""))
    return 0


for _name in _STAGES:
    cli.add_command(_stage_command(_name))


def _try_settings(stage: str, options: dict[str, Any]) -> BaseModel:
    """The settings that a stage's command would be given. Raises ConfigError for what it would raise it for."""
    settings: BaseModel = _settings(
        _STAGES[stage][0], {key: value for key, value in options.items() if key not in ("json", "verbose", "quiet")}
    )
    return settings


for _command in cluster_commands.commands(cli.commands, _try_settings):
    cli.add_command(_command)
cli.add_command(_recipes)
cli.add_command(weights_commands.weights)


def _stopped() -> PartialError:
    return PartialError("stopped.", "run the same command again to resume.")


def _terminated(_number: int, _frame: Any) -> NoReturn:
    """SIGTERM and SIGUSR1 mean what Ctrl-C means: stop in good order. Training writes a checkpoint at SIGUSR1 first."""
    raise KeyboardInterrupt
