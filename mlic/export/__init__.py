"""`mlic export`: a model for another engine."""

from mlic.command import make_callable

make_callable(__name__, "mlic.export.export:export", "mlic.config.predict:ExportConfig")
