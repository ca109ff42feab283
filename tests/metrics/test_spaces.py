"""Figures of two spaces: printed numbers, loops over all pairs, ties, parts of any size, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdcli.errors import NotFinite
from kdcli.metrics import spaces
from kdcli.metrics.spaces import (
    chance,
    figures,
    gap,
    mean_cosine,
    relative_retrieval,
    shared_neighbours,
    spectrum,
    text_order,
)

Rows = list[list[float]]


def tensors(seed: int = 1, pictures: int = 60, texts: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and texts; those of seed 1 are of the golden values."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(pictures, 16, generator=generator)
    s = 0.6 * t + torch.randn(pictures, 16, generator=generator)
    return s, t, torch.randn(texts, 16, generator=generator)


def test_printed_numbers() -> None:
    s, t, x = tensors()
    assert relative_retrieval(s, t) == pytest.approx(0.4166667, rel=1e-6)
    assert shared_neighbours(s, t, 3) == pytest.approx(0.0611111, rel=1e-6)
    assert shared_neighbours(s, t, 10) == pytest.approx(0.25, rel=1e-6)
    assert text_order(s, t, x, 2) == pytest.approx(0.3166667, rel=1e-6)
    assert text_order(s, t, x, 5) == pytest.approx(4.05, rel=1e-6)
    assert gap(s, t) == pytest.approx((1.01993838, 59.836537), rel=1e-7)
    assert spectrum(x, 3).tolist() == pytest.approx([2.0691805, 1.6528625, 1.5405717], rel=1e-7)
    assert mean_cosine(x) == pytest.approx(-0.0192604, rel=1e-5)


def units(rows: Tensor) -> Rows:
    return [[v / (math.hypot(*row) or 1.0) for v in row] for row in rows.double().tolist()]


def naive_retrieval(s: Tensor, t: Tensor) -> float:
    ours, theirs = units(s), units(t)
    hits = [min((math.dist(p, q), j) for j, q in enumerate(theirs))[1] == i for i, p in enumerate(ours)]
    return sum(hits) / len(hits)


def naive_neighbours(s: Tensor, t: Tensor, k: int) -> float:
    def near(rows: Rows, i: int) -> set[int]:
        others = sorted((math.dist(rows[i], q), j) for j, q in enumerate(rows) if j != i)
        return {j for _, j in others[:k]}

    ours, theirs = units(s), units(t)
    return sum(len(near(ours, i) & near(theirs, i)) for i in range(len(s))) / (k * len(s))


def naive_order(s: Tensor, t: Tensor, x: Tensor, k: int) -> float:
    ours, theirs, texts = units(s), units(t), units(x)
    total = 0
    for p, q in zip(ours, theirs):
        ascending = sorted(range(len(texts)), key=lambda j: math.dist(q, texts[j]))[:k]
        far = [math.dist(p, texts[j]) for j in ascending]
        total += sum(far[a] > far[b] for a in range(k) for b in range(a + 1, k))
    return total / len(s)


@pytest.mark.parametrize("entries", [2**22, 100, 1])
@pytest.mark.parametrize("seed", [2, 3])
def test_loops_over_all_pairs(seed: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "_ENTRIES", entries)
    s, t, x = tensors(seed, pictures=31, texts=11)
    assert relative_retrieval(s, t) == pytest.approx(naive_retrieval(s, t))
    for k in (1, 4, 29, 30):
        assert shared_neighbours(s, t, k) == pytest.approx(naive_neighbours(s, t, k))
    for k in (2, 3, 10, 11):
        assert text_order(s, t, x, k) == pytest.approx(naive_order(s, t, x, k))


@pytest.mark.parametrize("seed", [2, 3])
def test_gap_and_texts_against_loops(seed: int) -> None:
    s, t, x = tensors(seed)
    dots = [sum(a * b for a, b in zip(p, q)) for p, q in zip(units(s), units(t))]
    angles = [math.degrees(math.acos(v)) for v in dots]
    assert gap(s, t) == pytest.approx((sum(2 - 2 * v for v in dots) / 60, sum(angles) / 60), rel=1e-9)
    rows = units(x)
    cosines = [math.fsum(a * b for a, b in zip(p, q)) for p in rows for q in rows if p is not q]
    assert mean_cosine(x) == pytest.approx(sum(cosines) / (20 * 19), rel=1e-9)
    centred = torch.tensor(rows, dtype=torch.float64)
    centred = centred - centred.mean(dim=0)
    squares = torch.linalg.eigvalsh(centred.T @ centred).flip(0).clamp(min=0).sqrt()
    torch.testing.assert_close(spectrum(x), squares[:10])


def test_the_students_are_queries_and_the_teachers_are_searched() -> None:
    """Teacher 1 is the nearest to both students; of the students each is nearest to its teacher."""
    s = torch.tensor([[1.0, 0.0], [0.7, 0.71]])
    t = torch.tensor([[0.0, 1.0], [0.9, 0.2]])
    assert relative_retrieval(s, t) == naive_retrieval(s, t) == 0.5
    assert relative_retrieval(t, s) == naive_retrieval(t, s) == 0.0


def test_a_student_that_is_its_teacher() -> None:
    _, t, x = tensors()
    found = figures(4 * t, t, x)
    assert found.pop("text_cosine") == mean_cosine(x)
    assert found == {
        "relative_retrieval": 1,
        **{f"shared_neighbours{k}": 1 for k in (3, 5, 10)},
        **{f"text_order{k}": 0 for k in (2, 3, 5)},
        "squared_distance": pytest.approx(0, abs=1e-15),
        "degrees": pytest.approx(0, abs=1e-6),
    }


def test_opposite_and_small_angles() -> None:
    t = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert gap(-t, t) == pytest.approx((4.0, 180.0))
    turned = torch.tensor([[1.0, 1e-9]], dtype=torch.float64)
    assert gap(turned, t)[1] == pytest.approx(math.degrees(1e-9), rel=1e-6)


@pytest.mark.parametrize("row", [torch.ones(16), torch.zeros(16)])
def test_a_student_that_finds_all_alike_gets_no_more_than_a_guess(row: Tensor) -> None:
    _, t, x = tensors()
    s = row.expand(60, 16)
    assert relative_retrieval(s, t) <= 1 / 60
    assert shared_neighbours(s, t, 10) == pytest.approx(10 / 59, abs=0.05)
    if not row.any():
        for k in (2, 5, 20):
            assert text_order(s, t, x, k) == k * (k - 1) / 4
        assert gap(s, t) == pytest.approx((1.0, 90.0))


def test_ties_of_pictures() -> None:
    """Teachers 0 and 1 are one: neither is found. Of equally far pictures the lower number is nearer."""
    t = torch.tensor([[1.0, 0], [2, 0], [0, 1], [-1, 0], [0, -1]])
    assert relative_retrieval(t, t) == pytest.approx(3 / 5)
    first = spaces._nearest(torch.tensor([[4.0, 1, 3, 1, 1, 3]]), 2)
    assert first.tolist() == [[False, True, False, True, False, False]]
    assert spaces._nearest(torch.tensor([[4.0, 1, 3, 1, 1, 3]]), 4).nonzero()[:, 1].tolist() == [1, 2, 3, 4]
    t = torch.tensor([[1.0, 0], [-1, 0], [0, 1]])  # 2 is as far from 0 as from 1: 0 is its neighbour
    for leaning, shared in ((0.1, 1.0), (-0.1, 2 / 3)):
        s = torch.tensor([[1.0, 0], [-1, 0], [leaning, 1]])
        assert shared_neighbours(s, t, 1) == pytest.approx(shared)


def test_equal_rows_tie_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same picture 40 times over: no copy is nearer than another, in parts of whatever size."""
    _, t, _ = tensors(pictures=1)
    for entries in (2**22, 280, 1):
        monkeypatch.setattr(spaces, "_ENTRIES", entries)
        t = t[:1].repeat(40, 1) * torch.linspace(0.1, 9, 40)[:, None]
        assert relative_retrieval(t, t) == 0
        assert shared_neighbours(t, t, 7) == 1  # the lower numbers, in both


