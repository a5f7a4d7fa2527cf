"""The training loop: one model, fitted by one process or by many; the same under Ray Train and under Ray Tune.

An epoch leaves `checkpoints/last.pt` and, where it was the best so far, `checkpoints/best.pt`; within an epoch
`last.pt` is written every so many steps. All randomness is drawn from the seed, the epoch, the step and the sample, so
a run that goes on from a checkpoint is the run that was never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mlic.cluster.runs import disk_errors, is_current, temporary, write_atomic
from mlic.config import Preprocessing, TrainConfig
from mlic.data.augment import Normalizer, crops, distort, distortions, margin, mirrors, mix
from mlic.data.loader import Batch, FeatureReader, ShardReader, eval_batches, train_batches
from mlic.data.shards import Split, read_split
from mlic.errors import DataError, RunError
from mlic.model import losses, optimization, weights, zoo
from mlic.score import metrics, thresholds
from mlic.stages import frozen
from mlic.stages.clock import Clock
from mlic.values import WEIGHTED

logger = logging.getLogger(__name__)

Reader = ShardReader | FeatureReader

OBJECTIVE = "val/f1_micro"
_CHECK_EVERY_STEPS = 20  # a look at the loss makes a GPU wait, so it is not taken at every step


@dataclass(frozen=True)
class Place:
    """Where this process stands: its rank, its device, the run's folder and the attempt that may write to it.

    `attempt` numbers the starts of the run in `owner`, the folder with run.json.
    """

    rank: int
    world_size: int
    device: torch.device
    folder: Path
    owner: Path
    attempt: int


@dataclass(frozen=True)
class Best:
    """The best epoch so far, by OBJECTIVE.

    `scores` float32 (N, L) and `targets` int8 (N, L) are those of the validation split, `decisions` bool (N, L) are
    cross-fitted.
    """

    epoch: int
    metrics: dict[str, float]
    state: dict[str, torch.Tensor]
    thresholds: np.ndarray[Any, Any]
    scores: np.ndarray[Any, Any]
    targets: np.ndarray[Any, Any]
    decisions: np.ndarray[Any, Any]


def preprocessing(config: TrainConfig) -> Preprocessing:
    """The preprocessing that a configuration asks for."""
    color = zoo.default_color(config.arch) if config.color == "auto" else config.color
    mean, std = zoo.normalization(config.arch)
    if color == "gray":
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    return Preprocessing(image_size=config.image_size, color=color, mean=mean, std=std)


def positive_weights(train: Split, config: TrainConfig) -> torch.Tensor:
    """The weights (L,) of positives in the loss, by the counts of the training split; 1 where the loss has none."""
    positives, negatives = _label_counts(train)
    if config.loss not in WEIGHTED:
        return torch.ones(len(positives))
    if config.loss == "class-balanced":
        weight = losses.balanced_weight(positives, negatives, config.loss_options.get("beta", losses.BETA))
        return losses.limited(weight, config.pos_weight_cap, config.pos_weight_by_min)
    weight = losses.pos_weight(positives, negatives, config.pos_weight_power)
    return losses.limited(weight, config.pos_weight_cap, config.pos_weight_by_min)


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


def _label_counts(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each label (L,) is given and is not."""
    positives, negatives = (torch.from_numpy((split.targets == value).sum(axis=0)) for value in (1, 0))
    return positives, negatives


def fit(config: TrainConfig, place: Place, on_epoch: Callable[[dict[str, float]], None]) -> None:
    """Train to the last epoch, from the last checkpoint in the folder where there is one.

    `on_epoch` is called with the metrics of every epoch, those before the checkpoint included. Raises DataError for
    samples that do not decode and RunError for a loss that is not finite.
    """
    train, val = (read_split(config.shards, name, config.fold) for name in ("train", "val"))
    with ExitStack() as stack:
        fitting = _Fitting(config, place, train, val, stack)
        history = fitting.resume()
        for row in history:
            on_epoch(row)
        while not is_done(config, history):
            row = fitting.epoch(len(history))
            history.append(row)
            on_epoch(row)


