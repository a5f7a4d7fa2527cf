"""`mlic explore`: counts and figures of a data set."""

from mlic.command import make_callable

make_callable(__name__, "mlic.explore.explore:explore", "mlic.config.data:ExploreConfig")
