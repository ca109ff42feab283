"""Metrics of pixels against torchmetrics and a count by hand."""

from __future__ import annotations

import math

import pytest
import torch

from kdcli.metrics.agreement import agreement
from kdcli.metrics.segmentation import (
    FOLLOWS,
    class_iou,
    pixel_agreement,
    pixel_confusion,
    segmentation_metrics,
)


def drawn(seed: int, classes: int = 6, void: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, mask = torch.randint(0, classes, (2, 5, 9, 7), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < void] = 255
    return prediction, mask


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_torchmetrics(seed: int) -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    prediction, mask = drawn(seed)
    prediction[prediction == 4], mask[mask == 4] = 0, 1  # a class that occurs nowhere
    jaccard = MulticlassJaccardIndex(6, average="macro", ignore_index=255)
    micro = MulticlassAccuracy(6, average="micro", ignore_index=255)
    confusion = torch.zeros(6, 6, dtype=torch.long)
    for p, m in zip(prediction, mask):  # over the data set, not a mean over pictures
        jaccard.update(p, m)
        micro.update(p, m)
        confusion += pixel_confusion(p, m, 6)
    found = segmentation_metrics(confusion)
    assert found["miou"] == pytest.approx(float(jaccard.compute()), rel=1e-6)
    assert found["pixel_accuracy"] == pytest.approx(float(micro.compute()), rel=1e-6)
    per_class = MulticlassJaccardIndex(6, average="none", ignore_index=255)(prediction, mask)
    iou = class_iou(confusion)
    assert math.isnan(iou[4])
    present = [0, 1, 2, 3, 5]
    torch.testing.assert_close(iou[present].float(), per_class[present])


def test_a_perfect_prediction_scores_one() -> None:
    _, mask = drawn(3)
    mask[mask == 2] = 0
    prediction = torch.where(mask == 255, 5, mask)  # whatever is said of void pixels
    found = segmentation_metrics(pixel_confusion(prediction, mask, 6))
    assert found == {"miou": 1.0, "pixel_accuracy": 1.0, "mean_accuracy": 1.0}


def test_by_hand() -> None:
    mask = torch.tensor([0, 0, 0, 1, 255])
    confusion = pixel_confusion(torch.tensor([0, 0, 2, 1, 1]), mask, 4)
    assert confusion.tolist() == [[2, 0, 1, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    assert class_iou(confusion)[:3].tolist() == pytest.approx(
        [2 / 3, 1, 0]
    )  # class 2 was predicted: it counts
    assert segmentation_metrics(confusion) == pytest.approx(
        {"miou": 5 / 9, "pixel_accuracy": 0.75, "mean_accuracy": (2 / 3 + 1) / 2}
    )


def test_agreement_is_that_of_pixels_as_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, 5, generator=generator)
    mask = torch.randint(0, 4, (6, 5), generator=generator)
    mask[2, :3] = 255
    keep = mask != 255
    found = pixel_agreement(student, teacher, mask) / keep.sum()
    expected = agreement(student[:, keep].T, teacher[:, keep].T, mask[keep])
    assert dict(zip(FOLLOWS, found.tolist())) == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match=r"prediction \[3\] of a mask \[4\]"):
        pixel_confusion(torch.zeros(3), torch.zeros(4), 2)
    with pytest.raises(ValueError, match="the mask has the class 7, outside the 2 classes"):
        pixel_confusion(torch.zeros(3), torch.full((3,), 7), 2)
    with pytest.raises(ValueError, match="no pixel"):
        segmentation_metrics(pixel_confusion(torch.zeros(3), torch.full((3,), 255), 2))


def test_the_mean_over_the_classes_of_the_data() -> None:
    """Pixels that were taken for a class which the data lack count against their own class, no further."""
    confusion = torch.tensor([[6, 1, 3], [0, 10, 0], [0, 0, 0]])
    whole, part = segmentation_metrics(confusion), segmentation_metrics(confusion, 2)
    assert part["miou"] == pytest.approx((6 / 10 + 10 / 11) / 2)
    assert whole["miou"] == pytest.approx((6 / 10 + 10 / 11 + 0) / 3)
    assert {k: v for k, v in part.items() if k != "miou"} == {k: v for k, v in whole.items() if k != "miou"}
