"""`mlic select`: which images without labels to label next."""

from mlic.command import make_callable

make_callable(__name__, "mlic.select.select:select", "mlic.config.select:SelectConfig")
