"""Losses between features against naive loops; grids, dead channels, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.losses.features import ab, at, fitnets_hint, ft, hint, mgd, nst, same_grid, vid
from kdcli.models.adapters import (
    MaskedGeneration,
    VariationalMean,
    connector,
    paraphraser,
    rebuilder,
    translator,
)

MAP_LOSSES = [at, ft, nst]


def flat(x: Any) -> list[float]:
    return [v for part in x for v in flat(part)] if isinstance(x, list) else [x]


def naive_hint(s: Any, t: Any) -> float:
    squares = [(a - b) ** 2 for a, b in zip(flat(s), flat(t))]
    return sum(squares) / len(squares)


def naive_fitnets(s: Any, t: Any) -> float:
    """½ Σ_c (s − t)², mean over rows and positions."""
    total, count = 0.0, 0
    for n in range(len(s)):
        for i in range(len(s[n][0])):
            for j in range(len(s[n][0][0])):
                total += 0.5 * sum((s[n][c][i][j] - t[n][c][i][j]) ** 2 for c in range(len(s[n])))
                count += 1
    return total / count


def attention(maps: Any) -> list[float]:
    """One picture: mean over channels of A², at length 1 over positions."""
    channels = [flat(c) for c in maps]
    energy = [sum(v * v for v in position) / len(channels) for position in zip(*channels)]
    return [e / math.hypot(*energy) for e in energy]


def naive_at(s: Any, t: Any) -> float:
    differences = [a - b for x, y in zip(s, t) for a, b in zip(attention(x), attention(y))]
    return sum(d * d for d in differences) / len(differences)


def naive_ft(s: Any, t: Any) -> float:
    differences = [a - b for x, y in zip(s, t) for a, b in zip(attention(x), attention(y))]
    return sum(abs(d) for d in differences) / len(differences)


def naive_nst(s: Any, t: Any) -> float:
    def kernel(a: Any, b: Any) -> float:
        total = 0.0
        for x in a:
            for y in b:
                u, v = flat(x), flat(y)
                total += (sum(p * q for p, q in zip(u, v)) / math.hypot(*u) / math.hypot(*v)) ** 2
        return total / (len(a) * len(b))

    rows = [kernel(y, y) + kernel(x, x) - 2 * kernel(x, y) for x, y in zip(s, t)]
    return sum(rows) / len(rows)


@pytest.mark.parametrize(
    ("loss", "naive"),
    [(hint, naive_hint), (fitnets_hint, naive_fitnets), (at, naive_at), (ft, naive_ft), (nst, naive_nst)],
)
def test_loss_is_its_equation(loss: Callable[..., Tensor], naive: Callable[..., float]) -> None:
    agree(loss, naive, draw(3, 4, 3, 2), draw(3, 4, 3, 2, seed=1))


@pytest.mark.parametrize("loss", MAP_LOSSES)
@pytest.mark.parametrize(
    ("grid", "other"), [((8, 8), (4, 4)), ((3, 3), (6, 3)), ((7, 5), (3, 5)), ((4, 6), (6, 4))]
)
def test_the_larger_grid_is_averaged_to_the_smaller(
    loss: Callable[..., Tensor], grid: tuple[int, int], other: tuple[int, int]
) -> None:
    """Also where one map is taller and the other wider; widths may differ."""
    s, t = draw(2, 3, *grid), draw(2, 5, *other, seed=1)
    smaller = (min(grid[0], other[0]), min(grid[1], other[1]))
    expected = loss(F.adaptive_avg_pool2d(s, smaller), F.adaptive_avg_pool2d(t, smaller))
    torch.testing.assert_close(loss(s, t), expected)


def test_same_grid_averages_windows() -> None:
    s, t = same_grid(torch.arange(16.0).reshape(1, 1, 4, 4), torch.zeros(1, 1, 2, 2))
    assert s.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert t.shape == (1, 1, 2, 2)


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_maps_are_needed(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"maps \[B, C, H, W\] are needed, got \[4, 9, 6\]"):
        loss(draw(4, 9, 6), draw(4, 6, 3, 3))


@pytest.mark.parametrize("loss", [hint, fitnets_hint])
def test_hints_need_one_shape(loss: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"must have one shape; a regressor"):
        loss(draw(4, 1, 3, 3), draw(4, 6, 3, 3))


@pytest.mark.parametrize("loss", [hint, fitnets_hint, *MAP_LOSSES])
def test_the_same_features_cost_nothing(loss: Callable[..., Tensor]) -> None:
    x = draw(3, 4, 3, 3).requires_grad_()
    value = loss(x, x.detach())
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert gradients(value, x)[0].abs().max() < 1e-6


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_a_dead_channel_and_a_dead_picture_have_finite_gradients(loss: Callable[..., Tensor]) -> None:
    s, t = draw(3, 4, 3, 3).relu(), draw(3, 4, 3, 3, seed=1).relu()
    s[0, 1], s[1], t[2] = 0, 0, 0
    s.requires_grad_()
    value = loss(s, t)
    (gradient,) = gradients(value, s)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert 0 < gradient.abs().max() < 10


@pytest.mark.parametrize("loss", MAP_LOSSES)
def test_scale_does_not_matter(loss: Callable[..., Tensor]) -> None:
    s, t = draw(3, 4, 3, 3), draw(3, 4, 3, 3, seed=1)
    torch.testing.assert_close(loss(7 * s, 0.1 * t), loss(s, t))


def test_nst_takes_gradient_to_the_teacher_through_the_cross_term_alone() -> None:
    s, t = draw(2, 3, 2, 2).requires_grad_(), draw(2, 3, 2, 2, seed=1).requires_grad_()
    a, b = (F.normalize(x.flatten(2), dim=2) for x in (s, t))
    cross = -2 * (a @ b.mT).square().mean()
    torch.testing.assert_close(gradients(nst(s, t), t)[0], gradients(cross, t)[0])
    assert not nst(s.detach(), t.detach()).requires_grad


def given(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mine", "its", "value", "slope", "of_scale"),
    [
        (8, 8, 0.8372408404089559, 0.0012675946479647725, 0.033843111703883245),
        (8, 4, 0.8259687469650261, 0.0013149128259123224, 0.03485668745309425),
        (4, 8, 0.7439035176137139, 0.0013747445314210194, 0.043526540883510406),
    ],
)
def test_vid_has_the_values_of_repdistiller(
    mine: int, its: int, value: float, slope: float, of_scale: float
) -> None:
    """VIDLoss(5, 7, 7) of distiller_zoo, weights and maps drawn as here, in float64."""
    student, teacher = given(3, 5, mine, mine, seed=2).requires_grad_(), given(3, 7, its, its, seed=3)
    regressor = VariationalMean((5, mine, mine), (7, its, its)).double()
    assert torch.allclose(F.softplus(regressor.scale), torch.full((7,), 5.0, dtype=torch.float64))
    with torch.no_grad():
        for number, layer in enumerate(regressor.layers[::2]):
            layer.weight.copy_(0.3 * given(*layer.weight.shape, seed=10 + number))
        start = (torch.tensor(5.0 - 1e-5, dtype=torch.float64).exp() - 1).log()
        regressor.scale.copy_(start + given(7, seed=20))
    found = vid(regressor(student), teacher, regressor.scale)
    found.backward()
    assert float(found) == pytest.approx(value, rel=1e-5)
    assert float(student.grad.norm()) == pytest.approx(slope, rel=1e-4)  # type: ignore[union-attr]
    assert float(regressor.scale.grad.norm()) == pytest.approx(of_scale, rel=1e-4)  # type: ignore[union-attr]


def test_vid_is_a_likelihood() -> None:
    """Beside a constant: of numbers of their own under a normal distribution of that mean and variance."""
    mean, teacher = given(2, 3, 2, 2, seed=0), given(2, 3, 2, 2, seed=1)
    scale = given(3, seed=2)
    variance = (F.softplus(scale) + 1e-5).view(-1, 1, 1)
    normal = torch.distributions.Normal(mean, variance.sqrt().expand_as(mean))
    expected = -normal.log_prob(teacher).mean() - 0.5 * math.log(2 * math.pi)
    assert float(vid(mean, teacher, scale)) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="maps"):
        vid(mean[0], teacher, scale)
    with pytest.raises(ValueError, match=r"shape"):
        vid(mean, teacher[:, :2], scale)


def test_mgd_has_the_values_of_the_authors_code_where_nothing_is_masked() -> None:
    """MGDLoss(5, 7, alpha_mgd=7e-5, lambda_mgd=0) of cls_KD, weights and maps drawn as here, in float64."""
    student, teacher = given(3, 5, 6, 6, seed=4).requires_grad_(), given(3, 7, 6, 6, seed=5)
    generator = MaskedGeneration((5, 6, 6), (7, 6, 6), masked=0.0).double()
    with torch.no_grad():
        for number, parameter in enumerate(generator.parameters()):
            parameter.copy_(0.2 * given(*parameter.shape, seed=30 + number))
    found = 7e-5 * mgd(generator(student), teacher)
    found.backward()
    assert float(found) == pytest.approx(0.02249584708569567, rel=1e-5)
    assert float(student.grad.norm()) == pytest.approx(0.0010922103576184272, rel=1e-4)  # type: ignore[union-attr]


def test_whole_channels_are_masked_in_training_alone() -> None:
    generator = MaskedGeneration((4, 3, 3), (4, 3, 3), masked=0.5)
    seen: list[Tensor] = []
    generator.generation.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.ones(64, 4, 3, 3)
    generator.train()(x)
    generator.eval()(x)
    masked, whole = seen
    kept = masked.flatten(2)
    assert torch.equal(kept.amin(2), kept.amax(2))  # a channel is there, or is not
    assert set(kept.unique().tolist()) == {0.0, 1.0}  # and no larger for that
    assert 0.35 < float(kept.mean()) < 0.65
    assert torch.equal(whole, x)
    with pytest.raises(ValueError, match=r"two maps of one grid, not \[4, 3, 3\] and \[4, 6, 6\]"):
        MaskedGeneration((4, 3, 3), (4, 6, 6))


def naive_ab(s: Any, t: Any, *, margin: float) -> float:
    total = 0.0
    for mine, its in zip(flat(s), flat(t)):
        if its <= 0 and mine > -margin:
            total += (mine + margin) ** 2
        elif its > 0 and mine <= margin:
            total += (mine - margin) ** 2
    return total / len(s)


@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_ab_is_its_equation(margin: float) -> None:
    s, t = draw(3, 4, 3, 2), draw(3, 4, 3, 2, seed=1)
    t[0, 0], s[1, 1, 0], s[1, 2, 0] = 0, margin, -margin
    agree(ab, naive_ab, s, t, margin=margin)


def test_ab_has_the_values_of_repdistiller() -> None:
    """ABLoss(3) of distiller_zoo, three levels drawn as here, the student's doubled, in float64."""
    expected = [
        (0.7382749630284487, 0.05434243141518232),
        (0.5366368835884575, 0.06552171448235815),
        (0.23965261286573827, 0.0619228698127906),
    ]
    for i, (channels, side) in enumerate(((4, 8), (6, 4), (5, 2))):
        student = given(3, channels, side, side, seed=90 + i).requires_grad_()
        teacher = given(3, channels, side, side, seed=95 + i)
        value = 3e-3 * 2.0 ** (i + 1 - 3) * ab(2 * student, teacher)
        (slope,) = gradients(value, student)
        assert (float(value.detach()), float(slope.norm())) == pytest.approx(expected[i], rel=1e-5)


