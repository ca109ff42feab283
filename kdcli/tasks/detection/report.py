"""Panels of the report on detectors: objects by size, every class, and pictures with boxes.

A model's part of the report has, beside its metrics, ``classes``: of each class ``ap``, ``ap50`` and
``ar100``, None for one without an object, and ``boxes``, the number of its objects. Compared with a teacher
it has ``teacher``: ``name``, and ``teacher_recall`` and ``teacher_precision`` of
:func:`kdcli.metrics.detection.agreement`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.report.forms import amount, percent
from kdcli.report.page import measured
from kdcli.report.panels import Block, Panel, Pictures, Table, Text, swatch
from kdcli.report.thumbnails import palette
from kdcli.tasks.detection.figures import RECALLS, SIZES
from kdcli.tasks.detection.overlays import LEAST, MOST, SCORE

Shown = Mapping[int, Sequence[tuple[str, str]]]

LISTED = 200  # classes of a table; of more the weakest

_SAYS = (
    "The first pictures of the split, boxes in the colours of the classes above. Broken lines: objects that "
    "are ignored, neither to be found nor a mistake to find. Of a model those detections are drawn whose "
    f"score is at least {SCORE:g}, but no fewer than the {LEAST} best and no more than the {MOST} best."
)


def panels(report: Mapping[str, Any], shown: Shown | None = None) -> list[Panel]:
    """The panels of a report.

    Args:
        report: see :mod:`kdcli.report.page`.
        shown: captions and pictures by row of the data, see :func:`kdcli.tasks.detection.overlays.panels`.
    """
    found = [_sizes(report), _classes(report, coloured=bool(shown))]
    return [*found, _pictures(shown)] if shown else found


def _sizes(report: Mapping[str, Any]) -> Panel:
    figures = measured(report, (*SIZES, *RECALLS))
    rows = [[str(m["name"]), *(f.form(f.of(m)) for f in figures)] for m in report["models"]]
    says = " ".join(figure.says for figure in (SIZES[0], RECALLS[-1]))
    table = Table(["model", *(figure.label for figure in figures)], rows)
    return Panel("Objects by size, and detections by number", [table, Text(says, faint=True)])


def _classes(report: Mapping[str, Any], coloured: bool) -> Panel:
    models, names = report["models"], report["data"]["classes"]
    colours = ["#" + bytes(rgb.tolist()).hex() for rgb in palette(len(names))]
    blocks: list[Block] = []
    numbers = list(range(len(names)))
    if len(names) > LISTED:
        first = models[0]["classes"]
        numbers = sorted(numbers, key=lambda i: _weakness(first[i]))[:LISTED]
        blocks.append(
            Text(
                f"Of {len(names):,} classes the {LISTED} of the least AP of {models[0]['name']}.", faint=True
            )
        )
    rows = [
        [
            swatch(colours[i], names[i]) if coloured else names[i],
            amount(models[0]["classes"][i]["boxes"]),
            *(percent(model["classes"][i][key]) for model in models for key in ("ap", "ap50")),
        ]
        for i in numbers
    ]
    header = ["class", "boxes", *(f"{of} of {m['name']}" for m in models for of in ("AP", "AP50"))]
    return Panel("Classes", [*blocks, Table(header, rows)])


def _pictures(shown: Shown) -> Panel:
    return Panel("Pictures", [*(Pictures(f"row {row}", images) for row, images in shown.items()),
                              Text(_SAYS, faint=True)])  # fmt: skip


def _weakness(row: Mapping[str, Any]) -> float:
    """By which classes are sorted: those without an object come last."""
    return 2.0 if row["ap"] is None else float(row["ap"])
