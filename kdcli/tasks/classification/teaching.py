"""What a teacher's answers are worth on labelled views of pictures of one class each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.tasks.judging import VIEWS, Judge


def sums(logits: Tensor, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Right answers and negative log-likelihood of logits [B, C] over labelled rows; none of mixed rows."""
    target, labelled = batch["target"], batch["labelled"]
    if target.ndim > 1:
        return {}
    with torch.no_grad():
        known, y = logits[labelled].detach().float(), target[labelled]
        return {
            VIEWS: labelled.sum(),
            "top1": (known.argmax(dim=1) == y).sum(),
            "nll": F.cross_entropy(known, y, reduction="sum"),
        }


JUDGE = Judge(sums, "top1", "labelled views")
