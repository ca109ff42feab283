"""What is measured of a classifier: see :class:`kdcli.report.figures.Figure`."""

from __future__ import annotations

from kdcli.report.figures import Figure
from kdcli.report.forms import gflops, number, percent, thousandths

_PICTURES = "it takes pictures of one class each"
_EXITS = "it takes a model with exits"
_VALIDATED = f"{_EXITS}, and validation pictures beside those measured"

FIGURES = (
    Figure(
        "top1",
        "top-1",
        ("metrics", "top1"),
        percent,
        fraction=True,
        takes=_PICTURES,
        axis="top-1 accuracy (%)",
    ),
    Figure(
        "top5",
        "top-5",
        ("metrics", "top5"),
        percent,
        fraction=True,
        takes=f"{_PICTURES}, and more than five classes",
    ),
    Figure(
        "mean_per_class",
        "per class",
        ("metrics", "mean_per_class"),
        percent,
        fraction=True,
        takes=_PICTURES,
        says="Per class is the mean of the classes' top-1 accuracies.",
    ),
    Figure(
        "nll",
        "NLL",
        ("metrics", "nll"),
        thousandths,
        takes=_PICTURES,
        says="NLL is the mean negative log-likelihood in nats.",
    ),
    Figure(
        "ece",
        "ECE",
        ("metrics", "ece"),
        percent,
        fraction=True,
        takes=_PICTURES,
        says="ECE is the expected calibration error over 15 bins of confidence. NLL, ECE and the reliability "
        "diagram are of a network's logits as they are, at temperature 1.",
    ),
    Figure(
        "exits.ensemble.top1",
        "exits' mean",
        ("exits", "ensemble", "top1"),
        percent,
        fraction=True,
        takes=_EXITS,
    ),
    Figure(
        "exits.early.top1", "early exit", ("exits", "early", "top1"), percent, fraction=True, takes=_VALIDATED
    ),
    Figure("exits.early.flops", "early GFLOPs", ("exits", "early", "flops"), gflops, takes=_VALIDATED),
    Figure(
        "exits.early.latency_ms",
        "early latency (ms)",
        ("exits", "early", "latency_ms"),
        number,
        column=False,
        takes=f"{_VALIDATED}, and no --no-cost",
    ),
)
