"""What is measured of a segmentation: see :class:`kdcli.report.figures.Figure`."""

from __future__ import annotations

from kdcli.report.figures import Figure
from kdcli.report.forms import percent

_MASKS = "it takes masks"

FIGURES = (
    Figure(
        "miou",
        "mIoU",
        ("metrics", "miou"),
        percent,
        fraction=True,
        takes=_MASKS,
        says="mIoU is the mean over classes of intersection over union, from one confusion matrix of all "
        "pixels of the split, void left out; a class that occurs neither in the truth nor among the "
        "predictions does not count.",
        axis="mean IoU (%)",
    ),
    Figure(
        "pixel_accuracy",
        "pixel accuracy",
        ("metrics", "pixel_accuracy"),
        percent,
        fraction=True,
        takes=_MASKS,
        says="Pixel accuracy is the share of pixels that are found.",
    ),
    Figure(
        "mean_accuracy",
        "mean accuracy",
        ("metrics", "mean_accuracy"),
        percent,
        fraction=True,
        takes=_MASKS,
        says="Mean accuracy is the mean over the classes of the share of their pixels that is found.",
    ),
)
