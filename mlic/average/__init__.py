"""`mlic average`: one model out of several trained ones."""

from mlic.command import make_callable

make_callable(__name__, "mlic.average.average:average", "mlic.config.predict:AverageConfig")
