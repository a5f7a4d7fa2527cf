"""`mlic distill`: a model that learns from trained ones, and from images without labels."""

from mlic.command import make_callable

make_callable(__name__, "mlic.distill.distill:distill", "mlic.config.train:DistillConfig")
