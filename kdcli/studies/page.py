"""The page of a study."""

from __future__ import annotations

from typing import Any


def write(plan: Any, trials: Any, chosen: Any) -> None:
    """Placeholder until the page is drawn."""
