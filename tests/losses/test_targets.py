"""Synthetic teachers against naive loops, and what each of them keeps of a teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from golden import agree, draw, labels, soften
from torch.nn import functional as F

from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.losses.targets import ensemble_logits, kd_pt, kd_sim, kd_topk, rescaling_weight, smoothed, split


def test_split_takes_the_true_class_out() -> None:
    z, y = draw(7, 4), labels(7, 4)
    true, others = split(z, y)
    for n in range(7):
        row = z[n].tolist()
        assert float(true[n]) == row.pop(int(y[n]))
        assert sorted(others[n].tolist()) == sorted(row)


@pytest.mark.parametrize("smoothing", [0.1, torch.tensor([0.0, 0.5, 1.0])])
def test_smoothed_sums_to_one(smoothing: Any) -> None:
    target = smoothed(torch.tensor([0, 2, 1]), 4, smoothing)
    part = [0.1] * 3 if isinstance(smoothing, float) else smoothing.tolist()
    torch.testing.assert_close(target.sum(dim=1), torch.ones(3))
    assert target[1].tolist() == pytest.approx([part[1] / 3, part[1] / 3, 1 - part[1], part[1] / 3])


def naive_pt(t: Any, y: Any, *, temperature: float) -> list[list[float]]:
    found = []
    for row, true in zip(t, y):
        q = soften(row, temperature)[true]
        found.append([q if k == true else (1 - q) / (len(row) - 1) for k in range(len(row))])
    return found


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_pt_is_the_formula(temperature: float) -> None:
    agree(kd_pt, naive_pt, draw(6, 5), labels(6, 5), temperature=temperature)


def test_kd_pt_keeps_the_confidence_of_a_sure_teacher() -> None:
    found = kd_pt(torch.tensor([[60.0, 0, 0]]), torch.tensor([0]))
    assert found[0, 1:].tolist() == pytest.approx([math.exp(-60.0)] * 2, rel=1e-4)


def naive_sim(w: Any, y: Any, *, temperature: float) -> list[list[float]]:
    def cosine(a: list[float], b: list[float]) -> float:
        return sum(i * j for i, j in zip(a, b)) / math.hypot(*a) / math.hypot(*b)

    return [soften([cosine(w[true], other) for other in w], temperature) for true in y]


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_kd_sim_is_the_formula(temperature: float) -> None:
    agree(kd_sim, naive_sim, draw(5, 8), labels(6, 5), temperature=temperature)


def test_a_power_of_kd_sim_is_a_temperature() -> None:
    power = kd_sim(draw(5, 8), labels(6, 5)) ** 3
    torch.testing.assert_close(kd_sim(draw(5, 8), labels(6, 5), temperature=1 / 3), F.normalize(power, p=1))


def naive_topk(t: Any, y: Any, *, k: int, temperature: float) -> list[list[float]]:
    found = []
    for row, true in zip(t, y):
        q = soften(row, temperature)
        first = sorted(range(len(q)), key=lambda i: (i != true, -q[i]) if true >= 0 else -q[i])[:k]
        rest = 1 - sum(q[i] for i in first)
        found.append([q[i] if i in first else rest / (len(q) - k) for i in range(len(q))])
    return found


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kd_topk_is_the_formula(k: int, temperature: float) -> None:
    agree(kd_topk, naive_topk, draw(6, 7), labels(6, 7), k=k, temperature=temperature)
    unforced = lambda t, y, **keywords: kd_topk(t, **keywords)  # noqa: E731
    agree(unforced, naive_topk, draw(6, 7), torch.full((6,), -1), k=k, temperature=temperature)


def test_kd_topk_at_its_ends() -> None:
    t = draw(4, 5)
    torch.testing.assert_close(kd_topk(t, k=5), t.softmax(dim=1))
    assert kd_topk(torch.zeros(1, 4), k=2).tolist() == [[0.25] * 4]
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"k must be 1 to 5, the number of classes, got {k}"):
            kd_topk(t, k=k)


def naive_rescaling(s: Any, t: Any, y: Any, *, mix: float, temperature: float) -> list[float]:
    found = []
    for student, teacher, true in zip(s, t, y):
        gap = soften(teacher, temperature)[true] - soften(student, temperature)[true]
        found.append(1 - mix + mix * temperature * gap / (1 - soften(student)[true]))
    return found


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_rescaling_weight_is_the_formula_and_the_ratio_of_gradients(temperature: float) -> None:
    arguments = draw(6, 5), draw(6, 5, seed=1), labels(6, 5)
    agree(rescaling_weight, naive_rescaling, *arguments, mix=0.3, temperature=temperature, rel=1e-4)
    s, t, y = arguments[0].clone().requires_grad_(), *arguments[1:]
    plain = cross_entropy(s, y)
    mixed = 0.7 * plain + 0.3 * kl_divergence(s, t, temperature=temperature)
    top, bottom = (
        torch.autograd.grad(v, s, retain_graph=True)[0].gather(1, y[:, None]) for v in (mixed, plain)
    )
    weight = rescaling_weight(s, t, y, mix=0.3, temperature=temperature)
    torch.testing.assert_close(weight, (top / bottom)[:, 0], rtol=1e-4, atol=1e-5)


def test_rescaling_weight_of_a_sure_student_is_finite() -> None:
    y = torch.tensor([0])
    for gap in (40.0, 104.0, 1e4):
        s = torch.tensor([[gap, 0, 0]])
        for temperature in (1.0, 4.0):
            assert rescaling_weight(s, s, y, temperature=temperature).tolist() == [0.5]
        assert rescaling_weight(s, torch.zeros(1, 3), y).isfinite().all()
    found = rescaling_weight(torch.tensor([[60.0, 0, 0]]), torch.zeros(1, 3), y, mix=0.5)
    assert found.tolist() == pytest.approx([1 - 0.5 * (2 / 3) / (2 * math.exp(-60.0))])
    surer = torch.tensor([[160.0, 0, 0]])
    weaker = rescaling_weight(torch.tensor([[150.0, 0, 0]]), surer, y, temperature=4.0)
    assert weaker.isfinite().all()
    assert weaker.item() > 1


def naive_ensemble(t: Any, *, mean: str, temperature: float) -> list[list[float]]:
    found = []
    for members in t:
        if mean == "probabilities":
            soft = [soften(row, temperature) for row in members]
            found.append([temperature * math.log(sum(p) / len(p)) for p in zip(*soft)])
        else:
            found.append([sum(z) / len(z) for z in zip(*members)])
    return found


@pytest.mark.parametrize("mean", ["logits", "probabilities"])
def test_ensemble_logits_are_the_mean(mean: str) -> None:
    agree(ensemble_logits, naive_ensemble, draw(4, 3, 5), mean=mean, temperature=2.0)


def test_an_ensemble_of_one_is_its_member() -> None:
    t = draw(4, 1, 5)
    for mean in ("logits", "probabilities"):
        taught = kl_divergence(t[:, 0], ensemble_logits(t, mean=mean, temperature=4.0), temperature=4.0)
        assert float(taught) == pytest.approx(0, abs=1e-6)
    assert kl_divergence(t[:, 0], ensemble_logits(1e4 * t, mean="probabilities")).isfinite()
