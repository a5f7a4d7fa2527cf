"""The token that the processes of a Ray cluster identify themselves with."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

from mlic.cluster import ray_private


def use_own_token() -> None:
    """Protect an embedded Ray with its own token, which is passed to its processes and never written to disk.

    By default, Ray writes a token to the home directory, where others can read it. It uses that token from then on.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray._raylet" in sys.modules:  # Ray reads its environment once per process, and has done so: read it again
        ray_private.reload_authentication()


def has_token() -> bool:
    return (
        any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        or (Path.home() / ".ray" / "auth_token").is_file()
    )


def wants_token(address: str | None) -> bool:
    """Whether a cluster refuses clients without a token; another process asks, because Ray decides this only once."""
    if "://" in str(address):
        return True
    asked = subprocess.run(  # noqa: S603 - Python, with an address as its argument
        [sys.executable, "-c", ray_private.ASK_CLUSTER, str(address)],
        env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return "AuthenticationError" in asked.stderr
