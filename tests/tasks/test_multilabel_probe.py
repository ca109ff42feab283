"""What heads for several labels learn and are chosen by: closed gradients beside autograd's."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli.engine.grid import Features, HeadSpec, Training, best
from kdcli.engine.heads import train_heads
from kdcli.engine.lbfgs import lbfgs_path
from kdcli.losses.multilabel import binary_cross_entropy
from kdcli.metrics.multilabel import multilabel_metrics
from kdcli.tasks.multilabel.probe import binary, fault, gradient, loss, rank, scores


def draw(seed: int = 0, rows: int = 12, labels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three heads [3, L, N], and answers [N, L] of which some are missing."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, labels, rows, generator=generator, dtype=torch.float64)
    y = (torch.rand(rows, labels, generator=generator) > 0.6).double()
    y[torch.rand(rows, labels, generator=generator) > 0.8] = math.nan
    y[0], y[1, :2] = 1, math.nan
    return logits, y


def test_gradients_are_autograds() -> None:
    logits, y = draw()
    leaves = logits.clone().requires_grad_()
    total = sum(len(y) * binary_cross_entropy(head.T.double(), y) for head in leaves)
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert leaves.grad is not None
    torch.testing.assert_close(gradient(logits.clone(), y), leaves.grad, rtol=1e-5, atol=1e-6)
    value, grad = loss(logits[0].T, y)
    torch.testing.assert_close(grad.T, leaves.grad[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value, binary_cross_entropy(logits[0].T, y).double(), rtol=1e-6, atol=0)


def test_scores_are_the_metrics_of_each_head() -> None:
    logits, y = draw()
    found = scores([(logits[..., :5], y[:5]), (logits[..., 5:], y[5:])])
    for head, score in zip(logits, found):
        expected = multilabel_metrics(head.T, y)
        assert score == pytest.approx({name: expected[name] for name in ("mean_ap", "nll")})
    assert sorted(found, key=rank)[0]["mean_ap"] == max(score["mean_ap"] for score in found)


def test_a_head_that_diverged_scores_infinity() -> None:
    logits, y = draw()
    logits[1, 0, 0] = math.nan
    assert scores([(logits, y)])[1] == {"mean_ap": 0.0, "nll": math.inf}


def test_nothing_to_learn_is_a_fault() -> None:
    y = torch.tensor([[0.0, math.nan], [0.0, 0.0]])
    assert fault(y, True) == "has no picture with any label"
    assert fault(torch.tensor([[0.0, 1.0]]), False) == ""


@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_labels_that_features_tell_are_learned(solver: str) -> None:
    """Also where half of the answers are missing; both solvers through the one objective."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(400, 6, generator=generator)
    y = (x[:, :4] > 0.3).float()
    y[:200][torch.rand(200, 4, generator=generator) > 0.5] = math.nan
    y[7] = -1  # a picture without any answer
    train, held = Features({"f": x[:300]}, y[:300]), Features({"f": x[300:]}, y[300:], training=False)
    if solver == "sgd":
        specs = [HeadSpec("f", 1.0, 0.0), HeadSpec("f", 1e-4, 0.0)]
        results = train_heads(train, held, specs, binary(4), Training(epochs=20, batch_size=50), "cpu")
        assert best(results) is results[0]
    else:
        results = lbfgs_path(train, held, [HeadSpec("f", 0.0, 1e-3, "lbfgs")], binary(4), "cpu")
    assert best(results).metrics["mean_ap"] > 0.98
