"""The features of a frozen backbone by other engines are those of PyTorch, or PyTorch computes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlic.config.data import Preprocessing
from mlic.data.pixels.augment import Normalizer
from mlic.errors import ConfigError
from mlic.model import runtimes, zoo
from mlic.train import training_loop
from mlic.train.batches import feature_engine
from tests.train.test_training_loop import place, settings

PREP = Preprocessing(image_size=48, color="rgb", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), resize="squash")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)


def network(arch: str, options: dict[str, float] | None = None) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    net = zoo.build(arch, 4, 3, 48, options or {}).eval()
    return net, zoo.head(net, 4)


def before_head(net: nn.Module, head: nn.Module) -> Any:
    seen = list[torch.Tensor]()
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net(Normalizer(PREP.mean, PREP.std, torch.device("cpu"))(torch.from_numpy(IMAGES)))
    hook.remove()
    return seen[0].numpy()


@pytest.mark.parametrize("name", ["openvino", "onnx"])
@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet18", {}),
        ("small+b-final", {"head_mirror": 1, "head_hidden": 16}),
        ("timm/vit_tiny_patch16_224", {"head_decoder": 1}),
    ],
)
def test_an_engine_gives_the_features_of_torch(name: Any, arch: str, options: dict[str, float]) -> None:
    net, head = network(arch, options)
    expected, said = before_head(net, head), list[str]()
    run = feature_engine.extractor(name, net, head, PREP, IMAGES, expected, said.append)
    assert run is not None, said
    assert said[0].startswith(f"features by {name}, at most ")
    assert np.allclose(run(IMAGES), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert run(IMAGES[:2]).shape == (2, *expected.shape[1:])
    assert zoo.head(net, 4) is head  # the network itself is as it was


def test_torch_stays_where_more_than_the_head_follows() -> None:
    net, head = network("squeezenet1_1")
    expected, said = before_head(net, head), list[str]()
    assert feature_engine.extractor("openvino", net, head, PREP, IMAGES, expected, said.append) is None
    assert said == ["features by torch: the network of openvino does not end before the head"]


def test_torch_stays_where_the_features_are_others() -> None:
    net, head = network("resnet18")
    said = list[str]()
    expected = before_head(net, head) * 1.01
    assert feature_engine.extractor("openvino", net, head, PREP, IMAGES, expected, said.append) is None
    assert said[0].startswith("features by torch: those of openvino are up to 0.0")


def test_the_engine_depends_on_what_is_there_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "best", lambda: "openvino")
    assert feature_engine.chosen("auto", 2_000, "cpu") == "openvino"
    assert feature_engine.chosen("auto", 1_999, "cpu") == "torch"
    assert feature_engine.chosen("auto", 2_000, "cuda") == "torch"
    assert feature_engine.chosen("onnx", 10, "cpu") == "onnx"
    assert feature_engine.chosen("torch", 10_000, "cpu") == "torch"
    monkeypatch.setattr(runtimes, "best", lambda: "torch")
    assert feature_engine.chosen("auto", 2_000, "cpu") == "torch"
    monkeypatch.setattr(runtimes, "is_installed", lambda _: False)
    with pytest.raises(ConfigError, match="openvino needs openvino"):
        feature_engine.chosen("openvino", 2_000, "cpu")


@pytest.mark.ray
def test_a_head_learns_the_same_on_the_features_of_either(shards: Path, tmp_path: Path) -> None:
    losses = dict[str, list[float]]()
    for name in ("torch", "openvino"):
        config = settings(shards, train="head", epochs=2, lr=0.2, feature_engine=name, cache_gb=0)
        training_loop.fit(config, place(tmp_path / name), lambda _: None)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(row)["train/loss"] for row in rows]
    assert losses["openvino"] == pytest.approx(losses["torch"], rel=1e-3)
    assert "features by openvino" in (tmp_path / "openvino" / "log.txt").read_text()
