"""A training step: gradient, update of the weights, and the state that both change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlic.config.train import TrainConfig
from mlic.config.types import parse_policy
from mlic.data.loader import Batch
from mlic.data.pixels.augment import mix, on_device
from mlic.data.shards import Split
from mlic.errors import RunError
from mlic.model import amp, layer_groups, losses, optim
from mlic.train import setup
from mlic.train.non_finite import FiniteLosses
from mlic.train.rank import RankContext
from mlic.train.throughput import ForwardTimes
from mlic.train.training_metrics import TrainingCounts


class Steps:
    """The network in training, its optimiser, and everything that changes at a step.

    `net` is the whole network, `core` the part of it that is trained and evaluated, `normalize` what makes its input of
    a batch. `config` may change from epoch to epoch; `ema_weights` has the averaged weights where they are asked for.
    """

    def __init__(
        self,
        config: TrainConfig,
        context: RankContext,
        train: Split,
        network: tuple[nn.Module, nn.Module, nn.Module],
        normalize: Callable[..., torch.Tensor],
    ) -> None:
        """`network` is the whole network, its trained part, and its head."""
        self.config, self._context = config, context
        self.net, self.core, head = network
        self.normalize = normalize
        self.weight = setup.positive_weights(train, config).to(context.device)
        groups = layer_groups.parameter_groups(self.net, head, config.layer_decay)
        self.optimizer = optim.optimizer(config, groups, context.device)
        self.wrapped: nn.Module = self.core
        if context.world_size > 1 and config.train != "none":
            ids = [context.device] if context.device.type == "cuda" else None
            # Buffers are not sent at every step: an evaluation, and a checkpoint, uses those of rank 0.
            self.wrapped = DistributedDataParallel(
                self.core, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self._forward: Callable[..., torch.Tensor] = torch.compile(self.wrapped) if config.compile else self.wrapped
        self._activation = losses.activation(config.loss)
        self.dtype: amp.Dtype = "fp32"
        self._scaler = torch.amp.GradScaler(context.device.type, enabled=False)
        self.ema_weights = (
            {name: tensor.clone() for name, tensor in self.net.state_dict().items()} if config.ema else {}
        )
        soft = setup.soft_targets(config, train)
        self._soft = None if soft is None else soft.to(context.device)
        self._train = train
        self.counts = TrainingCounts(len(train.labels), context.device)
        # Mixed images have no known labels. A policy without thresholds has no decisions on single samples.
        policy, value = parse_policy(config.threshold_policy)
        self._counted = policy != "top-k"
        self.cuts = torch.full((len(train.labels),), value if policy == "fixed" else 0.5, device=context.device)
        self.finite = FiniteLosses(config, context, train)
        self.forward_times = ForwardTimes(context.device)

    def use(self, dtype: amp.Dtype) -> None:
        """Compute in this dtype from now on."""
        self.dtype = dtype
        self._scaler = torch.amp.GradScaler(self._context.device.type, enabled=dtype == "fp16")
        if dtype != "fp32":
            self._context.say(f"computes in {dtype}")

    def state(self) -> dict[str, Any]:
        """What a checkpoint has of the network and its optimiser. Every rank has to call it."""
        return {
            "net": self.net.state_dict(),
            "shadow": self.ema_weights,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "dtype": self.dtype,
            "skipped": self.finite.skipped,
            "counts": torch.tensor(self._context.sums(*self.counts.sums.tolist()), dtype=torch.float64),
            "cuts": self.cuts,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned. The first rank gets the counts of all ranks together."""
        self.use(state["dtype"] if "dtype" in state else state["arithmetic"])  # of an earlier version
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.ema_weights = state["shadow"]
        self.finite.skipped = state["skipped"]
        if "counts" in state:  # earlier versions kept positions without them
            self.cuts.copy_(state["cuts"])
            if self._context.rank == 0:
                self.counts.sums.copy_(state["counts"])

    def backward(self, step: int, batch: Batch, mirror: torch.Tensor | None, scale: float) -> torch.Tensor:
        """Compute the gradient of a batch, in the configured number of parts; returns its loss () times `scale`.

        `mirror` (B,) says which of the images are mirrored.
        """
        config = self.config
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._context.device)
        size = max(1, -(-len(batch.images) // config.accumulate))
        starts = range(0, max(1, len(batch.images)), size)
        for begin in starts:
            part = slice(begin, begin + size)
            waits = begin == starts[-1] or not isinstance(self.wrapped, DistributedDataParallel)
            started = self.forward_times.now()
            with nullcontext() if waits else self.wrapped.no_sync():  # type: ignore[operator]
                images = self.normalize(batch.images[part], None if mirror is None else mirror[part])
                labels = targets = on_device(batch.targets[part], self._context.device)
                if self._soft is not None:
                    targets = self._with_soft(targets, self._soft, batch, part)
                mixup = config.mixup if self.core is self.net else config.feature_mixup
                if mixup or config.cutmix:
                    drawn = (config.seed, step, self._context.rank, begin, 13)
                    images, targets = mix(images, targets, mixup, config.cutmix, drawn)
                with amp.autocast(self.dtype, self._context.device):
                    logits = self._forward(images)
                if self._counted and not (mixup or config.cutmix):
                    scores = losses.scores(self._activation, logits.detach().float())
                    self.counts.add(scores, labels, self.cuts)
                loss = self.loss(logits, targets, config.label_smoothing) * scale
                self.forward_times.add(started)
                self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _with_soft(self, targets: torch.Tensor, soft: torch.Tensor, batch: Batch, part: slice) -> torch.Tensor:
        """Targets (B, L) of a part of a batch, mixed with the soft ones; those of unreadable images stay unknown."""
        numbers = batch.index[part]
        mixed = setup.blended(targets, soft[on_device(torch.from_numpy(numbers), soft.device)], self.config.soft_weight)
        if batch.bad:
            names = dict(batch.bad)
            mixed[[row for row, number in enumerate(numbers.tolist()) if self._train.key(number) in names]] = -1
        return mixed

    def update(self, step: int, loss: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Update the weights with the gradient; returns the loss () that counts, which is 0 for a skipped step."""
        config = self.config
        self._scaler.unscale_(self.optimizer)
        skips = config.non_finite == "skip"
        if config.clip_norm or skips:
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm or math.inf)
            # The gradient is that of all ranks, so either all of them skip the step or none.
            if skips and not self._scaler.is_enabled() and not math.isfinite(norm):
                self.finite.skip(step, loss, batch.index, self.lr)
                return torch.zeros_like(loss)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.finite.skipped = 0
        if self.ema_weights:
            optim.average(self.ema_weights, self.net, config.ema, step)
        if not skips:
            self.finite.note(step, loss, batch.index)
        return torch.nan_to_num(loss, 0.0, 0.0, 0.0) if skips else loss

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        """The loss () of logits (B, L) and targets (B, L), summed over the known labels."""
        config = self.config
        return losses.loss_sum(config.loss, logits, targets, self.weight, config.loss_options, smoothing)

    @property
    def lr(self) -> float:
        """The learning rate of the head."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def set_lr(self, step: int, steps_per_epoch: int) -> None:
        """Set the learning rate of a step, by the schedule."""
        factor = optim.lr_factor(self.config, step, steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor * group["scale"]


@contextmanager
def memory_errors(config: TrainConfig, context: RankContext) -> Iterator[None]:
    """Raise RunError, with what to change, when the GPU's memory is too small. A restart would only repeat it."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        images = -(-config.batch_size // context.world_size)
        parts = min(images, 2 * config.accumulate)
        raise RunError(
            f"the GPU of rank {context.rank} has too little memory for the {images} images that a rank has of a batch, "
            f"at {config.image_size} pixels and in {config.accumulate} parts.",
            f"--set accumulate={parts} computes each batch in {parts} parts; or lower --batch-size.",
        ) from None
