"""What the line drawings share: size, type and how they are written.

Figures are built with matplotlib's object interface: no global state, no window system.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from tinyfusion.files import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008), yellow left out."""

INK = "#1A1A1A"
GREY = "#6E6E6E"
FAINT = "#B8B8B8"

LOWER, HIGHER = "lower is better ↓", "higher is better ↑"
"""Written after the name of an axis whose values have a better direction."""

FORMS = ("png", "pdf", "svg")
"""A picture to look at and vector graphics for papers and pages."""

PNG_ONLY = ("png",)
"""For pictures that are drawn again and again while something runs."""

# No writer's version and no date: the same figure gives the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 9.0,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    # Lines of a grid end at the legend.
    "legend.framealpha": 1.0,
    "legend.edgecolor": "none",
    "legend.fontsize": 8.0,
    # TrueType, which publishers ask for: text can be searched and copied.
    "pdf.fonttype": 42,
    # Outlines: a page looks the same where the font is missing, and labels stay where they fit.
    "svg.fonttype": "path",
    "svg.hashsalt": "tinyfusion",
}

styled = rc_context(_STYLE)
"""Decorator of drawing functions: text and axes made inside have the project's style."""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def round_ticks(axis: Axis) -> None:
    """Plain round numbers along a logarithmic axis, whose limits must be set."""
    low, high = axis.get_view_interval()
    # Round numbers of a logarithmic axis may all lie outside a narrow range.
    narrow = high < 8 * low
    axis.set_major_locator(MaxNLocator(nbins=5) if narrow else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


SPREAD_LABEL = "bar: ± standard deviation of the seeds"


def low_end(middle: float, spread: float) -> float:
    """Lower end of a bar or band; one that reaches zero has none on a logarithmic axis."""
    return max(middle - spread, 0.5 * middle)


def save_figure(
    figure: Figure, path: Path | str, dots_per_inch: int = 200, forms: Sequence[str] = FORMS
) -> Path:
    """Write a figure in several forms side by side, each atomically, and return ``path``.

    Names of models may have dollar signs, so that only numbers along axes are read as formulas.

    Args:
        figure: what to write.
        path: of the PNG; the other forms differ in their suffix.
        dots_per_inch: of the PNG and of what is made of pixels inside the other forms.
        forms: of `FORMS`, those that are written.
    """
    FigureCanvasAgg(figure)
    axes = [axis for part in figure.axes for axis in (part.xaxis, part.yaxis)]
    along = {text for axis in axes for text in axis.findobj(Text)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in along:
            text.set_parse_math(False)
    path = Path(path)
    for form in forms:
        write = partial(_write, figure, form=form, dots_per_inch=dots_per_inch)
        write_atomic(path.with_suffix(f".{form}"), write)
    return path


def _write(figure: Figure, path: Path, form: str, dots_per_inch: int) -> None:
    with rc_context(_STYLE):
        figure.savefig(path, format=form, dpi=dots_per_inch, metadata=_METADATA[form])
