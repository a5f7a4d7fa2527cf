"""The training loop: one model, fitted by one process or by many; the same under Ray Train and under Ray Tune.

All randomness is drawn from the seed, the epoch, the step and the sample, so a run that goes on from a checkpoint is
the run that was never stopped.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlic.cluster.runs import fingerprint
from mlic.config import Preprocessing, TrainConfig
from mlic.data import sampling, storage
from mlic.data.augment import Normalizer, crops, distort, distortions, margin, mirrors, mix, rand_augment
from mlic.data.loader import Batch, FeatureReader, ShardReader, eval_batches, train_batches
from mlic.data.shards import Split, read_split
from mlic.errors import DataError, RunError
from mlic.fitting import FitSettings
from mlic.model import depth, losses, memory, optimization, precision, weights, zoo
from mlic.schema import result_settings
from mlic.score import metrics, thresholds
from mlic.stages import frozen, start, validation
from mlic.stages.checkpoints import Checkpoints, copy_of
from mlic.stages.clock import Clock
from mlic.stages.place import Place

Reader = ShardReader | FeatureReader

_SETTLE_STEPS = 20  # a look at the loss makes a GPU wait and asks all ranks, so it is not taken at every step
_MOST_SKIPS = 20  # steps in a row that are left out before the run stops all the same
_NAMED_KEYS = 5


def objective(config: FitSettings) -> str:
    """The name in an epoch's metrics of what the best epoch has most of."""
    return f"val/{config.objective}"


def is_done(config: TrainConfig, history: list[dict[str, float]]) -> bool:
    """Whether a run has all its epochs, or as many as its patience lets it have."""
    if len(history) >= (1 if config.train == "none" else config.epochs):
        return True
    if not config.patience or not history:
        return False
    sign = 1 if config.stop_on in _LOWER_IS_BETTER else -1
    values = [sign * row[config.stop_on] for row in history]
    return len(values) - 1 - values.index(min(values)) >= config.patience


_LOWER_IS_BETTER = {f"val/{name}" for name in ("loss", *metrics.LOWER_IS_BETTER)}


def fit(
    config: TrainConfig, place: Place, on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
    until: int | None = None, deadline: float | None = None,
) -> None:  # fmt: skip
    """Train to the last epoch, or until there are so many, from the last checkpoint in the folder where there is one.

    The caller has seen that the shards have their sizes: a thousand ranks that look would ask for millions of files.
    `on_epoch` is called with the metrics of every epoch, those before the checkpoint included, when the epoch's files
    are written. After `deadline`, in seconds since 1970 by the clock of rank 0, no epoch but the first of this call is
    begun. When the run is asked to stop, all ranks return after the same step, and rank 0 has written a checkpoint of
    it. Raises DataError for samples that do not decode and RunError for a loss that is not finite.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # what is imported by now stays; looking through it at each collection took a fifth of short runs
    if place.device.type == "cpu":
        memory.keep()
    train, val = (read_split(config.shards, name, config.fold, checked=True) for name in ("train", "val"))
    copy = None if config.checkpoint_copy is None else copy_of(config.checkpoint_copy, place.folder, place.owner)
    with ExitStack() as stack:
        path = weights.resolve(config.arch, config.weights)
        known_by = fingerprint(result_settings(config), train.fingerprint, path and weights.digest(path))
        checkpoints = stack.enter_context(Checkpoints(place, copy, known_by))
        fitting = _Fitting(config, place, train, val, checkpoints, stack)
        history = fitting.resume()
        begun = len(history)
        for earlier in history:
            on_epoch(earlier)
        while not is_done(config, history) and (until is None or len(history) < until):
            is_late = deadline is not None and len(history) > begun and time.time() >= deadline
            asked = place.is_asked_to_stop
            if place.gather(is_late or asked)[0]:
                if asked:
                    place.say(f"stops as asked after epoch {len(history)}")
                return
            row = fitting.epoch(len(history))
            if row is None:
                return
            history.append(row)
            on_epoch(row)


def decoded_side(config: TrainConfig) -> int:
    """The side in pixels of the training images that are kept decoded: more than the network's where parts are cut."""
    return margin(config.image_size) if config.crop < 1 else config.image_size


