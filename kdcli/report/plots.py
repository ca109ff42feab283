"""The figures that any report has, each a function that returns one ``<svg>`` element; see the canvas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from kdcli.report.canvas import (
    BLUES,
    FAINT,
    INK,
    PALETTE,
    Model,
    legend,
    looks_of,
    refuse_none,
    short,
    style,
    svg,
)
from kdcli.report.curves import drawn
from kdcli.report.figures import Figure as Quality

ALL_NAMES = 60  # up to so many classes are named along a confusion matrix
ALL_COUNTS = 20  # and up to so many have their counts written in the cells


def reliability_curve(models: Sequence[Model]) -> str:
    """Accuracy against confidence per bin, above the share of samples in each bin.

    Args:
        models: the report's models; each has ``name`` and ``reliability`` with ``confidence``, ``accuracy``
            and ``count`` per bin (see `kdcli.metrics.classification.reliability`).

    Raises:
        ValueError: no models.
    """
    refuse_none(models, "a reliability curve")
    with style():
        figure = Figure(figsize=(5.2, 5.4), layout="constrained")
        curve, shares = figure.subplots(2, 1, sharex=True, height_ratios=[3.4, 1])
        curve.plot([0, 100], [0, 100], color="#8a919c", linewidth=1, linestyle=(0, (4, 3)))
        curve.text(98, 3, "dashed: confidence = accuracy", ha="right", fontsize=8.5, color="#6b727d")
        for index, model in enumerate(models):
            bins = model["reliability"]
            count = np.asarray(bins["count"], dtype=float)
            filled = count > 0
            x, y = (100 * np.asarray(bins[key], dtype=float)[filled] for key in ("confidence", "accuracy"))
            curve.plot(x, y, **looks_of(index), clip_on=False)
            edges = np.linspace(0, 100, len(count) + 1)
            color = PALETTE[index % len(PALETTE)]
            share = 100 * count / max(count.sum(), 1)
            shares.stairs(share, edges, color=color, linewidth=1.3, linestyle=looks_of(index)["linestyle"])
            if len(models) == 1:
                shares.stairs(share, edges, color=color, fill=True, alpha=0.2)
        curve.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
        shares.set(xlabel="confidence (%)", ylabel="samples (%)")
        shares.set_ylim(bottom=0)
        shares.yaxis.set_major_locator(MaxNLocator(3))
        legend(figure, list(enumerate(models)))
        return svg(figure, "Reliability: accuracy against confidence")


def confusion_matrix(confusion: Sequence[Sequence[int]], classes: Sequence[str], name: str = "") -> str:
    """Confusion matrix, coloured by the share of each true class; counts are written for up to 20 classes.

    Up to 60 classes are named along the axes, more are numbered. Shares are coloured on a square-root scale,
    so that a confusion of a few percent shows.

    Args:
        confusion: ``[C][C]`` counts, rows truth, columns prediction.
        classes: C names.
        name: the model's, for the figure's accessible label.

    Raises:
        ValueError: a matrix that is not C x C, or C = 0.
    """
    counts = np.asarray(confusion, dtype=float)
    size = len(classes)
    if size == 0 or counts.shape != (size, size):
        raise ValueError(f"a confusion matrix of {size} classes cannot have the shape {list(counts.shape)}")
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named, written = size <= ALL_NAMES, size <= ALL_COUNTS
    side = max(0.42 * size, 2.6) if written else 8.4 if named else 6.4
    fontsize = min(9.0, 0.8 * 72 * side / size)
    with style():
        figure = Figure(figsize=(side + 1.6, side + 1.1), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(share, cmap=BLUES, norm=PowerNorm(0.5, 0, 100), interpolation="none")
        axes.grid(False)
        axes.spines[:].set_visible(True)
        axes.set(xlabel="predicted class", ylabel="true class")
        if named:
            names = [short(str(name), 20) for name in classes]
            axes.set_xticks(range(size), names, rotation=90 if size > 6 else 0, fontsize=fontsize)
            axes.set_yticks(range(size), names, fontsize=fontsize)
            axes.tick_params(length=0)
        else:
            axes.set(xlabel="predicted class (number)", ylabel="true class (number)")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(10, integer=True))
        for row, column in np.argwhere(counts > 0) if written else ():
            text = f"{counts[row, column]:.0f}"
            color = "white" if share[row, column] > 35 else INK
            fitting = fontsize - 1.5 * (len(text) > 3)
            axes.text(column, row, text, ha="center", va="center", fontsize=fitting, color=color)
        bar = figure.colorbar(image, ax=axes, shrink=0.85, pad=0.02, ticks=[0, 1, 5, 20, 50, 100])
        bar.set_label("share of the true class (%)")
        bar.outline.set_visible(False)
        bar.solids.set_rasterized(True)  # type: ignore[union-attr]  # one picture, not 256 polygons with seams
        return svg(figure, f"Confusion matrix of {size} classes: {name}" if name else "Confusion matrix")


# Of each cost the label, and its value between the ends of its error bar.
COSTS: tuple[tuple[str, Callable[[Mapping[str, Any]], tuple[float, ...]]], ...] = (
    ("parameters (M)", lambda cost: (cost["parameters"] / 1e6,) * 3),
    ("GFLOPs per image (2 × MACs)", lambda cost: (cost["flops"] / 1e9,) * 3),
    ("latency at batch 1 (ms)", lambda cost: tuple(cost["latency_ms"][q] for q in ("p10", "median", "p90"))),
)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis where the costs span more than a factor 8, else a linear one from 0."""
    low, high = min(values), max(values)
    if low > 0 and high / low > 8:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.6, high * 1.6)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, high * 1.15 if high > 0 else 1)


