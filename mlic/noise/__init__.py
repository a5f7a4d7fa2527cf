"""`mlic noise`: labels that are probably wrong."""

from mlic.command import make_callable

make_callable(__name__, "mlic.noise.noise:noise", "mlic.config.train:NoiseConfig")
