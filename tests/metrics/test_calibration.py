"""The fitted temperature against a naive search, its stationary point by autograd, and where it has none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.metrics.calibration import HIGHEST, LOWEST, calibrate, fit_temperature


def drawn(count: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn by their probabilities: calibrated as they are."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def nll(logits: Tensor, y: Tensor, temperature: float) -> float:
    return float(F.cross_entropy(logits.double() / temperature, y))


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0, 20.0])
def test_a_scale_of_calibrated_logits_is_found(scale: float) -> None:
    logits, y = drawn(10_000)
    found = fit_temperature(logits * scale, y)
    assert found == pytest.approx(scale, rel=0.04)
    assert found == pytest.approx(scale * fit_temperature(logits, y), rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_minimum_of_the_likelihood(seed: int) -> None:
    logits, y = drawn(60, 3, seed)
    found = fit_temperature(logits * 4, y)
    grid = torch.linspace(LOWEST, 30, 3000).tolist()
    assert nll(logits * 4, y, found) <= min(nll(logits * 4, y, t) for t in grid) + 1e-9
    beta = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits.double() * 4 * beta, y).backward()
    assert beta.grad is not None
    assert abs(float(beta.grad)) < 1e-4


def test_what_cannot_be_fitted_is_bounded() -> None:
    y = torch.tensor([0, 1, 2, 0])
    right = F.one_hot(y, 3).float()
    assert fit_temperature(right, y) == 1.0  # the smaller the better: nothing says how small
    assert fit_temperature(torch.zeros(4, 3), y) == 1.0
    assert fit_temperature(1 - right, y) == HIGHEST  # always wrong: best unread
    nearly = torch.cat([right.repeat(500, 1), torch.tensor([[0.0, 0.01, 0.0]])])
    assert fit_temperature(0.01 * nearly, torch.cat([y.repeat(500), y[:1]])) == LOWEST


def test_predictions_stay_and_figures_are_told() -> None:
    logits, y = drawn(9000)  # more than are looked at together
    found = calibrate(logits * 3, y)
    assert found.samples == 9000
    assert found.temperature == fit_temperature(logits * 3, y)
    assert found.before["nll"] == pytest.approx(nll(logits * 3, y, 1), rel=1e-5)
    assert found.after["nll"] == pytest.approx(nll(logits * 3, y, found.temperature), rel=1e-5)
    assert found.after["nll"] < found.before["nll"]
    assert found.after["ece"] < 0.03 < found.before["ece"]
    assert found.overconfident
    assert not calibrate(logits, y).overconfident
    assert str(found).startswith(
        f"temperature {found.temperature:.3g} (fitted on 9,000 validation pictures: NLL "
    )
    assert set(found.to_json()) == {"temperature", "samples", "before", "after"}


def test_bad_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="are not finite"):
        fit_temperature(torch.tensor([[0.0, torch.inf]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="lie outside"):
        fit_temperature(torch.zeros(1, 2), torch.tensor([-1]))