def test_ties_of_texts() -> None:
    t = torch.tensor([[1.0, 0.0]])
    x = torch.tensor([[2.0, 1], [2, -1], [0, 1], [0, -1]])  # 0 and 1 equally far from t, then 2 and 3
    s = torch.tensor([[1.0, 0.3]])  # nearer to 0 than to 1, to 2 than to 3
    assert text_order(s, t, x, 4) == 0
    assert text_order(s * torch.tensor([1.0, -1]), t, x, 4) == 0  # what the teacher ties has no order
    assert text_order(-s, t, x, 4) == 4  # all pairs between {0, 1} and {2, 3}
    assert text_order(torch.zeros(1, 2), t, x, 4) == 2  # each of those four counts one half
    assert text_order(-s, t, x, 3) == 2  # 2 is taken and not 3
    x = torch.tensor([[0.0, -1], [0, 1], [1, 0]])  # by t: 2, then 0 and 1, of which 0 is taken
    assert (
        text_order(torch.tensor([[-0.1, 1.0]]), t, x, 2) == 0
    )  # its distances: 1, 0, 2; 0 is farther than 2
    assert text_order(torch.tensor([[-0.1, -1.0]]), t, x, 2) == 1


def test_no_table_of_all_pairs_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = spaces._distances

    def watched(a: Tensor, b: Tensor, columns: int = 1) -> object:
        for rows, distances in real(a, b, columns):
            sizes.append(distances.numel())
            yield rows, distances

    monkeypatch.setattr(spaces, "_distances", watched)
    monkeypatch.setattr(spaces, "_ENTRIES", 200)
    s, t, x = tensors()
    relative_retrieval(s, t)
    assert (max(sizes), sum(sizes)) == (180, 60 * 60)
    sizes.clear()
    text_order(s, t, x, 14)
    assert (max(sizes), sum(sizes)) == (20, 2 * 60 * 20)  # 14² entries of pairs leave one row a part


