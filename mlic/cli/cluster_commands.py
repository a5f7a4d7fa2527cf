"""The commands `mlic slurm`, `mlic submit` and `mlic cluster`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from mlic.cli import console
from mlic.config import load
from mlic.config.jobs import STAGES, ClusterCheckConfig, PipelineConfig, SlurmConfig, SubmitConfig
from mlic.errors import ConfigError, MlicError, PartialError

_REST = {"ignore_unknown_options": True, "allow_interspersed_args": True}
_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print the result as one JSON object")


Build = Callable[[str, dict[str, Any]], BaseModel]


def commands(stages: Mapping[str, click.Command], build: Build) -> list[click.Command]:
    """`mlic slurm`, `mlic submit` and `mlic cluster`, for the commands of the stages.

    `build` tries the configuration of a stage that its command would be given, and raises ConfigError.
    """
    check = _Check(stages, build)
    for stage in STAGES:
        slurm.add_command(_slurm_stage(stage, check))
    slurm.add_command(_pipeline(check))
    submit.callback = _told(_submit_for(check))
    return [slurm, submit, cluster]


@dataclass(frozen=True)
class _Check:
    """Refuses now what a stage would refuse after hours in a queue."""

    stages: Mapping[str, click.Command]
    build: Build

    def __call__(self, stage: str, arguments: Sequence[str], whole: bool = True, elsewhere: bool = False) -> None:
        """Look at the arguments of a stage, all of them when they are `whole`. Raises ConfigError.

        A job that runs `elsewhere`, in a folder of its own, has no ./shards to take by default.
        """
        try:
            context = self.stages[stage].make_context(stage, list(arguments))
        except click.exceptions.Exit:
            raise ConfigError(f"{arguments[-1]} is for mlic {stage} itself.", "leave it out.") from None
        except click.ClickException as error:
            raise ConfigError(error.format_message(), f"mlic {stage} --help lists the settings.") from None
        context.close()
        file = context.params["config"]
        if whole and (file is None or load.find_file(file).is_file()):  # one that another job writes is not there
            settings_given = self.build(stage, dict(context.params)).model_fields_set
            if elsewhere and "shards" in context.params and "shards" not in settings_given:
                raise ConfigError("shards is not given.", "name SHARDS on storage that all nodes of the cluster see.")


def _told(command: Callable[..., int]) -> Callable[..., int]:
    """Errors as users meet them, and as JSON where that is asked for."""

    @wraps(command)
    def run(*arguments: Any, **given: Any) -> int:
        console.set_up_logging(0)
        try:
            return command(*arguments, **given)
        except MlicError as error:
            return console.fail(error, bool(given.get("as_json")))
        except KeyboardInterrupt:
            return console.fail(PartialError("stopped; submitted jobs continue."), bool(given.get("as_json")))

    return run


@click.group(invoke_without_command=True)
@click.option("--launcher", is_flag=True, help="Print the path of with-ray.sh and stop")
@click.pass_context
def slurm(context: click.Context, launcher: bool) -> int:
    """Print the sbatch file of a stage, or submit it; see to the jobs that were submitted.

    What a site needs stands in ~/.config/mlic/site.yaml, for all stages or below a stage's name: partition, account,
    modules, venv, container, container_options, scratch and what else are settings here.

    \b
    Examples:
      mlic slurm tune --nodes 4 --gpus-per-node 4 > tune.sbatch && sbatch tune.sbatch shards/ --num-samples 50
      mlic slurm train --gpus-per-node 4 --submit -- shards/ --epochs 20
      mlic slurm pipeline photos/ --labels annotations/ --test test-photos/ --out /shared/work --submit
    """
    from mlic.cluster import sbatch as cluster_slurm

    if context.invoked_subcommand is not None:
        return 0
    try:
        if not launcher:
            raise ConfigError("name a stage.", "mlic slurm --help lists what there is.")
        click.echo(cluster_slurm.launcher())
    except MlicError as error:
        code = console.fail(error, as_json=False)
        context.exit(code)
    return 0


def _slurm_stage(stage: str, check: _Check) -> click.Command:
    def run(arguments: Sequence[str], submit: bool, wait: bool, as_json: bool, **given: Any) -> int:
        check(stage, arguments, whole=submit or wait)
        wanted = _slurm_config(stage, given, arguments)
        return _give((wanted,), submit, wait, as_json)

    params: list[click.Parameter] = [
        click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS OF THE STAGE]"),
        *console.parameters(SlurmConfig),
        *_queueing(),
    ]
    text = (
        f"Print the sbatch file of mlic {stage}, or submit it.\n\nArguments of the stage follow --; those of sbatch's "
        "command line are added to them."
    )
    return click.Command(stage, callback=_told(run), params=params, help=text)


def _queueing() -> list[click.Parameter]:
    return [
        click.Option(["--submit"], is_flag=True, help="Ask SLURM whether it can run, submit it and print its id"),
        click.Option(["--wait"], is_flag=True, help="Submit it, show its log, and end with its exit code"),
        _JSON,
    ]


def _slurm_config(stage: str, options: Mapping[str, Any], arguments: Sequence[str] = ()) -> SlurmConfig:
    """Defaults < the site's file < what it has below the stage's name < flags."""
    file = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "mlic" / "site.yaml"
    site = load.read_file(file) if file.is_file() else {}
    of_stage = site.get(stage) or {}
    if not isinstance(of_stage, dict):
        raise ConfigError(
            f"{file}: {stage} should be a mapping of settings, not {of_stage!r}.", "see mlic slurm --help."
        )
    common = {key: value for key, value in site.items() if key not in STAGES}
    flags = {key: value for key, value in options.items() if value not in (None, ())}
    return load.build(SlurmConfig, common, of_stage, flags, {"stage": stage, "arguments": tuple(arguments)})


def _give(wanted: Sequence[SlurmConfig], submit: bool, wait: bool, as_json: bool) -> int:
    """Print the scripts, or submit them as a chain, each after the one before it, and wait for the last."""
    from mlic.cluster import slurm_client
    from mlic.cluster.sbatch import render

    scripts = [render(option) for option in wanted]
    if not (submit or wait):
        if as_json:
            click.echo(json.dumps({"script": scripts[0]} if len(scripts) == 1 else {"scripts": scripts}))
        else:
            click.echo("\n".join(scripts), nl=False)
        return 0
    for script in scripts:
        slurm_client.check(script)
    ids: list[str] = []
    for option, script in zip(wanted, scripts, strict=True):
        click.echo(script, err=True)
        name = option.job_name or f"mlic-{option.stage}"
        ids.append(slurm_client.submit(script, name, after=ids[-1] if ids else None))
        if not as_json:
            click.echo(ids[-1])
    if not wait:
        if as_json:
            click.echo(json.dumps({"jobs": ids}))
        return 0
    for job in ids:
        ended = slurm_client.follow(job, lambda text: click.echo(text, err=True))
        if ended.exit_code != 0:
            break
    if as_json:
        click.echo(json.dumps({"jobs": ids, "ended": slurm_client.plain(ended)}))
    click.echo(f"job {ended.id} is {ended.state}, exit code {ended.code}", err=True)
    return ended.exit_code


def _pipeline(check: _Check) -> click.Command:
    def run(submit: bool, wait: bool, as_json: bool, **given: Any) -> int:
        data = {key: given.pop(key) for key in PipelineConfig.model_fields}
        plan = load.build(PipelineConfig, {key: value for key, value in data.items() if value is not None})
        wanted = []
        for stage, arguments in plan.stages().items():
            check(stage, arguments)
            left_out = ("nodes", "gpus_per_node") if stage == "pack" else ()
            asked = {key: value for key, value in given.items() if key not in left_out}
            wanted.append(_slurm_config(stage, asked, arguments))
        return _give(wanted, submit, wait, as_json)

    return click.Command(
        "pipeline",
        callback=_told(run),
        params=[
            *console.parameters(PipelineConfig),
            *(p for p in console.parameters(SlurmConfig) if p.name not in ("array", "job_name")),
            *_queueing(),
        ],
        help="Submit pack, tune, train and batch-predict as one chain, each after the one before it.\n\n"
        "The settings of the request go to all of them but pack, which needs one node and no GPU.",
    )


def _status(ids: Sequence[str], as_json: bool) -> int:
    from mlic.cluster import slurm_client

    jobs = slurm_client.jobs(ids)
    if as_json:
        click.echo(json.dumps({"jobs": [slurm_client.plain(job) for job in jobs]}))
        return 0
    rows = [("job", "name", "state", "code", "time", "starts", "nodes", "reason")]
    for job in jobs:
        code = "" if job.code is None else str(job.code)
        rows.append((job.id, job.name, job.state, code, job.elapsed, str(job.restarts + 1), job.nodes, job.reason))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _logs(job: str, follow: bool) -> int:
    from mlic.cluster import slurm_client

    if follow:
        return slurm_client.follow(job, click.echo).exit_code
    for each in slurm_client.jobs([job]):
        click.echo(slurm_client.log_of(each).read_text(encoding="utf-8", errors="replace"), nl=False)
    return 0


def _cancel(ids: Sequence[str]) -> int:
    from mlic.cluster import slurm_client

    slurm_client.cancel(ids)
    click.echo("what they have written stays; the same commands resume from there", err=True)
    return 0


slurm.add_command(
    click.Command(
        "status",
        callback=_told(_status),
        params=[click.Argument(["ids"], nargs=-1, metavar="[JOB...]"), _JSON],
        help="Say how jobs stand: those that are named, or those in the queue and the last ones submitted.",
    )
)
slurm.add_command(
    click.Command(
        "logs",
        callback=_told(_logs),
        params=[
            click.Argument(["job"], metavar="JOB"),
            click.Option(["-f", "--follow"], is_flag=True, help="Until the job ends, and end with its exit code"),
        ],
        help="Print what a job has written.",
    )
)
slurm.add_command(
    click.Command(
        "cancel",
        callback=_told(_cancel),
        params=[click.Argument(["ids"], nargs=-1, required=True, metavar="JOB...")],
        help="End jobs.",
    )
)


def _submit_for(check: _Check) -> Callable[..., int]:
    def run(arguments: Sequence[str], wait: bool, as_json: bool, **given: Any) -> int:
        from mlic.cluster import ray_jobs

        flags = {key: value for key, value in given.items() if value is not None}
        asked = {"address": os.environ["RAY_API_SERVER_ADDRESS"]} if "RAY_API_SERVER_ADDRESS" in os.environ else {}
        wanted = load.build(SubmitConfig, asked, flags, {"arguments": tuple(arguments)})
        stage = wanted.stage or wanted.named_after
        check(stage, ["--config", str(wanted.job), *arguments], elsewhere=True)
        name = ray_jobs.submit(wanted, stage, lambda text: click.echo(text, err=True))
        if not as_json:
            click.echo(name, err=wait)
        code = ray_jobs.follow(wanted.address, name, lambda text: click.echo(text, err=as_json)) if wait else 0
        if as_json:
            click.echo(json.dumps({"job": name, "exit_code": code if wait else None}))
        return code

    return run


submit = click.Command(
    "submit",
    params=[
        *console.parameters(SubmitConfig)[:1],
        click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGUMENTS OF THE STAGE]"),
        *console.parameters(SubmitConfig)[1:],
        click.Option(["--wait/--no-wait"], default=True, help="Show what it prints, and end with its exit code"),
        _JSON,
    ],
    help="Run a stage as a job of a Ray cluster, from outside.\n\nOnly the configuration file is uploaded. Give "
    "absolute paths on storage that all nodes see.\n\n\b\nExample:\n"
    "  mlic submit jobs/train.yaml --address http://HEAD:8265 -- /shared/shards --runs /shared/runs",
)


@click.group()
def cluster() -> None:
    """See to a Ray cluster."""


def _check(as_json: bool, **given: Any) -> int:
    from mlic.cluster import check

    report = check.check(load.build(ClusterCheckConfig, {k: v for k, v in given.items() if v is not None}))
    click.echo(report.model_dump_json() if as_json else report.text())
    return report.exit_code


def _model_command(name: str, model: type[BaseModel], command: Callable[..., int], text: str) -> click.Command:
    return click.Command(name, callback=_told(command), params=[*console.parameters(model), _JSON], help=text)


cluster.add_command(
    _model_command(
        "check",
        ClusterCheckConfig,
        _check,
        "See whether the nodes can work together: versions, storage, clocks, network, memory and disk.\n\nEnds "
        "with 4 and what to do when something is wrong.\n\n"
        "\b\nExample:\n  mlic cluster check /shared/runs --address HEAD:6379",
    )
)
