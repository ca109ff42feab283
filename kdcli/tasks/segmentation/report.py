"""Panels of the report on a segmentation: every class by its colour, and pictures tinted by class.

A model's part of the report has, beside its metrics, by class ``iou`` (None for a class that occurs nowhere)
and ``pixels`` of the truth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.report.forms import amount, percent
from kdcli.report.panels import Panel, Pictures, Table, Text, swatch
from kdcli.report.thumbnails import palette

Shown = Mapping[int, Sequence[tuple[str, str]]]


def panels(report: Mapping[str, Any], shown: Shown | None = None) -> list[Panel]:
    """The panels of a report.

    Args:
        report: see :mod:`kdcli.report.page`.
        shown: captions and pictures by row of the data, see :func:`kdcli.tasks.segmentation.overlays.panels`.
    """
    found = [_classes(report, coloured=bool(shown))]
    return [*found, _pictures(shown)] if shown else found


def _classes(report: Mapping[str, Any], coloured: bool) -> Panel:
    models, names = report["models"], report["data"]["classes"]
    colours = ["#" + bytes(rgb.tolist()).hex() for rgb in palette(len(names))]
    rows = [
        [
            swatch(colours[i], name) if coloured else name,
            amount(models[0]["pixels"][i]),
            *(percent(model["iou"][i]) for model in models),
        ]
        for i, name in enumerate(names)
    ]
    return Panel("Classes", [Table(["class", "pixels", *(f"IoU of {m['name']}" for m in models)], rows)])


def _pictures(shown: Shown) -> Panel:
    text = "The first pictures of the split, tinted by the colours of the classes above; void is white."
    return Panel("Pictures", [*(Pictures(f"row {row}", images) for row, images in shown.items()),
                              Text(text, faint=True)])  # fmt: skip
