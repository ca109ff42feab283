"""Losses between relations against naive loops; invariances; rows that coincide."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients
from torch import Tensor

from kdcli.losses.relations import cc, darkrank, pkt, rkd_angle, rkd_distance, sp

RKD = [rkd_distance, rkd_angle]


def smooth_l1(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5


def scaled(rows: Any, normalize: bool) -> Any:
    return [[v / math.hypot(*row) for v in row] for row in rows] if normalize else rows


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b))


def naive_rkd_distance(s: Any, t: Any, *, normalize: bool = False) -> float:
    def relative(rows: Any) -> list[float]:
        distances = [math.dist(a, b) for a in rows for b in rows]
        positive = [d for d in distances if d > 0]
        return [d / (sum(positive) / len(positive)) for d in distances]

    pairs = zip(relative(scaled(s, normalize)), relative(scaled(t, normalize)))
    return sum(smooth_l1(a, b) for a, b in pairs) / len(s) ** 2


def naive_rkd_angle(s: Any, t: Any, *, normalize: bool = False) -> float:
    def angle(rows: Any, i: int, j: int, k: int) -> float:
        one, two = ([b - a for a, b in zip(rows[i], rows[other])] for other in (j, k))
        sizes = math.hypot(*one) * math.hypot(*two)
        return dot(one, two) / sizes if sizes else 0.0

    s, t, n = scaled(s, normalize), scaled(t, normalize), range(len(s))
    return sum(smooth_l1(angle(s, i, j, k), angle(t, i, j, k)) for i in n for j in n for k in n) / len(s) ** 3


def naive_darkrank(s: Any, t: Any, *, alpha: float, beta: float, length: int) -> float:
    total = 0.0
    for i in range(len(s)):
        others = sorted((j for j in range(len(t)) if j != i), key=lambda j: math.dist(t[i], t[j]))[:length]
        scores = [-alpha * math.dist(s[i], s[j]) ** beta for j in others]
        for place, score in enumerate(scores):
            total -= score - math.log(sum(math.exp(v) for v in scores[place:]))
    return total / len(s)


def naive_sp(s: Any, t: Any) -> float:
    def table(rows: Any) -> Any:
        return scaled([[dot(a, b) for b in rows] for a in rows], True)

    pairs = [(a, b) for x, y in zip(table(s), table(t)) for a, b in zip(x, y)]
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


def naive_cc(s: Any, t: Any) -> float:
    d = [[abs(a - b) for a, b in zip(x, y)] for x, y in zip(s, t)]
    return sum(dot(d[n], d[n + 1]) for n in range(len(d) - 1)) / (len(d) - 1)


def naive_pkt(s: Any, t: Any) -> float:
    def table(rows: Any) -> list[list[float]]:
        unit = scaled(rows, True)
        similar = [[(dot(a, b) + 1) / 2 for b in unit] for a in unit]
        return [[v / sum(row) for v in row] for row in similar]

    pairs = [(a, b) for x, y in zip(table(s), table(t)) for a, b in zip(x, y)]
    return sum(b * math.log((b + 1e-7) / (a + 1e-7)) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize(
    ("loss", "naive", "keywords"),
    [
        (rkd_distance, naive_rkd_distance, {}),
        (rkd_distance, naive_rkd_distance, {"normalize": True}),
        (rkd_angle, naive_rkd_angle, {}),
        (rkd_angle, naive_rkd_angle, {"normalize": True}),
        (darkrank, naive_darkrank, {"alpha": 0.5, "beta": 2.0, "length": 3}),
        (sp, naive_sp, {}),
        (pkt, naive_pkt, {}),
    ],
)
def test_loss_is_its_equation_for_two_widths(
    loss: Callable[..., Tensor], naive: Callable[..., float], keywords: dict[str, Any]
) -> None:
    agree(loss, naive, draw(6, 4), draw(6, 7, seed=1), rel=1e-4, **keywords)


def test_cc_is_its_equation() -> None:
    agree(cc, naive_cc, draw(6, 4), draw(6, 4, seed=1))


@pytest.mark.parametrize("loss", [rkd_distance, rkd_angle, darkrank, sp, pkt])
def test_maps_are_flattened(loss: Callable[..., Tensor]) -> None:
    s, t = draw(5, 2, 3, 3), draw(5, 4, 2, 2, seed=1)
    assert torch.equal(loss(s, t), loss(s.flatten(1), t.flatten(1)))


@pytest.mark.parametrize("loss", RKD)
def test_rotation_scale_and_shift_change_nothing(loss: Callable[..., Tensor]) -> None:
    s, t = draw(8, 16), draw(8, 32, seed=1)
    turn = torch.linalg.qr(draw(16, 16, seed=2)).Q
    torch.testing.assert_close(
        loss(3 * s @ turn + draw(16, seed=3), 0.2 * t), loss(s, t), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("loss", RKD)
def test_a_common_offset_does_not_drown_distances_under_autocast(loss: Callable[..., Tensor]) -> None:
    """Features after a ReLU share an offset, on which |x|² − 2xy + |y|² in bf16 leaves noise only."""
    s, t = torch.nn.functional.normalize(draw(16, 64)) + 3, draw(16, 64, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(s, t)
    torch.testing.assert_close(inside, loss(s.double().sub(3).float(), t), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("loss", [*RKD, sp, pkt])
def test_the_same_features_cost_nothing(loss: Callable[..., Tensor]) -> None:
    x = draw(6, 5).requires_grad_()
    value = loss(x, x.detach())
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert gradients(value, x)[0].abs().max() < 1e-6


@pytest.mark.parametrize("loss", [*RKD, darkrank, sp, pkt])
def test_rows_that_coincide_have_finite_gradients(loss: Callable[..., Tensor]) -> None:
    s, t = draw(6, 5), draw(6, 5, seed=1)
    s[1], s[4], t[3] = s[0], 0, t[2]
    s.requires_grad_()
    value = loss(s, t)
    (gradient,) = gradients(value, s)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 1e3


@pytest.mark.parametrize("loss", [*RKD, darkrank, sp, pkt])
def test_a_collapsed_batch_is_finite(loss: Callable[..., Tensor]) -> None:
    for row in (torch.ones(1, 5), torch.zeros(1, 5)):
        s = row.repeat(4, 1).requires_grad_()
        value = loss(s, draw(4, 5))
        assert value.isfinite()
        assert gradients(value, s)[0].isfinite().all()


@pytest.mark.parametrize("normalize", [False, True])
def test_coinciding_rows_have_no_share_in_the_mean_distance(normalize: bool) -> None:
    s, t = draw(5, 4), draw(5, 4, seed=1)
    s[1] = s[0]
    expected = naive_rkd_distance(s.tolist(), t.tolist(), normalize=normalize)
    assert float(rkd_distance(s, t, normalize=normalize)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [*RKD, darkrank])
@pytest.mark.parametrize("count", [1, 2])
def test_two_rows_are_too_few(loss: Callable[..., Tensor], count: int) -> None:
    with pytest.raises(ValueError, match=f"a relation between rows needs at least 3 rows, got {count}"):
        loss(draw(count, 4), draw(count, 4))


def test_pkt_of_opposite_rows_is_finite() -> None:
    """Rounding takes some of their cosines so far below -1 that a logarithm would be NaN."""
    for row in draw(400, 1, 64):
        s = torch.cat([row, -3 * row]).requires_grad_()
        value = pkt(s, draw(2, 5, seed=1))
        assert value.isfinite()
        assert gradients(value, s)[0].isfinite().all()


def test_cc_needs_a_neighbour_and_one_width() -> None:
    with pytest.raises(ValueError, match="needs at least 2 rows, got 1"):
        cc(draw(1, 4), draw(1, 4))
    with pytest.raises(ValueError, match="must have one shape"):
        cc(draw(3, 4), draw(3, 1))


def test_darkrank_is_least_for_the_teachers_own_ranking() -> None:
    t = draw(8, 5)
    value = darkrank(t, t)
    assert float(value) < float(darkrank(draw(8, 5, seed=1), t))
    assert torch.equal(darkrank(t, t, length=7), darkrank(t, t, length=50))


def test_gradient_reaches_the_teacher_unless_detached() -> None:
    s, t = draw(5, 4), draw(5, 4, seed=1).requires_grad_()
    for loss in (*RKD, sp, pkt, cc):
        assert gradients(loss(s, t), t)[0].abs().sum() > 0
        assert not loss(s, t.detach()).requires_grad
