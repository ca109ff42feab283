"""What a report shows of how alike the blocks of networks are to those of their teacher (CKA).

See :mod:`kdcli.tasks.analyses` for the parts of a report that this reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdcli.report.canvas import BLUES, FAINT, INK, style, svg
from kdcli.report.forms import MISSING
from kdcli.report.panels import Block, Drawing, Heading, Panel, Table, Text

WRITTEN = 16  # blocks of either network up to which values stand in the cells
_MOST_NAMED = 24  # and up to which every block is named

_SAYS = (
    "Linear centred kernel alignment (CKA, Kornblith et al. 2019) of what the blocks of a model and of its "
    "teacher give for the same pictures, all positions flattened: 1 where one is the other turned and "
    "scaled, 0 where they have nothing in common. Estimated without bias on minibatches of {minibatch} "
    "(Nguyen et al. 2021), over {pictures:,} of {samples:,} pictures{drawn}; an estimate may lie a little "
    "below 0. Blocks are numbered from the input; one that gives the same for all pictures has no value."
)


def panel(report: Mapping[str, Any]) -> Panel | None:
    """The panel, where blocks were compared.

    Args:
        report: see :mod:`kdcli.report.page`.
    """
    shared = report.get("cka")
    if not shared:
        return None
    samples = report["data"]["samples"]
    drawn = ", drawn at random" if shared["pictures"] < samples else ""
    blocks: list[Block] = [Text(_SAYS.format(**shared, samples=samples, drawn=drawn), faint=True)]
    for model in (model for model in report["models"] if model.get("cka")):
        teacher = model["teacher"]["name"] if model.get("teacher") else "its teacher"
        found = model["cka"]
        blocks += [
            Heading(f"{model['name']} compared with {teacher}"),
            Drawing(matrix(found["values"], str(model["name"]))),
            _nearest(found),
        ]
    return Panel("Blocks of student and teacher", blocks)


def _nearest(found: Mapping[str, Any]) -> Table:
    """Of each block the one of the teacher that is most like it."""
    best = []
    for tap, row in zip(found["student"], found["values"]):
        known = [(value, other) for value, other in zip(row, found["teacher"]) if value is not None]
        value, other = max(known, key=lambda pair: pair[0], default=(None, MISSING))
        best.append((tap, other, MISSING if value is None else f"{value:.2f}"))
    header = ["block", *(tap for tap, *_ in best)]
    rows = [["the teacher's most like it", *(o for _, o, _ in best)], ["CKA", *(v for *_, v in best)]]
    return Table(header, rows)


def matrix(values: Sequence[Sequence[float | None]], name: str = "") -> str:
    """CKA of every block of a student (rows) with every block of its teacher (columns), as a heat map.

    Args:
        values: P rows of Q values; None where there is none.
        name: the model's, for the figure's accessible label.

    Raises:
        ValueError: no blocks.
    """
    shown = np.array(values, dtype=float)  # None becomes NaN
    if shown.ndim != 2 or shown.size == 0:
        raise ValueError(f"CKA of blocks is a matrix, not of the shape {list(shown.shape)}")
    rows, columns = shown.shape
    written = max(rows, columns) <= WRITTEN
    cell = 0.42 if written else max(0.1, 6.5 / max(rows, columns))
    with style():
        size = (max(cell * columns, 1.8) + 1.7, max(cell * rows, 1.4) + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(shown, cmap=BLUES, vmin=0, vmax=1, interpolation="none", origin="lower")
        axes.set_facecolor(FAINT)  # of cells without a value
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.set(xlabel="block of the teacher", ylabel="block of the student")
        for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
            if count <= _MOST_NAMED:
                axis.set_ticks(range(count), [str(i + 1) for i in range(count)])
            else:
                axis.set_major_locator(MaxNLocator(10, integer=True))
                axis.set_major_formatter(lambda place, _: f"{place + 1:.0f}")
            axis.set_tick_params(length=0)
        for row, column in np.argwhere(np.isfinite(shown)) if written else ():
            value = shown[row, column]
            color = "white" if value > 0.5 else INK
            text = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, ticks=[0, 0.25, 0.5, 0.75, 1])
        bar.set_label("CKA")
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(True)  # type: ignore[union-attr]  # one picture, not 256 polygons with seams
        return svg(figure, f"CKA of blocks with the teacher's: {name}" if name else "CKA of blocks")
