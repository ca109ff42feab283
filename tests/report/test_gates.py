"""Gates: parsed by the figures that there are, judged on the values that a report has."""

from __future__ import annotations

import pytest

from kdcli.errors import UsageError
from kdcli.report.figures import GENERAL, Figure
from kdcli.report.forms import number, percent
from kdcli.report.gates import judge, parse

SHARE = Figure("share", "share", ("metrics", "share"), percent, fraction=True, takes="it takes shares")
DEPTH = Figure("tree.depth", "depth", ("tree", "depth"), number)
FIGURES = (SHARE, DEPTH, *GENERAL)
MODEL = {
    "name": "m",
    "metrics": {"share": 0.5},
    "tree": {"depth": 3},
    "cost": {"latency_ms": {"median": 7.0, "p10": 1.0}, "parameters": 10},
}


@pytest.mark.parametrize(
    ("text", "met", "value"),
    [
        ("share>=0.5", True, 0.5),
        (" share > 0.5 ", False, 0.5),
        ("tree.depth<=3", True, 3),
        ("latency_ms<5", False, 7),
        ("parameters<11", True, 10),
    ],
)
def test_a_figure_is_compared_where_it_stands(text: str, met: bool, value: float) -> None:
    said, found, measured = judge(parse(text, FIGURES), MODEL)
    assert (found, measured) == (met, value)
    assert said == f"m: {text.replace(' ', '')}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share=>0.8", "write METRIC>=NUMBER, for example share>=0.8"),
        ("share>=1.5", "share is a fraction, from 0 to 1"),
        ("shares>=0.5", "no metric 'shares'. Did you mean 'share'.* There are: share, tree.depth, agreement"),
        ("tree.depth>=1e", "'1e' is no number"),
    ],
)
def test_what_is_no_gate_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text, FIGURES)


def test_a_figure_that_was_not_measured_says_what_it_takes() -> None:
    with pytest.raises(UsageError, match="'share' was not measured of n in this run: it takes shares"):
        judge(parse("share>0", FIGURES), {"name": "n", "metrics": {}})
    with pytest.raises(UsageError, match=r"'tree.depth' was not measured of n in this run\.$"):
        judge(parse("tree.depth>0", FIGURES), {"name": "n", "metrics": {}})
    with pytest.raises(UsageError, match="'agreement' was not measured of m in this run: it takes --teacher"):
        judge(parse("agreement>0", FIGURES), MODEL)
