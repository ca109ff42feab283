"""What masked autoencoders learn by, against loops."""

from __future__ import annotations

import pytest
import torch

from kdcli.losses.masked import explained_variance, generic_distillation, patchify, reconstruction


def test_patches_are_cut_row_by_row_with_channels_last() -> None:
    pictures = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    found = patchify(pictures, torch.zeros(2, 3))
    for b in range(2):
        for row in range(2):
            for column in range(3):
                wanted = [
                    pictures[b, c, 2 * row + p, 2 * column + q].item()
                    for p in range(2)
                    for q in range(2)
                    for c in range(3)
                ]
                assert found[b, 3 * row + column].tolist() == wanted


def test_patches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3x3 patches do not divide a picture of 4x6"):
        patchify(torch.zeros(1, 3, 4, 6), torch.zeros(3, 3))


@pytest.mark.parametrize("normal", [True, False])
def test_pixels_of_hidden_patches_alone_count(normal: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    pictures, told = torch.randn(2, 3, 4, 4, generator=draw), torch.randn(2, 4, 12, generator=draw)
    visible = torch.tensor([[True, False, False, True], [False, True, False, True]])
    patches = torch.zeros(2, 2)
    target = patchify(pictures, patches)
    errors = []
    for b in range(2):
        for n in range(4):
            pixels = target[b, n].double()
            if normal:
                pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            if not visible[b, n]:
                errors.append(float((told[b, n].double() - pixels).square().mean()))
    found = reconstruction(told, pictures, visible, patches, norm_pixels=normal)
    assert found.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_what_is_seen_teaches_nothing() -> None:
    told = torch.randn(1, 4, 12, requires_grad=True)
    visible = torch.tensor([[True, False, True, False]])
    reconstruction(told, torch.randn(1, 3, 4, 4), visible, torch.zeros(2, 2)).backward()
    assert told.grad is not None
    assert not told.grad[visible].any()
    assert told.grad[~visible].any()


def test_explained_variance_is_1_where_all_is_predicted_and_0_for_the_mean() -> None:
    hidden = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    normal = torch.nn.functional.layer_norm(hidden, (16,), eps=1e-6)
    assert explained_variance(normal, hidden).item() == pytest.approx(1)
    mean = normal.mean(dim=(0, 1), keepdim=True).expand_as(normal)
    assert explained_variance(mean, hidden).item() == pytest.approx(0, abs=1e-6)
    assert explained_variance(-normal, hidden).item() < -1


def test_an_untrained_student_loses_a_quarter() -> None:
    """What the reference says of it: LN targets have a mean square of 1, over twice the beta of 2."""
    hidden = torch.randn(2, 197, 512, generator=torch.Generator().manual_seed(0))
    assert generic_distillation(torch.zeros(2, 197, 512), hidden).item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_are_normalised_in_fp32(dtype: torch.dtype) -> None:
    hidden = (100 + torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    prediction = torch.zeros(2, 3, 8, dtype=dtype)
    wanted = 0.0
    for row in hidden.double().view(-1, 8):
        normal = (row - row.mean()) / (row.var(correction=0) + 1e-6).sqrt()
        wanted += float(torch.where(normal.abs() < 2, normal.square() / 4, normal.abs() - 1).mean()) / 6
    found = generic_distillation(prediction, hidden)
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(wanted, rel=1e-4)
