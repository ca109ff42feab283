"""Exact search against a sorted table, in chunks of either side; faiss above a size."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcli.metrics import neighbours
from kdcli.metrics.neighbours import nearest, unit_rows

MADE: list[Any] = []  # indices, as they are made


def rows(count: int, seed: int, width: int = 5) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def naive(query: Tensor, gallery: Tensor, count: int) -> tuple[list[list[float]], list[list[int]]]:
    similar, places = [], []
    for q in query.tolist():
        found = []
        for j, g in enumerate(gallery.tolist()):
            lengths = np.linalg.norm(q) * np.linalg.norm(g)
            found.append((-float(np.dot(q, g)) / lengths if lengths else 0.0, j))
        best = sorted(found)[:count]
        similar.append([-s for s, _ in best])
        places.append([j for _, j in best])
    return similar, places


@pytest.mark.parametrize("count", [1, 4, 30, 31, 100])
@pytest.mark.parametrize(("chunk", "entries"), [(1024, 2**24), (3, 21), (1, 1), (7, 7 * 31)])
def test_the_nearest_are_those_of_a_sorted_table(
    count: int, chunk: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "_ENTRIES", entries)
    query, gallery = rows(8, 0), rows(31, 1)
    similar, places = nearest(query, 3 * gallery, count, chunk=chunk)
    expected = naive(query, gallery, count)
    assert places.tolist() == expected[1]
    assert similar.tolist() == [pytest.approx(row, abs=1e-6) for row in expected[0]]
    assert (similar.dtype, places.dtype) == (torch.float32, torch.int64)


def test_no_table_of_all_pairs_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = [], neighbours.product

    def watched(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(len(a) * b.shape[1])
        return real(a, b)

    monkeypatch.setattr(neighbours, "product", watched)
    monkeypatch.setattr(neighbours, "_ENTRIES", 200)
    nearest(rows(50, 0), rows(90, 1), 3, chunk=10)
    assert max(sizes) == 200
    assert sum(sizes) == 50 * 90


def test_zeros_and_extremes_have_directions_of_their_own() -> None:
    x = torch.tensor([[0.0, 0.0], [1e30, 1e30], [1e-30, -1e-30], [-3e-39, 0.0]])
    assert unit_rows(x).tolist() == [
        pytest.approx(row, abs=1e-6) for row in ([0, 0], [0.5**0.5] * 2, [0.5**0.5, -(0.5**0.5)], [-1, 0])
    ]
    similar, places = nearest(torch.tensor([[0.0, 1.0]]), x[:3], 3)
    assert places.tolist() == [[1, 0, 2]]
    assert similar[0, 1] == 0


class Flat:
    """What is used of faiss's flat index, on numpy."""

    def __init__(self, width: int) -> None:
        self.width, self.data = width, np.zeros((0, width), np.float32)
        MADE.append(self)

    def add(self, data: Any) -> None:
        assert data.dtype == np.float32
        self.data = np.concatenate([self.data, data])

    def search(self, query: Any, count: int) -> tuple[Any, Any]:
        similar = query @ self.data.T
        order = np.argsort(-similar, axis=1)[:, :count]
        return np.take_along_axis(similar, order, 1), order


def test_a_large_gallery_is_left_to_faiss_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = ModuleType("faiss")
    faiss.IndexFlatIP = Flat  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    query, gallery = rows(8, 0), 5 * rows(31, 1)
    MADE.clear()
    expected = nearest(query, gallery, 40)
    assert MADE == []
    monkeypatch.setattr(neighbours, "LARGE", 30)
    found = nearest(query, gallery, 40)
    assert len(MADE) == 1
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0])
    monkeypatch.setitem(sys.modules, "faiss", None)  # not installed
    assert torch.equal(nearest(query, gallery, 40)[1], expected[1])
    assert len(MADE) == 1


@pytest.mark.parametrize(
    ("query", "gallery", "count", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(3, 4), 1, "the query holds no pictures"),
        (torch.zeros(2, 4), torch.zeros(0, 4), 1, "the gallery holds no pictures"),
        (
            torch.zeros(2, 4),
            torch.zeros(3, 5),
            1,
            "features of the query are 4 wide and those of the gallery 5",
        ),
        (
            torch.full((2, 4), torch.nan),
            torch.zeros(3, 4),
            1,
            "features of 2 of 2 pictures of the query are not",
        ),
        (torch.full((2, 4), 1e300, dtype=torch.float64), torch.zeros(3, 4), 1, "of the query are not finite"),
        (torch.zeros(2, 4), torch.zeros(3, 4), 0, "count and chunk must be at least 1, not 0 and 1024"),
    ],
)
def test_what_cannot_be_searched_is_refused(query: Tensor, gallery: Tensor, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(query, gallery, count)
