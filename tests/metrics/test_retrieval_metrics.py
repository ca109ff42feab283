"""Retrieval against a loop that sorts the gallery, and a golden value; ties, cameras, own pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kdcli.metrics import retrieval as module
from kdcli.metrics.retrieval import Embedded, Retrieved, retrieval


def drawn(seed: int = 0, ties: bool = False) -> tuple[Embedded, Embedded]:
    """9 queries, which are also pictures of the gallery of 40; some cameras unknown; some without a match."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3 if ties else 6, generator=generator)
    if ties:
        x = x.sign()
    y = torch.randint(0, 5, (40,), generator=generator)
    y[0] = 77
    cameras = torch.randint(-1, 3, (40,), generator=generator)
    gallery = Embedded(x, y, cameras, torch.arange(40) + 100)
    return Embedded(*(part[:9] for part in (x, y, cameras, torch.arange(40) + 100))), gallery


def ranking(query: Embedded, gallery: Embedded, i: int, camera_rule: bool, similar: Tensor) -> list[int]:
    """The gallery rows that count for query i, the most similar first, misses before matches of a tie."""
    rows = []
    for j in range(len(gallery.features)):
        match = bool(query.identities[i] == gallery.identities[j])
        if query.keys is not None and gallery.keys is not None and query.keys[i] == gallery.keys[j]:
            continue
        if camera_rule and match and query.cameras is not None and gallery.cameras is not None:
            ours, theirs = int(query.cameras[i]), int(gallery.cameras[j])
            if ours == theirs and ours >= 0:
                continue
        rows.append((-float(similar[i, j]), match, j))
    return [j for _, _, j in sorted(rows)]


def naive(query: Embedded, gallery: Embedded, similar: Tensor | None = None) -> Retrieved:
    if similar is None:
        ours, theirs = (torch.nn.functional.normalize(e.features.double()) for e in (query, gallery))
        similar = (ours @ theirs.T * 2**20).round()
    precisions, ranks, free, top = [], [], [], []
    for i in range(len(query.features)):
        order = ranking(query, gallery, i, True, similar)
        hits = [n for n, j in enumerate(order) if gallery.identities[j] == query.identities[i]]
        precision = [(k + 1) / (n + 1) for k, n in enumerate(hits)]
        precisions.append(sum(precision) / len(hits) if hits else math.nan)
        ranks.append(hits[0] if hits else -1)
        top.append((order + [-1] * 5)[:5])
        order = ranking(query, gallery, i, False, similar)
        hits = [n for n, j in enumerate(order) if gallery.identities[j] == query.identities[i]]
        free.append(hits[0] if hits else -1)
    metrics = {"mAP": float(np.nanmean(precisions))}
    for name, places in (("cmc", ranks), ("recall", free)):
        counted = [n for n in places if n >= 0]
        if name == "recall" or (query.cameras is not None and gallery.cameras is not None):
            metrics |= {f"{name}{k}": sum(n < k for n in counted) / len(counted) for k in (1, 5, 10)}
    places = torch.tensor(ranks), torch.tensor(top)
    return Retrieved(metrics, torch.tensor(precisions, dtype=torch.float64), *places, ranks.count(-1))


def same(found: Retrieved, expected: Retrieved) -> None:
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-12)
    torch.testing.assert_close(
        found.average_precision, expected.average_precision, equal_nan=True, rtol=1e-12, atol=0
    )
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert found.top.tolist() == expected.top.tolist()
    assert found.skipped == expected.skipped


def test_golden_value_of_cdd() -> None:
    state = np.random.RandomState(0)
    features = [torch.from_numpy(state.randn(rows, 8)) for rows in (6, 120)]
    theirs = torch.from_numpy(state.randint(5, size=120))
    cameras = [torch.from_numpy(state.randint(3, size=rows)) for rows in (6, 120)]
    query = Embedded(features[0], torch.arange(6) % 5, cameras[0])
    found = retrieval(query, Embedded(features[1], theirs, cameras[1]))
    assert found.metrics["mAP"] == pytest.approx(0.18251540, abs=5e-9)
    assert [found.metrics[f"cmc{k}"] for k in (1, 5, 10)] == pytest.approx([0, 0.8333, 0.8333], abs=5e-5)
    assert found.skipped == 0


