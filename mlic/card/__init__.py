"""`mlic card`: a model card of a trained model."""

from mlic.command import make_callable

make_callable(__name__, "mlic.card.card:card", "mlic.config.evaluate:CardConfig")
