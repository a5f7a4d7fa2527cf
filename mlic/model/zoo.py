"""Architectures by name: the reference networks, torchvision classifiers and timm/NAME, with a head for L labels."""

from __future__ import annotations

import copy
import difflib
import inspect
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from mlic.config.fit import Color, Interpolation, Resize
from mlic.errors import ConfigError
from mlic.model import reference, small
from mlic.model.backbones import Joined, scale_between
from mlic.model.heads import MeanOfPlaces, MLDecoder

NETS: dict[str, tuple[reference.Builder, Color]] = {"small": (small.small, "rgb"), **reference.NETS}
TIMM = "timm/"
JOINT = "+"  # between the names of backbones whose features are joined
HEAD_OPTIONS = ("head_hidden", "head_decoder", "head_dropout", "head_mirror")
FINAL_RELU = "final_relu"  # an option of SqueezeNet: 1 leaves the ReLU behind its last layer, as torchvision has it
_POOLS = ("SelectAdaptivePool2d",)  # of timm
_CHANNELS_LAST = (1, 2)  # the places of a feature map (B, H, W, C)
_CROP_PCT = 0.875  # timm's value for weights that name none
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def default_color(arch: str) -> Color:
    """The colour mode that an architecture was made for; that of joined ones is rgb."""
    return {**NETS, **reference.EARLIER}[arch][1] if arch in NETS or arch in reference.EARLIER else "rgb"


def check(arch: str) -> None:
    """Raise ConfigError, with the nearest name, when there is no such architecture."""
    for name in arch.split(JOINT):
        _check_one(name)


def _check_one(arch: str) -> None:
    if arch in NETS or arch in reference.EARLIER:
        return
    if arch.startswith(TIMM):
        _check_timm(arch)
        return
    known = torchvision_names()
    if arch not in known:
        near = difflib.get_close_matches(arch, [*NETS, *known], n=1, cutoff=0.4)
        names = f"did you mean {near[0]}?" if near else f"the small ones are {', '.join(NETS)}."
        raise ConfigError(f"unknown architecture {arch!r}.", names)


def build(arch: str, num_labels: int, channels: int, image_size: int, options: Mapping[str, float]) -> nn.Module:
    """Build a network from (B, channels, image_size, image_size) float32 to logits (B, num_labels), untrained.

    `options` go to the architecture: `hidden` and `dropout` of the reference CNNs, any number that a torchvision or
    timm builder takes; but `head_hidden` puts a hidden layer of that width before the last one, `head_decoder` an
    ML-Decoder of that width in place of pooling and last layer, with `head_dropout`. With `head_mirror`, or several
    architectures joined by +, one head gets the features of the image and its mirror image, or of all backbones.
    Raises ConfigError for an unknown name, an option it does not have or an image too small for it.
    """
    check(arch)
    try:
        if JOINT in arch or options.get("head_mirror"):
            model: nn.Module = _joined(arch.split(JOINT), num_labels, channels, image_size, options)
        else:
            model = _plain(arch, num_labels, channels, image_size, options)
            if options.get("head_decoder"):
                _decode_head(model, num_labels, int(options["head_decoder"]), options.get("head_dropout", 0.1))
        if options.get("head_hidden"):
            _deepen_head(model, num_labels, int(options["head_hidden"]), options.get("head_dropout", 0.0))
        with torch.no_grad():
            logits = model.eval()(torch.zeros(2, channels, image_size, image_size))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{arch} cannot be built for {image_size} px and options {dict(options)}: {line}.",
            "change image_size or arch_options.",
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_labels):
        raise ConfigError(f"{arch} does not return one logit per label.", "choose another architecture.")
    return model


def _plain(arch: str, num_labels: int, channels: int, image_size: int, options: Mapping[str, float]) -> nn.Module:
    """A network as its makers put it together, with one output for each label."""
    own_nets = NETS | reference.EARLIER
    make = own_nets[arch][0] if arch in own_nets else partial(_timm if arch.startswith(TIMM) else _torchvision, arch)
    return make(
        num_labels, channels, image_size, **{name: value for name, value in options.items() if name not in HEAD_OPTIONS}
    )


def _joined(
    archs: Sequence[str], num_labels: int, channels: int, image_size: int, options: Mapping[str, float]
) -> Joined:
    """The backbones of several networks, or of one, without their last layers, and one linear head."""
    if options.get("head_decoder"):
        raise ValueError("a decoder needs the feature map of one network, without head_mirror")
    nets = [_plain(arch, num_labels, channels, image_size, options) for arch in archs]
    lasts = [_linear_head(net, num_labels) for net in nets]
    for net, last in zip(nets, lasts, strict=True):
        _replace(net, last, nn.Identity())
    expected = [(for_channels(one.mean, channels), for_channels(one.std, channels)) for one in map(published, archs)]
    scales = [scale_between(expected[0], other) for other in expected]
    width = sum(last.in_features for last in lasts)
    return Joined(nets, scales, nn.Linear(width, num_labels), bool(options.get("head_mirror")))


