"""`mlic log`: what a run holds, to an experiment tracker."""

from mlic.command import make_callable

make_callable(__name__, "mlic.log.log:log", "mlic.config.log:LogConfig")