@pytest.mark.parametrize("known", ["all", "cameras", "keys", "none"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_every_figure_is_that_of_a_loop(seed: int, ties: bool, known: str) -> None:
    query, gallery = drawn(seed, ties)
    if known in ("cameras", "none"):
        query = replace(query, keys=None)
    if known in ("keys", "none"):
        gallery = replace(gallery, cameras=None)
    found = retrieval(query, gallery)
    same(found, naive(query, gallery))
    assert ("cmc1" in found.metrics) == (known in ("all", "cameras"))
    assert found.average_precision.dtype == torch.float64
    assert found.ranks.dtype == found.top.dtype == torch.int64


@pytest.mark.parametrize("chunk", [1, 2, 7, 9, 4096])
@pytest.mark.parametrize("ties", [False, True])
def test_chunks_change_nothing(chunk: int, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery = drawn(3, ties)
    whole, tables, products = retrieval(query, gallery), [], module._similarities

    def watched(ours: Tensor, theirs: Tensor) -> Tensor:
        tables.append(len(ours))
        return products(ours, theirs)

    monkeypatch.setattr(module, "_similarities", watched)
    same(retrieval(query, gallery, chunk=chunk), whole)
    assert max(tables) == min(chunk, 9)
    monkeypatch.setattr(module, "_ENTRIES", 100)  # of 40 gallery rows two queries' worth
    tables.clear()
    same(retrieval(query, gallery, chunk=chunk), whole)
    assert max(tables) == min(chunk, 2)


@pytest.mark.parametrize("width", [1, 7, 33, 512])
def test_a_collapsed_network_comes_last(width: int) -> None:
    """All rows alike: every miss stands before every match, wherever the rows stand."""
    row = torch.randn(1, width, generator=torch.Generator().manual_seed(width))
    y = torch.arange(23) % 3
    found = retrieval(Embedded(row.repeat(3, 1), torch.arange(3)), Embedded(row.repeat(23, 1), y))
    for i, precision in enumerate(found.average_precision.tolist()):
        matches = int((y == i).sum())
        assert precision == pytest.approx(np.mean([k / (23 - matches + k) for k in range(1, matches + 1)]))
        assert found.top[i].tolist() == [j for j in range(23) if int(y[j]) != i][:5]
    assert found.metrics["recall1"] == found.metrics["recall10"] == 0
    assert found.ranks.tolist() == [15, 15, 16]


def test_a_tie_is_a_miss() -> None:
    query = Embedded(torch.tensor([[1.0, 0.0]]), torch.tensor([4]))
    x = torch.tensor([[3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    first = retrieval(query, Embedded(x, torch.tensor([4, 5, 4])))
    assert first.ranks.tolist() == [1]
    assert first.top.tolist() == [[1, 0, 2, -1, -1]]
    assert first.metrics["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_fewer_rows_than_k_are_no_obstacle() -> None:
    x = torch.eye(3)
    query = Embedded(x[:2], torch.tensor([0, 1]), torch.tensor([0, 0]))
    gallery = Embedded(x.flip(0), torch.tensor([1, 0, 0]), torch.tensor([1, 0, 1]))
    found = retrieval(query, gallery)  # to query 0 two rows are left
    same(found, naive(query, gallery))
    assert found.top.tolist() == [[2, 0, -1, -1, -1], [1, 2, 0, -1, -1]]
    assert found.ranks.tolist() == [0, 2]
    assert [found.metrics[f"cmc{k}"] for k in (1, 5, 10)] == [0.5, 1, 1]


def test_the_two_rules_skip_differently() -> None:
    """Query 1's match is of its own camera: CMC leaves it out, recall does not; query 2 has none at all."""
    x = torch.eye(4)
    query = Embedded(x[:3], torch.tensor([0, 1, 2]), torch.tensor([5, 5, 5]))
    gallery = Embedded(x[[3, 1, 0]], torch.tensor([8, 1, 0]), torch.tensor([5, 5, 6]))
    found = retrieval(query, gallery)
    assert found.ranks.tolist() == [0, -1, -1]
    assert found.average_precision.isnan().tolist() == [False, True, True]
    assert found.skipped == 2
    assert found.metrics == {"mAP": 1, "cmc1": 1, "cmc5": 1, "cmc10": 1} | dict.fromkeys(
        ["recall1", "recall5", "recall10"], 1
    )
    far = replace(gallery, features=x[[3, 3, 0]])  # now query 1's match ties with a miss
    assert retrieval(query, far).metrics["recall1"] == 0.5
    assert retrieval(query, far).metrics["cmc1"] == 1
    assert found.top[1].tolist() == [0, 2, -1, -1, -1]  # a skipped query has a ranking all the same


def test_an_unknown_camera_equals_none() -> None:
    x = torch.eye(2)
    query, gallery = (Embedded(x, torch.tensor([0, 1]), torch.tensor([-1, 3])) for _ in range(2))
    found = retrieval(query, gallery)
    assert found.ranks.tolist() == [0, -1]
    unknown = replace(gallery, cameras=torch.tensor([-1, -1]))
    assert "cmc1" not in retrieval(query, unknown).metrics
    assert retrieval(query, unknown).metrics["mAP"] == 1


def test_a_querys_own_picture_never_counts() -> None:
    """Nor does it as a miss, where the two tables call it by two names."""
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    query = Embedded(x[:1], torch.tensor([0]), None, torch.tensor([50]))
    gallery = Embedded(x, torch.tensor([0, 1, 0]), None, torch.tensor([50, 51, 52]))
    for name in (0, 9):
        own = replace(gallery, identities=torch.tensor([name, 1, 0]))
        found = retrieval(query, own)
        assert found.top.tolist() == [[1, 2, -1, -1, -1]]
        assert found.metrics == {"mAP": 0.5, "recall1": 0, "recall5": 1, "recall10": 1}
    assert retrieval(replace(query, keys=None), gallery).metrics["recall1"] == 1


def test_only_directions_count() -> None:
    query, gallery = drawn()
    expected = retrieval(query, gallery)
    scale = torch.logspace(-18, 30, 40)[:, None]
    same(retrieval(query, replace(gallery, features=gallery.features * scale)), expected)
    same(retrieval(replace(query, features=query.features.double() * 1e-9), gallery), expected)


def test_a_row_of_zeros_is_similar_to_none() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.0]])
    query = Embedded(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 2]))
    found = retrieval(query, Embedded(x, torch.tensor([0, 1, 2])))
    assert found.ranks.tolist() == [1, 2]
    assert found.top.tolist() == [[1, 0, 2, -1, -1], [0, 1, 2, -1, -1]]


def test_distances_are_ranked_by_instead() -> None:
    query, gallery = drawn()
    distances = torch.rand(9, 40, generator=torch.Generator().manual_seed(5)).mul(8).round()
    found = retrieval(query, gallery, distances=distances, chunk=4)
    same(found, naive(query, gallery, -distances))
    assert found.metrics["mAP"] != pytest.approx(retrieval(query, gallery).metrics["mAP"], rel=1e-3)


QUERY, GALLERY = drawn()
BAD = GALLERY.features.clone()
BAD[2, 1], BAD[5, 0] = math.nan, math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": BAD}, r"features of 2 of 40 pictures of the gallery are not finite \(NaN or Inf\)"),
        ({"features": torch.zeros(40, 5)}, "of the query are 6 wide and those of the gallery 5: one network"),
        (
            {"features": torch.zeros(40)},
            r"of the gallery must have the shape \[pictures, width\], not \[40\]",
        ),
        (
            {"identities": torch.zeros(40, dtype=torch.long) - 9},
            "^no query has a match in the gallery: there",
        ),
        ({"identities": torch.zeros(39, dtype=torch.long)}, "identities of the gallery must be 40 integers"),
        ({"cameras": torch.zeros(40)}, r"cameras of the gallery must be 40 integers, .* not torch.float32"),
        ({"keys": torch.zeros(40, 1, dtype=torch.long)}, r"keys .* of the shape \[40, 1\]"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval(QUERY, replace(GALLERY, **change))


def test_nothing_to_measure_is_refused() -> None:
    none = Embedded(*(part[:0] for part in (QUERY.features, QUERY.identities)))
    with pytest.raises(ValueError, match="the query holds no pictures: there is nothing to search"):
        retrieval(none, GALLERY)
    with pytest.raises(ValueError, match="the gallery holds no pictures: there is nothing to search"):
        retrieval(QUERY, none)
    query, gallery = (replace(e, cameras=torch.zeros_like(e.identities)) for e in (QUERY, GALLERY))
    with pytest.raises(ValueError, match="no query has a match in the gallery that the camera rule leaves"):
        retrieval(query, gallery)
    with pytest.raises(ValueError, match="chunk must be at least 1, not 0"):
        retrieval(QUERY, GALLERY, chunk=0)
    for distances in (torch.zeros(40, 9), torch.full((9, 40), math.nan)):
        with pytest.raises(ValueError, match=r"distances must be finite and of the shape \[9, 40\]"):
            retrieval(QUERY, GALLERY, distances=distances)
