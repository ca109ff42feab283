"""What fills a batch: where fewer than half of the pictures have labels, half of a batch has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toolbox import QUIET, facts, training_plan

from kdcli.console import Console
from kdcli.errors import UsageError
from kdcli.stages import distill

Plan = Callable[..., distill.Plan]


@pytest.fixture
def plan(pictures: Path, teacher: Path, tmp_path: Path) -> Plan:
    def make(**more: Any) -> distill.Plan:
        usual = {"teacher": [str(teacher)], "data.labels_per_class": 2, "views.count": "1"}
        return training_plan(pictures, tmp_path / "student", tmp_path / "cache", **usual | more)

    return make


def labelled_rows(found: distill.Plan) -> list[int]:
    order = found.material.order
    return [sum(order.labels[index] >= 0 for index, _ in order.keys(step)) for step in range(6)]


@pytest.mark.parametrize("method", ["task-specific", "kd"])
def test_few_labels_fill_half_of_each_batch(plan: Plan, method: str) -> None:
    found = plan(**{"method.name": method})
    assert found.material.labelled_part == 0.5
    assert labelled_rows(found) == [4] * 6
    told: list[str] = []
    console = Console(silent=True)
    console.note = told.append  # type: ignore[method-assign, assignment]
    found.describe(console)
    assert "batches  50% of each have labels (data.labelled_fraction)" in told
    assert facts(distill.run(found, QUIET).path)["labelled_fraction"] == 0.5


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"data.labelled_fraction": 0.25}, 0.25),
        ({"data.labelled_fraction": 0}, 0),
        ({"data.labelled_fraction": 1}, 1),
        ({"data.labels_per_class": None}, 0),  # all have labels
        ({"data.labels_per_class": 12}, 0),  # most have
        ({"method.name": "supervised", "teacher": []}, 0),  # no others are learned from
        ({"method.alpha": 1.0}, 0),  # no labels are
        ({"method.name": "dkd"}, 0),  # reads all rows' labels
    ],
)
def test_where_it_is_otherwise(plan: Plan, options: dict[str, Any], part: float) -> None:
    found = plan(**options)
    assert found.material.labelled_part == part
    if part:
        assert sum(labelled_rows(found)) == 6 * 8 * part


def test_extra_pictures_by_a_ratio(plan: Plan, pictures: Path) -> None:
    found = plan(**{"data.extra": [str(pictures)], "data.extra_ratio": 1.0})
    assert found.material.labelled_part == 0
    assert found.material.order.share == 0.5
    with pytest.raises(UsageError, match="both fill batches"):
        plan(**{"data.extra": [str(pictures)], "data.extra_ratio": 1.0, "data.labelled_fraction": 0.5})
