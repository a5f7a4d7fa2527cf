"""Networks as stages, their partial training, and the decoder head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlic.config.train import TrainConfig
from mlic.data.shards import read_split
from mlic.errors import ConfigError
from mlic.model import layer_groups, zoo
from mlic.train import setup


@pytest.mark.parametrize(
    ("arch", "count"), [("resnet18", 6), ("vit_b_16", 13), ("convnext_tiny", 8), ("b-final", 5), ("densenet121", 8)]
)
def test_stages_hold_every_parameter_but_the_heads_once(arch: str, count: int) -> None:
    net = zoo.build(arch, 7, 3, 64 if arch != "vit_b_16" else 32, {})
    head = zoo.head(net, 7)
    found = layer_groups.stages(net, head)
    assert len(found) == count
    ids = [id(parameter) for parameters in found for parameter in parameters]
    own = {id(parameter) for parameter in head.parameters()}
    assert len(ids) == len(set(ids))
    assert {id(parameter) for parameter in net.parameters()} == set(ids) | own


def test_the_last_stages_alone_are_trained() -> None:
    net = zoo.build("resnet18", 7, 3, 64, {})
    layer_groups.train_last(net, zoo.head(net, 7), 2)
    assert not net.layer3[1].conv1.weight.requires_grad
    assert net.layer4[0].conv1.weight.requires_grad
    assert net.fc.weight.requires_grad
    net.train()
    layer_groups.settle_frozen(net)
    assert not net.bn1.training
    assert net.layer4[1].bn1.training


def test_more_stages_than_there_are() -> None:
    net = zoo.build("resnet18", 7, 3, 64, {})
    with pytest.raises(ConfigError, match="this network has 6 stages, not 9"):
        layer_groups.train_last(net, zoo.head(net, 7), 9)


def test_earlier_stages_learn_more_slowly() -> None:
    net = zoo.build("resnet18", 7, 3, 64, {})
    groups = layer_groups.parameter_groups(net, zoo.head(net, 7), 0.5)
    assert [group["scale"] for group in groups] == [0.5**i for i in range(6, -1, -1)]
    assert [id(p) for p in groups[-1]["params"]] == [id(net.fc.weight), id(net.fc.bias)]
    assert id(groups[0]["params"][0]) == id(net.conv1.weight)
    (whole,) = layer_groups.parameter_groups(net, zoo.head(net, 7), 1.0)
    assert len(whole["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("arch", ["resnet18", "convnext_tiny", "efficientnet_b0"])
def test_a_decoder_takes_the_place_of_pooling(arch: str) -> None:
    torch.manual_seed(0)
    net = zoo.build(arch, 7, 3, 96, {"head_decoder": 64, "head_dropout": 0.0})
    head = zoo.head(net, 7)
    zoo.set_head_bias(net, torch.arange(7.0))
    assert head.bias.tolist() == list(range(7))
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net.eval()(torch.rand(3, 3, 96, 96)).sum().backward()
    assert seen[0].flatten(1).shape[1] == 9 * head.channels  # 3 by 3 places at 96 pixels
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    # It is the places that count and not their order: a decoder pools by attention.
    features = torch.rand(2, head.channels, 9)
    turned = features[:, :, torch.randperm(9)]
    assert torch.allclose(head(features.flatten(1)), head(turned.flatten(1)), atol=1e-5)


_TINY = {"embed_dim": 64, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("arch", "options", "size", "shape"),
    [
        ("vit_small_patch14_reg4_dinov2", _TINY, 56, (4 * 4 + 5, 64)),
        ("vit_small_patch16_dinov3", _TINY, 64, (4 * 4 + 5, 64)),
        ("vit_base_patch16_siglip_224.v2_webli", _TINY, 64, (4 * 4, 64)),
        ("vit_base_patch16_clip_224", _TINY, 64, (4 * 4 + 1, 64)),
        ("eva02_tiny_patch14_224", _TINY, 56, (4 * 4 + 1, 64)),
        ("convnext_atto", {}, 64, (2 * 2 * 320,)),
        ("convnext_tiny.dinov3_lvd1689m", {}, 64, (2 * 2 * 768,)),
        ("tf_efficientnet_lite0", {}, 64, (2 * 2 * 1280,)),
        ("swin_tiny_patch4_window7_224", {}, 224, (7, 7, 768)),
    ],
)
def test_backbones_of_timm_have_every_head(
    arch: str, options: dict[str, float], size: int, shape: tuple[int, ...]
) -> None:
    """A linear one, a hidden layer, a decoder on the feature map or the tokens, and the mirror image beside it."""
    pytest.importorskip("timm")
    images = torch.rand(2, 3, size, size)
    for head_options in ({"head_hidden": 16}, {"head_decoder": 32}, {"head_mirror": 1}):
        torch.manual_seed(0)
        net = zoo.build(f"timm/{arch}", 5, 3, size, {**options, **head_options}).eval()
        head, seen = zoo.head(net, 5), list[torch.Tensor]()
        head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        layer_groups.train_last(net, head, 0)
        logits = net(images)
        logits.sum().backward()
        assert any(p.grad is not None for p in head.parameters())
        assert not any(p.requires_grad for p in net.parameters() if id(p) not in set(map(id, head.parameters())))
        if "head_decoder" in head_options:
            assert seen[0].shape[1:] == shape
            turned = torch.roll(seen[0].flatten(1, -2), 3, 1) if seen[0].ndim > 2 else None
            if turned is not None:  # it is the places that count and not their order
                assert torch.allclose(head(turned), logits, atol=1e-5)
        if "head_mirror" in head_options:
            assert torch.allclose(net(images.flip(-1)), logits, atol=1e-5)


def test_backbones_are_joined() -> None:
    """Each gets images as its own weights expect them, and the head all features."""
    pytest.importorskip("timm")
    archs = ("timm/convnext_atto", "timm/tf_efficientnet_lite0", "resnet18")
    torch.manual_seed(0)
    net = zoo.build("+".join(archs), 5, 3, 64, {"head_hidden": 16}).eval()
    parts, head = zoo.backbones(net), zoo.head(net, 5)
    means, deviations = (torch.tensor(values).view(3, 1, 1) for values in zoo.published("+".join(archs))[:2])
    pixels = torch.rand(2, 3, 64, 64)
    expected = []
    for arch, part in zip(archs, parts, strict=True):
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in zoo.published(arch)[:2])
        expected.append(part((pixels - mean) / deviation))
    logits = net((pixels - means) / deviations)
    assert torch.allclose(logits, head(torch.cat(expected, dim=1)), atol=1e-5)
    with pytest.raises(ConfigError, match="unknown architecture 'resnet19'"):
        zoo.build("resnet18+resnet19", 5, 3, 64, {})


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("b-final", "it has no pooling layer that a decoder could take the place of"),
        ("vgg11", "its head is given one place"),
        ("squeezenet1_0", "its last layer is not a linear one"),
    ],
)
def test_where_a_decoder_does_not_fit(arch: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        zoo.build(arch, 7, 3, 224, {"head_decoder": 64})


def test_joined_networks_are_given_the_normalisation_of_their_weights(shards: Path) -> None:
    """Another one would be right for the first network alone."""
    pytest.importorskip("timm")
    train = read_split(shards, "train")
    config = TrainConfig(shards=shards, arch="timm/convnext_atto+timm/tf_efficientnet_lite0", image_size=64)
    net, _, _ = setup.network(config, train, setup.preprocessing(config))
    assert zoo.is_rescaled(net)
    other = config.model_copy(update={"normalization": "none"})
    with pytest.raises(ConfigError, match="joins networks that expect other normalisations"):
        setup.network(other, train, setup.preprocessing(other))
    alike = other.model_copy(update={"arch": "resnet18+resnet34"})
    setup.network(alike, train, setup.preprocessing(alike))
