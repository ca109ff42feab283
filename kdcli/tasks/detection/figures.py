"""What is measured of a detector: see :class:`kdcli.report.figures.Figure`."""

from __future__ import annotations

from kdcli.report.figures import TEACHER, Figure
from kdcli.report.forms import percent

_BOXES = "it takes boxes"

SIZES = tuple(
    Figure(
        f"ap_{size}",
        f"AP, {size}",
        ("metrics", f"ap_{size}"),
        percent,
        fraction=True,
        column=False,
        takes=f"{_BOXES}, and of {size} objects at least one",
        says=says,
    )
    for size, says in (
        ("small", "Small, medium and large are objects whose boxes have up to 32², up to 96², and more "
                  "pixels of their picture."),
        ("medium", ""),
        ("large", ""),
    )
)  # fmt: skip

RECALLS = tuple(
    Figure(
        f"ar{most}",
        f"AR@{most}",
        ("metrics", f"ar{most}"),
        percent,
        fraction=True,
        column=most == 100,
        takes=_BOXES,
        says="AR@K is the mean over classes and the ten thresholds of the share of objects that are found by "
        "the K best detections of each class in a picture, whatever else is among them."
        if most == 100
        else "",
    )
    for most in (1, 10, 100)
)

FIGURES = (
    Figure(
        "ap",
        "AP",
        ("metrics", "ap"),
        percent,
        fraction=True,
        takes=_BOXES,
        says="AP, average precision, is COCO's: the mean of precision over 101 recalls, over classes and "
        "over ten thresholds of intersection over union, 0.50 to 0.95, from which on a box finds an object. "
        "A class that no picture of the split has does not count.",
        axis="average precision (%)",
    ),
    *(
        Figure(
            f"ap{threshold}",
            f"AP{threshold}",
            ("metrics", f"ap{threshold}"),
            percent,
            fraction=True,
            takes=_BOXES,
            says="AP50 and AP75 are those of one threshold, 0.50 or 0.75." if threshold == 50 else "",
        )
        for threshold in (50, 75)
    ),
    *SIZES,
    *RECALLS,
    Figure(
        "teacher_recall",
        "teacher recall",
        ("teacher", "teacher_recall"),
        percent,
        fraction=True,
        takes=TEACHER,
        says="Teacher recall is the share of the teacher's detections that a model has too. Of both, those "
        "of a score of at least 0.5 count; two are the same that have one class and an intersection over "
        "union of at least 0.5.",
    ),
    Figure(
        "teacher_precision",
        "teacher precision",
        ("teacher", "teacher_precision"),
        percent,
        fraction=True,
        takes=TEACHER,
        says="Teacher precision is the share of a model's own detections that the teacher has.",
    ),
)
