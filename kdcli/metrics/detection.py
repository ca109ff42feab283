"""Metrics of detections over a whole data set: COCO's precision and recall, and agreement of two detectors.

Average precision is that of pycocotools, with its own defaults: a package of the extra ``detection``, which
is imported only when something is measured. Boxes are x1, y1, x2, y2 in pixels of their picture. A detection
whose score is not above 0 is none.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcli.errors import InputError, NotFinite, refuse_missing

FOLLOWS = ("teacher_recall", "teacher_precision")

_MOST = (1, 10, 100)  # detections of a class in a picture
_AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class Truth:
    """The objects of one picture.

    Attributes:
        boxes: float64 [n, 4], x1, y1, x2, y2 in the picture's pixels.
        classes: int64 [n].
        ignored: bool [n]: crowds and what else is neither to be found nor a mistake to find.
    """

    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class Quality:
    """How well objects are found.

    Attributes:
        metrics: ``ap``, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, ``ar1``, ``ar10`` and
            ``ar100``; without the figure of a size of which there is no object.
        per_class: of each class ``ap``, ``ap50`` and ``ar100``, None for one without an object, and
            ``boxes``, the number of its objects that are not ignored.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]


def coco_metrics(truths: Sequence[Truth], detections: np.ndarray, classes: int) -> Quality:
    """COCO's figures of the detections of a data set.

    AP is the mean of precision over 101 recalls, ten thresholds of IoU (.50:.05:.95) and the classes that
    have an object; AP50 and AP75 are those of one threshold. AR is the mean over thresholds and classes of
    the largest recall. A detection is matched, in falling order of score, with the free object of its class
    that it overlaps most; one that lies in an ignored object, by intersection over its own area, does not
    count. Small objects are up to 32² pixels large, large ones from 96². Source: Lin et al. 2014, "Microsoft
    COCO", and pycocotools' ``COCOeval``, which is what computes them.

    The area of an object is here that of its box, for boxes have no outline; COCO's own figures by size take
    the area of the outline, which is smaller. As in COCO, the 1, 10 or 100 best detections are taken of each
    class of a picture, those of equal scores in their order. A detection whose ends are in the wrong order
    has no area, and finds nothing.

    Args:
        truths: of N pictures, those alone that are annotated.
        detections: [N, K, 6]: x1, y1, x2, y2, score, class number.
        classes: C.

    Raises:
        EnvironmentFault: pycocotools is not installed.
        InputError: there is no object that counts, so that nothing can be found or missed.
        NotFinite: NaN or Inf in the detections.
        ValueError: shapes that do not fit, a class outside [0, C), a box of an object that is no number.
    """
    _check_detections(detections, "detections", len(truths), classes)
    _check_truths(truths, classes)
    boxes = np.zeros(classes, np.int64)
    for truth in truths:
        boxes += np.bincount(truth.classes[~truth.ignored], minlength=classes)
    if not boxes.any():
        ignored = sum(len(t.classes) for t in truths)
        raise InputError(
            f"none of the {len(truths):,} pictures has an object that counts ({ignored:,} are ignored): "
            "precision and recall cannot be measured. Measure on pictures with objects."
        )
    precision, recall = _evaluated(_annotations(truths), _results(detections), len(truths), classes)
    every, last = _AREAS.index("all"), len(_MOST) - 1
    metrics = {
        "ap": _mean(precision[:, :, :, every, last]),
        "ap50": _mean(precision[0, :, :, every, last]),
        "ap75": _mean(precision[5, :, :, every, last]),
        **{f"ap_{a}": _mean(precision[:, :, :, i, last]) for i, a in enumerate(_AREAS) if i != every},
        **{f"ar{most}": _mean(recall[:, :, every, i]) for i, most in enumerate(_MOST)},
    }
    per_class = [
        {
            "ap": _mean(precision[:, :, c, every, last]),
            "ap50": _mean(precision[0, :, c, every, last]),
            "ar100": _mean(recall[:, c, every, last]),
            "boxes": int(count),
        }
        for c, count in enumerate(boxes)
    ]
    return Quality({key: value for key, value in metrics.items() if value is not None}, per_class)


