"""Panels of the report on networks for several labels: each label, how often it occurs, how well it is found.

A model's part of the report has, beside its metrics, ``labels``, see
:func:`kdcli.tasks.multilabel.evaluate.by_label`; analyses that were asked for are described in
:mod:`kdcli.tasks.analyses`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcli.report import alike, occlusion
from kdcli.report.forms import amount, percent
from kdcli.report.panels import Block, Heading, Panel, Table, Text
from kdcli.tasks.multilabel.figures import FIGURES

QUALITY = next(figure for figure in FIGURES if figure.axis)
LISTED = 200  # labels of a table; of more the weakest

_SAYS = (
    "Average precision needs no threshold. F1, precision and recall are those of the threshold, a "
    "probability, that gave the best F1 on validation pictures; without such pictures it is one half. A "
    "dash: no picture of the split has the label, or it was never said."
)


def panels(report: Mapping[str, Any]) -> list[Panel]:
    """The panels of a report (see :mod:`kdcli.report.page`)."""
    models, classes = report["models"], report["data"]["classes"]
    blocks: list[Block] = [Text(_SAYS, faint=True)]
    if len(classes) > LISTED:
        blocks.append(Text(f"Of {len(classes):,} labels the {LISTED} of the least average precision."))
    for model in models:
        blocks += [Heading(str(model["name"])), _labels(model["labels"], classes)]
    asked = (occlusion.panel(report, QUALITY), alike.panel(report))
    return [*(panel for panel in asked if panel is not None), Panel("Labels", blocks)]


def _labels(rows: list[Mapping[str, Any]], classes: list[str]) -> Table:
    header = ("label", "pictures", "AP", "F1", "precision", "recall", "threshold")
    numbers = list(range(len(classes)))
    if len(classes) > LISTED:
        numbers = sorted(numbers, key=lambda i: _weakness(rows[i]))[:LISTED]
    keys = ("ap", "f1", "precision", "recall", "threshold")
    cells = [
        [classes[i], amount(rows[i]["positives"]), *(percent(rows[i][key]) for key in keys)] for i in numbers
    ]
    return Table(header, cells)


def _weakness(row: Mapping[str, Any]) -> float:
    """By which labels are sorted: those without a picture come last."""
    return 2.0 if row["ap"] is None else float(row["ap"])
