"""The stages: each reads artifacts and writes one. They never import one another.

``STAGES`` names them without importing them, so that ``kdcli --help`` stays quick.
"""

from __future__ import annotations

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
    "compress": ("kdcli.stages.compress", "Make a trained network smaller: channels that it can spare go."),
    "eval": ("kdcli.stages.evaluate", "Measure models on one split: quality, calibration, cost, agreement."),
}