def test_figures_leave_out_what_does_not_fit() -> None:
    s, t, x = tensors(pictures=5, texts=2)
    found = figures(s, t, x)
    shown = ["relative_retrieval", "shared_neighbours3", "text_order2", "squared_distance", "degrees"]
    assert list(found) == [*shown, "text_cosine"]
    assert found["shared_neighbours3"] == shared_neighbours(s, t, 3)
    assert found["text_order2"] == text_order(s, t, x, 2)
    assert (found["squared_distance"], found["degrees"]) == gap(s, t)
    assert list(figures(s[:1], t[:1], x[:1])) == ["relative_retrieval", "squared_distance", "degrees"]
    chosen = figures(s, t, x, neighbours=(0, 4, 2), orders=(1, 9))
    assert list(chosen) == [
        *("relative_retrieval", "shared_neighbours4", "shared_neighbours2"),
        *("squared_distance", "degrees", "text_cosine"),
    ]
    assert chosen["shared_neighbours4"] == 1
    assert chosen["shared_neighbours2"] == naive_neighbours(s, t, 2)


def test_chance_is_what_guessing_gives() -> None:
    assert chance(60, 20) == {
        "relative_retrieval": 1 / 60,
        **{"shared_neighbours3": 3 / 59, "shared_neighbours5": 5 / 59, "shared_neighbours10": 10 / 59},
        **{"text_order2": 0.5, "text_order3": 1.5, "text_order5": 5.0},
    }
    assert list(chance(5, 2)) == ["relative_retrieval", "shared_neighbours3", "text_order2"]
    assert chance(1, 1) == {"relative_retrieval": 1}
    generator = torch.Generator().manual_seed(7)
    s, t = (torch.randn(600, 16, generator=generator) for _ in range(2))
    _, _, x = tensors()
    guessed, expected = figures(s, t, x), chance(600, 20)
    assert set(expected) < set(guessed)
    assert guessed["relative_retrieval"] < 5 / 600
    for name in ("shared_neighbours10", "text_order2", "text_order3", "text_order5"):
        assert guessed[name] == pytest.approx(expected[name], rel=0.15)


