from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torchvision.transforms import RandAugment
from torchvision.transforms import functional as tv

from mlic.config.train import TrainConfig
from mlic.config.types import Distortion
from mlic.data.pixels.augment import Normalizer, distort, distortions, mix
from mlic.data.pixels.rand_augment import rand_augment
from tests.waits import META, Waits


def images(channels: int = 3, count: int = 4) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 24, 24, channels), dtype=np.uint8))


def planes(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


def test_colours_are_torchvisions() -> None:
    pixels = images()
    factors = np.array([0.5, 0.8, 1.2, 1.5])
    for name, function in (
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
    ):
        got = planes(distort(pixels, {name: factors}))
        for i, factor in enumerate(factors):
            expected = function(planes(pixels)[i], float(factor))
            assert float((got[i] - expected).abs().max()) < 0.01, (name, factor)
    inverted = distort(pixels, {"invert": np.array([True, False, True, False])})
    assert torch.equal(inverted[0], 255 - pixels[0])
    assert torch.equal(inverted[1], pixels[1])


def test_quarter_turns_and_shifts_are_exact() -> None:
    pixels = images(1)
    angles = np.deg2rad([0.0, 90.0, 180.0, -90.0])
    turned = distort(pixels, {"rotate": angles})
    for i, times in enumerate((0, 1, 2, 3)):
        options = [torch.rot90(pixels[i, :, :, 0], k) for k in (times, -times)]
        off = [int((turned[i, :, :, 0].int() - option.int()).abs().max()) for option in options]
        assert min(off) <= 1
    moved = distort(pixels, {"shift": np.tile([0.25, 0.0], (4, 1))})
    assert int((moved[:, :, :18].int() - pixels[:, :, 6:].int()).abs().max()) <= 1
    assert int(moved[:, :, 18:].max()) == 0


def test_what_is_erased_is_a_rectangle() -> None:
    pixels = torch.full((1, 20, 20, 3), 200, dtype=torch.uint8)
    got = distort(pixels, {"erase": np.array([[0.25, 0.5, 0.5, 1.0]])})
    assert int((got == 0).sum()) == 5 * 10 * 3
    assert int(got[0, 5:10, 10:].max()) == 0


def test_draws_belong_to_the_image_and_the_epoch() -> None:
    augment = {"rotate": 10.0, "brightness": 0.2, "invert": 0.5, "erase": 0.5, "shift": 0.1}
    one, again = (distortions(np.arange(50), augment, 3, 1) for _ in range(2))  # type: ignore[arg-type]
    assert one.keys() == set(augment)
    assert all((one[name] == again[name]).all() for name in one)
    other = distortions(np.arange(50), augment, 3, 2)  # type: ignore[arg-type]
    assert all((one[name] != other[name]).any() for name in one)
    alone = distortions(np.arange(50), {"erase": 0.5}, 3, 1)
    assert (alone["erase"] == one["erase"]).all()
    assert np.abs(one["rotate"]).max() <= np.deg2rad(10)
    assert 10 < (one["erase"][:, 2] > one["erase"][:, 0]).sum() < 40
    both, pixels = np.array([7, 3]), images(count=2)
    parts = [distort(pixels[[i]], distortions(both[[i]], augment, 3, 1)) for i in (0, 1)]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts), distort(pixels, {name: values[both] for name, values in one.items()}))


def test_amounts_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"augment\.erase should be from 0 to 1, not 2"):
        TrainConfig(shards="s", augment={"erase": 2})
    with pytest.raises(ValueError, match=r"augment\.hue should be from 0 to 0\.5, not 0\.6"):
        TrainConfig(shards="s", augment={"hue": 0.6})
    with pytest.raises(ValueError, match="augment .* needs train all or head, not none"):
        TrainConfig(shards="s", augment={"erase": 0.5}, train="none")


def test_mixed_targets_have_the_shares_of_the_mixed_images() -> None:
    """Each image is of one colour, so that the share of another can be read off it."""
    values = torch.tensor([0.0, 1.0, 2.0, 4.0])
    pixels = values.view(4, 1, 1, 1).expand(4, 1, 16, 16).contiguous()
    targets = torch.eye(4, dtype=torch.int8)
    for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0)):
        for step in range(20):
            mixed, soft = mix(pixels, targets, mixup, cutmix, (1, step))
            torch.testing.assert_close(soft.sum(dim=1), torch.ones(4))
            torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), soft @ values)
            inside = (mixed != pixels).flatten(1).float().mean(dim=1)
            assert mixup or bool(((inside - (1 - soft.diagonal())).abs() < 1e-6)[inside > 0].all())
    again = mix(pixels, targets, 0.4, 1.0, (1, 5))
    assert all(torch.equal(a, b) for a, b in zip(again, mix(pixels, targets, 0.4, 1.0, (1, 5)), strict=True))
    kinds = {bool((mix(pixels, targets, 1.0, 1.0, (2, step))[0] % 1 != 0).any()) for step in range(20)}
    assert kinds == {True, False}


def test_a_label_that_one_of_two_does_not_know_is_unknown() -> None:
    targets = torch.tensor([[1, -1], [0, 1]], dtype=torch.int8)
    pixels = torch.rand(2, 1, 4, 4)
    found = [mix(pixels, targets, 1.0, 0.0, (3, step))[1] for step in range(10)]
    swapped = [soft for soft in found if 0 < float(soft[0, 0]) < 1]
    assert swapped
    assert all(soft[:, 1].tolist() == [-1, -1] for soft in swapped)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment_is_torchvisions(channels: int, magnitude: int) -> None:
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (40, 33, 33, channels), dtype=np.uint8))
    images[0], images[1, :, :, 0] = 7, 0  # without contrast, and with an empty channel
    before, index = images.clone(), np.arange(100, 140)
    augmented = rand_augment(images, index, 3, magnitude, 5, 2)
    assert images.equal(before)
    theirs = RandAugment(3, magnitude, num_magnitude_bins=31)
    for position, sample in enumerate(index.tolist()):
        torch.manual_seed(int(np.random.SeedSequence([5, 2, 30, sample]).generate_state(1)[0]))
        assert theirs(images[position].permute(2, 0, 1)).permute(1, 2, 0).equal(augmented[position])


def test_augmentation_never_waits_for_a_device() -> None:
    images = torch.zeros(12, 32, 32, 3, dtype=torch.uint8, device=META)
    drawn = distortions(np.arange(12), dict.fromkeys(get_args(Distortion), 0.5), 1, 1)
    normalize = Normalizer((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), META)
    targets = torch.zeros(12, 4, dtype=torch.int8, device=META)
    with Waits():
        changed = rand_augment(distort(images, drawn), np.arange(12), 12, 9, 1, 1)
        mixed, both = mix(normalize(changed, torch.arange(12) % 2 == 0), targets, 0.2, 0.2, (1, 2))
    assert (mixed.shape, both.shape) == ((12, 3, 32, 32), (12, 4))
