"""What is measured of a backbone: see :class:`kdcli.report.figures.Figure`."""

from __future__ import annotations

from kdcli.report.figures import Figure
from kdcli.report.forms import percent

_LABELS = "it takes labelled pictures (data.task=representation)"

FIGURES = (
    Figure(
        "knn",
        "kNN",
        ("metrics", "knn"),
        percent,
        fraction=True,
        takes=_LABELS,
        says="kNN is top-1 by the votes of the 20 training pictures whose features are nearest, by cosine.",
        axis="accuracy by neighbours (%)",
    ),
    Figure(
        "linear_probe",
        "linear",
        ("metrics", "linear_probe"),
        percent,
        fraction=True,
        takes=_LABELS,
        says="Linear is top-1 of a linear classifier fitted in closed form on training pictures' features, "
        "with one fixed penalty; kdcli probe finds better ones.",
    ),
)
