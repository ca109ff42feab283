"""The page of a search: every trial once, what was chosen, what the cache saved."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from kdcli.report.study import _Axis, render


def trial(number: int, value: float | None, state: str = "COMPLETE", **settings: Any) -> dict[str, Any]:
    curve = [] if value is None else [[5, value / 2], [10, value]]
    return {"number": number, "state": state, "value": value, "settings": settings, "curve": curve}


REPORT: dict[str, Any] = {
    "title": "Search over 4 trials",
    "created": "2026-01-01T00:00:00+00:00",
    "data": "cars/, chosen on the validation split",
    "selection": "top1",
    "study": "runs/study",
    "best": 2,
    "trials": [
        trial(0, 0.5, **{"optim.lr": 1e-4, "method.name": "kd"}) | {"steps": 10},
        trial(1, 0.25, "PRUNED", **{"optim.lr": 1e-3, "method.name": "dkd", "method.beta": 2.0}),
        trial(2, 0.75, **{"optim.lr": 1e-2, "method.name": "<b>"}),
        trial(3, None, "FAIL", **{"optim.lr": 1.0}) | {"why": "the loss became nan"},
    ],
    "importance": {"optim.lr": 0.75, "method.name": 0.25},
    "forwards": {"asked": 3000, "made": 1000, "live": 0},
    "notes": ["a note"],
}


def test_what_it_says() -> None:
    page = render(REPORT)
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))
    assert facts["Trials"] == "4, 2 to the end, 1 halved, 1 failed"
    assert facts["Teacher"] == "3,000 answers read from the cache, 1,000 forwards made for it"
    assert "Trial 3: top1 0.7500 on validation pictures." in page
    rows = re.findall(r"<tr><td>(\d)</td><td>([^<]*)</td><td class=\"text\">([^<]*)</td>", page)
    assert [(number, said) for number, _, said in rows] == [
        ("3", "to the end"),
        ("1", "to the end"),
        ("2", "halved"),
        ("4", "the loss became nan"),
    ]
    assert len(re.findall("<svg", page)) == 3
    assert "<b>" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert page == render(copy.deepcopy(REPORT))


def test_without_much_to_show() -> None:
    report = REPORT | {
        "trials": [trial(0, 0.5, **{"optim.lr": 1e-4})],
        "best": 0,
        "importance": {},
        "forwards": {"asked": 0, "made": 0, "live": 700},
        "notes": [],
    }
    page = render(report)
    assert "700 forwards of trials that learn live" in page
    assert "Settings side by side" not in page
    assert "<h2>Notes" not in page
    assert len(re.findall("<svg", page)) == 1


@pytest.mark.parametrize(
    ("values", "heights"),
    [
        ([1, 10, 100], [0, 0.5, 1]),
        ([1.0, 1.5, 2.0], [0, 0.5, 1]),
        ([0.0, 5.0, 10.0], [0, 0.5, 1]),
        ([3, 3], [0.5, 0.5]),
        (["b", None, "a"], [1, None, 0]),
        ([[0.1, 1], [0.5, 1]], [0, 1]),
        ([True, False], [1, 0]),
        ([2, None, 4], [0, None, 1]),
    ],
)
def test_places_along_an_axis(values: list[Any], heights: list[Any]) -> None:
    assert _Axis("a", values).heights == pytest.approx(heights)
