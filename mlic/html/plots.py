"""Figures as PNG files. matplotlib is imported with the first figure."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image

INK, SOFT, BAR, LINE = "#1c2330", "#667085", "#2f6fde", "#d9dee7"
PARTS = ("#2f6fde", "#e08a1e", "#2a9d6f", "#9a5bd6", "#c2410c", "#52606d")
_MOST = 60  # labels in a figure; of more the most frequent are drawn
_ACROSS, _CELL = 6, 132


def grid(thumbnails: Sequence[bytes]) -> Image.Image | None:
    """Thumbnails (JPEG files) side by side on white, or None when there are none."""
    if not thumbnails:
        return None
    rows = -(-len(thumbnails) // _ACROSS)
    sheet = Image.new("RGB", (_ACROSS * _CELL, rows * _CELL), "white")
    for number, data in enumerate(thumbnails):
        with Image.open(io.BytesIO(data)) as image:
            x, y = number % _ACROSS * _CELL, number // _ACROSS * _CELL
            sheet.paste(image, (x + (_CELL - image.width) // 2, y + (_CELL - image.height) // 2))
    return sheet


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and its axes."""
    figure = sheet(width, height)
    return figure, styled(figure.add_subplot())


def sheet(width: float, height: float) -> Any:
    """A figure of so many inches without axes, drawn at twice the pixels of the screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=180, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def styled(axes: Any) -> Any:
    """Axes with as little ink as will do."""
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LINE)
    axes.set_axisbelow(True)
    return axes


def drawn(figure: Any) -> bytes:
    """The figure as a PNG file of few colours, a third of the size of one of all."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box is drawn; the tables have the name
        figure.savefig(out, format="png", metadata={"Software": None})
    with Image.open(out) as image:
        return png(image.convert("RGB").quantize(128, dither=Image.Dither.NONE))


def short(name: str) -> str:
    """A label's name that leaves room for the figure; matplotlib would take a $ for mathematics."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")
