"""The panel about networks that were made smaller: there where some were, with what the removal changed."""

from __future__ import annotations

from typing import Any

import pytest

from kdcli.report import smaller
from kdcli.report.panels import Drawing, Table
from kdcli.tasks import figures

FIGURES = figures("classification")


def model(name: str, **compression: Any) -> dict[str, Any]:
    found = {"widths": {"act1": [8, 3]}, "removed": 1234, "flops": [10.0, 4.5], "parameters": [20.0, 5.0]}
    found |= {"metrics": {"folded": {"top1": 0.5}}, **compression}
    return {"name": name, "curves": [], "compression": found}


def rows(panel: Any) -> list[list[str]]:
    return next(part.rows for part in panel.parts if isinstance(part, Table))


def test_there_is_none_without_such_a_network() -> None:
    assert smaller.panel({"models": [{"name": "dense", "curves": []}]}, FIGURES) is None


def test_its_table_says_what_went_and_what_that_changed() -> None:
    both = {"with_compactors": {"top1": 0.75}, "rows_zeroed": {"top1": 0.5}, "folded": {"top1": 0.5}}
    panel = smaller.panel({"models": [model("resrep", metrics=both), model("magnitude")]}, FIGURES)
    assert rows(panel) == [
        ["resrep", "1,234", "45.0%", "25.0%", "75.0%", "50.0%", "50.0%"],
        ["magnitude", "1,234", "45.0%", "25.0%", "–", "–", "50.0%"],
    ]


@pytest.mark.parametrize(("logged", "drawings"), [(True, 2), (False, 1)])
def test_a_course_is_drawn_where_one_was_logged(logged: bool, drawings: int) -> None:
    one = model("resrep")
    if logged:
        one["curves"] = [{"step": 1, "validation/flops_left": 0.5, "validation/top1": 0.25}]
    panel = smaller.panel({"models": [one]}, FIGURES)
    assert panel is not None
    assert sum(isinstance(part, Drawing) for part in panel.parts) == drawings
