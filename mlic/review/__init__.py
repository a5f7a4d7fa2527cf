"""`mlic review`: a page on which a person decides about labels, with the keyboard."""

from mlic.command import make_callable

make_callable(__name__, "mlic.review.review:review", "mlic.config.review:ReviewConfig")
