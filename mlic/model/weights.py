"""Load weights into a network by name, or by order and shape from another port of the same network.

The weights of the head are never loaded, because its outputs are other labels. Files are safetensors or PyTorch state
dicts, which are read without running code that may be pickled in them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlic.errors import ConfigError, DataError
from mlic.model import bundle, published, zoo

logger = logging.getLogger(__name__)

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "ema")
_PREFIXES = ("module.", "model.", "backbone.", "net.")
Converter = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]
_NAMED = 0.9  # share of a network's tensors that have to be found by name


def resolve(arch: str, weights: str) -> tuple[Path, ...]:
    """The files of a `weights` setting, one for each joined architecture, or the bundle's folder if it names a run.

    `none` has no file, `default` those that the architectures' makers published, see `published`.
    Raises ConfigError where a file is not there, with its name and where to put it.
    """
    if weights == "none":
        return ()
    archs = arch.split(zoo.JOINT)
    if weights == "default":
        return tuple(map(published.cached, archs))
    paths = [Path(part.strip()).expanduser() for part in (weights.split(",") if len(archs) > 1 else [weights])]
    if len(paths) == 1 and paths[0].is_dir():
        return (bundle.find(paths[0]),)
    for path in paths:
        if not path.is_file():
            raise ConfigError(f"the weights {path} do not exist.", "name a run, a .safetensors, .pth or .pt file.")
    if len(paths) != len(archs):
        raise ConfigError(
            f"{arch} joins {len(archs)} networks, and --weights names {len(paths)} files.",
            "name one file for each network, in the same order, separated by commas.",
        )
    return tuple(paths)


def continue_from(net: nn.Module, labels: tuple[str, ...], folder: Path) -> str:
    """Copy all tensors of a bundle, its last layer too; says so.

    Raises DataError where the bundle has other labels, in another order, or another architecture.
    """
    model, before = bundle.load_model(folder)
    if model.labels != labels:
        raise DataError(f"the model {folder} has different labels from the shards.", "continue with the same labels.")
    try:
        net.load_state_dict(before.state_dict())
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"the model {folder} is of another architecture: {line}.", "give the same --arch.") from None
    return "all tensors"


def digest(paths: Sequence[Path]) -> str:
    """The sha256 of a file, or of the weights of a bundle; of several files that of all; "none" if there is none."""
    digests = []
    for path in paths:
        with (path / bundle.WEIGHTS if path.is_dir() else path).open("rb") as opened:
            digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
    if len(digests) > 1:
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return digests[0] if digests else "none"


def load_into(net: nn.Module, head: nn.Module, path: Path, convert: Converter | None = None) -> str:
    """Copy the tensors of a file into all of a network but its head; says how they were matched.

    By name, after prefixes that training scripts add; or as `convert` makes them; or, where names differ, in the
    order of the file, when all shapes agree. Raises DataError when nothing fits.
    """
    state = _read(path)
    expected = net.state_dict()
    of_head = {f"{name}.{leaf}" for name, module in net.named_modules() if module is head for leaf in head.state_dict()}
    wanted = {
        name: tensor
        for name, tensor in expected.items()
        if name not in of_head and not name.endswith("num_batches_tracked")
    }
    named = _by_name(wanted, state)
    if len(named) == len(wanted):
        net.load_state_dict(expected | named)
        return f"{len(named)} tensors by name"
    converted = _converted(wanted, state, convert)
    if converted is not None:
        net.load_state_dict(expected | converted)
        return f"{len(converted)} tensors as timm loads them"
    if len(named) >= _NAMED * len(wanted):
        lost = min(set(wanted) - set(named))
        raise DataError(f"{path} has no tensor {lost!r} of the right shape.", "give weights of this network.")
    ordered = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    pairs = list(zip(wanted.items(), ordered, strict=False))
    odd = next((name for (name, mine), theirs in pairs if mine.shape != theirs.shape), None)
    if odd is not None or len(ordered) < len(wanted):
        what = f"{odd!r} has another shape there" if odd else f"it has {len(ordered)} tensors, not {len(wanted)}"
        raise DataError(f"{path} fits this network neither by name nor by order: {what}.", "give other weights.")
    net.load_state_dict(expected | {name: theirs for (name, _), theirs in pairs})
    return f"{len(pairs)} tensors by order and shape"


def _by_name(wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: state[name] for name in wanted if name in state and state[name].shape == wanted[name].shape}


def _converted(
    wanted: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], convert: Converter | None
) -> dict[str, torch.Tensor] | None:
    """The tensors as `convert` makes them, if that gives all that are wanted."""
    if convert is None:
        return None
    try:
        named = _by_name(wanted, convert(state))
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        logger.debug("timm does not load it: %s", error)
        return None
    return named if len(named) == len(wanted) else None


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError, _unpickling()) as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"the weights {path} cannot be read: {line}.", "give a state dict.") from None
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(f"{path} holds no state dict.", "give a file of named tensors.")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _unpickling() -> type[Exception]:
    import pickle

    return pickle.UnpicklingError
