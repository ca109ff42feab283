"""Losses of pixels: golden values, the naive loop, void, grids of other sizes, division of a batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.pixels import pixel_cross_entropy, pixel_kl_divergence
from kdcli.methods import function
from kdcli.tasks.segmentation import Segmentation


def g(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_picture(batch: Tensor) -> Tensor:
    """The pictures of a batch, one below the other: over one picture every pixel counts the same."""
    return torch.cat(list(batch), dim=-2)[None]


S, T = g(2, 5, 4, 4, seed=5), 2 * g(2, 5, 4, 4, seed=6)
VOID = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(7)) <= 0.2


def test_golden_divergence_over_all_pixels() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.uint8)
    assert float(pixel_kl_divergence(S, T, mask)) == pytest.approx(1.1905301, abs=1e-6)
    found = pixel_kl_divergence(one_picture(S), one_picture(T), one_picture(mask))
    assert float(found) == pytest.approx(1.1905301, abs=1e-6)


def test_golden_divergence_without_void_pixels() -> None:
    mask = torch.where(VOID, 255, 0).byte()
    found = pixel_kl_divergence(one_picture(S), one_picture(T), one_picture(mask))
    assert float(found) == pytest.approx(1.2998432, abs=1e-6)
    per_picture = [pixel_kl_divergence(S[i : i + 1], T[i : i + 1], mask[i : i + 1]) for i in range(2)]
    assert float(pixel_kl_divergence(S, T, mask)) == pytest.approx(float(sum(per_picture)) / 2)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("t_squared", [False, True])
def test_divergence_is_that_of_the_naive_loop(temperature: float, t_squared: bool) -> None:
    mask = torch.where(VOID, 255, 2).byte()
    pictures = []
    for s, t, m in zip(S, T, mask):
        pixels = []
        for y in range(4):
            for x in range(4):
                if m[y, x] != 255:
                    p, q = (z[:, y, x].div(temperature).softmax(0) for z in (t, s))
                    pixels.append(float((p * (p / q).log()).sum()))
        pictures.append(sum(pixels) / len(pixels))
    expected = sum(pictures) / 2 * (temperature**2 if t_squared else 1)
    found = pixel_kl_divergence(S, T, mask, temperature=temperature, t_squared=t_squared)
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_one_picture_is_torchs_mean(smoothing: float) -> None:
    mask = torch.where(VOID, 255, torch.arange(32).view(2, 4, 4) % 5).byte()
    logits = one_picture(S)
    found = pixel_cross_entropy(logits, one_picture(mask), label_smoothing=smoothing)
    expected = F.cross_entropy(logits, one_picture(mask).long(), ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)


def test_void_pixels_have_no_gradient() -> None:
    logits = S.clone().requires_grad_()
    mask = torch.where(VOID, 255, 1).byte()
    (pixel_cross_entropy(logits, mask) + pixel_kl_divergence(logits, T, mask)).backward()
    touched = logits.grad.abs().sum(1) > 0
    assert torch.equal(touched, ~VOID)


def test_a_picture_of_void_alone_is_zero() -> None:
    mask = torch.full((2, 4, 4), 255, dtype=torch.uint8)
    logits = S.clone().requires_grad_()
    loss = pixel_cross_entropy(logits, mask) + pixel_kl_divergence(logits, T, mask)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()
    mask[0] = 1
    assert float(pixel_cross_entropy(S, mask)) == pytest.approx(
        float(pixel_cross_entropy(S[:1], mask[:1])) / 2
    )


def test_networks_of_other_grids_meet_at_the_pixels_of_the_view() -> None:
    student, teacher = g(2, 3, 4, 4, seed=1), g(2, 3, 7, 7, seed=2)
    mask = torch.zeros(2, 28, 28, dtype=torch.uint8)
    grown = [F.interpolate(z, (28, 28), mode="bilinear", align_corners=False) for z in (student, teacher)]
    found = pixel_kl_divergence(student, teacher, mask)
    torch.testing.assert_close(found, pixel_kl_divergence(*grown, mask))
    assert float(pixel_kl_divergence(teacher, teacher, mask)) == pytest.approx(0, abs=1e-6)


def test_half_precision_is_computed_in_single() -> None:
    mask = torch.zeros(2, 8, 8, dtype=torch.uint8)
    found = pixel_kl_divergence(S.bfloat16(), T.bfloat16(), mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pixel_kl_divergence(S.bfloat16().float(), T.bfloat16().float(), mask))


def test_methods_ask_the_task_for_its_terms() -> None:
    task = Segmentation(("a", "b"))
    turn = function("task-specific")(task, alpha=0.25).phases[0].turns[0]
    assert [(t.loss, t.weight, t.rows) for t in turn.terms] == [
        (pixel_cross_entropy, 0.75, "labelled"),
        (pixel_kl_divergence, 0.25, None),
    ]
    assert turn.terms[1].args == ("s.logits", "~t.logits", "mask")
