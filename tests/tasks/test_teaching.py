"""What a teacher's answers are worth: sums against a naive count, and the rule that warns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdcli.tasks import task_named
from kdcli.tasks.classification.teaching import sums as of_classes
from kdcli.tasks.segmentation.teaching import sums as of_pixels


def test_labelled_rows_of_classes_are_counted() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, -1, 2, -1, 1])
    found = of_classes(logits, {"target": y, "labelled": y >= 0})
    known = [i for i in range(6) if y[i] >= 0]
    assert int(found["views"]) == 4
    assert int(found["top1"]) == sum(int(logits[i].argmax() == y[i]) for i in known)
    nll = sum(float(-logits[i].log_softmax(0)[y[i]]) for i in known)
    assert float(found["nll"]) == pytest.approx(nll, rel=1e-5)
    mixed = torch.full((6, 3), 1 / 3)
    assert of_classes(logits, {"target": mixed, "labelled": y >= 0}) == {}
    assert int(of_classes(logits, {"target": y * 0 - 1, "labelled": y < -1})["views"]) == 0


def test_pixels_that_are_not_void_are_counted() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 4, 4, generator=generator)
    mask = torch.randint(0, 3, (4, 8, 8), generator=generator).byte()
    mask[0, :3], mask[1] = 255, 255
    labelled = torch.tensor([True, True, True, False])
    found = of_pixels(logits, {"mask": mask, "labelled": labelled})
    assert int(found["views"]) == 2  # one is void throughout, one has no mask
    grown = F.interpolate(logits, (8, 8), mode="bilinear", align_corners=False)
    right = losses = 0.0
    for i in (0, 2):
        keep = mask[i] != 255
        truth, own = mask[i][keep].long(), grown[i][:, keep]
        right += float((own.argmax(0) == truth).float().mean())
        losses += float(F.cross_entropy(own.t(), truth))
    assert float(found["pixel_accuracy"]) == pytest.approx(right, rel=1e-5)
    assert float(found["nll"]) == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("right", "labelled", "warns"),
    [(0.79, 1.0, True), (0.91, 1.0, False), (0.9, 1.0, False), (0.79, 0.5, True), (0.79, 0.49, False)],
)
def test_the_rule(right: float, labelled: float, warns: bool) -> None:
    """Wrong on more than a tenth of the labelled views, and half of the training pictures have labels."""
    judge = task_named("classification", ["a", "b"]).judge()
    assert judge is not None
    figures = {"views": 1080.0, "top1": right, "nll": 0.9}
    assert judge.said(figures) == (
        f"the teacher is right on {right:.1%} of labelled views (first epoch, 1,080 views), nll 0.900"
    )
    text = judge.warning(figures, labelled)
    assert bool(text) is warns
    if warns:
        assert text.startswith(
            "the teacher is wrong on 21.0% of labelled views that it teaches, more than 10%: "
        )
