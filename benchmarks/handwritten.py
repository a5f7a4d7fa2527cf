"""The training loop that one writes by hand for one model, with everything in memory: the peer of benchmarks.train.

    python -m benchmarks.handwritten IMAGES.npz ARCH OUT.json [EPOCHS]      or by torchrun

Adam, binary cross-entropy, mirroring, channels-last memory, DistributedDataParallel where torchrun starts several
processes; no checkpoints, no metrics, no unknown labels. Writes the images per second of each epoch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.train import BATCH
from mlic.model import zoo


def main(source: Path, arch: str, out: Path, epochs: int) -> None:
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    data = np.load(source)
    images, targets = torch.from_numpy(data["images"]), torch.from_numpy(data["targets"]).float()
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    torch.manual_seed(0)
    net: nn.Module = zoo.build(arch, targets.shape[1], 3, images.shape[1], {}).to(memory_format=torch.channels_last)
    net.train()
    model = DistributedDataParallel(net) if ranks > 1 else net
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    speeds = []
    for epoch in range(epochs):
        order = torch.from_numpy(np.random.default_rng(epoch).permutation(len(images)))
        started = time.perf_counter()
        for batch in torch.split(order, BATCH):
            mine = batch[rank::ranks]
            x = images[mine].permute(0, 3, 1, 2).float().sub_(mean).div_(std)
            flipped = torch.rand(len(x)) < 0.5
            x[flipped] = x[flipped].flip(3)
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(x), targets[mine])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        speeds.append(len(images) / (time.perf_counter() - started))
    if rank == 0:
        out.write_text(json.dumps(speeds))
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 4)