def quality_against_cost(models: Sequence[Model], quality: Quality) -> str:
    """Quality against parameters, FLOPs and latency, a panel each; bars span the latency's p10 to p90.

    Args:
        models: the report's models; those without ``cost``, or without the figure, are left out.
        quality: one that has an axis.

    Raises:
        ValueError: no model has a cost.
    """
    costly = [
        (i, model) for i, model in enumerate(models) if model.get("cost") and quality.of(model) is not None
    ]
    refuse_none(costly, "a cost")
    unit = 100 if quality.fraction else 1
    with style():
        figure = Figure(figsize=(3.1 * len(COSTS) + 0.5, 3.4), layout="constrained")
        row = figure.subplots(1, len(COSTS), sharey=True)
        for axes, (label, spread) in zip(row, COSTS):
            for index, model in costly:
                low, x, high = spread(model["cost"])
                looks = looks_of(index) | {"linestyle": "none", "markersize": 8}
                ends = [[max(0.0, x - low)], [max(0.0, high - x)]]
                axes.errorbar(x, unit * quality.of(model), xerr=ends, capsize=2.5, **looks)
            _scale(axes, [value for _, model in costly for value in spread(model["cost"])])
            axes.set_xlabel(label)
        row[0].set_ylabel(quality.axis)
        row[0].margins(y=0.15)
        legend(figure, costly, line=False)
        return svg(figure, "Quality against cost")


