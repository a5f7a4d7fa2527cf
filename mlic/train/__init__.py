"""`mlic train`: one model, fitted by one process or by all workers of a cluster."""

from mlic.command import make_callable

make_callable(__name__, "mlic.train.train:train", "mlic.config.train:TrainConfig")
