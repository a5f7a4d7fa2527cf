"""`mlic batch-predict`: predictions for images in any number, by one process or by workers of a cluster."""

from mlic.command import make_callable

make_callable(__name__, "mlic.batch_predict.predict:predict", "mlic.config.predict:PredictConfig")
