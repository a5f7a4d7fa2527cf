"""`mlic report`: the page of a run, or of several beside each other."""

from mlic.command import make_callable

make_callable(__name__, "mlic.report.report:report", "mlic.config.evaluate:ReportConfig")
