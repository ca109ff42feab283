"""Logs of any kind become curves or none, never an error."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kdcli.report import curves
from kdcli.report.curves import drawn, numbers_of
from kdcli.report.page import _training, render
from kdcli.report.plots import training_curves
from kdcli.tasks import figures


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([{"step": 1}, {"step": 2}], []),
        ([{"loss": 1.0}], []),
        ([{"step": "one", "loss": 1.0}], []),
        ([{"step": True, "loss": 1.0}], []),
        ([{"step": math.nan, "loss": 1.0}], []),
        ([{"step": 1, "loss": "low", "note": [1], "more": None, "up": {}}], []),
        ([{"step": 1, "loss": 10**400}], []),
        ([{"step": 10**400, "loss": 1}], []),
        ([{"step": 1, "loss": 1.0, "note": "a"}], [{"step": 1, "loss": 1.0}]),
        ([{"step": 1, "loss": math.inf}], [{"step": 1, "loss": math.inf}]),
    ],
)
def test_only_numbers_by_step_are_kept(rows: list[dict[str, Any]], expected: list[dict[str, float]]) -> None:
    assert list(numbers_of(rows)) == expected
    panel = _training({"models": [{"name": "a", "curves": expected}]})
    assert (panel is None) == (expected == [])
    if expected:
        assert "<svg" in training_curves([{"name": "a", "curves": expected}])


def test_a_log_of_many_quantities_is_drawn_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "PANELS", 2)
    rows = [{"step": step, **{f"q{i}": float(i) for i in range(7)}} for step in (1, 2)]
    assert drawn(rows) == (["q0", "q1"], 5)
    panel = _training({"models": [{"name": "a", "curves": rows}]})
    assert panel is not None
    assert "The logs have 5 more quantities, which are not drawn." in str(panel.parts[1].html())


def test_a_report_of_models_whose_logs_have_no_curve_is_written() -> None:
    data = {"name": "d", "split": "test", "samples": 1, "task": "classification", "classes": ["a"]}
    model = {"name": "a", "path": "a", "metrics": {"top1": 1.0}, "curves": [{"step": 1}]}
    report = {
        "title": "t",
        "created": "now",
        "data": {**data, "fingerprint": "f"},
        "models": [model],
        "notes": [],
    }
    assert "Training" not in render(report, figures("classification"))
