"""`mlic evaluate`: metrics of a predictions file, beside baselines and intervals."""

from mlic.command import make_callable

make_callable(__name__, "mlic.evaluate.evaluate:evaluate", "mlic.config.evaluate:EvaluateConfig")
