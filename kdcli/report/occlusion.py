"""What a report shows of networks that were measured with more and more of each picture hidden.

See :mod:`kdcli.tasks.analyses` for the parts of a report that this reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from kdcli.report.canvas import INK, Model, legend, looks_of, refuse_none, style, svg
from kdcli.report.figures import Figure as Quality
from kdcli.report.forms import percent
from kdcli.report.panels import Block, Drawing, Panel, Table, Text

_SAYS = (
    "Shown is {label} while a growing share of {grid} × {grid} cells of each picture, drawn at random, has "
    "the mean colour of the network's normalisation (random PatchDrop: Naseer et al. 2021). What is hidden "
    "at one share is hidden at all larger ones, and all models see the same cells hidden. The dotted line "
    "is chance, {chance}."
)


def panel(report: Mapping[str, Any], quality: Quality) -> Panel | None:
    """The panel, where pictures were occluded.

    Args:
        report: see :mod:`kdcli.report.page`.
        quality: what was measured of the models.
    """
    shared = report.get("occlusion")
    if not shared:
        return None
    models = [model for model in report["models"] if model.get("occlusion")]
    header = ["model", *(f"{row['ratio']:.0%}" for row in models[0]["occlusion"])]
    value = shared["value"]
    rows = [[str(model["name"]), *(percent(row[value]) for row in model["occlusion"])] for model in models]
    says = _SAYS.format(label=quality.label, grid=shared["grid"], chance=percent(shared["chance"]))
    drawing = Drawing(curves(report["models"], quality, value, shared["chance"]))
    blocks: list[Block] = [drawing, Text(says, faint=True), Table(header, rows)]
    return Panel("Occlusion", blocks)


def curves(models: Sequence[Model], quality: Quality, value: str, chance: float) -> str:
    """Quality against the share of each picture that is hidden, a line for each model.

    Args:
        models: all of the report, in whose order colours go; those that have ``occlusion`` are drawn.
        quality: what was measured.
        value: its name in the rows of ``occlusion``.
        chance: quality of guessing; no line where it is unknown (NaN).

    Raises:
        ValueError: none has.
    """
    found = [(i, model) for i, model in enumerate(models) if model.get("occlusion")]
    refuse_none(found, "an occlusion")
    with style():
        figure = Figure(figsize=(5.6, 3.7), layout="constrained")
        axes = figure.subplots()
        for index, model in found:
            shares = [100 * row["ratio"] for row in model["occlusion"]]
            axes.plot(shares, [100 * row[value] for row in model["occlusion"]], **looks_of(index))
        if math.isfinite(chance):
            axes.axhline(100 * chance, color=INK, linewidth=1.2, linestyle=":")
            place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "bottom"}
            axes.text(0.01, 100 * chance, "chance", fontsize=8.5, color="#6b727d", **place)
        axes.set_xticks(range(0, 100, 10))
        axes.set_ylim(bottom=0)
        axes.set(xlabel="hidden cells (%)", ylabel=quality.axis or quality.label)
        legend(figure, found)
        return svg(figure, "Quality under occlusion")