def agreement(
    student: np.ndarray, teacher: np.ndarray, threshold: float = 0.5, iou: float = 0.5
) -> dict[str, float]:
    """How far a student's detections are those of its teacher, whatever is in the pictures.

    Of both, the detections count whose score is at least ``threshold``. Those of the student, in falling
    order of score, each take the free one of the teacher's that they overlap most, of the same picture and
    class and with at least ``iou``; what is taken is free no more.

    Args:
        student: [N, K, 6]: x1, y1, x2, y2, score, class number.
        teacher: [N, L, 6], of the same pictures.
        threshold: of the scores.
        iou: the least intersection over union.

    Returns:
        ``teacher_recall``: the share of the teacher's detections that the student has too; and
        ``teacher_precision``: the share of the student's that the teacher has. Without the share of
        detections where there are none.

    Raises:
        NotFinite: NaN or Inf in the detections.
        ValueError: shapes that do not fit.
    """
    _check_detections(student, "the student's detections", len(teacher))
    _check_detections(teacher, "the teacher's detections", len(student))
    common = ours = theirs = 0
    for rows, others in zip(student, teacher):
        first, second = (part[(part[:, 4] > 0) & (part[:, 4] >= threshold)] for part in (rows, others))
        common += _in_common(first, second, iou)
        ours, theirs = ours + len(first), theirs + len(second)
    return {name: common / count for name, count in zip(FOLLOWS, (theirs, ours)) if count}


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and [m, 4]: float64 [n, m], 0 where both have no area."""
    a, b = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = sides.clip(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).clip(0).prod(-1) + (b[..., 2:] - b[..., :2]).clip(0).prod(-1) - common
    return np.divide(common, union, out=np.zeros_like(union), where=union > 0)


def _in_common(first: np.ndarray, second: np.ndarray, least: float) -> int:
    """How many detections of one picture two detectors share; those that stand first choose by score."""
    first = first[np.argsort(-first[:, 4], kind="stable")]
    overlap = box_iou(first[:, :4], second[:, :4])
    overlap[first[:, None, 5] != second[None, :, 5]] = -1
    found = 0
    for row in range(len(first) if len(second) else 0):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= least:
            overlap[:, best] = -1
            found += 1
    return found


def _check_detections(detections: np.ndarray, name: str, pictures: int, classes: int | None = None) -> None:
    if detections.ndim != 3 or detections.shape[2] != 6 or len(detections) != pictures:
        raise ValueError(f"{name} must have the shape [{pictures}, K, 6], not {list(detections.shape)}")
    score = detections[..., 4]
    bad = np.isnan(score) | ((score > 0) & ~np.isfinite(detections).all(-1))
    if bad.any():
        raise NotFinite(f"{name} of {bad.any(-1).sum()} of {pictures} pictures are not finite (NaN or Inf)")
    _check_classes(detections[score > 0][:, 5], name, classes)


def _check_truths(truths: Sequence[Truth], classes: int) -> None:
    for index, truth in enumerate(truths):
        count = len(truth.boxes)
        if truth.boxes.shape != (count, 4) or not truth.classes.shape == truth.ignored.shape == (count,):
            shapes = [list(part.shape) for part in (truth.boxes, truth.classes, truth.ignored)]
            raise ValueError(f"picture {index}: boxes, classes and ignored have the shapes {shapes}")
        if not np.isfinite(truth.boxes).all():
            raise ValueError(f"picture {index}: the box of an object is not finite (NaN or Inf)")
        _check_classes(truth.classes, f"picture {index}: the objects", classes)


def _check_classes(numbers: np.ndarray, name: str, classes: int | None) -> None:
    if classes is not None and len(odd := numbers[(numbers < 0) | (numbers >= classes) | (numbers % 1 != 0)]):
        raise ValueError(f"{name} have the class {odd[0]:g}, none of the {classes} classes")


# -- pycocotools ---------------------------------------------------------------------------------------------


def _annotations(truths: Sequence[Truth]) -> list[dict[str, Any]]:
    """Objects as COCO has them; a number of 0 would pass there for no match, so they begin at 1."""
    return [
        {"image_id": picture, "category_id": int(number), "iscrowd": int(ignored), **_place(box)}
        for picture, truth in enumerate(truths)
        for box, number, ignored in zip(truth.boxes, truth.classes, truth.ignored)
    ]


def _results(detections: np.ndarray) -> list[dict[str, Any]]:
    """Detections as COCO has them."""
    return [
        {"image_id": picture, "category_id": int(row[5]), "score": float(row[4]), **_place(row[:4])}
        for picture, rows in enumerate(detections)
        for row in rows[rows[:, 4] > 0]
    ]


def _place(box: np.ndarray) -> dict[str, Any]:
    x1, y1, x2, y2 = box.tolist()
    width, height = max(0.0, x2 - x1), max(0.0, y2 - y1)
    return {"bbox": [x1, y1, width, height], "area": width * height}


def _evaluated(
    objects: list[dict[str, Any]], found: list[dict[str, Any]], pictures: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Precision [10 IoUs, 101 recalls, C, 4 areas, 3 numbers of detections] and recall [10, C, 4, 3]."""
    refuse_missing(("pycocotools",), "detection", "detections are measured with pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does, where only results may stand
        both = []
        for annotations in (objects, found):
            table = COCO()
            table.dataset = {
                "images": [{"id": i} for i in range(pictures)],
                "categories": [{"id": i} for i in range(classes)],
                "annotations": [{"id": i, **row} for i, row in enumerate(annotations, start=1)],
            }
            table.createIndex()
            both.append(table)
        evaluation = COCOeval(*both, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _mean(values: np.ndarray) -> float | None:
    """The mean without the -1 that stands where there is no object; None where there is nothing else."""
    values = values[values > -1]
    return float(values.mean()) if values.size else None
