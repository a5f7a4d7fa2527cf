"""The training loop, for one process or a group of ranks, under Ray Train and Ray Tune alike.

All randomness is drawn from the seed, the epoch, the step and the sample, so a run that resumes from a checkpoint gives
the same result as a run that was never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import math
import socket
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from mlic.config.base import result_settings
from mlic.config.train import TrainConfig
from mlic.data import sampling_weights
from mlic.data.loader import Batch, FeatureReader, ShardReader
from mlic.data.pixels.augment import Normalizer, on_device
from mlic.data.shards import Split, read_split
from mlic.errors import ConfigError
from mlic.metrics import decision
from mlic.model import amp, bundle, layer_groups, malloc, optim, weights, zoo
from mlic.runs.files import fingerprint
from mlic.train import evaluation, setup
from mlic.train.batches import epoch_order, readers, streaming
from mlic.train.batches.bad_samples import BadSamples
from mlic.train.checkpoints import Checkpoints, copy_of
from mlic.train.epoch_choice import is_done, objective
from mlic.train.rank import RankContext
from mlic.train.steps import Steps, memory_errors
from mlic.train.throughput import Clock

_SETTLE_STEPS = 20  # reading the loss waits for the GPU and involves all ranks, so it is not done at every step
_LOOK_S = 5.0  # seconds between two checks for a request to stop, with steps of any length and in the evaluation


def fit(
    config: TrainConfig,
    context: RankContext,
    on_epoch: Callable[[dict[str, float]], None] = lambda _: None,
    until: int | None = None,
    deadline: float | None = None,
    dtype: amp.Dtype | None = None,
    keep_scores: bool = False,
) -> None:
    """Train to the last epoch, or up to `until` epochs; the other arguments are those of `epochs`.

    `on_epoch` is called with the metrics of every epoch, those before the checkpoint included, when the epoch's files
    are written. Raises what `epochs` raises.
    """
    reported = 0
    with contextlib.closing(epochs(config, context, deadline, dtype, keep_scores)) as histories:
        for history in histories:
            for row in history[reported:]:
                on_epoch(row)
            reported = len(history)
            if until is not None and reported >= until:
                return


def epochs(
    config: TrainConfig,
    context: RankContext,
    deadline: float | None = None,
    dtype: amp.Dtype | None = None,
    keep_scores: bool = False,
) -> Generator[list[dict[str, float]], None, None]:
    """Train from the last checkpoint, if there is one, and yield the metrics of all epochs so far.

    The first list holds the epochs before the checkpoint; one more list follows after every epoch, when its files are
    written. The caller may stop between two of them by closing the generator, and resume by a new one.

    The caller has verified the sizes of the shards: if a thousand ranks did it, they would ask for millions of files.
    After `deadline`, in seconds since 1970 by the clock of rank 0, no epoch but the first of this call is begun. When
    the run is asked to stop, all ranks return after the same step, and rank 0 has written a checkpoint of it.
    `dtype` is what the driver decided for the whole run, by default what the device of this process has. With
    `keep_scores` the scores of the validation split are kept for every epoch, not for the kept one alone. Raises
    DataError for samples that cannot be decoded and RunError for a loss or a score that is not finite.
    """
    if not gc.get_freeze_count():
        gc.freeze()  # imported objects stay; scanning them at each collection took a fifth of short runs
    if context.device.type == "cpu":
        malloc.keep()
    train, val = setup.train_split(config, checked=True), read_split(config.shards, "val", config.fold, checked=True)
    copy = None if config.checkpoint_copy is None else copy_of(config.checkpoint_copy, context.folder, context.owner)
    with contextlib.ExitStack() as stack:
        paths = weights.resolve(config.arch, config.weights)
        known_by = fingerprint(result_settings(config), train.fingerprint, weights.digest(paths) if paths else None)
        checkpoints = stack.enter_context(Checkpoints(context, copy, known_by, keep_scores))
        last = checkpoints.read_last()
        groups = streaming.decide(config, context, train, val, last)
        with memory_errors(config, context):
            fitting = _Fitting(config, context, (train, val), checkpoints, stack, groups)
        history = fitting.resume(last, dtype or amp.of_device(config.precision, context.device))
        resumed = len(history)
        yield list(history)
        while not is_done(config, history):
            is_late = deadline is not None and len(history) > resumed and time.time() >= deadline
            is_asked = context.is_asked_to_stop
            if context.gather(is_late or is_asked)[0]:
                if is_asked:
                    context.say(f"stops on request after epoch {len(history)}")
                return
            with memory_errors(config, context):
                row = fitting.epoch(len(history))
            if row is None:
                return
            history.append(row)
            yield list(history)


class _Fitting:
    """The state of a run between its epochs: network, optimiser, position and history."""

    def __init__(
        self,
        config: TrainConfig,
        context: RankContext,
        splits: tuple[Split, Split],
        checkpoints: Checkpoints,
        stack: contextlib.ExitStack,
        groups: int,
    ) -> None:
        train, _ = self.train, self.val = splits
        self.config, self.context, self.checkpoints, self.groups = config, context, checkpoints, groups
        self.streamed = streaming.order_of(train, groups)
        self.planned = config  # `self.config` includes the changes that apply after some epochs
        amp.configure_gpu(context.device, config.deterministic)
        prep = setup.preprocessing(config)
        torch.manual_seed(config.seed)
        net, head, self.begins_with = setup.network(config, train, prep)
        net = net.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.rates = sampling_weights.rates(
            train.targets, train.labels, config.repeat_below, config.thin, config.thin_labels
        )
        normalize: Callable[..., torch.Tensor] = Normalizer(prep.mean, prep.std, context.device, prep.top)
        core: nn.Module = net  # what is trained and evaluated
        self.threads = readers.threads_of(config, context.device)
        self.loaded = functools.partial(readers.loaded, device=context.device, threads=self.threads)
        opened = readers.open_readers(config, prep, splits, stack, self.threads, cached=not groups)
        self.train_reader: ShardReader | FeatureReader
        self.val_reader: ShardReader | FeatureReader
        self.train_reader, self.val_reader = opened
        if setup.has_fixed_features(config):
            of_features = functools.partial(readers.of_features, config, prep, splits, opened, net, head)
            self.train_reader, self.val_reader = of_features(normalize, context.say)
            core, normalize = zoo.from_head(net, head), lambda images, _=None: on_device(images, context.device)
        context.gather(None)  # the first collective of the GPUs has a time limit, and other nodes may still decode
        self.steps = Steps(config, context, train, (net, core, head), normalize)
        self.history: list[dict[str, float]] = []
        self.bad = BadSamples(config, context)
        self.best_value, self.step = -math.inf, 0
        self.done, self.total = 0, 0.0  # steps of the epoch that are done, and the sum of their losses over all ranks
        self.pending = torch.zeros((), device=context.device)  # this rank's losses that `total` does not contain yet
        self.look_every = 1  # steps between two looks for a request to stop, the same on all ranks

    def resume(self, last: dict[str, Any] | None, dtype: amp.Dtype) -> list[dict[str, float]]:
        """Load the `last` checkpoint, if there is one, and return the metrics of its epochs.

        `dtype` is used by a new run; a resumed run keeps its own.
        """
        if last is None:
            few = self.config.train == "none" or setup.has_fixed_features(self.config)
            is_open = few and self.config.precision == "auto"
            self.steps.use("fp32" if is_open else dtype)
            self.context.say(f"begins with {self.begins_with}")
            self.context.say(f"on {socket.gethostname()}, rank 0 of {self.context.world_size}")
        else:
            arch, options = self.config.arch, self.config.arch_options
            if zoo.as_made(arch, options, last.get("nets", 1)) != (arch, dict(options)):
                raise ConfigError(
                    f"{self.context.folder} was started by a version of mlic with a different {arch}.",
                    "--fresh starts again from the beginning.",
                )
            epoch_order.check(last, self.context.folder)
            self.steps.load(last)
            self.history, self.step, self.best_value = last["history"], last["step"], last["best_value"]
            self.done, self.total = last["done"], last["total"]
            if "pending" in last:  # earlier versions kept positions without it
                self._take_up_losses(last["pending"].tolist())
            within = f" and {self.done} steps" if self.done else ""
            self.context.say(f"resumes after epoch {len(self.history)} of {self.config.epochs}{within}")
        self.checkpoints.write_history(self.history)
        return list(self.history)

    def _take_up_losses(self, pending: list[float]) -> None:
        """Restore the sums of losses of all ranks; if the number of ranks has changed, rank 0 takes all of them."""
        rank, same = self.context.rank, len(pending) == self.context.world_size
        if same or rank == 0:
            self.pending.fill_(pending[rank] if same else sum(pending))

    def epoch(self, epoch: int) -> dict[str, float] | None:
        """Train one epoch, evaluate, and write the checkpoint; returns the epoch's metrics.

        None when the run was asked to stop within the epoch: the checkpoint is then that of the last step.
        """
        config = self.config = self.steps.config = self.planned.after(epoch)
        if config.changes:
            optim.adjust(config, self.steps.optimizer)
        row: dict[str, float] = {"epoch": epoch + 1}
        if config.train != "none":
            trained = self._train_epoch(epoch)
            if trained is None:
                return None
            row |= trained
        evaluated = self._evaluate()
        if evaluated is None:
            self._stop(f"epoch {epoch}, all its steps and a part of its evaluation")
            return None
        decided = decision.decide(
            config.threshold_policy,
            config.calibration,
            evaluated.scores,
            evaluated.targets,
            np.array(self.steps.weight.tolist()),
            config.seed,
            config.objective,
        )
        row |= {"step": self.step} | evaluation.row(evaluated, decided.decisions, decided.ranked, self.val.labels)
        self._finish_epoch(row, evaluated, decided)
        if epoch == min(1, config.epochs - 1) and config.train != "none":
            evaluation.warn_of_collapse(self.context, config, evaluated, decided.decisions)
        return row

    def _finish_epoch(self, row: dict[str, float], evaluated: evaluation.Evaluated, decided: decision.Decided) -> None:
        """Write the checkpoint of an epoch, with scores and weights if it is the epoch to keep, and log it."""
        config = self.config
        self.history.append(row)
        self.done, self.total = 0, 0.0
        self.steps.counts.sums.zero_()
        values = {"best": row[objective(config)], "lowest-loss": -row["val/loss"], "last": float(len(self.history))}
        value = values[config.keep_epoch]
        better = value > self.best_value
        self.best_value = max(self.best_value, value)
        self.steps.cuts.copy_(torch.from_numpy(decided.cuts))
        best = {
            "epoch": int(row["epoch"]),
            "metrics": row,
            "state": self.steps.ema_weights or self.steps.net.state_dict(),
            "thresholds": torch.from_numpy(decided.cuts),
            "scores": torch.from_numpy(evaluated.scores),
            "targets": torch.from_numpy(evaluated.targets),
            "decisions": torch.from_numpy(decided.decisions),
        }
        self.checkpoints.write(self._last(), best if better else None, row, evaluated.scores)
        self.checkpoints.wait()  # so that a stopped run never repeats an epoch that was reported
        others = list(dict.fromkeys((config.objective, "f1_micro", "f1_macro", "map")))
        values_said = " | ".join(f"{name} {row[f'val/{name}']:.4f}" for name in others)
        mark = {"best": " | best", "lowest-loss": " | lowest", "last": ""}[config.keep_epoch] if better else ""
        self.context.say(
            f"val  epoch {int(row['epoch'])}/{config.epochs} | loss {evaluated.loss:.4f} | {values_said}{mark}"
        )

    def _train_epoch(self, epoch: int) -> dict[str, float] | None:
        config, context = self.config, self.context
        show = epoch_order.of_epoch(config, self.train, self.rates, epoch, setup.is_augmented(config), self.streamed)
        num_steps = len(show.bounds(context.world_size)) - 1
        self.steps.wrapped.train()
        layer_groups.settle_frozen(self.steps.net)
        clock = Clock()
        batches = show.batches(context.rank, context.world_size, self.done)
        left, ahead, *of_parts = itertools.tee(batches, 2 if config.crop == 1 else 3)
        parts = map(show.crop, of_parts[0]) if of_parts else None
        window = streaming.train_window(show, self.train, config, context, self.done)
        loaded = self.loaded(self.train_reader, (e.samples for e in ahead), window, parts, config.image_size)
        for mine, batch in zip(left, clock.watch(loaded), strict=True):
            torch.manual_seed((config.seed * 1_000_003 + self.step) * 1_009 + context.rank)
            self.bad.note("train", batch)
            self.steps.set_lr(self.step, num_steps)
            known = max(1, int((self.train.targets[mine.batch] >= 0).sum()))
            # The gradients are averaged over ranks. So each rank's sum is multiplied by the number of ranks and divided
            # by the whole batch's count: the step is that of the whole batch, whatever the sizes of the ranks' parts.
            changed = dataclasses.replace(batch, images=show.change(batch.images, mine))
            loss = self.steps.backward(self.step, changed, show.mirror(mine), context.world_size / known)
            self.pending += self.steps.update(self.step, loss, batch)
            self.step, self.done = self.step + 1, self.done + 1
            clock.images, clock.steps = clock.images + len(mine.batch), clock.steps + 1
            if self.done < num_steps and self._looks_up(clock, epoch):
                return None
            if clock.due():
                steps = config.epochs * num_steps
                lr, mean = self.steps.lr, float(loss) / context.world_size
                left_s = (steps - self.step) * clock.seconds / max(1, self.step - epoch * num_steps)
                context.say(
                    f"step {self.step:05d}/{steps:05d} | epoch {epoch + 1} | loss {mean:.4f} | lr {lr:.1e} | "
                    f"{clock.images_per_s:.0f} img/s | data {clock.data_pct:.0f}% | eta {left_s / 60:.1f}m"
                )
        self._settle()
        return {
            "train/loss": self.total / context.world_size / num_steps,
            **self.steps.counts.values(context),
            "lr": self.steps.lr,
            **clock.values(context, self.steps.forward_times),
        }

    def _looks_up(self, clock: Clock, epoch: int) -> bool:
        """After some steps: reduce losses, write a checkpoint if it is due, and check for a request to stop.

        Times are those of rank 0, so that all ranks do the same after the same step. Returns whether the run stops.
        """
        settles = self.done % _SETTLE_STEPS == 0
        if not settles and self.done % self.look_every:
            return False
        if settles:
            self._settle()
        is_first = self.context.rank == 0
        pace, asked, keeps = self.context.sums(
            clock.seconds / clock.steps if is_first else 0.0,
            float(self.context.is_asked_to_stop),
            float(is_first and self.config.checkpoint_minutes * 60 <= clock.since_kept()),
        )
        self.look_every = min(_SETTLE_STEPS, max(1, int(_LOOK_S / pace)))
        if asked:
            self._stop(f"epoch {epoch} and {self.done} steps")
        elif keeps:
            self.checkpoints.write(self._last())
            clock.kept()
        return asked > 0

    def _stop(self, where: str) -> None:
        """Write a checkpoint because of a request to stop."""
        self.checkpoints.write(self._last())
        self.checkpoints.wait()
        self.context.say(f"stops on request after {where}")

    def _evaluate(self) -> evaluation.Evaluated | None:
        """Evaluate the validation split with the EMA weights, if there are any; None if a request to stop came."""
        context, net, ema_weights = self.context, self.steps.net, self.steps.ema_weights
        trained = {name: tensor.clone() for name, tensor in net.state_dict().items()} if ema_weights else {}
        if ema_weights:
            net.load_state_dict(ema_weights)
        if context.world_size > 1:
            for buffer in net.buffers():  # batch norm's statistics are those that rank 0 has, as in the checkpoint
                torch.distributed.broadcast(buffer, 0)
        numbers, window = streaming.val_batches(self.val, self.config, context, self.groups)
        evaluated = evaluation.evaluate(
            context,
            self.steps.core,
            self._sound(self.loaded(self.val_reader, numbers, window)),
            self.steps.normalize,
            self.config.loss,
            lambda logits, targets: self.steps.loss(logits, targets, 0.0),
            self.val,
        )
        self.bad.agree(self._sizes())
        if trained:
            net.load_state_dict(trained)
        return evaluated

    def _sound(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield batches of the validation split and count undecodable samples; ends early at a request to stop."""
        looked = time.monotonic()
        for batch in batches:
            self.bad.note("val", batch)
            yield batch
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                if self.context.sees_stop_request:
                    return

    def _sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "val": len(self.val)}

    def _last(self) -> dict[str, Any]:
        """The state that a stopped run resumes from."""
        return {
            **self.steps.state(),
            "history": self.history,
            "step": self.step,
            "best_value": self.best_value,
            "done": self.done,
            "total": self.total,
            "pending": torch.tensor(self.context.gather(float(self.pending))),
            "nets": bundle.NETS,
            "order": epoch_order.VERSION,
            "groups": self.groups,
        }

    def _settle(self) -> None:
        """Add the sums of losses of all ranks to that of the epoch, at the same steps in stopped and unstopped runs.

        Raises RunError when they are not finite, with the step, the rank and the samples where that began, and
        DataError when too many samples cannot be decoded, both on all ranks.
        """
        added, bad = self.context.sums(float(self.pending), float(self.bad.is_news))
        if bad:
            self.bad.agree(self._sizes())
        self.steps.finite.check(added, self.step, self.steps.lr)
        self.total += added
        self.pending.zero_()
