"""Write the page of a run, or of several runs beside each other."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from mlic.config.base import Model
from mlic.config.evaluate import ReportConfig
from mlic.errors import ConfigError
from mlic.metrics.measurement import Measurement, aligned
from mlic.report import analysis, images, plots, report_page
from mlic.report.content import Content, RunRow
from mlic.report.evidence import Evidence, of_run
from mlic.runs.files import disk_errors, write_atomic

PAGE, CONTENT, SEARCH_PAGE = "report.html", "report.json", "search.html"
_LOOK_AT = 2000  # images that are decoded to see whether they are grey and how bright
_PICTURES = 3_000_000  # bytes of the page for thumbnails
_OVERLAYS = 2  # labels of an example whose overlay is shown


class ReportReport(Model):
    """The measurement of the first run, the others beside it, and where the page is."""

    runs: tuple[Path, ...]
    about: str
    out: Path
    page: Path
    notes: tuple[str, ...]
    measurement: Measurement
    comparison: tuple[RunRow, ...]

    def text(self) -> str:
        lines = [f"{self.runs[0]}: {self.about}", self.measurement.table()]
        if self.comparison:
            metrics = list(self.comparison[1].differences)
            rows = [["less " + self.comparison[0].name, *metrics]]
            for run in self.comparison[1:]:
                differences = [run.differences[name] for name in metrics]
                rows.append(
                    [run.name, *(f"{value:+.4f} ({low:+.4f} to {high:+.4f})" for value, low, high in differences)]
                )
            lines += ["", *aligned(rows)]
        return "\n".join([*lines, *self.notes, f"report  {self.page}"])


def report(config: ReportConfig) -> ReportReport:
    """Write the page of the first run, with the others compared to it, its figures as PNGs and its content as JSON.

    Raises DataError when a run is none, or is of other samples or labels than the first, and ConfigError where the
    output would overwrite what mlic did not write.
    """
    out = config.out or config.runs[0] / "report"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder.", "name a folder by --out.")
    if out.is_dir() and any(out.iterdir()) and not _is_ours(out):
        raise ConfigError(f"{out} holds files that mlic did not write.", "name another folder by --out.")
    evidence = [of_run(run) for run in config.runs]
    content = write(out, evidence, config.seed)
    return ReportReport(
        runs=config.runs,
        about=content.about,
        out=out,
        page=out / PAGE,
        notes=content.notes,
        measurement=content.measurement,
        comparison=content.runs,
    )


def write(out: Path, evidence: list[Evidence], seed: int) -> Content:
    """Write the page about the first, with the others beside it, to a folder that may hold an older one."""
    first = evidence[0]
    look = None if first.images is None else images.look(first.images, _LOOK_AT, seed)
    content = analysis.analyse(evidence, look, seed)
    figures = plots.of_report(content)
    pictures, method = _pictures(first, content)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for name in plots.NAMES:
            (out / f"{name}.png").unlink(missing_ok=True)
    for name, data in figures.items():
        write_atomic(out / f"{name}.png", data)
    document = {"format": 1, "kind": "report", **content.model_dump(mode="json")}
    write_atomic(out / CONTENT, (json.dumps(document, separators=(",", ":")) + "\n").encode())
    write_atomic(out / PAGE, report_page.render(content, figures, pictures, method).encode())
    return content


def _pictures(evidence: Evidence, content: Content) -> tuple[dict[int, images.Picture], str]:
    if evidence.images is None or not content.examples:
        return {}, ""
    about: dict[int, list[int]] = {}
    for example in content.examples:
        wrong = [evidence.labels.index(mistake.label) for mistake in example.mistakes[:_OVERLAYS]]
        about.setdefault(example.row, wrong)
    return images.pictures(
        evidence.images, list(about), list(about.values()), evidence.labels, evidence.training, _PICTURES
    )


def _is_ours(out: Path) -> bool:
    if (out / SEARCH_PAGE).is_file():  # `mlic tune` puts its page where `mlic report` puts the winner's
        return True
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return bool(json.loads((out / CONTENT).read_text(encoding="utf-8")).get("kind") == "report")
    return False