def training_curves(models: Sequence[Model]) -> str:
    """Every recorded quantity, up to so many, against the training step, a panel each, without NaN and Inf.

    Args:
        models: the report's models, each with ``name`` and ``curves``: records of ``step`` and named floats,
            not every name in every record.

    Raises:
        ValueError: no model has curves.
    """
    trained = [(index, model) for index, model in enumerate(models) if model.get("curves")]
    records = [record for _, model in trained for record in model["curves"]]
    keys, _ = drawn(records)
    refuse_none(keys, "training curves")
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    with style():
        figure = Figure(figsize=(3.1 * columns + 0.5, 2.5 * rows + 0.5), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for axes, key in zip(panels, keys):
            for index, model in trained:
                points = [(r["step"], r[key]) for r in model["curves"] if r.get(key) is not None]
                xy = np.array([point for point in points if math.isfinite(point[1])]).reshape(-1, 2)
                looks = looks_of(index) | ({} if len(xy) < 30 else {"marker": ""})
                axes.plot(*xy.T, **looks, markersize=3.5)
            axes.set_title(short(key))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_xlabel("step")
            axes.tick_params(labelbottom=True)
        for axes in panels[len(keys) :]:
            axes.remove()
        legend(figure, trained)
        return svg(figure, "Training curves")


def widths(models: Sequence[Model], most_drawn: int = 6) -> str:
    """Channels of each site of a network that was made smaller, before and after, a panel each.

    Args:
        models: all of the report, in whose order colours go; those that have ``compression`` are drawn.
        most_drawn: of them, the first.

    Raises:
        ValueError: none has.
    """
    smaller = [(i, model) for i, model in enumerate(models) if model.get("compression")][:most_drawn]
    refuse_none(smaller, "a compression")
    most = max(len(model["compression"]["widths"]) for _, model in smaller)
    with style():
        size = (3.4 * len(smaller) + 0.5, min(0.8 + 0.17 * most, 14))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(smaller), squeeze=False)[0]
        for axes, (index, model) in zip(panels, smaller):
            sites = model["compression"]["widths"]
            places = np.arange(len(sites))
            before, after = np.array(list(sites.values())).T
            axes.barh(places, before, color=FAINT, height=0.75)
            axes.barh(places, after, color=PALETTE[index % len(PALETTE)], height=0.75)
            axes.set_title(short(model["name"]))
            axes.set_xlabel("channels")
            axes.set_yticks(places, [short(site, 20) for site in sites], fontsize=7)
            axes.invert_yaxis()
            axes.grid(visible=False, axis="y")
        return svg(figure, "Channels before and after")


def along(models: Sequence[Model], quality: Quality) -> str:
    """Quality on validation pictures against what is left of a network, from evaluation to evaluation.

    Args:
        models: those of the report whose curves have ``validation/flops_left`` and the figure.
        quality: what models of the task are chosen by.

    Raises:
        ValueError: none has.
    """
    found = [(index, model, _course(model, quality)) for index, model in enumerate(models)]
    found = [(index, model, pairs) for index, model, pairs in found if len(pairs)]
    refuse_none(found, "a course")
    unit = 100 if quality.fraction else 1
    with style():
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for index, _, pairs in found:
            axes.plot(100 * pairs[:, 0], unit * pairs[:, 1], **looks_of(index), markersize=3.5)
        axes.invert_xaxis()
        axes.set_xlabel("FLOPs left (%)")
        axes.set_ylabel(quality.axis or quality.label)
        legend(figure, [(index, model) for index, model, _ in found])
        return svg(figure, "Quality along the course")


def has_course(model: Model, quality: Quality) -> bool:
    """Whether :func:`along` has something to draw of a model."""
    return len(_course(model, quality)) > 0


def _course(model: Model, quality: Quality) -> np.ndarray:
    """What is left, and a figure, of each evaluation of a training: [E, 2]."""
    keys = "validation/flops_left", f"validation/{quality.keys[-1]}"
    rows = [[row[key] for key in keys] for row in model.get("curves") or () if all(k in row for k in keys)]
    return np.array(rows).reshape(-1, 2)


def falling_values(models: Sequence[Model]) -> str:
    """Singular values of each model's texts, largest first.

    Args:
        models: the report's models; each has ``name`` and ``texts`` with ``spectrum``.

    Raises:
        ValueError: no models.
    """
    refuse_none(models, "a spectrum")
    with style():
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for index, model in enumerate(models):
            values = model["texts"]["spectrum"]
            axes.plot(range(1, len(values) + 1), values, **looks_of(index), markersize=3.5, clip_on=False)
        axes.set(xlabel="number", ylabel="singular value of the texts", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, list(enumerate(models)))
        return svg(figure, "Spectrum of the texts")
