"""A report as one self-contained HTML page, and its main table for the console.

The report is a plain mapping, so that it can be read back from its JSON file::

    {"title": str, "created": str,
     "data": {"name", "split", "samples", "classes": [names], "fingerprint"},
     "models": [{"name", "path", "metrics": {"top1", "top5"?, "mean_per_class", "nll", "ece"},
                 "reliability": {"confidence", "accuracy", "count"}, "confusion": [[int]],
                 "cost"?: {"parameters", "flops", "latency_ms": {"median", "p10", "p90", "repeats"},
                           "throughput": {"median", "p10", "p90", "batch"}, "peak_memory_mb", "device",
                           "threads"},
                 "teacher"?: {"name", "agreement", "kl", "both_right", "only_student", "only_teacher",
                              "neither_right"},
                 "exits"?: {"exits": [{"name", "tap", "top1", "nll", "ece", "flops", "latency_ms"?, ...}],
                            "ensemble": {"top1", ...},
                            "curve": [{"threshold", "top1", "flops", "exits": [fraction]}],
                            "early"?: a row of "curve", with "latency_ms"? and
                                      "validation": {"samples", "top1", "last", "slack"}},
                 "effects"?: see kdcli.metrics.effects.effects,
                 "curves": [{"step", "loss", ...}], "selection"?: str}],
     "peers"?: see kdcli.metrics.peers.peers,
     "notes": [str]}

A model of segmentation has instead the metrics ``miou``, ``pixel_accuracy`` and ``mean_accuracy``, and beside
them ``iou`` and ``pixels`` (of the truth) by class, the IoU None for a class that occurs nowhere; neither
``reliability`` nor ``confusion``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from kdcli.report.overlays import palette

MISSING = "–"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    """Three significant digits, and whole thousands with separators."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def amount(value: float | None) -> str:
    """A large count in k, M or G with one decimal, such as ``3.4 M``."""
    if value is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.99995 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def correlation(value: float | None) -> str:
    """A correlation with its sign and two decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:+.2f}"


def _at(model: Mapping[str, Any], *keys: str) -> Any:
    """A value inside the model's mapping, or None where a key on the way is absent."""
    value: Any = model
    for key in keys:
        value = value.get(key) if value else None
    return value


def _gflops(value: float | None) -> str:
    return MISSING if value is None else number(value / 1e9)


def _milliseconds(value: float | None) -> str:
    return MISSING if value is None else f"{number(value)} ms"


COLUMNS: tuple[tuple[str, tuple[str, ...], Callable[[Any], str]], ...] = (
    ("top-1", ("metrics", "top1"), percent),
    ("top-5", ("metrics", "top5"), percent),
    ("per class", ("metrics", "mean_per_class"), percent),
    ("mIoU", ("metrics", "miou"), percent),
    ("pixel accuracy", ("metrics", "pixel_accuracy"), percent),
    ("mean accuracy", ("metrics", "mean_accuracy"), percent),
    ("NLL", ("metrics", "nll"), lambda value: MISSING if value is None else f"{value:.3f}"),
    ("ECE", ("metrics", "ece"), percent),
    ("agreement", ("teacher", "agreement"), percent),
    ("exits' mean", ("exits", "ensemble", "top1"), percent),
    ("early exit", ("exits", "early", "top1"), percent),
    ("early GFLOPs", ("exits", "early", "flops"), _gflops),
    ("parameters", ("cost", "parameters"), amount),
    ("GFLOPs", ("cost", "flops"), _gflops),
    ("latency", ("cost", "latency_ms", "median"), _milliseconds),
    ("images/s", ("cost", "throughput", "median"), number),
)


def table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The main table as text: one row per model; a column that no model has a value for is left out.

    Args:
        report: see the module.

    Returns:
        The header and the rows. FLOPs are 2 x MACs of one forward of one image.
    """
    models = report["models"]
    columns = [column for column in COLUMNS if any(_at(model, *column[1]) is not None for model in models)]
    rows = [[str(m["name"]), *(form(_at(m, *keys)) for _, keys, form in columns)] for m in models]
    return ["model", *(name for name, _, _ in columns)], rows


def confused_pairs(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], most: int = 10
) -> list[dict[str, Any]]:
    """The most frequent confusions, which a matrix of many classes does not let one read.

    Args:
        confusion: ``[C][C]`` counts, rows truth, columns prediction.
        classes: C names.
        most: how many pairs at most.

    Returns:
        ``truth``, ``predicted``, ``count`` and ``share`` (of the true class), most frequent first.
    """
    pairs: list[dict[str, Any]] = [
        {"truth": classes[i], "predicted": classes[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(confusion)
        for j, count in enumerate(row)
        if i != j and count > 0
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:most]


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures as markup that is safe to inline: text inside them is escaped by matplotlib."""
    from markupsafe import Markup

    from kdcli.report import plots

    models, classes = report["models"], report["data"]["classes"]
    figures: dict[str, Any] = {}
    if "reliability" in models[0]:
        figures["reliability"] = Markup(plots.reliability_curve(models))
        figures["confusion"] = [
            Markup(plots.confusion_matrix(model["confusion"], classes, str(model["name"])))
            for model in models
        ]
    if any(model.get("cost") for model in models):
        figures["cost"] = Markup(plots.accuracy_against_cost(models))
    if any(model.get("curves") for model in models):
        figures["curves"] = Markup(plots.training_curves(models))
    return figures


def render(report: Mapping[str, Any], overlays: Mapping[int, Sequence[tuple[str, str]]] | None = None) -> str:
    """The report as one HTML page with inline figures: no scripts, no external resources; it prints well.

    Args:
        report: see the module. Names, paths and notes are escaped.
        overlays: by row of the data, see :func:`kdcli.report.overlays.panels`.

    Raises:
        ValueError: the report has no models, or a confusion matrix does not fit the classes.
    """
    import jinja2

    if not report["models"]:
        raise ValueError("a report needs at least one model")
    folder = resources.files("kdcli.report")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters |= {
        "percent": percent,
        "number": number,
        "amount": amount,
        "gflops": _gflops,
        "correlation": correlation,
    }
    header, rows = table(report)
    classes = report["data"]["classes"]
    pairs = [
        confused_pairs(model["confusion"], classes) for model in report["models"] if "confusion" in model
    ]
    colours = ["#" + bytes(rgb.tolist()).hex() for rgb in palette(len(classes))] if overlays else []
    return environment.get_template("page.html").render(
        report=report,
        header=header,
        rows=rows,
        figures=_figures(report),
        pairs=pairs,
        overlays=overlays or {},
        colours=colours,
    )
