"""Views against upright pictures: tables, their task, and which rows are transferred."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients, labels

from kdcli.losses.contrastive import least_wrong, view_contrast, view_sources, view_table


def naive_table(views: Any) -> list[list[float]]:
    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)

    return [[cosine(turned, other[0]) for other in views] for item in views for turned in item[1:]]


def naive_contrast(views: Any) -> float:
    table, each = naive_table(views), len(views[0]) - 1
    total = 0.0
    for row, cosines in enumerate(table):
        powers = [math.exp(v) for v in cosines]
        total -= math.log(powers[row // each] / sum(powers))
    return total / len(table)


@pytest.mark.parametrize("views", [2, 4])
def test_table_and_task_are_the_printed_ones(views: int) -> None:
    agree(view_table, naive_table, draw(5, views, 8))
    agree(view_contrast, naive_contrast, draw(5, views, 8))


def test_rows_are_item_major() -> None:
    """Each item points its own way, so a row names its source."""
    views = torch.eye(3)[:, None].repeat(1, 4, 1)
    assert view_table(views).argmax(dim=1).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert view_sources(3, 4).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_dead_representation_has_finite_gradients() -> None:
    views = draw(3, 4, 5)
    views[0], views[1, 2] = 0, views[1, 0]
    views.requires_grad_()
    (gradient,) = gradients(view_contrast(views), views)
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 100


# Truth is column 0. Its rank in each row: 0, 2, 1, 0, 1, 3, 1.
TABLE = torch.tensor(
    [
        [9.0, 1, 2, 3],
        [5, 6, 7, 1],
        [5, 6, 1, 2],
        [9, 8, 7, 6],
        [3, 1, 4, 2],
        [0, 1, 2, 3],
        [2, 1, 0, 3],
    ]
)


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [
        (0.0, [0, 3]),
        (0.2, [0, 2, 3]),
        (0.5, [0, 2, 3, 4]),  # int(2.5)
        (0.75, [0, 2, 3, 4, 6]),
        (0.8, [0, 1, 2, 3, 4, 6]),
        (1.0, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_least_wrong_rows_are_kept(ratio: float, kept: list[int]) -> None:
    """Of rows 2, 4 and 6, whose truth ranks alike, the lower index goes first."""
    assert least_wrong(TABLE, torch.zeros(7, dtype=torch.int64), ratio=ratio).nonzero()[:, 0].tolist() == kept


def test_equal_scores_rank_by_column() -> None:
    scores = torch.tensor([[1.0, 1, 0], [1.0, 1, 0]])
    assert least_wrong(scores, torch.tensor([0, 1]), ratio=0.0).tolist() == [True, False]


def naive_least_wrong(scores: Any, target: Any, *, ratio: float) -> list[bool]:
    rank = [
        sum(v > row[true] or (v == row[true] and k < true) for k, v in enumerate(row))
        for row, true in zip(scores, target)
    ]
    wrong = [n for n in sorted(range(len(rank)), key=lambda n: rank[n]) if rank[n]]
    chosen = wrong[: int(ratio * len(wrong))]
    return [rank[n] == 0 or n in chosen for n in range(len(rank))]


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.75, 1.0])
def test_selection_is_the_described_one_with_many_ties(ratio: float) -> None:
    scores = labels(240, 5).reshape(40, 6).float()
    agree(least_wrong, naive_least_wrong, scores, labels(40, 6, seed=1), ratio=ratio)


def test_nothing_right_and_nothing_kept() -> None:
    assert least_wrong(torch.tensor([[0.0, 1]]), torch.tensor([0]), ratio=0.9).tolist() == [False]
