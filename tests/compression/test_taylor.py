"""Gates: what is removed is what the loss misses least."""

import torch
from torch.nn import functional as F

from kdcli.compression.budget import at_once
from kdcli.compression.taylor import importance


def test_importance_is_the_square_of_the_derivative_by_each_gate() -> None:
    """By differences of the loss, in float64, where only the gate of one channel is moved."""
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((6, 5), (3, 5)))
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(matrix: torch.Tensor, rows: slice) -> torch.Tensor:
        return F.cross_entropy(F.linear(F.relu(x[rows] @ matrix.T), w), y[rows])

    batches = [slice(0, 3), slice(3, 6)]
    start = torch.eye(5, dtype=torch.float64).requires_grad_()
    gradients = [[torch.autograd.grad(loss(start, rows), start)[0]] for rows in batches]
    (found,) = importance(gradients)
    for channel in range(5):
        step, slopes = torch.zeros(5, 5, dtype=torch.float64), []
        step[channel, channel] = 1e-6
        with torch.no_grad():
            for rows in batches:
                slopes.append((loss(start + step, rows) - loss(start - step, rows)) / 2e-6)
        torch.testing.assert_close(found[channel], torch.stack(slopes).square().mean(), rtol=1e-5, atol=1e-12)


def test_heads_and_depthwise_channels_have_a_gate_each() -> None:
    (full, own) = importance([[torch.tensor([[1.0, 9.0], [9.0, 2.0]]), torch.tensor([3.0, 4.0])]])
    assert full.tolist() == [1.0, 4.0]
    assert own.tolist() == [9.0, 16.0]


def test_layers_compare_as_they_are_and_each_keeps_one() -> None:
    scores = [torch.tensor([1e-6, 2e-6]), torch.tensor([3.0, 1e-3, 2.0])]
    masks = at_once(scores, lambda widths: float(sum(widths)), 0.6)
    assert [mask.tolist() for mask in masks] == [[False, True], [True, False, True]]