def _deepen_head(model: nn.Module, num_labels: int, hidden: int, dropout: float) -> None:
    last = _linear_head(model, num_labels)
    deep = Head(nn.Linear(last.in_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_labels))
    _replace(model, last, deep)


def _decode_head(model: nn.Module, num_labels: int, width: int, dropout: float) -> None:
    """Replace a network's last layer by an ML-Decoder on its feature map or its tokens, which are not pooled then."""
    last = _linear_head(model, num_labels)
    if hasattr(model, "num_prefix_tokens"):  # the vision transformers of timm
        setattr(model, "attn_pool", None)  # noqa: B010 - for mypy, a network has modules alone
        setattr(model, "global_pool", "")  # noqa: B010
    else:
        pools = [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d) or type(m).__name__ in _POOLS]
        if not pools:
            raise ValueError("it has no pooling layer that a decoder could take the place of")
        are_last = tuple(getattr(getattr(pools[-1], "pool", None), "dim", (2, 3))) == _CHANNELS_LAST
        is_flat = getattr(pools[-1], "flatten", False) and not are_last
        _replace(model, pools[-1], nn.Flatten(1) if is_flat else nn.Identity())
    _replace(model, last, MLDecoder(last.in_features, num_labels, width, dropout))


def _linear_head(model: nn.Module, num_labels: int) -> nn.Linear:
    last = head(model, num_labels)
    if not isinstance(last, nn.Linear):
        raise ValueError("its last layer is not a linear one, which another could take the place of")
    return last


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


class Head(nn.Sequential):
    """A last layer and the hidden layer before it, as one module."""


def head(model: nn.Module, num_labels: int) -> nn.Module:
    """The last layer, linear or a convolution, with one output a label, or the Head or decoder that it is part of.

    Raises ConfigError when there is none.
    """
    for module in model.modules():
        if isinstance(module, Head | MLDecoder):
            return module
    for module in reversed(list(model.modules())):
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == num_labels:
            return module
    raise ConfigError("this architecture does not end in a layer with one output per label.", "--train all.")


def from_head(model: nn.Module, head: nn.Module) -> nn.Module:
    """The end of a network, from its head on. If the head is a convolution, the layers after it pool its output.

    Raises ConfigError when nothing of the kind follows.
    """
    if not isinstance(head, nn.Conv2d):
        return head
    for module in model.modules():
        parts = list(module.children())
        if isinstance(module, nn.Sequential) and head in parts:
            return nn.Sequential(*parts[parts.index(head) :], nn.Flatten(1))
    raise ConfigError("this architecture pools its last layer in a way that cannot be taken apart.", "--train all.")


def without_head(model: nn.Module, num_labels: int) -> nn.Module:
    """The network with its head taken away: from images to features (B, F), the mean over places before a decoder."""
    last = head(model, num_labels)
    _replace(model, last, MeanOfPlaces(last.channels) if isinstance(last, MLDecoder) else nn.Identity())
    return model


def before_head(model: nn.Module, head: nn.Module) -> nn.Module:
    """A copy of the network that gives what `head` gets, if nothing but the head follows."""
    name = next(name for name, module in model.named_modules() if module is head)
    copied = copy.deepcopy(model)
    _replace(copied, copied.get_submodule(name), nn.Identity())
    return copied


class Published(NamedTuple):
    """How images were prepared when an architecture's published weights were evaluated.

    `mean` and `std` are of red, green and blue from 0 to 1. `crop_fraction` is the side of the input over the side
    that an image is resized to.
    """

    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    resize: Resize = "squash"
    interpolation: Interpolation = "bilinear"
    crop_fraction: float = 1.0


def for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One value for each channel: the values themselves, or their mean where there are others."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def published(arch: str) -> Published:
    """The preprocessing of an architecture's published weights; ImageNet's mean and deviation if there are none.

    Of joined architectures it is that of the first one.
    """
    arch = arch.partition(JOINT)[0]
    if arch in NETS or arch in reference.EARLIER:
        return Published()
    return _published_by_timm(arch) if arch.startswith(TIMM) else _published_by_torchvision(arch)


def _published_by_timm(arch: str) -> Published:
    import timm

    config = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    if config is None:
        return Published()
    modes: dict[str, Resize] = {"squash": "squash", "border": "pad"}
    return Published(
        tuple(config.mean),
        tuple(config.std),
        modes.get(config.crop_mode, "crop"),
        "bilinear" if config.interpolation == "bilinear" else "bicubic",
        config.crop_pct or _CROP_PCT,
    )


def _published_by_torchvision(arch: str) -> Published:
    import torchvision

    try:
        transforms = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
    except (AttributeError, ValueError):  # the architecture has no published weights
        return Published()
    return Published(
        resize="crop",
        interpolation="bilinear" if transforms.interpolation.value == "bilinear" else "bicubic",
        crop_fraction=transforms.crop_size[0] / transforms.resize_size[0],
    )


