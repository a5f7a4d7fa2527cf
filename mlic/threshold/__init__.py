"""`mlic threshold`: decision thresholds fitted again, without training."""

from mlic.command import make_callable

make_callable(__name__, "mlic.threshold.threshold:threshold", "mlic.config.evaluate:ThresholdConfig")