class _Fitting:
    """The state of a run between its epochs: network, optimiser, position and history."""

    def __init__(
        self, config: TrainConfig, place: Place, train: Split, val: Split, checkpoints: Checkpoints, stack: ExitStack
    ) -> None:
        self.config, self.place, self.train, self.val, self.checkpoints = config, place, train, val, checkpoints
        self.planned = config  # `self.config` has what of it changes after some epochs
        prep = start.preprocessing(config)
        torch.manual_seed(config.seed)
        net, head, self.begins_with = start.network(config, train, prep)
        self.net = net.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weight = start.positive_weights(train, config).to(place.device)
        self.rates = sampling.rates(train.targets, train.labels, config.repeat_below, config.thin, config.thin_labels)
        self.shadow = {name: tensor.clone() for name, tensor in self.net.state_dict().items()} if config.ema else {}
        self.normalize: Callable[..., torch.Tensor] = Normalizer(prep.mean, prep.std, place.device)
        self.core: nn.Module = self.net  # what is trained and evaluated
        self.train_reader, self.val_reader = self._readers(prep, head, stack)
        groups = depth.parameter_groups(self.net, head, config.layer_decay)
        self.optimizer = optimization.optimizer(config, groups)
        self.wrapped: nn.Module = self.core
        if place.world_size > 1 and config.train != "none":
            ids = [place.device] if place.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.core, device_ids=ids)
        self.forward: Callable[..., torch.Tensor] = torch.compile(self.wrapped) if config.compile else self.wrapped
        self.arithmetic: precision.Arithmetic = "fp32"
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=False)
        self.history: list[dict[str, float]] = []
        self.best_value = -math.inf
        self.bad: set[str] = set()
        self.step = 0
        self.done, self.total = 0, 0.0  # steps of the epoch that are done, and the sum of their losses over all ranks
        self.skipped = 0  # steps in a row that were left out
        self.recent: list[tuple[int, torch.Tensor, Batch]] = []  # steps since the last look at their losses

    def _readers(self, prep: Preprocessing, head: nn.Module, stack: ExitStack) -> tuple[Reader, Reader]:
        """Of the training and the validation split: images, or for a head alone the features of a frozen backbone."""
        config = self.config
        readers = [
            stack.enter_context(ShardReader(split, prep.model_copy(update={"image_size": size})))
            for split, size in ((self.train, decoded_side(config)), (self.val, prep.image_size))
        ]
        for reader in readers:
            reader.use_cache(config.cache_gb, config.loader_threads)
        if config.train != "head":
            return readers[0], readers[1]
        features = [
            frozen.feature_reader(config, prep, split, reader, self.net, head, self.normalize)
            for split, reader in zip((self.train, self.val), readers, strict=True)
        ]
        device = self.place.device
        self.core, self.normalize = zoo.from_head(self.net, head), lambda images, _=None: images.to(device)
        return features[0], features[1]

    def resume(self) -> list[dict[str, float]]:
        """Take up the last checkpoint, when there is one, and return the metrics of the epochs before it."""
        last = self.checkpoints.read_last()
        if last is None:
            self._choose_arithmetic(*self._tried())
            self.place.say(f"begins with {self.begins_with}")
            self.place.say(f"on {socket.gethostname()}, rank 0 of {self.place.world_size}")
        else:
            self._choose_arithmetic(last["arithmetic"], "as before")
            self.net.load_state_dict(last["net"])
            self.optimizer.load_state_dict(last["optimizer"])
            self.scaler.load_state_dict(last["scaler"])
            self.shadow = last["shadow"]
            self.history, self.step, self.best_value = last["history"], last["step"], last["best_value"]
            self.done, self.total, self.skipped = last["done"], last["total"], last["skipped"]
            within = f" and {self.done} steps" if self.done else ""
            self.place.say(f"goes on after epoch {len(self.history)} of {self.config.epochs}{within}")
        self.checkpoints.write_history(self.history)
        return list(self.history)

    def _tried(self) -> tuple[precision.Arithmetic, str]:
        """The arithmetic that pays, by a trial of rank 0."""
        config, place = self.config, self.place
        if config.train == "none" or (config.train == "head" and config.precision == "auto"):
            return "fp32", "there is little to compute"
        found: tuple[precision.Arithmetic, str] = ("fp32", "")
        if place.rank == 0:
            prep = start.preprocessing(config)
            shape = (prep.channels, prep.image_size, prep.image_size)
            found = precision.choose(config.precision, self.net, shape, place.device, storage.node_folder())
        return place.gather(found)[0]

    def _choose_arithmetic(self, arithmetic: precision.Arithmetic, why: str) -> None:
        self.arithmetic = arithmetic
        self.scaler = torch.amp.GradScaler(self.place.device.type, enabled=arithmetic == "fp16")
        if arithmetic != "fp32":
            self.place.say(f"computes in {arithmetic}: {why}")

    def epoch(self, epoch: int) -> dict[str, float] | None:
        """Train one epoch, evaluate, and write the checkpoint; returns the epoch's metrics.

        None when the run was asked to stop within the epoch: the checkpoint is then that of the last step.
        """
        config = self.config = self.planned.after(epoch)
        if config.changes:
            optimization.adjust(config, self.optimizer)
        row: dict[str, float] = {"epoch": epoch + 1}
        if config.train != "none":
            trained = self._train_epoch(epoch)
            if trained is None:
                return None
            row |= trained
        found = self._evaluate()
        fitted = thresholds.fit(config.threshold_policy, found.scores, found.targets, config.seed)
        row |= {"step": self.step} | validation.row(found, fitted, self.val.labels)
        self.history.append(row)
        value = row[objective(config)]
        better = value > self.best_value
        self.best_value = max(self.best_value, value)
        best = {
            "epoch": epoch + 1, "metrics": row, "state": self.shadow or self.net.state_dict(),
            "thresholds": torch.from_numpy(fitted.thresholds), "scores": torch.from_numpy(found.scores),
            "targets": torch.from_numpy(found.targets), "decisions": torch.from_numpy(fitted.decisions),
        }  # fmt: skip
        self.checkpoints.write(self._last(), best if better else None, row)
        self.checkpoints.wait()  # an epoch that has been reported is one that a stopped run does not do again
        self.place.say(
            f"val  epoch {epoch + 1}/{config.epochs} | loss {found.loss:.4f} | f1_micro {row['val/f1_micro']:.4f} | "
            f"f1_macro {row['val/f1_macro']:.4f} | map {row['val/map']:.4f}" + (" | best" if better else "")
        )
        if epoch == min(1, config.epochs - 1) and config.train != "none":
            self._warn_of_collapse(found, fitted.decisions)
        return row

    def _warn_of_collapse(self, found: validation.Evaluated, decisions: Any) -> None:
        config = self.config
        remedies = {
            "--set head_prior=true": not config.head_prior,
            f"a lower --lr (now {config.lr:g})": True,
        }
        problem = validation.collapse(found, decisions, remedies)
        if problem is not None:
            self.place.say(f"Warning: {problem}")

    def _train_epoch(self, epoch: int) -> dict[str, float] | None:
        config, place = self.config, self.place
        order = sampling.epoch_order(self.rates, config.seed, epoch)
        batches = train_batches(order, config.batch_size, place.rank, place.world_size)
        augmented = config.train != "head"
        mirror = mirrors(len(self.train), config.seed, epoch) if config.hflip and augmented else None
        parts = crops(len(self.train), config.crop, config.seed, epoch) if config.crop < 1 else None
        drawn = distortions(len(self.train), config.augment, config.seed, epoch) if config.augment else None
        self.wrapped.train()
        depth.settle_frozen(self.net)
        clock = Clock()
        total = torch.zeros((), device=place.device)
        left = batches[self.done :]
        loaded = self.train_reader.batches([m for m, _ in left], config.loader_threads, parts, config.image_size)
        for (_, whole), batch in zip(left, clock.watch(loaded), strict=True):
            torch.manual_seed((config.seed * 1_000_003 + self.step) * 1_009 + place.rank)
            self._count_bad(batch, len(self.train))
            self._set_lr(len(batches))
            known = max(1, int((self.train.targets[whole] >= 0).sum()))
            # The gradients are averaged over ranks, so each rank's sum is divided by the whole batch's count over
            # the number of ranks: the step is that of the whole batch, however unevenly it was dealt out.
            loss = self._backward(self._distorted(batch, drawn, epoch), mirror, place.world_size / known)
            total += self._take_step(loss, batch)
            self.step, self.done = self.step + 1, self.done + 1
            clock.images += len(whole)
            if self.done % _SETTLE_STEPS == 0 and self.done < len(batches):
                if self._settle(total):
                    self.checkpoints.write(self._last())
                    self.checkpoints.wait()
                    place.say(f"stops as asked after epoch {epoch} and {self.done} steps")
                    return None
                if self.config.checkpoint_minutes * 60 <= clock.since_kept():
                    self.checkpoints.write(self._last())
                    clock.kept()
            if clock.due():
                place.say(self._line(epoch, len(batches), float(loss) / place.world_size, clock))
        self._settle(total)
        mean, self.done, self.total = self.total / place.world_size / len(batches), 0, 0.0
        return {
            "train/loss": mean,
            "lr": self.optimizer.param_groups[-1]["lr"],
            "time/images_per_s": clock.images_per_s,
            "time/data_pct": clock.data_pct,
        }

    def _distorted(self, batch: Batch, drawn: Any, epoch: int) -> Batch:
        config, images = self.config, batch.images
        if drawn is not None:
            images = distort(images, batch.index, drawn)
        if config.rand_augment:
            images = rand_augment(images, batch.index, config.rand_augment, config.rand_magnitude, config.seed, epoch)
        return dataclasses.replace(batch, images=images)

    def _backward(self, batch: Batch, mirror: torch.Tensor | None, scale: float) -> torch.Tensor:
        """Leave the gradient of a step, taken in as many parts as is asked for, and return its loss times `scale`."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        size = max(1, -(-len(batch.images) // self.config.accumulate))
        starts = range(0, max(1, len(batch.images)), size)
        for begin in starts:
            part = slice(begin, begin + size)
            waits = begin == starts[-1] or not isinstance(self.wrapped, DistributedDataParallel)
            with nullcontext() if waits else self.wrapped.no_sync():  # type: ignore[operator]
                images = self.normalize(batch.images[part], None if mirror is None else mirror[batch.index[part]])
                targets = batch.targets[part]
                if self.config.mixup or self.config.cutmix:
                    drawn = (self.config.seed, self.step, self.place.rank, begin, 13)
                    images, targets = mix(images, targets, self.config.mixup, self.config.cutmix, drawn)
                with precision.autocast(self.arithmetic, self.place.device):
                    logits = self.forward(images)
                loss = self._loss(logits, targets, self.config.label_smoothing) * scale
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _take_step(self, loss: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Change the weights by the gradient; returns the loss that counts, which is 0 for a step that is left out."""
        config = self.config
        self.scaler.unscale_(self.optimizer)
        skips = config.non_finite == "skip"
        if config.clip_norm or skips:
            norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm or math.inf)
            # The gradient is that of all ranks, so all of them leave the step out or none.
            if skips and not self.scaler.is_enabled() and not math.isfinite(norm):
                self._skip(loss, batch)
                return torch.zeros_like(loss)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.skipped = 0
        if self.shadow:
            optimization.average(self.shadow, self.net, config.ema, self.step)
        if not skips:
            self.recent.append((self.step, loss, batch))
        return torch.nan_to_num(loss, 0.0, 0.0, 0.0) if skips else loss

    def _skip(self, loss: torch.Tensor, batch: Batch) -> None:
        self.skipped += 1
        if self.skipped > _MOST_SKIPS:
            raise self._not_finite(self.step, self.place.rank, self._keys(batch))
        if not math.isfinite(float(loss)):
            where = f"step {self.step} on rank {self.place.rank}"
            self.place.say(f"Warning: {where} is left out: its loss is not finite; {self._keys(batch)}", everyone=True)
        elif self.place.rank == 0:
            self.place.say(f"Warning: step {self.step} is left out: its gradient is not finite")

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        """The loss summed over the known labels of a batch."""
        config = self.config
        targets = targets.to(self.place.device)
        return losses.loss_sum(config.loss, logits, targets, self.weight, config.loss_options, smoothing)

    def _evaluate(self) -> validation.Evaluated:
        """The evaluation of the validation split, by the averaged weights where there are any."""
        place, net = self.place, self.net
        trained = {name: tensor.clone() for name, tensor in net.state_dict().items()} if self.shadow else {}
        if self.shadow:
            net.load_state_dict(self.shadow)
        if place.world_size > 1:
            for buffer in net.buffers():  # batch norm's statistics are those that rank 0 has, as in the checkpoint
                torch.distributed.broadcast(buffer, 0)
        numbers = eval_batches(len(self.val), self.config.batch_size, place.rank, place.world_size)
        found = validation.evaluate(
            place, self.core, self._sound(self.val_reader.batches(numbers, self.config.loader_threads)),
            self.normalize, self.config.loss, lambda logits, targets: self._loss(logits, targets, 0.0),
            self.val.targets.shape,
        )  # fmt: skip
        if trained:
            net.load_state_dict(trained)
        return found

    def _sound(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches of the validation split, with a look at what of them does not decode."""
        for batch in batches:
            self._count_bad(batch, len(self.val))
            yield batch

    def _last(self) -> dict[str, Any]:
        """What a run that is stopped goes on from."""
        return {
            "net": self.net.state_dict(), "shadow": self.shadow, "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(), "arithmetic": self.arithmetic, "history": self.history,
            "step": self.step, "best_value": self.best_value, "done": self.done, "total": self.total,
            "skipped": self.skipped,
        }  # fmt: skip

    def _settle(self, total: torch.Tensor) -> bool:
        """Add the ranks' sums of losses to the epoch's, at the same steps whether or not the run was stopped there.

        Returns whether the run is asked to stop, which all ranks hear at the same step.
        Raises RunError when they are not finite, with the step, the rank and the samples where that began.
        """
        added, asked = self.place.sums(float(total), float(self.place.is_asked_to_stop))
        if not math.isfinite(added):
            mine = [(step, self.place.rank, self._keys(batch)) for step, loss, batch in self.recent
                    if not math.isfinite(float(loss))][:1]  # fmt: skip
            every = [found for of_rank in self.place.gather(mine) for found in of_rank]
            raise self._not_finite(*min(every, default=(self.step, self.place.rank, "its sum over steps")))
        self.recent.clear()
        self.total += added
        total.zero_()
        return asked > 0

    def _not_finite(self, step: int, rank: int, keys: str) -> RunError:
        lr = self.optimizer.param_groups[-1]["lr"]
        return RunError(
            f"the loss is not finite at step {step} on rank {rank} (learning rate {lr:.2g}; {keys}).",
            f"lower --lr (now {self.config.lr:g}), or leave such steps out by --set non_finite=skip.",
        )

    def _keys(self, batch: Batch) -> str:
        names = [self.train.key(i) for i in batch.index[:_NAMED_KEYS].tolist()]
        return f"samples {', '.join(names)}" + (f" and {more} more" if (more := len(batch.index) - len(names)) else "")

    def _set_lr(self, steps_per_epoch: int) -> None:
        factor = optimization.lr_factor(self.config, self.step, steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor * group["scale"]

    def _count_bad(self, batch: Batch, num_samples: int) -> None:
        for key, reason in batch.bad:
            if key not in self.bad:
                self.bad.add(key)
                self.place.say(f"bad  sample {key!r} does not decode and counts nowhere: {reason}", everyone=True)
        if len(self.bad) > self.config.max_bad * num_samples:
            raise DataError(
                f"{len(self.bad)} samples on rank {self.place.rank} do not decode, more than max_bad allows "
                f"({self.config.max_bad:.1%}); one is {min(self.bad)!r}.",
                f"pack {self.config.shards} again with --fresh.",
            )

    def _line(self, epoch: int, steps: int, loss: float, clock: Clock) -> str:
        total = self.config.epochs * steps
        left = (total - self.step) / max(1, self.step - epoch * steps) * clock.seconds
        lr = self.optimizer.param_groups[-1]["lr"]
        return (
            f"step {self.step:05d}/{total:05d} | epoch {epoch + 1} | loss {loss:.4f} | lr {lr:.1e} | "
            f"{clock.images_per_s:.0f} img/s | data {clock.data_pct:.0f}% | eta {left / 60:.1f}m"
        )