def as_made(arch: str, options: Mapping[str, float], nets: int) -> tuple[str, dict[str, float]]:
    """The architecture and options that today build the network that the given ones built in version `nets`."""
    if nets < 2 and arch.startswith("squeezenet"):
        return arch, {**options, FINAL_RELU: 1.0}
    if nets < 2 and arch == "b-drawn":
        return "b-drawn-1", dict(options)
    return arch, dict(options)


def torchvision_weights_url(arch: str) -> str | None:
    """Where the default weights of a torchvision classifier are published, None if nowhere."""
    import torchvision

    try:
        return str(torchvision.models.get_model_weights(arch).DEFAULT.url)
    except (AttributeError, ValueError):
        return None


def as_timm_loads(
    arch: str, state: Mapping[str, torch.Tensor], channels: int, image_size: int, options: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """The tensors of a file as timm loads them into an architecture, without its last layer.

    timm knows the names of other ports, and resizes position embeddings to the size of the images. Raises what it
    raises for tensors that do not fit or are missing: RuntimeError, KeyError.
    """
    import timm
    from safetensors.torch import save_file

    config = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    last = (config and config.classifier) or ()
    of_last = tuple(f"{name}." for name in ((last,) if isinstance(last, str) else last))
    kept = {name: tensor.contiguous() for name, tensor in state.items() if not name.startswith(of_last)}
    net_options = {name: value for name, value in options.items() if name not in HEAD_OPTIONS}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.safetensors"
        save_file(kept, file)
        overlay = {"file": str(file), "num_classes": 0}  # with as many classes as asked for, it loads all or nothing
        net = _timm(arch, 0, channels, image_size, pretrained=True, pretrained_cfg_overlay=overlay, **net_options)
    return dict(net.state_dict())


def backbones(net: nn.Module) -> list[nn.Module]:
    """The networks whose weights are published one by one: the backbones of a joined network, else itself."""
    return list(net.backbones) if isinstance(net, Joined) else [net]


def is_rescaled(net: nn.Module) -> bool:
    """Whether joined networks expect images that are normalised in different ways."""
    return isinstance(net, Joined) and any(scale is not None for scale in net.scales)


def set_head_bias(model: nn.Module, bias: torch.Tensor) -> None:
    """Set the output biases (L,) of the last layer that has as many.

    Raises ConfigError when the network ends without such a layer.
    """
    for module in reversed(list(model.modules())):
        parameter = getattr(module, "bias", None)
        if (
            isinstance(module, nn.Linear | nn.Conv2d | MLDecoder)
            and parameter is not None
            and parameter.shape == bias.shape
        ):
            with torch.no_grad():
                parameter.copy_(bias)
            return
    raise ConfigError("this architecture has no output bias to start at the labels' shares.", "--set head_prior=false.")


def torchvision_names() -> list[str]:
    """The classifiers of torchvision."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _torchvision(arch: str, num_labels: int, channels: int, image_size: int, **options: float) -> nn.Module:
    import torchvision

    ends_in_relu = options.pop(FINAL_RELU, 0.0)
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_labels, **options}
    builder = torchvision.models.get_model_builder(arch)
    if arch.startswith("vit_"):
        arguments["image_size"] = image_size
    if arch in ("googlenet", "inception_v3"):
        arguments |= {"aux_logits": False, "init_weights": True}
    model = builder(**arguments)
    if arch.startswith("squeezenet") and not ends_in_relu:
        model.classifier[2] = nn.Identity()  # a ReLU, with which no score could be below a half
    if channels != 3:
        _replace_first_conv(model, channels)
    return model  # type: ignore[no-any-return]


def _check_timm(arch: str) -> None:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"{arch} needs timm, which is not installed.", "pip install 'mlic[timm]'.") from None
    name = arch.removeprefix(TIMM)
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.4)
        hint = f"did you mean {TIMM}{near[0]}?" if near else "timm.list_models() names them."
        raise ConfigError(f"unknown architecture {arch!r}.", hint)


def _timm(arch: str, num_labels: int, channels: int, image_size: int, **options: Any) -> nn.Module:
    import timm

    arguments: dict[str, Any] = {"pretrained": False, "num_classes": num_labels, "in_chans": channels}
    for name, value in options.items():  # settings are floats, and a width has to be an int
        arguments[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    published = timm.get_pretrained_cfg(arch.removeprefix(TIMM))
    if published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    return timm.create_model(arch.removeprefix(TIMM), **arguments)


def _replace_first_conv(model: nn.Module, channels: int) -> None:
    """Give the first convolution `channels` inputs in place of three."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            wanted = inspect.signature(nn.Conv2d).parameters.keys() - {
                "in_channels",
                "device",
                "dtype",
                "bias",
            }
            arguments = {key: getattr(module, key) for key in wanted}
            _replace(model, module, nn.Conv2d(channels, bias=module.bias is not None, **arguments))
            return
    raise ValueError(f"no convolution with 3 inputs to change to {channels}")
