from __future__ import annotations

import pickle

import pytest

from mlic.errors import ClusterError, ConfigError, DataError, MlicError, PartialError, RunError


@pytest.mark.parametrize(
    ("kind", "code"), [(ConfigError, 2), (DataError, 3), (ClusterError, 4), (RunError, 5), (PartialError, 6)]
)
def test_errors_survive_pickling(kind: type[MlicError], code: int) -> None:
    error = pickle.loads(pickle.dumps(kind("what is wrong.", "what to do.")))  # noqa: S301
    assert type(error) is kind
    assert (error.message, error.hint, error.exit_code, str(error)) == (
        "what is wrong.",
        "what to do.",
        code,
        "what is wrong.",
    )
