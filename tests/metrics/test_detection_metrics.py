"""Detections against COCO's figures derived again from their definition, and boxes counted by hand."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from kdcli.errors import EnvironmentFault, InputError, NotFinite
from kdcli.metrics.detection import Truth, agreement, box_iou, coco_metrics

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
THRESHOLDS = [Fraction(10 + k, 20) for k in range(10)]


def truth(*rows: Sequence[float], ignored: Sequence[int] = ()) -> Truth:
    """Objects of one picture: rows of a box and its class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Truth(table[:, :4], table[:, 4].astype(np.int64), np.isin(np.arange(len(table)), ignored))


def stacked(pictures: Sequence[Sequence[Sequence[float]]]) -> np.ndarray:
    """Detections [N, K, 6] of lists, filled up with rows that are none."""
    found = np.full((len(pictures), max(map(len, pictures)), 6), -1, np.float32)
    for picture, rows in zip(found, pictures):
        picture[: len(rows)] = np.array(rows).reshape(-1, 6)
    return found


def drawn(seed: int, pictures: int = 6, classes: int = 4, most: int = 12) -> tuple[list[Truth], np.ndarray]:
    """Random pictures: objects of all sizes, some of them crowds; detections near, doubled, elsewhere."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(pictures):
        count = int(rng.integers(0, 9))
        corner, sides = rng.uniform(0, 150, (count, 2)), rng.choice([20.0, 60, 150], (count, 2))
        boxes = np.concatenate([corner, corner + sides * rng.uniform(0.7, 1.4, (count, 2))], 1)
        numbers = rng.integers(0, classes - 1, count)  # the last class has no object
        truths.append(Truth(boxes, numbers, rng.random(count) < 0.2))
        rows = []
        for box, number in zip(boxes, numbers):
            for _ in range(int(rng.integers(0, 4))):
                said = number if rng.random() < 0.85 else rng.integers(0, classes)
                noise = rng.normal(0, 0.12, 4) * np.tile(box[2:] - box[:2], 2) * rng.choice([0.1, 1])
                rows.append([*(box + noise), rng.random(), said])
        for _ in range(int(rng.integers(0, 5))):
            x, y, w, h = rng.uniform(0, 150, 4)
            rows.append([x, y, x + w, y + h, rng.random(), rng.integers(0, classes)])
        found.append([rows[i] for i in rng.permutation(len(rows))][:most])
    return truths, stacked(found)


# -- the definition, written down once more ------------------------------------------------------------------


def matched(
    picture: Truth, rows: np.ndarray, number: int, threshold: float, area: tuple[float, float], most: int
) -> tuple[list[tuple[float, bool]], int]:
    """(score, right) of the detections that count, in one picture and class; and objects that count."""
    objects = []
    for (x1, y1, x2, y2), c, crowd in zip(picture.boxes, picture.classes, picture.ignored):
        if c == number:
            outside = not area[0] <= (x2 - x1) * (y2 - y1) <= area[1]
            objects.append(
                {"box": (x1, y1, x2, y2), "crowd": crowd, "ignored": crowd or outside, "free": True}
            )
    ours = sorted((r for r in rows if r[4] > 0 and r[5] == number), key=lambda r: -r[4])[:most]
    counted = []
    for x1, y1, x2, y2, score, _ in (map(float, row) for row in ours):
        size = (x2 - x1) * (y2 - y1)

        def overlap(o: dict) -> float:
            a1, b1, a2, b2 = o["box"]
            common = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))  # noqa: B023
            return common / (size if o["crowd"] else size + (a2 - a1) * (b2 - b1) - common)  # noqa: B023

        for kind in (False, True):  # what counts goes before what is ignored
            there = [o for o in objects if o["ignored"] == kind and (o["free"] or o["crowd"])]
            there = [o for o in there if overlap(o) >= threshold]
            if there:
                best = max(there, key=overlap)
                best["free"] = False
                if not kind:
                    counted.append((score, True))
                break
        else:
            if area[0] <= size <= area[1]:
                counted.append((score, False))
    return counted, sum(not o["ignored"] for o in objects)


def curve(counted: list[tuple[float, bool]], objects: int) -> tuple[float, float]:
    """Mean precision over 101 recalls, and the largest recall."""
    points, hits = [], 0
    for place, (_, right) in enumerate(sorted(counted, key=lambda pair: -pair[0]), start=1):
        hits += right
        points.append((hits / objects, hits / place))
    at = [max((p for r, p in points if r >= k / 100 - 1e-12), default=0.0) for k in range(101)]
    return sum(at) / 101, hits / objects


def naive(truths: Sequence[Truth], found: np.ndarray, classes: int) -> tuple[dict[str, float], list[dict]]:
    sizes = {
        "": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)
    }  # fmt: skip
    results: dict[tuple, tuple[float, float]] = {}
    for c in range(classes):
        for size, area in sizes.items():
            for t, threshold in enumerate(THRESHOLDS):
                for most in (1, 10, 100):
                    parts = [
                        matched(p, rows, c, float(threshold), area, most) for p, rows in zip(truths, found)
                    ]
                    objects = sum(count for _, count in parts)
                    if objects:
                        results[c, size, t, most] = curve([x for part, _ in parts for x in part], objects)

    def mean(which: int, **fixed: object) -> float | None:
        names = ("c", "size", "t", "most")
        values = [
            value[which]
            for key, value in results.items()
            if all(dict(zip(names, key))[name] == wanted for name, wanted in fixed.items())
        ]
        return sum(values) / len(values) if values else None

    metrics = {f"ap{size}": mean(0, size=size, most=100) for size in sizes}
    metrics |= {f"ap{n}": mean(0, size="", t=t, most=100) for n, t in ((50, 0), (75, 5))}
    metrics |= {f"ar{most}": mean(1, size="", most=most) for most in (1, 10, 100)}
    per_class = [
        {
            "ap": mean(0, c=c, size="", most=100),
            "ap50": mean(0, c=c, size="", t=0, most=100),
            "ar100": mean(1, c=c, size="", most=100),
            "boxes": sum(int(((p.classes == c) & ~p.ignored).sum()) for p in truths),
        }
        for c in range(classes)
    ]
    return {key: value for key, value in metrics.items() if value is not None}, per_class


@pytest.mark.parametrize(("seed", "classes", "most"), [(0, 4, 12), (1, 4, 12), (2, 4, 12), (4, 2, 40)])
def test_figures_are_those_of_the_definition(seed: int, classes: int, most: int) -> None:
    truths, found = drawn(seed, classes=classes, most=most)
    quality = coco_metrics(truths, found, classes)
    metrics, per_class = naive(truths, found, classes)
    assert quality.metrics == pytest.approx(metrics, abs=1e-9)
    assert 0.02 < quality.metrics["ap"] < 0.9
    assert (quality.metrics["ar10"] < quality.metrics["ar100"]) is (most > 12)
    assert len(quality.per_class) == classes
    for ours, theirs in zip(quality.per_class, per_class):
        assert ours == pytest.approx(theirs, abs=1e-9)
    assert quality.per_class[-1] == {"ap": None, "ap50": None, "ar100": None, "boxes": 0}


def test_figures_are_those_that_pycocotools_sums_up() -> None:
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truths, found = drawn(11, pictures=20)
    objects, results = [], []
    for picture, (there, rows) in enumerate(zip(truths, found)):
        for (x1, y1, x2, y2), c, crowd in zip(there.boxes, there.classes, there.ignored):
            one = {"image_id": picture, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            one |= {"id": len(objects) + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": int(crowd)}
            objects.append(one)
        for x1, y1, x2, y2, score, c in rows[rows[:, 4] > 0].tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": picture, "category_id": int(c), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        table = COCO()
        table.dataset = {"annotations": objects, "info": {}}
        table.dataset |= {kind: [{"id": i} for i in range(20)] for kind in ("images", "categories")}
        table.createIndex()
        evaluation = COCOeval(table, table.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert coco_metrics(truths, found, 4).metrics == dict(zip(NAMES, evaluation.stats.tolist()))


# -- by hand -------------------------------------------------------------------------------------------------


def test_what_is_perfect_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    truths, _ = drawn(2)
    found = stacked([
        [[*box, 0.5, c] for box, c, ignored in zip(t.boxes, t.classes, t.ignored) if not ignored]
        for t in truths
    ])  # fmt: skip
    quality = coco_metrics(truths, found, 4)
    below = {"ar1", "ar10"}  # a picture may have several objects of a class
    assert {key: value for key, value in quality.metrics.items() if key not in below} == {
        key: pytest.approx(1, abs=1e-12) for key in NAMES if key not in below
    }
    assert quality.metrics["ar1"] < quality.metrics["ar10"] <= 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 4, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 34, 50, 100, 150])
def test_ap_of_shifted_boxes_is_the_share_of_thresholds_that_their_iou_reaches(shift: int) -> None:
    """Boxes of side 100, moved sideways by d: the intersection is 100 − d wide, the union 100 + d."""
    corners = [(0, 0, 0), (300, 40, 1), (20, 500, 2)]
    truths = [truth((x, y, x + 100, y + 100, c)) for x, y, c in corners]
    moved = stacked([[[x + shift, y, x + shift + 100, y + 100, 0.9, c]] for x, y, c in corners])
    iou = Fraction(max(0, 100 - shift), 100 + min(shift, 100))
    share = sum(threshold <= iou for threshold in THRESHOLDS) / 10
    metrics = coco_metrics(truths, moved, 3).metrics
    expected = dict.fromkeys(("ap", "ap_large", "ar1", "ar10", "ar100"), share)
    expected |= {"ap50": float(iou >= Fraction(1, 2)), "ap75": float(iou >= Fraction(3, 4))}
    assert metrics == {key: pytest.approx(value, abs=1e-12) for key, value in expected.items()}
    if shift < 100:
        assert box_iou(moved[0, :, :4], truths[0].boxes).item() == pytest.approx(float(iou), rel=1e-12)


def test_a_mistake_above_what_is_right_halves_precision() -> None:
    truths = [truth((0, 0, 50, 50, 0)), truth()]
    right, wrong = [0, 0, 50, 50, 0.5, 0], [200, 200, 250, 250, 0.8, 0]
    assert coco_metrics(truths, stacked([[right], [wrong]]), 1).metrics["ap"] == pytest.approx(0.5)
    late = [*wrong[:4], 0.2, 0]
    assert coco_metrics(truths, stacked([[right], [late]]), 1).metrics["ap"] == pytest.approx(1)
    twice = stacked([[right, [*right[:4], 0.8, 0], [*right[:4], 0.9, 0]], []])  # only the first one counts
    quality = coco_metrics([truths[0], truth((0, 0, 9, 9, 0))], twice, 1)
    assert quality.metrics["ap"] == pytest.approx(51 / 101)
    assert quality.metrics["ar100"] == pytest.approx(0.5)


def test_of_a_class_in_a_picture_the_hundred_best_count() -> None:
    wrong = [[200, 200, 250, 250, 0.8, 0]] * 99
    right = [0, 0, 50, 50, 0.5, 0]
    for more, ap in ((0, 0.01), (1, 0)):
        found = stacked([[*wrong, *wrong[:more], right, [*right[:5], 1]]])
        quality = coco_metrics([truth((0, 0, 50, 50, 0), (0, 0, 50, 50, 1))], found, 2)
        assert [row["ap"] for row in quality.per_class] == pytest.approx([ap, 1])


def test_what_is_ignored_is_neither_missed_nor_a_mistake() -> None:
    there = truth((0, 0, 50, 50, 0), (100, 100, 300, 300, 0), ignored=[1])
    rows = [[0, 0, 50, 50, 0.5, 0], [120, 120, 150, 150, 0.9, 0], [200, 200, 280, 290, 0.8, 0]]
    quality = coco_metrics([there], stacked([rows]), 1)
    assert quality.metrics["ap"] == pytest.approx(1)
    assert quality.per_class[0]["boxes"] == 1
    counted = Truth(there.boxes, there.classes, np.zeros(2, bool))
    assert coco_metrics([counted], stacked([rows]), 1).metrics["ap"] < 0.4


def test_figures_do_not_depend_on_the_order_of_pictures_objects_and_detections() -> None:
    truths, found = drawn(5)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(truths))
    turned = []
    for i in order:
        rows = rng.permutation(len(truths[i].boxes))
        turned.append(Truth(truths[i].boxes[rows], truths[i].classes[rows], truths[i].ignored[rows]))
    mixed = np.stack([found[i][rng.permutation(found.shape[1])] for i in order])
    first, second = coco_metrics(truths, found, 4), coco_metrics(turned, mixed, 4)
    assert second.metrics == pytest.approx(first.metrics, abs=1e-12)
    for ours, theirs in zip(first.per_class, second.per_class):
        assert ours == pytest.approx(theirs, abs=1e-12)


# -- what is missing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [0, 3])
def test_without_detections_all_is_zero(rows: int) -> None:
    truths, _ = drawn(2)
    quality = coco_metrics(truths, np.zeros((len(truths), rows, 6), np.float32), 4)
    assert quality.metrics == dict.fromkeys(NAMES, 0.0)
    assert quality.per_class[0] | {"boxes": 0} == {"ap": 0.0, "ap50": 0.0, "ar100": 0.0, "boxes": 0}


def test_sizes_of_which_there_is_no_object_have_no_figure() -> None:
    quality = coco_metrics([truth((0, 0, 50, 50, 0))], stacked([[[0, 0, 50, 50, 0.5, 0]]]), 2)
    assert set(NAMES) - set(quality.metrics) == {"ap_small", "ap_large"}
    assert quality.per_class[1] == {"ap": None, "ap50": None, "ar100": None, "boxes": 0}


def test_without_an_object_that_counts_nothing_can_be_measured() -> None:
    found = stacked([[[0, 0, 9, 9, 0.5, 0]], []])
    for there in (truth(), truth((0, 0, 9, 9, 0), ignored=[0])):
        message = rf"none of the 2 pictures has an object that counts \({len(there.boxes)} are ignored\)"
        with pytest.raises(InputError, match=message):
            coco_metrics([there, truth()], found, 1)


def test_a_detection_without_an_area_finds_nothing() -> None:
    rows = [[50, 50, 0, 0, 0.9, 0], [20, 20, 20, 20, 0.8, 0]]
    assert coco_metrics([truth((0, 0, 50, 50, 0))], stacked([rows]), 1).metrics["ap"] == 0


def test_what_does_not_fit_is_refused() -> None:
    there, row = truth((0, 0, 9, 9, 0)), [0, 0, 9, 9, 0.5, 0]
    for bad, kind, message in (
        (np.zeros((2, 1, 6)), ValueError, r"detections must have the shape \[1, K, 6\], not \[2, 1, 6\]"),
        (np.zeros((1, 5)), ValueError, r"the shape \[1, K, 6\], not \[1, 5\]"),
        (stacked([[[*row[:5], 3]]]), ValueError, "detections have the class 3, none of the 2 classes"),
        (stacked([[[*row[:5], 0.5]]]), ValueError, "detections have the class 0.5, none of the 2 classes"),
        (stacked([[[*row[:4], np.nan, 0]]]), NotFinite, "detections of 1 of 1 pictures are not finite"),
        (stacked([[[np.inf, *row[1:]]]]), NotFinite, "detections of 1 of 1 pictures are not finite"),
    ):
        with pytest.raises(kind, match=message):
            coco_metrics([there], bad, 2)
    for bad_truth, message in (
        (truth((0, 0, 9, 9, 2)), "picture 0: the objects have the class 2, none of the 2 classes"),
        (truth((0, 0, 9, np.nan, 0)), "picture 0: the box of an object is not finite"),
        (
            Truth(np.zeros((1, 4)), np.zeros(2, int), np.zeros(1, bool)),
            r"the shapes \[\[1, 4\], \[2\], \[1\]\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            coco_metrics([bad_truth], stacked([[row]]), 2)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pycocotools" else find(name, *a)
    )
    message = r"pycocotools is not installed. Install it with: pip install 'kdcli\[detection\]'"
    with pytest.raises(EnvironmentFault, match=message):
        coco_metrics([truth((0, 0, 9, 9, 0))], np.zeros((1, 0, 6)), 1)


# -- agreement -----------------------------------------------------------------------------------------------


def test_agreement_by_hand() -> None:
    box, near, far = [0, 0, 100, 100], [20, 0, 120, 100], [500, 0, 600, 100]
    teacher = stacked([[[*box, 0.9, 0], [*far, 0.8, 1], [*far, 0.4, 0]], [[*box, 0.6, 2]], []])
    student = stacked(
        [[[*near, 0.7, 0], [*box, 0.6, 0], [*far, 0.9, 0]], [[*box, 0.49, 2]], [[*box, 0.5, 1]]]
    )
    found = agreement(student, teacher)  # one of three; near came first, so that the exact one is left over
    assert found == pytest.approx({"teacher_recall": 1 / 3, "teacher_precision": 1 / 4})
    assert agreement(student, teacher, iou=0.7) == found  # near, at 2/3, no longer: the exact one now
    assert agreement(student, teacher, threshold=0.45)["teacher_recall"] == pytest.approx(2 / 3)


def test_a_detector_follows_itself_and_what_is_not_there_has_no_share() -> None:
    _, found = drawn(3)
    assert agreement(found, found) == {"teacher_recall": 1.0, "teacher_precision": 1.0}
    none = np.zeros((len(found), 2, 6), np.float32)
    assert agreement(none, found) == {"teacher_recall": 0.0}
    assert agreement(found, none) == {"teacher_precision": 0.0}
    assert agreement(none, none, threshold=0.0) == {}


@pytest.mark.parametrize("seed", range(3))
def test_agreement_is_a_greedy_matching(seed: int) -> None:
    _, student = drawn(seed, pictures=30)
    rng = np.random.default_rng(seed)
    teacher = student + np.concatenate([rng.normal(0, 5, (*student.shape[:2], 4)), np.zeros((30, 12, 2))], 2)
    teacher[..., 4] = student[..., 4] + rng.normal(0, 0.1, student.shape[:2])
    common = ours = theirs = 0
    for rows, others in zip(student, teacher):
        left = [list(map(float, r)) for r in others if r[4] >= 0.5]
        mine = sorted((list(map(float, r)) for r in rows if r[4] >= 0.5), key=lambda r: -r[4])
        ours, theirs = ours + len(mine), theirs + len(left)
        for x1, y1, x2, y2, _, c in mine:
            best, chosen = 0.5, None
            for other in left:
                a1, b1, a2, b2, _, number = other
                inner = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
                iou = inner / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inner)
                if number == c and iou >= best:
                    best, chosen = iou, other
            if chosen is not None:
                left.remove(chosen)
                common += 1
    assert agreement(student, teacher) == pytest.approx(
        {"teacher_recall": common / theirs, "teacher_precision": common / ours}
    )
    assert 0.2 < common / ours < 1


def test_agreement_of_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"student's detections must have the shape \[3, K, 6\]"):
        agreement(np.zeros((2, 1, 6)), np.zeros((3, 1, 6)))
    with pytest.raises(NotFinite, match="the teacher's detections of 1 of 2 pictures"):
        agreement(np.zeros((2, 1, 6)), stacked([[[0, 0, 9, 9, np.nan, 0]], []]))
