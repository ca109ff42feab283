"""What is measured of a network for several labels: see :class:`kdcli.report.figures.Figure`."""

from __future__ import annotations

from kdcli.report.figures import Figure
from kdcli.report.forms import percent, thousandths

_LABELS = "it takes pictures of several labels each"
_CHOSEN = "Yes is said from a label's threshold on, which was chosen on validation pictures, or is one half."

FIGURES = (
    Figure(
        "mean_ap",
        "mAP",
        ("metrics", "mean_ap"),
        percent,
        fraction=True,
        takes=_LABELS,
        says="mAP is the mean over labels of average precision, the area under the steps of the "
        "precision-recall curve; a label that no picture of the split has does not count.",
        axis="mean average precision (%)",
    ),
    Figure(
        "macro_f1",
        "macro F1",
        ("metrics", "macro_f1"),
        percent,
        fraction=True,
        takes=_LABELS,
        says=f"Macro F1 is the mean of the labels' F1. {_CHOSEN}",
    ),
    Figure(
        "micro_f1",
        "micro F1",
        ("metrics", "micro_f1"),
        percent,
        fraction=True,
        takes=_LABELS,
        says="Micro F1 is that of all answers together.",
    ),
    Figure(
        "exact",
        "exact",
        ("metrics", "exact"),
        percent,
        fraction=True,
        takes=_LABELS,
        says="Exact is the share of pictures all of whose labels are found, and no other.",
    ),
    Figure(
        "nll",
        "NLL",
        ("metrics", "nll"),
        thousandths,
        takes=_LABELS,
        says="NLL is the mean binary cross-entropy of a label in nats.",
    ),
)
