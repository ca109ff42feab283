"""Panels of the report on a search: what was asked, and queries with what was found first.

A model's part of the report has, beside its metrics, ``search``: numbers of queries, of those that were
skipped, of pictures in the gallery, and of numbers in an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.report.forms import amount
from kdcli.report.panels import Block, Heading, Panel, Pictures, Table, Text

Shown = Sequence[tuple[str, Sequence[tuple[str, str]]]]

_SAYS = (
    "Queries at even steps from the worst to the best of the first model, by average precision, and what was "
    "found first for each."
)


def panels(report: Mapping[str, Any], shown: Shown | None = None) -> list[Panel]:
    """The panels of a report.

    Args:
        report: see :mod:`kdcli.report.page`.
        shown: names, captions and pictures, see :func:`kdcli.tasks.retrieval.evaluate.strips`.
    """
    header = ("model", "queries", "skipped", "gallery", "numbers a picture")
    keys = ("queries", "skipped", "gallery", "width")
    rows = [[m["name"], *(amount(m["search"][key]) for key in keys)] for m in report["models"]]
    found = [Panel("Search", [Table(header, rows)])]
    if shown:
        blocks: list[Block] = [Text(_SAYS, faint=True)]
        for name, images in shown:
            blocks += [Heading(name), Pictures(name, images)]
        found.append(Panel("Answers", blocks))
    return found
