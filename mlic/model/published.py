"""Weights that the makers of an architecture published: where they are, on this machine and on the network.

A file of PyTorch's or timm's servers lies in PyTorch's cache (TORCH_HOME), one of the Hugging Face hub in that of
huggingface_hub (HF_HOME, and HF_ENDPOINT for a mirror). Both are folders that all nodes of a cluster can share.
"""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mlic.errors import ConfigError, DataError
from mlic.model import zoo

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HASH = re.compile(r"-([0-9a-f]{8,})\.\w+$")


@dataclass(frozen=True)
class Source:
    """Where the weights of an architecture are published: at a `url`, or as a file of a `repository` of the hub."""

    arch: str
    url: str = ""
    repository: str = ""
    files: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.url or f"hf://{self.repository}/{self.files[0]}"

    @property
    def cached(self) -> Path | None:
        """The file on this machine; None if it has not been fetched."""
        if self.url:
            path = self.path
            return path if path.is_file() else None
        from huggingface_hub import try_to_load_from_cache

        found = (try_to_load_from_cache(self.repository, name) for name in self.files)
        return next((Path(path) for path in found if isinstance(path, str)), None)

    @property
    def path(self) -> Path:
        """Where the file of a `url` lies in PyTorch's cache."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.url.rpartition("/")[2]


def sources(arch: str) -> list[Source]:
    """Where the weights of an architecture are published, the preferred place first; empty if nowhere."""
    if arch in zoo.NETS:
        return []
    if not arch.startswith(zoo.TIMM):
        url = zoo.torchvision_weights_url(arch)
        return [] if url is None else [Source(arch, url)]
    import timm

    config = timm.get_pretrained_cfg(arch.removeprefix(zoo.TIMM))
    if config is None:
        return []
    files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
    at_hub = [Source(arch, repository=config.hf_hub_id, files=files)] if config.hf_hub_id else []
    return at_hub + ([Source(arch, str(config.url))] if config.url else [])


def cached(arch: str) -> Path:
    """The published weights of an architecture on this machine. Raises ConfigError if they are not there."""
    places = sources(arch)
    if not places:
        raise ConfigError(f"{arch} has no published weights.", "give --weights none or a file.")
    path = next((path for source in places if (path := source.cached) is not None), None)
    if path is None:
        raise ConfigError(
            f"the weights of {arch} are not on this machine.",
            f"mlic weights fetch {arch} where there is a network, such as a login node, or give --weights FILE.",
        )
    return path


def fetch(arch: str) -> Path:
    """Fetch the published weights of an architecture, if they are not on this machine; returns their file.

    A file is complete or not there. Raises ConfigError if none are published and DataError if no server gives them.
    """
    places = sources(arch)
    if not places:
        raise ConfigError(f"{arch} has no published weights.", "mlic weights list NAME names those that have.")
    for source in places:
        if (path := source.cached) is not None:
            return path
    failures = list[str]()
    for source in places:
        try:
            return _from_hub(source) if source.repository else _from_url(source)
        except (OSError, RuntimeError, ValueError) as error:  # hub errors and a wrong checksum are of these kinds
            failures.append(f"{source}: {' '.join(str(error).split())[:200]}")
    raise DataError(
        f"the weights of {arch} cannot be fetched: {'; '.join(failures)}.",
        "run it where there is a network; HF_ENDPOINT names a mirror of the hub.",
    )


def _from_hub(source: Source) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in source.files:
        try:
            return Path(hf_hub_download(source.repository, name))
        except LocalEntryNotFoundError:
            raise OSError("the hub does not answer") from None
        except EntryNotFoundError:
            continue
    raise OSError(f"the repository has none of the files {', '.join(source.files)}")


def _from_url(source: Source) -> Path:
    path, prefix = source.path, _HASH.search(source.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(source.url, str(path), prefix and prefix[1], progress=False)
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None
    return path


def names(pattern: str) -> Iterator[str]:
    """The architectures with published weights whose names contain a text, torchvision's first."""
    pattern = pattern.lower()
    yield from (name for name in zoo.torchvision_names() if pattern in name and sources(name))
    try:
        import timm
    except ImportError:
        return
    yield from (zoo.TIMM + name for name in timm.list_pretrained(f"*{pattern}*"))
