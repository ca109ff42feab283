"""Panels of the report on networks that compare pictures with texts: their spaces, and the texts themselves.

A model's part of the report has, beside what a classifier's has::

    "texts": {"count", "width", "spectrum"?: [float], "cosine"?},
    "spaces"?: see kdcli.metrics.spaces.figures, of a model that is not the teacher

and the report ``"spaces"?``: {"pictures", "chance": the same names}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.report import plots
from kdcli.report.forms import number, percent
from kdcli.report.panels import Block, Drawing, Panel, Table, Text
from kdcli.tasks.zeroshot.figures import FIGURES

_PREFIX = "spaces."
_EXPLAINED = (
    "Of {pictures:,} pictures, each embedding at length 1. Own picture (M_rel): the student's embedding is "
    "nearest to the teacher's of the same picture, among all of them. Neighbours of k (M_neigh): the part of "
    "a picture's k nearest pictures in the student's space that are so in the teacher's. Texts of k inverted "
    "(M_vlalign): pairs of the teacher's k nearest texts that the student has in the other order, lower is "
    "better. Distance is the squared one, 2 − 2·cos. Measures of Li et al. 2023, arXiv 2307.03135."
)
_SPECTRUM = (
    "The singular values of the texts less their mean: the flatter they fall, the more ways there are in "
    "which the texts differ. The mean cosine of two texts is the lower, the more unlike they are."
)


def panels(report: Mapping[str, Any]) -> list[Panel]:
    """The panels of a report (see :mod:`kdcli.report.page`)."""
    models: Sequence[Mapping[str, Any]] = report["models"]
    found: list[Panel] = []
    if together := report.get("spaces"):
        found.append(_spaces([m for m in models if m.get("spaces")], together))
    described = [m for m in models if m.get("texts", {}).get("spectrum")]
    if described:
        rows = [
            [str(m["name"]), str(m["texts"]["count"]), str(m["texts"]["width"]), number(m["texts"]["cosine"])]
            for m in described
        ]
        table = Table(("model", "texts", "numbers each", "mean cosine"), rows)
        parts: list[Block] = [table, Drawing(plots.falling_values(described)), Text(_SPECTRUM, faint=True)]
        found.append(Panel("Texts", parts))
    return found


def _spaces(models: Sequence[Mapping[str, Any]], together: Mapping[str, Any]) -> Panel:
    figures = [f for f in FIGURES if f.name.startswith(_PREFIX) and any(f.of(m) is not None for m in models)]
    chance = together["chance"]
    rows = []
    for figure in figures:
        form = percent if figure.fraction else number
        guessed = chance.get(figure.name.removeprefix(_PREFIX))
        rows.append([figure.label, *(form(figure.of(m)) for m in models), form(guessed)])
    header = ("measure", *(str(m["name"]) for m in models), "guessing")
    text = _EXPLAINED.format(pictures=together["pictures"])
    return Panel("Spaces of student and teacher", [Table(header, rows), Text(text, faint=True)])
