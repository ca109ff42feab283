"""Half of a batch is of few-shot pictures, or all of these where they are fewer."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toolbox import QUIET

from kdcli import classes
from kdcli.config import resolve
from kdcli.errors import UsageError
from kdcli.stages import distill


@pytest.fixture(scope="module")
def division(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("division") / "split.json"
    tool = classes.COMMANDS["split"]
    options = {"data.source": str(pictures), "out": str(out)}
    assert list(tool.run(resolve(tool.Config, options=options), QUIET)) == [str(out)]
    return out


def plan(pictures: Path, division: Path, **more: Any) -> distill.Plan:
    options = {
        **{"method.name": "supervised", "student": "test_resnet", "from_scratch": True, "image_size": 32},
        **{"data.source": str(pictures), "data.open_classes": str(division), "optim.max_steps": 20},
        **{"optim.batch_size": 8, **more},
    }
    made = distill.plan(resolve(distill.Config, options=options), QUIET)
    assert isinstance(made, distill.Plan)
    return made


@pytest.mark.parametrize(("shots", "batch", "wanted"), [(3, 8, 4), (3, 16, 6), (1, 8, 2)])
def test_their_part_of_a_batch(pictures: Path, division: Path, shots: int, batch: int, wanted: int) -> None:
    made = plan(pictures, division, **{"data.shots": shots, "optim.batch_size": batch})
    assert len(made.data.shots) == 2 * shots  # of two classes
    pool, order = made.material.pool, made.material.order
    first = np.isin(pool.ids, made.data.shots)
    seen, drawn = set[int](), list[int]()
    for step in range(20):
        rows = [index for index, _ in order.keys(step)]
        assert int(first[rows].sum()) == wanted
        seen |= set(rows)
        drawn += [row for row in rows if first[row]]
    assert seen == set(range(len(pool)))  # both are shuffled passes over all of theirs
    length = math.lcm(2 * shots, wanted)  # whole passes in whole batches
    assert set(Counter(drawn[:length]).values()) == {length // (2 * shots)}


def test_without_shots_all_are_drawn_alike(pictures: Path, division: Path) -> None:
    made = plan(pictures, division)
    assert len(made.data.shots) == 0
    assert len(made.material.order.streams) == 1
    assert len(made.task.classes) == 2


def test_nothing_else_fills_a_batch_beside_them(pictures: Path, division: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.shots fills half of a batch with few-shot pictures"):
        plan(pictures, division, **{"data.shots": 2, "data.labelled_fraction": 0.5})


def test_shots_need_a_division(pictures: Path) -> None:
    options = {"method.name": "supervised", "student": "test_resnet", "data.source": str(pictures)}
    with pytest.raises(UsageError, match=r"data\.shots"):
        distill.plan(resolve(distill.Config, options={**options, "data.shots": 2}), QUIET)
