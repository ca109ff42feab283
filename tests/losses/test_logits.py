"""Losses over logits against golden values, naive loops and torch."""

import math

import pytest
import torch
from golden import GOLDEN, inputs, near
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.logits import cross_entropy, kl_divergence


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
