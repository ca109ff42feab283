"""Tasks: what is learned. A task owns columns, head, supervised loss, predictions and metrics."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Task(Protocol):
    """What methods and stages ask of a task."""

    @property
    def name(self) -> str:
        """As in manifests."""

    @property
    def selection(self) -> str:
        """The metric that model selection goes by."""

    def supervised(self, call: str) -> Any:
        """The term that learns from labels, over the logits of ``call``."""

    def measure(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Metrics of one split."""
