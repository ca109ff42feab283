"""What a teacher's answers are worth on the pixels of labelled views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.pixels import at_size
from kdcli.tasks.judging import VIEWS, Judge
from kdcli.tasks.segmentation.values import VOID


def sums(logits: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Shares of right pixels and their mean negative log-likelihood, added up over the labelled rows.

    Void pixels are left out, and so is a view that has no other.
    """
    mask = batch["mask"]
    with torch.no_grad():
        rows = batch["labelled"] & (mask != VOID).flatten(1).any(dim=1)
        truth = mask[rows].long()
        found, keep = at_size(logits[rows].detach(), truth), truth != VOID
        pixels = keep.sum((1, 2)).clamp(min=1)
        right = ((found.argmax(dim=1) == truth) & keep).sum((1, 2)) / pixels
        losses = F.cross_entropy(found, truth, ignore_index=VOID, reduction="none").sum((1, 2)) / pixels
        return {VIEWS: rows.sum(), "pixel_accuracy": right.sum(), "nll": losses.sum()}


JUDGE = Judge(sums, "pixel_accuracy", "the pixels of labelled views", cut=True)
