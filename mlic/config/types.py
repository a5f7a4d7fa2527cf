"""The types of setting values, and how they are parsed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from mlic.config.remote_path import RemotePath

Operation = Literal["rotate", "shift", "flip", "erase", "brightness", "contrast"]
Distortion = Literal["rotate", "shift", "brightness", "contrast", "saturation", "invert", "erase", "hue"]
Loss = Literal[
    "bce",
    "class-balanced",
    "focal",
    "asymmetric",
    "soft-margin",
    "mse",
    "l1",
    "softmax",
    "weak-negative",
    "entropy",
    "hill",
    "splc",
]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
WEIGHTED: tuple[Loss, ...] = ("bce", "class-balanced", "focal", "asymmetric")  # by weights of positives
Optimizer = Literal["adam", "adamw", "adamax", "adadelta", "adagrad", "rmsprop", "sgd"]
Activation = Literal["sigmoid", "softmax", "none"]
Backend = Literal["torch", "compile", "onnx", "openvino"]
FeatureEngine = Literal["auto", "torch", "onnx", "openvino"]
Engine = Literal["onnx", "openvino", "torchscript"]
Reduced = Literal["fp32", "bf16", "fp16"]  # precision of predictions
Precise = Literal["fp32", "bf16", "int8"]  # and of exports
Calibrator = Literal["auto", "none", "prior", "temperature", "platt", "isotonic"]


def _absolute(value: Any) -> Any:
    """Make a path absolute at once: Ray workers run in other directories than the person who typed it."""
    return Path(value).expanduser().absolute() if isinstance(value, str | Path) and str(value) else value


def location(value: Any) -> Any:
    """A text with `://` is a location in an object store; everything else is a path on this machine."""
    if isinstance(value, RemotePath):
        return value
    return RemotePath(value) if isinstance(value, str) and "://" in value else _absolute(value)


def _auto_or_number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _share(value: Any) -> Any:
    """`1%` is 0.01."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


def _pairs(value: Any) -> Any:
    """`train=0.8,val=0.2` -> {"train": 0.8, "val": 0.2}; the same name twice is an error."""
    if not isinstance(value, str):
        return value
    items = [item.partition("=") for item in value.split(",") if item.strip()]
    if not items or any(sep != "=" for _, sep, _ in items):
        raise ValueError("should look like train=0.8,val=0.1,test=0.1")
    names = [name.strip() for name, _, _ in items]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"names {twice!r} twice")
    return {name.strip(): share.strip() for name, _, share in items}


def _options(value: Any) -> Any:
    """`qos=high,constraint=a100` -> {"qos": "high", "constraint": "a100"}; numbers of files become text."""
    if isinstance(value, dict):
        return {
            key: str(item) if isinstance(item, int) and not isinstance(item, bool) else item
            for key, item in value.items()
        }
    return _pairs(value)


def as_names(value: Any) -> Any:
    """`cat,dog` -> ["cat", "dog"]; other values as they are."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


def _weights(value: Any) -> Any:
    """Paths are made absolute, as `_absolute` does it; several are separated by commas."""
    if value in ("none", "default") or not isinstance(value, str | Path):
        return value
    parts = [str(value)] if _absolute(value).exists() else str(value).split(",")
    return ",".join(str(_absolute(part.strip())) for part in parts)


def _output(value: Any) -> Any:
    """`-` stays what it is: the standard output."""
    return value if value == STDOUT else location(value)


STDOUT: Literal["-"] = "-"
Location = Path | RemotePath  # on this machine, or in an object store; both have /, parent, name and suffix
LocalPath = Annotated[Path, BeforeValidator(_absolute)]
AnyPath = Annotated[Location, BeforeValidator(location)]
Output = Annotated[Location | Literal["-"], BeforeValidator(_output)]
Paths = Annotated[tuple[LocalPath, ...], BeforeValidator(_several)]
Weights = Annotated[str, BeforeValidator(_weights)]
Trained = Annotated[int | Literal["all", "head", "none"], BeforeValidator(_auto_or_number)]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_number)]
Share = Annotated[float, BeforeValidator(_share)]
Shares = Annotated[dict[str, float], BeforeValidator(_pairs)]
Options = Annotated[dict[str, str], BeforeValidator(_options)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_names)]
Operations = Annotated[tuple[Operation, ...], BeforeValidator(as_names)]


# Threshold policies: whether their value has a default, and the values that it may have.
_POLICIES: dict[str, tuple[float | None, float, float]] = {
    "fixed": (0.5, 0, 1),
    "global": (0, 0, 0),
    "per-label": (0, 0, 0),
    "one-at-a-time": (0.2, 0, 1),
    "joint": (0, 0, 0),
    "f-beta": (None, 0.01, 100),
    "precision": (None, 0.01, 1),
    "recall": (None, 0.01, 1),
    "precision>": (None, 0.01, 0.999),
    "recall>": (None, 0.01, 0.999),
    "cost": (None, 1e-6, 1e6),
    "cardinality": (0, 0, 0),
    "top-k": (None, 1, 1e6),
}


def parse_policy(text: str) -> tuple[str, float]:
    """Name and value of a threshold policy such as `per-label` or `recall=0.9`.

    Raises ValueError for a policy that there is not or a value that it does not take.
    """
    name, sep, raw = text.partition("=")
    if name not in _POLICIES:
        known = ", ".join(f"{known}=" if known.endswith(">") else known for known in _POLICIES)
        raise ValueError(f"unknown threshold policy {text!r}; known: {known}")
    default, low, high = _POLICIES[name]
    if not sep:
        if default is None:
            raise ValueError(f"the threshold policy {name} needs a value, such as {name}={_EXAMPLES[name]}")
        return name, default
    try:
        value = float(raw)
    except ValueError:
        value = float("nan")
    if low == high:
        raise ValueError(f"the threshold policy {name} takes no value, not {text!r}")
    if not low <= value <= high or (name == "top-k" and value != int(value)):
        sign = "=" * name.endswith(">")
        raise ValueError(f"the threshold policy {name}{sign} takes a value from {low:g} to {high:g}, not {raw!r}")
    return name, value


_EXAMPLES = {
    "f-beta": "2",
    "precision": "0.9",
    "recall": "0.9",
    "precision>": "0.9",
    "recall>": "0.9",
    "cost": "5",
    "top-k": "3",
}


def _policy(value: Any) -> Any:
    if isinstance(value, str):
        parse_policy(value)
    return value


Policy = Annotated[str, BeforeValidator(_policy)]


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _seconds(value: Any) -> Any:
    """`4h` is 14400."""
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"should look like 4h, 30m or 90s, not {value!r}")
    return float(match[1]) * _SECONDS[match[2].lower()]


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


_GATE = re.compile(r"\s*([a-z_0-9.]+?)(\.low|\.high)?\s*(>=|<=|>|<)\s*(\d*\.?\d+(?:e-?\d+)?)\s*")


def parse_gate(text: str) -> tuple[str, str, float]:
    """Metric (with `.low` or `.high` for an end of its interval), operator and limit. Raises ValueError."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise ValueError(f"a gate looks like f1_micro>=0.8, not {text!r}")
    metric, end, sign, limit = match.groups()
    return metric + (end or ""), sign, float(limit)


def _gates(value: Any) -> Any:
    gates = as_names(value)
    for gate in gates if isinstance(gates, list | tuple) else ():
        parse_gate(str(gate))
    return gates


Gates = Annotated[tuple[str, ...], BeforeValidator(_gates)]
