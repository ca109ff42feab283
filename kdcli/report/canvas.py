"""What figures of a report share: a style, colours by model, a legend, one ``<svg>`` element for inlining.

The same input gives the same bytes: fixed hash salt, no dates, matplotlib's own defaults instead of the
user's. Text stays text, so that a page can be searched and class names in any script are set in the reader's
fonts.
"""

from __future__ import annotations

import hashlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdcli.console import legible

Model = Mapping[str, Any]

# Okabe & Ito 2008, "Color Universal Design": told apart with any colour vision. Yellow is left out: it
# vanishes on white. Markers and line styles change too, for more than seven models and prints without colour.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">", "p")
DASHES = ("-", "--", "-.", ":")
INK, FAINT = "#2b2f36", "#d9dde3"
BLUES = LinearSegmentedColormap.from_list("kdcli_blues", ["#ffffff", "#9ecae8", "#0072B2", "#002f4d"])
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kdcli",
    "text.parse_math": False,  # a class may be named "$5 note"
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#8a919c",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": "#8a919c",
    "ytick.color": "#8a919c",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}
ROOT = "stroke-linejoin: round; stroke-linecap: butt; font-family: 'DejaVu Sans', Verdana, sans-serif"


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults and the style above, not the user's matplotlibrc; restored on leaving."""
    with mpl.rc_context(), warnings.catch_warnings():
        # Text is set by the browser: for lack of a glyph matplotlib only measures it a little off.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def svg(figure: Figure, label: str) -> str:
    """The figure as an ``<svg>`` element that scales to its container, with ids that no other figure has."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing, bbox_inches="tight", pad_inches=0.05)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # A <style> would reach out of the figure into the page.
    text = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    prefix = "f" + hashlib.sha256((label + text).encode()).hexdigest()[:10]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))

    def tidy(tag: re.Match[str]) -> str:
        # HTML knows the namespaces of inline SVG; the font is named once, at the root.
        short_tag = re.sub(r' xmlns(:\w+)?="[^"]*"', "", tag.group()).replace(" xlink:href=", " href=")
        short_tag = re.sub(r" font-family: [^;\"]*;?", "", short_tag)
        short_tag = re.sub(r' id="([^"]*)"', lambda m: m.group() if m[1] in used else "", short_tag)
        return re.sub(r'(\sid="|\shref="#|url\(#)', rf"\g<1>{prefix}-", short_tag)

    text = re.sub(r"<\w[^>]*>", tidy, text)  # only in tags: a class may be named 'id="x'
    start = f'<svg role="img" aria-label="{html.escape(legible(label))}" style="{ROOT}" '
    return text.replace("<svg ", start, 1).strip()


def short(name: str, length: int = 28) -> str:
    """The name made legible, its middle cut out where it is longer than ``length`` characters."""
    name = legible(name)
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[head + 1 - length :]}"


def looks_of(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the ``index``-th model, the same in every figure."""
    turn = index // len(PALETTE)
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[turn % len(DASHES)],
    }


def legend(figure: Figure, models: Sequence[tuple[int, Model]], line: bool = True) -> None:
    """One legend for the figure, below it; none for a single model."""
    if len(models) < 2:
        return
    handles = []
    for index, _ in models:
        looks = looks_of(index) if line else looks_of(index) | {"linestyle": "none"}
        handles.append(Line2D([], [], **looks))
    names = [short(str(model["name"])) for _, model in models]
    columns = min(len(models), 3)
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9)


def refuse_none(models: Sequence[Any], what: str) -> None:
    """Raise ValueError if there is nothing to draw."""
    if not models:
        raise ValueError(f"no model has {what} to draw")