def read_best(folder: Path) -> Best:
    """Read the best epoch of a run's folder. Raises RunError when no epoch was finished."""
    path = folder / "checkpoints" / "best.pt"
    if not path.is_file():
        raise RunError(f"{folder} has no finished epoch.", "run the same command again.")
    best = torch.load(path, map_location="cpu", weights_only=True)
    return Best(best["epoch"], best["metrics"], best["state"], *(best[name].numpy() for name in _BEST_ARRAYS))


def read_history(folder: Path) -> list[dict[str, float]]:
    """The metrics of the finished epochs of a run's folder, in their order."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


_BEST_ARRAYS = ("thresholds", "scores", "targets", "decisions")


class _Fitting:
    """The state of a run between its epochs: network, optimiser, position and history."""

    def __init__(self, config: TrainConfig, place: Place, train: Split, val: Split, stack: ExitStack) -> None:
        self.config, self.place, self.train, self.val = config, place, train, val
        prep = preprocessing(config)
        torch.manual_seed(config.seed)
        counts = _label_counts(train)
        weight = positive_weights(train, config)
        net = zoo.build(config.arch, len(train.labels), prep.channels, prep.image_size, config.arch_options)
        path = weights.resolve(config.arch, config.weights)
        self.begins_with = "random weights"
        if path is not None and path.is_dir():
            self.begins_with = f"{path}, {weights.continue_from(net, train.labels, path)}"
        elif path is not None:
            how = weights.load_into(net, zoo.head(net, len(train.labels)), path)
            self.begins_with = f"{path.name}, {how}"
        if config.head_prior and not (path is not None and path.is_dir()):
            zoo.set_head_bias(net, losses.head_bias(*counts, weight))
        self.net = net.to(place.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weight = weight.to(place.device)
        self.shadow = {name: tensor.clone() for name, tensor in self.net.state_dict().items()} if config.ema else {}
        self.normalize: Callable[..., torch.Tensor] = Normalizer(prep.mean, prep.std, place.device)
        self.core: nn.Module = self.net  # what is trained and evaluated
        self.train_reader, self.val_reader = self._readers(prep, stack)
        trained = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        self.optimizer = optimization.optimizer(config, trained)
        self.wrapped: nn.Module = self.core
        if place.world_size > 1:
            ids = [place.device] if place.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.core, device_ids=ids)
        self.autocast = _autocast(config.precision, place.device)
        self.history: list[dict[str, float]] = []
        self.best_value = -math.inf
        self.bad: set[str] = set()
        self.step = 0
        self.done, self.total = 0, 0.0  # steps of the epoch that are done, and the sum of their losses over all ranks

    def _readers(self, prep: Preprocessing, stack: ExitStack) -> tuple[Reader, Reader]:
        """Of the training and the validation split: images, or for a head alone the features of a frozen backbone."""
        config = self.config
        side = margin(prep.image_size) if config.crop < 1 else prep.image_size
        readers = [
            stack.enter_context(ShardReader(split, prep.model_copy(update={"image_size": size})))
            for split, size in ((self.train, side), (self.val, prep.image_size))
        ]
        for reader in readers:
            reader.use_cache(config.cache_gb, config.loader_threads)
        if config.train != "head":
            return readers[0], readers[1]
        head = zoo.head(self.net, len(self.train.labels))
        frozen.freeze(self.net, head)
        features = [
            frozen.feature_reader(config, split, reader, self.net, head, self.normalize)
            for split, reader in zip((self.train, self.val), readers, strict=True)
        ]
        device = self.place.device
        self.core, self.normalize = head, lambda images, _=None: images.to(device)
        return features[0], features[1]

    def resume(self) -> list[dict[str, float]]:
        """Take up the last checkpoint, when there is one, and return the metrics of the epochs before it."""
        path = self.place.folder / "checkpoints" / "last.pt"
        if path.is_file():
            last = torch.load(path, map_location=self.place.device, weights_only=True)
            self.net.load_state_dict(last["net"])
            self.optimizer.load_state_dict(last["optimizer"])
            self.shadow = last["shadow"]
            self.history, self.step, self.best_value = last["history"], last["step"], last["best_value"]
            self.done, self.total = last["done"], last["total"]
            within = f" and {self.done} steps" if self.done else ""
            self._say(f"goes on after epoch {len(self.history)} of {self.config.epochs}{within}")
        else:
            self._say(f"begins with {self.begins_with}")
        if self.place.rank == 0:
            lines = "".join(json.dumps(row) + "\n" for row in self.history)
            write_atomic(self.place.folder / "metrics.jsonl", lines.encode())
        return list(self.history)

    def epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch, evaluate, and write the checkpoint; returns the epoch's metrics."""
        row: dict[str, float] = {"epoch": epoch + 1}
        if self.config.train != "none":
            row |= self._train_epoch(epoch)
        scores, targets, loss = self._evaluate()
        policy, seed = self.config.threshold_policy, self.config.seed
        fitted = thresholds.fit(policy, scores, targets, seed)
        measured = metrics.decision_metrics(fitted.decisions, targets) | metrics.score_metrics(scores, targets)
        row |= {"step": self.step, "val/loss": loss} | {f"val/{name}": value for name, value in measured.items()}
        of_labels = metrics.label_metrics(fitted.decisions, targets)
        for name in ("accuracy", "precision", "recall", "f1"):
            row |= {f"val/{name}/{self.val.labels[i]}": float(value) for i, value in enumerate(of_labels[name])}
        self.history.append(row)
        better = row[OBJECTIVE] > self.best_value
        self.best_value = max(self.best_value, row[OBJECTIVE])
        if self.place.rank == 0:
            self._save(
                row,
                better,
                {
                    "thresholds": fitted.thresholds, "scores": scores, "targets": targets,
                    "decisions": fitted.decisions,
                },
            )  # fmt: skip
        self._say(
            f"val  epoch {epoch + 1}/{self.config.epochs} | loss {loss:.4f} | f1_micro {row[OBJECTIVE]:.4f} | "
            f"f1_macro {row['val/f1_macro']:.4f} | map {row['val/map']:.4f}" + (" | best" if better else "")
        )
        return row

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        config, place = self.config, self.place
        batches = train_batches(len(self.train), config.batch_size, place.rank, place.world_size, config.seed, epoch)
        total_steps = config.epochs * len(batches)
        mirror = mirrors(len(self.train), config.seed, epoch) if config.hflip and config.train == "all" else None
        parts = crops(len(self.train), config.crop, config.seed, epoch) if config.crop < 1 else None
        drawn = distortions(len(self.train), config.augment, config.seed, epoch) if config.augment else None
        self.wrapped.train()
        clock = Clock()
        total = torch.zeros((), device=place.device)
        left = batches[self.done :]
        loaded = self.train_reader.batches([m for m, _ in left], config.loader_threads, parts, config.image_size)
        for (_, whole), batch in zip(left, clock.watch(loaded), strict=True):
            torch.manual_seed((config.seed * 1_000_003 + self.step) * 1_009 + place.rank)
            self._count_bad(batch, len(self.train))
            self._set_lr(len(batches))
            known = max(1, int((self.train.targets[whole] >= 0).sum()))
            if drawn is not None:
                batch = dataclasses.replace(batch, images=distort(batch.images, batch.index, drawn))
            # The gradients are averaged over ranks, so each rank's sum is divided by the whole batch's count over
            # the number of ranks: the step is that of the whole batch, however unevenly it was dealt out.
            loss = self._backward(batch, mirror, place.world_size / known)
            if config.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm)
            self.optimizer.step()
            if self.shadow:
                optimization.average(self.shadow, self.net, config.ema, self.step)
            self.step, self.done = self.step + 1, self.done + 1
            total += loss
            clock.images += len(whole)
            if self.done % _CHECK_EVERY_STEPS == 0:
                self._check_finite(total)
            if self.done % config.checkpoint_steps == 0 and self.done < len(batches):
                self._settle(total)
                self._save_last()
            if clock.due():
                self._say(self._line(epoch, total_steps, float(loss) / place.world_size, clock))
        self._settle(total)
        mean, self.done, self.total = self.total / place.world_size / len(batches), 0, 0.0
        return {
            "train/loss": mean,
            "lr": self.optimizer.param_groups[0]["lr"],
            "time/images_per_s": clock.images_per_s,
            "time/data_pct": clock.data_pct,
        }

    def _backward(self, batch: Batch, mirror: torch.Tensor | None, scale: float) -> torch.Tensor:
        """Leave the gradient of a step, taken in as many parts as is asked for, and return its loss times `scale`."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.place.device)
        size = max(1, -(-len(batch.images) // self.config.accumulate))
        starts = range(0, max(1, len(batch.images)), size)
        for start in starts:
            part = slice(start, start + size)
            waits = start == starts[-1] or not isinstance(self.wrapped, DistributedDataParallel)
            with nullcontext() if waits else self.wrapped.no_sync():  # type: ignore[operator]
                images = self.normalize(batch.images[part], None if mirror is None else mirror[batch.index[part]])
                targets = batch.targets[part]
                if self.config.mixup or self.config.cutmix:
                    drawn = (self.config.seed, self.step, self.place.rank, start, 13)
                    images, targets = mix(images, targets, self.config.mixup, self.config.cutmix, drawn)
                with self.autocast:
                    logits = self.wrapped(images)
                loss = self._loss(logits, targets, self.config.label_smoothing) * scale
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _loss(self, logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
        """The loss summed over the known labels of a batch."""
        config = self.config
        targets = targets.to(self.place.device)
        return losses.loss_sum(config.loss, logits, targets, self.weight, config.loss_options, smoothing)

    @torch.no_grad()
    def _evaluate(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
        """Scores and targets (N, L) of the validation split and its loss; every sample once, the same on all ranks."""
        place, net = self.place, self.net
        trained = {name: tensor.clone() for name, tensor in net.state_dict().items()} if self.shadow else {}
        if self.shadow:
            net.load_state_dict(self.shadow)
        if place.world_size > 1:
            for buffer in net.buffers():  # batch norm's statistics are those that rank 0 has, as in the checkpoint
                torch.distributed.broadcast(buffer, 0)
        net.eval()
        mine: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        loss = 0.0
        numbers = eval_batches(len(self.val), self.config.batch_size, place.rank, place.world_size)
        for batch in self.val_reader.batches(numbers, self.config.loader_threads):
            self._count_bad(batch, len(self.val))
            with self.autocast:
                logits = self.core(self.normalize(batch.images)).float()
            loss += float(self._loss(logits, batch.targets, 0.0))
            mine.append(
                (
                    batch.index,
                    losses.scores(losses.activation(self.config.loss), logits).cpu().numpy(),
                    batch.targets.numpy(),
                )
            )
        if trained:
            net.load_state_dict(trained)
        gathered = [(mine, loss)]
        if place.world_size > 1:
            gathered = [None] * place.world_size  # type: ignore[list-item]
            torch.distributed.all_gather_object(gathered, (mine, loss))
        scores = np.zeros(self.val.targets.shape, dtype=np.float32)
        targets = np.full_like(self.val.targets, -1)
        for parts, _ in gathered:
            for index, score, target in parts:
                scores[index], targets[index] = score, target
        return scores, targets, sum(part for _, part in gathered) / max(1, int((targets >= 0).sum()))

    def _save(self, row: dict[str, float], better: bool, arrays: dict[str, np.ndarray[Any, Any]]) -> None:
        """Write the epoch's row and checkpoint; `last.pt` comes last, so that it never points past the others."""
        folder = self.place.folder
        self._check_current()
        state = _on_cpu(self.shadow or self.net.state_dict())
        if better:
            best = {"epoch": int(row["epoch"]), "metrics": row, "state": state}
            _save_atomic(folder / "checkpoints" / "best.pt", best | {k: torch.from_numpy(v) for k, v in arrays.items()})
        with disk_errors(folder), (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._save_last()

    def _save_last(self) -> None:
        """Write what a run that is stopped goes on from."""
        if self.place.rank == 0:
            self._check_current()
            last = {
                "net": _on_cpu(self.net.state_dict()), "shadow": _on_cpu(self.shadow),
                "optimizer": self.optimizer.state_dict(), "history": self.history,
                "step": self.step, "best_value": self.best_value, "done": self.done, "total": self.total,
            }  # fmt: skip
            _save_atomic(self.place.folder / "checkpoints" / "last.pt", last)

    def _check_current(self) -> None:
        if not is_current(self.place.owner, self.place.attempt):
            raise RunError("a newer start of this run has taken over.", "let that one run.")
        (self.place.folder / "checkpoints").mkdir(exist_ok=True)

    def _settle(self, total: torch.Tensor) -> None:
        """Add the ranks' sums of losses to the epoch's, at the same steps whether or not the run was stopped there."""
        self._check_finite(total)
        self.total += self._sum_over_ranks(float(total))
        total.zero_()

    def _set_lr(self, steps_per_epoch: int) -> None:
        factor = optimization.lr_factor(self.config, self.step, steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * factor

    def _check_finite(self, total: torch.Tensor) -> None:
        if not math.isfinite(float(total)):
            lr = self.optimizer.param_groups[0]["lr"]
            raise RunError(
                f"the loss is not finite at step {self.step} on rank {self.place.rank} (learning rate {lr:.2g}).",
                f"lower --lr (now {self.config.lr:g}).",
            )

    def _count_bad(self, batch: Batch, num_samples: int) -> None:
        for key, reason in batch.bad:
            if key not in self.bad:
                self.bad.add(key)
                self._say(f"bad  sample {key!r} does not decode and counts nowhere: {reason}", everyone=True)
        if len(self.bad) > self.config.max_bad * num_samples:
            raise DataError(
                f"{len(self.bad)} samples on rank {self.place.rank} do not decode, more than max_bad allows "
                f"({self.config.max_bad:.1%}); one is {min(self.bad)!r}.",
                f"pack {self.config.shards} again with --fresh.",
            )

    def _sum_over_ranks(self, value: float) -> float:
        if self.place.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.place.device)
        torch.distributed.all_reduce(total)
        return float(total)

    def _line(self, epoch: int, total_steps: int, loss: float, clock: Clock) -> str:
        left = (total_steps - self.step) / max(1, self.step - epoch * total_steps // self.config.epochs) * clock.seconds
        lr = self.optimizer.param_groups[0]["lr"]
        return (
            f"step {self.step:05d}/{total_steps:05d} | epoch {epoch + 1} | loss {loss:.4f} | lr {lr:.1e} | "
            f"{clock.images_per_s:.0f} img/s | data {clock.data_pct:.0f}% | eta {left / 60:.1f}m"
        )

    def _say(self, line: str, everyone: bool = False) -> None:
        """Add a line to the run's log, which the driver follows; rank 0 speaks for all unless something is wrong."""
        if self.place.rank == 0 or everyone:
            with (
                disk_errors(self.place.folder),
                (self.place.folder / "log.txt").open("a", encoding="utf-8") as file,
            ):
                file.write(line + "\n")


def _autocast(precision: str, device: torch.device) -> Any:
    if precision == "fp32" or (precision == "auto" and not (device.type == "cuda" and torch.cuda.is_bf16_supported())):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _on_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in state.items()}


def _save_atomic(path: Path, value: dict[str, Any]) -> None:
    with disk_errors(path), temporary(path) as part:
        torch.save(value, part)
        part.replace(path)
