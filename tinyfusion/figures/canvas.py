"""What the line drawings share: size, type, colours and how they are written.

Figures are built with matplotlib's object interface: no global state, no window system.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from tinyfusion.files import write_atomic

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that colour-blind readers can tell apart (Okabe and Ito, 2008), yellow left out."""

INK = "#1A1A1A"
FAINT = "#B8B8B8"

styled = rc_context(
    {
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
        "legend.frameon": False,
        "legend.fontsize": 8.0,
    }
)
"""Decorator of drawing functions: text and axes made inside have the project's style."""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure with one set of axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def save_figure(figure: Figure, path: Path | str, dots_per_inch: int = 200) -> Path:
    """Write a figure as PNG, atomically, and return ``path``.

    Names of models may have dollar signs, so that only numbers along axes are read as formulas.
    """
    FigureCanvasAgg(figure)
    axes = [axis for part in figure.axes for axis in (part.xaxis, part.yaxis)]
    along = {text for axis in axes for text in axis.findobj(Text)}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in along:
            text.set_parse_math(False)
    return write_atomic(
        path,
        lambda temporary: figure.savefig(
            temporary,
            format="png",
            dpi=dots_per_inch,
            # Without the writer's version in it, the same figure gives the same bytes.
            metadata={"Software": None},
        ),
    )
