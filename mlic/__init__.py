"""mlic: from label files to a defensible multi-label image tagger on a cluster.

    import mlic

    mlic.pack("photos/", labels="annotations/")
    run = mlic.train(epochs=10).run
    model = mlic.load(run)
    model.predict(["a.jpg", "b.jpg"])  # a table of pandas

Each command is a function of its name, with the settings of its configuration file as keyword arguments, and returns
its report. Nothing heavy is imported until it is used.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

_COMMANDS = (
    "average",
    "batch_predict",
    "card",
    "distill",
    "doctor",
    "embed",
    "evaluate",
    "explore",
    "export",
    "log",
    "noise",
    "pack",
    "report",
    "review",
    "select",
    "threshold",
    "train",
    "tune",
)
_NAMES = {
    "ClusterError": "mlic.errors",
    "ConfigError": "mlic.errors",
    "DataError": "mlic.errors",
    "Dataset": "mlic.api.datasets",
    "IterableDataset": "mlic.api.datasets",
    "MlicError": "mlic.errors",
    "Model": "mlic.api.model",
    "PartialError": "mlic.errors",
    "RunError": "mlic.errors",
    "load": "mlic.api.model",
    "read_predictions": "mlic.api.tables",
    "read_trials": "mlic.api.tables",
}

__all__ = ["__version__", *_COMMANDS, *_NAMES]


def __getattr__(name: str) -> _Any:
    if name in _COMMANDS:
        return _import_module(f"mlic.{name}")
    if name in _NAMES:
        return getattr(_import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'mlic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
