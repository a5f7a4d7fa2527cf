from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from mlic.data import decoding


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(256, 171, 128), (128, 300, 128), (333, 128, 128), (40, 30, 64), (1, 500, 32), (97, 1, 64), (500, 701, 224)],
)
def test_the_resize_without_pytorch_is_the_one_with_it(height: int, width: int, size: int, channels: int) -> None:
    """To the last bit: predictions do not depend on which of the two computed them."""
    rng = np.random.default_rng(height + width)
    for pixels in (
        rng.integers(0, 256, (height, width, channels), dtype=np.uint8),
        (rng.integers(0, 2, (height, width, channels)) * 255).astype(np.uint8),
    ):
        whole = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        expected = torch.nn.functional.interpolate(whole, (size, size), mode="bilinear", antialias=True)[0]
        found = decoding.resize_by_numpy(pixels, size)
        assert found.dtype == np.uint8
        assert (found == expected.permute(1, 2, 0).numpy()).all()
        assert (decoding.resize(pixels, size) == found).all()


def test_decoding_loads_no_pytorch() -> None:
    script = (
        "import sys, numpy\nfrom mlic.data import decoding\n"
        "decoding.resize(numpy.zeros((9, 8, 3), numpy.uint8), 4)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
