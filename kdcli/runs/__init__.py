"""What stages share: the frame around a run, its material, refusals, what a plan shows, export."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Result:
    """What a stage hands to the command line.

    Attributes:
        path: the artifact.
        summary: what ``--json`` prints beside the path.
        failed: requirements that were not met (exit 5).
    """

    path: Path
    summary: dict[str, Any] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