def test_lengths_and_extremes_are_of_no_effect() -> None:
    s, t, x = tensors()
    scaled = figures(s * torch.linspace(0.1, 9, 60)[:, None], 7 * t, 0.2 * x)
    assert scaled == pytest.approx(figures(s, t, x), rel=1e-6)
    huge = figures(s.double() * 1e300, t.double() * 1e-300, x.double() * 1e200)
    assert huge == pytest.approx(figures(s, t, x), rel=1e-9)


def test_spaces_of_unlike_width_have_neighbours_in_common() -> None:
    s, t, _ = tensors(2, pictures=31)
    assert shared_neighbours(s[:, :9], t, 4) == pytest.approx(naive_neighbours(s[:, :9], t, 4))


S, T, X = tensors(pictures=4, texts=3)
NAN = S.clone()
NAN[1, 2], NAN[3, 0] = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: relative_retrieval(NAN, T), r"^2 of 4 embeddings of the students are not finite"),
        (lambda: shared_neighbours(S, NAN, 2), r"^2 of 4 embeddings of the teachers are not finite"),
        (lambda: gap(S, NAN), r"^2 of 4 embeddings of the teachers are not finite"),
        (lambda: text_order(S, T, NAN, 2), r"^2 of 4 embeddings of the texts are not finite"),
        (lambda: spectrum(NAN), r"^2 of 4 embeddings of the texts are not finite"),
        (lambda: mean_cosine(NAN), r"^2 of 4 embeddings of the texts are not finite"),
        (lambda: figures(S, T, NAN), r"^2 of 4 embeddings of the texts are not finite"),
    ],
)
def test_what_is_not_finite_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(NotFinite, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gap(S[:0], T[:0]), "there are no embeddings of the students: a figure of an empty set"),
        (lambda: shared_neighbours(S[:0], T[:0], 1), "there are no embeddings of the students"),
        (lambda: spectrum(X[:0]), "there are no embeddings of the texts"),
        (lambda: text_order(S, T, X[:0], 2), "there are no embeddings of the texts"),
        (lambda: gap(S[0], T[0]), r"of the students must have the shape \[rows, width\], not \[16\]"),
        (lambda: gap(S[:3], T), "of 3 pictures by the student and of 4 by the teacher: both must be of"),
        (lambda: shared_neighbours(S[:3], T, 1), "of 3 pictures by the student and of 4 by the teacher"),
        (lambda: gap(S[:, :9], T), "of the students are 9 wide and those of the teachers 16: all must be"),
        (lambda: text_order(S, T, X[:, :9], 2), "of the texts are 9 wide and those of the teachers 16"),
        (lambda: shared_neighbours(S, T, 0), "k must be from 1 to 3, the number of other pictures, not 0"),
        (lambda: shared_neighbours(S, T, 4), "k must be from 1 to 3, the number of other pictures, not 4"),
        (lambda: text_order(S, T, X, 1), "k must be from 2 to 3, the number of texts, not 1"),
        (lambda: text_order(S, T, X, 4), "k must be from 2 to 3, the number of texts, not 4"),
        (lambda: spectrum(X, 0), "count must be at least 1, not 0"),
        (lambda: mean_cosine(X[:1]), "needs at least two texts, got 1"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_spectrum_is_no_longer_than_there_are_values() -> None:
    assert spectrum(X).shape == (3,)
    assert spectrum(X)[2].item() == pytest.approx(0, abs=1e-9)  # of three centred texts, two are free
    assert spectrum(tensors()[2], 99).shape == (16,)
    assert spectrum(X, 2).tolist() == spectrum(X)[:2].tolist()
