"""`mlic pack`: images and label files to WebDataset shards."""

from mlic.command import make_callable

make_callable(__name__, "mlic.pack.pack:pack", "mlic.config.data:PackConfig")
