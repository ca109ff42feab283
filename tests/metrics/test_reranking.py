"""Re-ranking against loops over sets and values of the authors' code; two bands; rows that coincide."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.metrics import reranking as module
from kdcli.metrics.reranking import reranked
from kdcli.metrics.retrieval import Embedded, retrieval


def clusters(count: int = 60, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, 6, generator=generator)
    return centres[torch.arange(count) % 8] + 0.7 * torch.randn(count, 6, generator=generator)


def naive(query: Tensor, gallery: Tensor, k1: int, k2: int, weight: float) -> list[list[float]]:
    """The paper's sets, in words of Python."""
    rows = torch.nn.functional.normalize(torch.cat([query, gallery]).double()).tolist()
    every, queries = range(len(rows)), len(query)
    squared = [[math.dist(a, b) ** 2 for b in rows] for a in rows]
    original = [[d / max(row) for d in row] for row in squared]
    near = [sorted(every, key=lambda j: (j != i, squared[i][j])) for i in every]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in near[i][: k + 1] if i in near[j][: k + 1]}

    encoded = []
    for i in every:
        first = reciprocal(i, k1)
        members = set(first)
        for j in first:
            half = reciprocal(j, round(k1 / 2))
            if len(half & first) > 2 / 3 * len(half):
                members |= half
        total = sum(math.exp(-original[i][j]) for j in members)
        encoded.append([math.exp(-original[i][j]) / total if j in members else 0.0 for j in every])
    mean = [[sum(encoded[j][c] for j in near[i][:k2]) / len(near[i][:k2]) for c in every] for i in every]
    result = []
    for i in range(queries):
        result.append([])
        for j in range(queries, len(rows)):
            least, most = (sum(f(mean[i][c], mean[j][c]) for c in every) for f in (min, max))
            result[-1].append((1 - weight) * (1 - least / most) + weight * original[i][j])
    return result


@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(20, 6, 0.3), (5, 3, 0.3), (7, 1, 0.0), (1, 1, 0.5), (3, 9, 0.3), (99, 99, 0.1)]
)
def test_distances_are_those_of_the_sets(k1: int, k2: int, weight: float) -> None:
    x = clusters(30, seed=k1)
    found = reranked(x[:7], x[7:], k1=k1, k2=k2, weight=weight)
    expected = torch.tensor(naive(x[:7], x[7:], k1, k2, weight), dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("k1", "k2", "weight", "total", "some"),
    [
        (20, 6, 0.3, 362.15007, [0.191217, 0.884943, 0.672854, 0.01572]),
        (5, 3, 0.3, 463.84819, [0.160141, 0.949388, 0.910378, 0.031845]),
        (7, 1, 0.0, 530.29731, [0.065823, 1.0, 1.0, 0.336367]),
    ],
)
def test_distances_are_those_of_the_authors_code(
    k1: int, k2: int, weight: float, total: float, some: list[float]
) -> None:
    """Which was given the Euclidean distances of these rows at length 1."""
    x = clusters()
    found = reranked(x[:12], x[12:], k1=k1, k2=k2, weight=weight).double()
    assert float(found.sum()) == pytest.approx(total, abs=1e-3)
    assert [float(found[i, j]) for i, j in ((0, 4), (3, 3), (5, 0), (11, 7))] == pytest.approx(some, abs=2e-6)


def test_tables_are_made_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clusters()
    whole = reranked(x[:12], x[12:])
    monkeypatch.setattr(module, "_ENTRIES", 500)
    torch.testing.assert_close(reranked(x[:12], x[12:]), whole, rtol=1e-6, atol=1e-6)


def test_two_bands_are_told_apart_by_their_neighbours() -> None:
    """Pictures change more along a band than across: distances mislead, neighbours do less."""
    angle = torch.linspace(0, 0.9 * math.pi, 60)
    bands = [torch.stack([angle.cos(), angle.sin(), torch.full_like(angle, h)], 1) for h in (-0.25, 0.25)]
    x, y = torch.cat(bands), torch.arange(2).repeat_interleave(60)
    asked = torch.arange(120) % 6 == 0
    query, gallery = Embedded(x[asked], y[asked]), Embedded(x[~asked], y[~asked])
    before = retrieval(query, gallery).metrics["mAP"]
    after = retrieval(query, gallery, distances=reranked(query.features, gallery.features)).metrics["mAP"]
    assert 0.6 < before < 0.75
    assert after > before + 0.08


def test_only_the_original_distance_is_left_at_weight_1() -> None:
    x = clusters()
    query, gallery = Embedded(x[:8], torch.arange(8)), Embedded(x[8:], torch.arange(52) % 8)
    found = retrieval(query, gallery, distances=reranked(x[:8], x[8:], weight=1))
    expected = retrieval(query, gallery)
    assert found.metrics == pytest.approx(expected.metrics)
    assert found.top.tolist() == expected.top.tolist()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_rows_that_coincide_and_zeros_have_distances(weight: float) -> None:
    x = clusters()
    x[5:40], x[40:43] = x[5], 0  # more copies than neighbours are sought
    for rows in (x, torch.ones(60, 3), torch.zeros(60, 3)):
        found = reranked(rows[:12], rows[12:], weight=weight)
        assert found.shape == (12, 48)
        assert bool(((found >= -1e-6) & (found <= 1 + 1e-6)).all())


def test_a_row_is_its_own_nearest_neighbour_once() -> None:
    x = torch.nn.functional.normalize(clusters())
    x[5:40], x[40:43] = x[5].clone(), 0
    near = module._neighbours(x, 6)
    assert near.shape == (60, 7)
    assert near[:, 0].tolist() == list(range(60))
    assert all(len(set(row)) == 7 for row in near.tolist())


def test_one_row_on_either_side_is_enough() -> None:
    found = reranked(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    # Both are each other's neighbours: weights (1, 1/e) and (1/e, 1) over 1 + 1/e, averaged to (1/2, 1/2).
    assert found.tolist() == [[pytest.approx(0.3)]]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"k1": 0}, "k1 and k2 must be at least 1, not 0 and 6"),
        ({"k2": 0}, "k1 and k2 must be at least 1, not 20 and 0"),
        ({"weight": 1.5}, r"the weight of the original distance must lie in \[0, 1\], not 1.5"),
        ({"gallery": torch.ones(3, 5)}, "features of the query are 6 wide and those of the gallery 5"),
        ({"gallery": torch.ones(0, 6)}, "the gallery holds no pictures"),
        ({"query": torch.full((2, 6), math.nan)}, "features of 2 of 2 pictures of the query are not finite"),
    ],
)
def test_what_cannot_be_reranked_is_refused(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reranked(**{"query": torch.ones(2, 6), "gallery": torch.ones(4, 6)} | keywords)
