"""Boxes: corners and GIoU by hand, against torchvision, at the edge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from kdcli.losses.boxes import corners, generalized_iou


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(x1: float, y1: float, x2: float, y2: float) -> Tensor:
    return torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dtype=torch.float64)


def test_corners_are_those_of_torchvision() -> None:
    boxes = drawn(3, 5, seed=0)
    torch.testing.assert_close(corners(boxes), box_convert(boxes, "cxcywh", "xyxy"))
    torch.testing.assert_close(corners(of(0.1, 0.2, 0.5, 0.9)), torch.tensor([0.1, 0.2, 0.5, 0.9]).double())


def test_giou_is_that_of_torchvision_in_all_pairs_and_one_by_one() -> None:
    a, b = drawn(7, seed=1), drawn(9, seed=2)
    wanted = generalized_box_iou(corners(a), corners(b))
    torch.testing.assert_close(generalized_iou(a[:, None], b[None]), wanted)
    torch.testing.assert_close(generalized_iou(a, b[:7]), wanted.diagonal())


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ((0, 0, 1, 1), (0, 0, 1, 1), 1.0),
        ((0, 0, 1, 1), (0, 0, 1, 0.5), 0.5),  # inside: no gap in the hull
        ((0, 0, 0.2, 0.2), (0.8, 0.8, 1, 1), -(1 - 0.08)),  # apart: 0.08 of the hull are filled
        ((0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75), 0.0625 / 0.4375 - (0.5625 - 0.4375) / 0.5625),
    ],
)
def test_giou_by_hand(a: tuple[float, ...], b: tuple[float, ...], wanted: float) -> None:
    assert float(generalized_iou(of(*a), of(*b))) == pytest.approx(wanted, abs=1e-9)


def test_boxes_without_area_have_a_value_and_a_gradient() -> None:
    point = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    for other in (point, of(0.1, 0.1, 0.3, 0.3)):
        own = point.clone().requires_grad_()
        found = generalized_iou(own, other)
        (slope,) = torch.autograd.grad(found, own)
        assert -1 <= float(found.detach()) <= 0
        assert bool(slope.isfinite().all())
    assert float(generalized_iou(point, point)) == 0


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.autograd.gradcheck(generalized_iou, (drawn(4, seed=3).requires_grad_(), drawn(4, seed=4)))