def test_ab_asks_for_the_side_of_the_boundary_alone() -> None:
    t = draw(2, 3, 4, 4)
    assert float(ab(t.sign() * 1.5, t)) == 0
    assert float(ab(t.sign() * 1.5, 100 * t)) == 0
    assert torch.equal(ab(draw(2, 3, 4, 4, seed=1), t), ab(draw(2, 3, 4, 4, seed=1), 100 * t))
    assert float(ab(torch.zeros(2, 3, 4, 4), t)) == 3 * 4 * 4
    with pytest.raises(ValueError, match="must have one shape"):
        ab(t[:, :2], t)


def test_connectors_have_no_relu_and_are_nothing_between_two_maps_of_one_shape() -> None:
    assert isinstance(connector((4, 8, 8), (4, 8, 8)), nn.Identity)
    made = connector((4, 8, 8), (6, 8, 8))
    assert [type(layer).__name__ for layer in made.layers] == ["Conv2d", "BatchNorm2d"]  # type: ignore[union-attr]
    assert made.layers[0].kernel_size == (1, 1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no kernel brings the student's 4x4 map to the teacher's 7x7"):
        connector((4, 4, 4), (4, 7, 7))


def test_factors_have_the_values_of_repdistiller() -> None:
    """Paraphraser, Translator and FactorTransfer, weights and maps drawn as here, in float64."""
    own, its = paraphraser((8, 4, 4)).double(), translator((6, 4, 4), (4, 4, 4)).double()
    back = rebuilder((4, 4, 4), (8, 4, 4)).double()
    with torch.no_grad():
        for first, parts in ((100, (own, back)), (200, (its,))):
            for number, parameter in enumerate(p for part in parts for p in part.parameters()):
                parameter.copy_(0.3 * given(*parameter.shape, seed=first + number))
    teacher, student = given(2, 8, 4, 4, seed=1), given(2, 6, 4, 4, seed=2).requires_grad_()
    assert float(F.mse_loss(back(own(teacher)), teacher)) == pytest.approx(22.074403550979806, rel=1e-9)
    found = ft(its(student), own(teacher).detach())
    found.backward()
    assert float(found) == pytest.approx(0.1787633869835057, rel=1e-5)
    assert float(student.grad.norm()) == pytest.approx(0.009364115920498758, rel=1e-4)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"a share of 0\.1 of 8 channels is no channel"):
        paraphraser((8, 4, 4), share=0.1)
    for make in (paraphraser, partial(translator, factors=(4, 4, 4))):
        with pytest.raises(ValueError, match=r"factors are made of maps \[C, H, W\], not of \[8\]"):
            make((8,))
