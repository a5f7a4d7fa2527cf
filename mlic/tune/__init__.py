"""`mlic tune`: a search over settings, on Ray Tune.

`OrderedASHA` is a scheduler for any script with Ray Tune.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlic.command import make_callable

if TYPE_CHECKING:
    from mlic.tune.ordered_asha import OrderedASHA

__all__ = ["OrderedASHA"]


def __getattr__(name: str) -> Any:
    """Load Ray Tune when its scheduler is asked for, and not with every module of this package."""
    if name != "OrderedASHA":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlic.tune.ordered_asha import OrderedASHA

    return OrderedASHA


make_callable(__name__, "mlic.tune.tune:tune", "mlic.config.tune:TuneConfig")
