"""Run a stage as a job of a Ray cluster, through Ray's Jobs API: submit it, follow it, return its exit code."""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlic.config.jobs import SubmitConfig
from mlic.errors import ClusterError

_AGAIN_S = 2.0  # before a lost connection is tried again
_LOST_AFTER_S = 300.0  # without an answer


def submit(config: SubmitConfig, stage: str, say: Callable[[str], None]) -> str:
    """Submit the job, or find a running job of this name; returns its id.

    Uploads the configuration file alone: data is on storage that all nodes see. Raises ClusterError when the cluster
    does not answer or does not take it.
    """
    client = _client(config.address)
    name = config.name or f"mlic-{stage}-{uuid.uuid4().hex[:8]}"
    if config.name is not None and (status := _status(client, name)) is not None:
        if not status.is_terminal():
            say(f"{name} is at work already")
            return name
        name = f"{config.name}-{uuid.uuid4().hex[:8]}"  # Ray keeps an id for ever
    folder = Path(tempfile.mkdtemp(prefix="mlic-job-"))
    try:
        shutil.copyfile(config.job, folder / config.job.name)
        command = ["python", "-m", "mlic", stage, "--config", config.job.name, *config.arguments]
        client.submit_job(
            entrypoint=shlex.join(command),
            submission_id=name,
            runtime_env={"working_dir": str(folder), "env_vars": {"MALLOC_ARENA_MAX": "1"}},
            metadata={"mlic": stage},
        )
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(
            f"{config.address} did not take the job: {_line(error)}.", "fix that, and submit it again."
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return name


def follow(address: str, name: str, say: Callable[[str], None]) -> int:
    """Print the log of a job until it ends, across lost connections; returns its exit code, 6 if it was stopped."""
    client = _client(address)
    shown = 0
    answered = time.monotonic()

    async def tail() -> None:
        nonlocal shown, answered
        skip = shown  # each new connection starts at the first line again
        async for text in client.tail_job_logs(name):
            answered = time.monotonic()
            new = text[min(skip, len(text)) :]
            skip -= len(text) - len(new)
            shown += len(new)
            if new:
                say(new.rstrip("\n"))

    while True:
        try:
            asyncio.run(tail())
            info = client.get_job_info(name)
        except (RuntimeError, ConnectionError, OSError) as error:
            if time.monotonic() - answered > _LOST_AFTER_S:
                raise ClusterError(
                    f"{address} has not answered for {_LOST_AFTER_S:.0f} s: {_line(error)}.",
                    f"the job continues; see it by ray job logs {name}.",
                ) from None
            time.sleep(_AGAIN_S)
            continue
        answered = time.monotonic()
        if info.status.is_terminal():
            return _exit_code(info)
        time.sleep(_AGAIN_S)


def _exit_code(info: Any) -> int:
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return 6
    code = info.driver_exit_code
    if code in (None, 0):
        raise ClusterError(f"the job failed: {_line(info.message or info.status)}.", "look at Ray's dashboard.")
    return int(code) if code > 0 else 128 - int(code)


def _client(address: str) -> Any:
    import ray.exceptions
    from ray.job_submission import JobSubmissionClient

    for name in ("modules.dashboard_sdk", "modules.job.sdk"):  # they log uploads and sockets
        logging.getLogger(f"ray.dashboard.{name}").setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(address)
    except ray.exceptions.AuthenticationError:
        raise ClusterError(
            f"the cluster at {address} refuses this client: it shows no token, or another one.",
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH with the cluster's token.",
        ) from None
    except (RuntimeError, ConnectionError, ValueError) as error:
        raise ClusterError(
            f"no Ray dashboard answers at {address}: {_line(error)}.",
            "check --address, and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH where the cluster has a token.",
        ) from None


def _status(client: Any, name: str) -> Any:
    try:
        return client.get_job_status(name)
    except RuntimeError as error:
        if "404" in str(error) or "does not exist" in str(error):
            return None
        raise ClusterError(f"the cluster does not answer: {_line(error)}.", "try again.") from None


def _line(error: object) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
