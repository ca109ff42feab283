"""Tasks: what is learned. A task owns columns, head, supervised loss, predictions and metrics."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Task(Protocol):
    """What methods and stages ask of a task."""

    name: str

    def supervised(self, call: str) -> Any:
        """The term that learns from labels, over the logits of ``call``."""

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of one split; ``selection`` names the one that model selection goes by."""

    selection: str
