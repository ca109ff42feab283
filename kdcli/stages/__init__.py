"""The stages: each reads artifacts and writes one. They never import one another.

``STAGES`` names them without importing them, so that ``kdcli --help`` stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STAGES: dict[str, tuple[str, str]] = {
    "probe": (
        "kdcli.stages.probe",
        "Fit the best linear head on a frozen backbone: a task-specific teacher.",
    ),
    "synthesize": (
        "kdcli.stages.synthesize",
        "Make new pictures: of a training set, or from a teacher alone.",
    ),
    "distill": ("kdcli.stages.distill", "Train a student, with or without a teacher."),
    "eval": ("kdcli.stages.evaluate", "Measure models on one split: quality, calibration, cost, agreement."),
}


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
