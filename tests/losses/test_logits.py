"""Losses over logits against golden values, naive loops and torch."""

import math
from typing import Any

import pytest
import torch
from golden import GOLDEN, agree, draw, inputs, labels, near, soften
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.logits import (
    cross_entropy,
    dkd,
    kl_divergence,
    kl_elements,
    lsr,
    nkd,
    soft_cross_entropy,
    tf_kd_regularisation,
)
from kdcli.losses.targets import smoothed


@pytest.fixture(scope="module", name="inputs")
def golden_inputs() -> dict[str, Tensor]:
    """The tensors behind the golden values."""
    return inputs()


def test_without_t_squared_and_reversed_are_the_known_pitfalls(inputs: dict[str, Tensor]) -> None:
    s, t, golden = inputs["logits_s"], inputs["logits_t"], GOLDEN
    without = kl_divergence(s, t, temperature=4.0, t_squared=False)
    assert near(without, golden["kd_pitfall_noT2_T4"]["value"])
    assert near(kl_divergence(t, s, temperature=4.0), golden["kd_pitfall_reverse_KL_T4"]["value"])


def test_soft_cross_entropy_has_the_same_gradient_but_another_value(inputs: dict[str, Tensor]) -> None:
    s, t = inputs["logits_s"].clone().requires_grad_(), inputs["logits_t"]
    soft = cross_entropy(s / 4, (t / 4).softmax(dim=1)) * 16
    assert near(soft, GOLDEN["kd_soft_ce_T4"]["value"])
    (ours,) = torch.autograd.grad(kl_divergence(s, t, temperature=4.0), s)
    (other,) = torch.autograd.grad(soft, s)
    torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kl_divergence_is_the_printed_sum(temperature: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    s, t = (torch.randn(5, 7, generator=generator).to(dtype) for _ in range(2))
    total = 0.0
    for n in range(5):
        q = [math.exp(v / temperature) for v in t[n].tolist()]
        p = [math.exp(v / temperature) for v in s[n].tolist()]
        for k in range(7):
            total += q[k] / sum(q) * (math.log(q[k] / sum(q)) - math.log(p[k] / sum(p)))
    value = kl_divergence(s, t, temperature=temperature)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(temperature**2 * total / 5, rel=2e-4, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_printed_sum(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(4)
    z, y = torch.randn(6, 5, generator=generator), torch.randint(0, 5, (6,), generator=generator)
    w = torch.rand(6, generator=generator)
    total = 0.0
    for n in range(6):
        norm = math.log(sum(math.exp(v) for v in z[n].tolist()))
        for k in range(5):
            target = (1 - smoothing) * float(y[n] == k) + smoothing / 5
            total -= float(w[n]) * target * (float(z[n, k]) - norm)
    assert float(cross_entropy(z, y, w, label_smoothing=smoothing)) == pytest.approx(total / 6, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_and_soft_targets_are_torchs(smoothing: float, inputs: dict[str, Tensor]) -> None:
    z, y = inputs["logits_s"], inputs["target"]
    expected = F.cross_entropy(z, y, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(z, y, label_smoothing=smoothing), expected)
    one_hot = F.one_hot(y, 10).float()
    torch.testing.assert_close(cross_entropy(z, one_hot, label_smoothing=smoothing), expected)


def test_mixed_targets_mix_the_losses(inputs: dict[str, Tensor]) -> None:
    z, y = inputs["logits_s"], inputs["target"]
    other = y.flip(0)
    mixed = 0.3 * F.one_hot(y, 10) + 0.7 * F.one_hot(other, 10)
    expected = 0.3 * cross_entropy(z, y) + 0.7 * cross_entropy(z, other)
    torch.testing.assert_close(cross_entropy(z, mixed), expected)


def test_row_weights_scale_rows_and_keep_the_divisor(inputs: dict[str, Tensor]) -> None:
    z, y = inputs["logits_s"].clone().requires_grad_(), inputs["target"]
    weight = torch.tensor([2.0, 0, 0, 0, 0, 0, 0, 0])
    value = cross_entropy(z, y, weight)
    torch.testing.assert_close(value, 2 * F.cross_entropy(z[:1], y[:1]) / 8)
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient[0].abs().sum() > 0
    assert torch.count_nonzero(gradient[1:]) == 0
    torch.testing.assert_close(cross_entropy(z, y, torch.ones(8)), cross_entropy(z, y))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_identical_logits_cost_nothing(temperature: float, inputs: dict[str, Tensor]) -> None:
    s = inputs["logits_s"].clone().requires_grad_()
    value = kl_divergence(s, s.detach().clone(), temperature=temperature)
    assert value.item() == 0.0
    value.backward()
    assert s.grad is not None
    assert s.grad.abs().max() < 1e-7


def test_a_constant_added_to_a_row_changes_nothing(inputs: dict[str, Tensor]) -> None:
    s, t = inputs["logits_s"], inputs["logits_t"]
    shift = torch.linspace(-50, 50, 8)[:, None]
    torch.testing.assert_close(kl_divergence(s + shift, t - shift), kl_divergence(s, t), rtol=1e-4, atol=1e-5)


def test_extreme_logits_stay_finite() -> None:
    s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    value = kl_divergence(s, -s.detach()) + cross_entropy(s, torch.tensor([1]))
    value.backward()
    assert torch.isfinite(value)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def test_t_squared_keeps_the_scale_of_the_gradient(inputs: dict[str, Tensor]) -> None:
    s, t = inputs["logits_s"].clone().requires_grad_(), inputs["logits_t"]

    def norm(temperature: float, t_squared: bool) -> float:
        value = kl_divergence(s, t, temperature=temperature, t_squared=t_squared)
        return float(torch.autograd.grad(value, s)[0].norm())

    assert norm(50, True) == pytest.approx(norm(100, True), rel=0.05)
    assert norm(50, False) == pytest.approx(4 * norm(100, False), rel=0.05)
    # T → ∞: the gradient matches centred logits, (s − t) / (N·K) (Hinton et al. 2015, section 2.1)
    (gradient,) = torch.autograd.grad(kl_divergence(s, t, temperature=1e3), s)
    centred = (s - s.mean(dim=1, keepdim=True)) - (t - t.mean(dim=1, keepdim=True))
    torch.testing.assert_close(gradient, centred.detach() / 80, rtol=0.02, atol=2e-4)


def test_both_compute_in_fp32_under_autocast(inputs: dict[str, Tensor]) -> None:
    s, t, y = inputs["logits_s"].bfloat16(), inputs["logits_t"].bfloat16(), inputs["target"]
    with torch.autocast("cpu", torch.bfloat16):
        inside = kl_divergence(s, t, temperature=4.0), cross_entropy(s, y, label_smoothing=0.1)
    outside = (
        kl_divergence(s.float(), t.float(), temperature=4.0),
        cross_entropy(s.float(), y, label_smoothing=0.1),
    )
    for a, b in zip(inside, outside):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


def test_gradient_reaches_the_teacher_unless_detached(inputs: dict[str, Tensor]) -> None:
    s, t = inputs["logits_s"], inputs["logits_t"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kl_divergence(s, t), t)
    assert gradient.abs().sum() > 0
    assert not kl_divergence(s, t.detach()).requires_grad


def naive_kl(q: list[float], p: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(q, p))


def naive_soft_ce(s: Any, t: Any, *, temperature: float, t_squared: bool) -> float:
    total = 0.0
    for student, teacher in zip(s, t):
        for q, p in zip(soften(teacher, temperature), soften(student, temperature)):
            total -= q * math.log(p)
    return total / len(s) * (temperature**2 if t_squared else 1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("t_squared", [True, False])
def test_soft_cross_entropy_is_the_printed_sum(temperature: float, t_squared: bool) -> None:
    agree(
        soft_cross_entropy,
        naive_soft_ce,
        draw(5, 7),
        draw(5, 7, seed=1),
        temperature=temperature,
        t_squared=t_squared,
    )


def naive_dkd(s: Any, t: Any, y: Any, *, alpha: float, beta: float, temperature: float) -> float:
    total = 0.0
    for student, teacher, true in zip(s, t, y):
        p, q = soften(student, temperature), soften(teacher, temperature)
        total += alpha * naive_kl([q[true], 1 - q[true]], [p[true], 1 - p[true]])
        left = [k for k in range(len(p)) if k != true]
        total += beta * naive_kl([q[k] / (1 - q[true]) for k in left], [p[k] / (1 - p[true]) for k in left])
    return temperature**2 * total / len(s)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1, 8, 4), (0.5, 0, 1), (0, 2, 2)])
def test_dkd_is_the_printed_sum(alpha: float, beta: float, temperature: float) -> None:
    arguments = draw(6, 5), draw(6, 5, seed=1), labels(6, 5)
    agree(dkd, naive_dkd, *arguments, alpha=alpha, beta=beta, temperature=temperature)


def test_dkd_with_its_natural_weights_is_kd() -> None:
    """KL = TCKD + (1 − q_y)·NCKD, row by row."""
    s, t, y = draw(1, 5), draw(1, 5, seed=1), labels(1, 5)
    rest = 1 - float((t / 4).softmax(dim=1)[0, y])
    torch.testing.assert_close(dkd(s, t, y, beta=rest), kl_divergence(s, t, temperature=4.0))


def test_dkd_refuses_two_classes() -> None:
    with pytest.raises(ValueError, match="DKD needs at least 3 classes, got 2"):
        dkd(draw(4, 2), draw(4, 2), labels(4, 2))


def test_dkd_survives_a_sure_teacher_and_a_sure_student() -> None:
    s = torch.tensor([[300.0, 0, 0, -300]], requires_grad=True)
    value = dkd(s, torch.tensor([[-300.0, 300, 0, 0]]), torch.tensor([0]), temperature=1.0)
    (gradient,) = torch.autograd.grad(value, s)
    assert value > 0
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0.1


def naive_lsr(z: Any, y: Any, *, smoothing: float, reading: str) -> float:
    total = 0.0
    for row, true in zip(z, y):
        classes = len(row)
        for k, p in enumerate(soften(row, 1)):
            if reading == "code":
                target = 1 - smoothing if k == true else smoothing / (classes - 1)
            else:
                target = (1 - smoothing) * (k == true) + smoothing / classes
            total -= target * math.log(p)
    return total / len(z)


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_lsr_is_the_printed_sum(reading: str) -> None:
    agree(lsr, naive_lsr, draw(6, 5), labels(6, 5), smoothing=0.2, reading=reading)


def test_kl_elements_is_the_mean_over_all_elements() -> None:
    def naive(s: Any, t: Any, *, temperature: float) -> float:
        pairs = [(soften(a, temperature), soften(b, temperature)) for a, b in zip(s, t)]
        return temperature**2 * sum(naive_kl(q, p) for p, q in pairs) / (len(s) * len(s[0]))

    agree(kl_elements, naive, draw(6, 5), draw(6, 5, seed=1), temperature=20.0, rel=2e-4)


def naive_regularisation(z: Any, y: Any, *, correct: float, temperature: float, reading: str) -> float:
    total = 0.0
    for row, true in zip(z, y):
        u = [correct if k == true else (1 - correct) / (len(row) - 1) for k in range(len(row))]
        if reading == "code":
            total += naive_kl(soften(u, temperature), soften(row, 1)) / len(row)
        else:
            teacher = soften([math.log(v) for v in u], temperature)
            total += temperature**2 * naive_kl(teacher, soften(row, temperature))
    return total / len(z)


@pytest.mark.parametrize("reading", ["code", "paper"])
@pytest.mark.parametrize("correct", [0.99, 0.8])
def test_tf_kd_regularisation_is_the_printed_sum(reading: str, correct: float) -> None:
    keywords = {"correct": correct, "temperature": 10.0, "reading": reading}
    agree(tf_kd_regularisation, naive_regularisation, draw(6, 5), labels(6, 5), rel=1e-4, **keywords)


@pytest.mark.parametrize(("temperature", "code", "paper"), [(20, 1.05, 1.57), (40, 1.025, 1.25)])
def test_the_virtual_teacher_of_the_code_is_nearly_uniform(
    temperature: float, code: float, paper: float
) -> None:
    """At 100 classes, in units of the uniform probability."""
    u = smoothed(torch.tensor([7]), 100, 0.01)
    assert float((u / temperature).softmax(dim=1)[0, 7]) * 100 == pytest.approx(code, abs=2e-3)
    assert float((u.log() / temperature).softmax(dim=1)[0, 7]) * 100 == pytest.approx(paper, abs=6e-3)


@pytest.mark.parametrize(
    ("temperature", "value", "slope"),
    [(1.0, 4.523231474694954, 0.4485748209040733), (2.0, 14.502427175195264, 0.5354127818239816)],
)
def test_nkd_has_the_values_of_the_authors_code(temperature: float, value: float, slope: float) -> None:
    """NKDLoss of cls_KD on logits drawn as here, in float64."""
    s, t = (
        torch.randn(6, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in (0, 1)
    )
    s.requires_grad_()
    found = nkd(s, 2 * t, torch.tensor([0, 3, 9, 4, 4, 7]), gamma=1.5, temperature=temperature)
    found.backward()
    assert float(found) == pytest.approx(value, rel=1e-6)
    assert float(s.grad.norm()) == pytest.approx(slope, rel=1e-5)


def test_nkd_beside_loops() -> None:
    s, t, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64), [0, 3, 1, 1, 2]
    total = 0.0
    for row, true in enumerate(y):
        p, q = s[row].softmax(0), t[row].softmax(0)
        total -= float(q[true] * p[true].log())
        others = [i for i in range(4) if i != true]
        for i in others:
            of_t = float((t[row, i] / 2).exp() / sum((t[row, j] / 2).exp() for j in others))
            of_s = float((s[row, i] / 2).exp() / sum((s[row, j] / 2).exp() for j in others))
            total -= 0.7 * 4 * of_t * math.log(of_s)
    found = nkd(s, t, torch.tensor(y), gamma=0.7, temperature=2.0)
    assert float(found) == pytest.approx(total / 5, rel=1e-5)
    with pytest.raises(ValueError, match="NKD needs at least 3 classes, got 2"):
        nkd(s[:, :2], t[:, :2], torch.tensor([0, 1, 1, 0, 1]))
