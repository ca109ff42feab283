"""Reports on detectors: boxes lie where they are, figures make gates and columns, names are escaped."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdcli.errors import UsageError
from kdcli.metrics.detection import Truth, agreement, coco_metrics
from kdcli.report import page
from kdcli.report.figures import GENERAL
from kdcli.report.gates import judge, parse
from kdcli.report.thumbnails import palette
from kdcli.tasks.detection import overlays
from kdcli.tasks.detection.figures import FIGURES
from kdcli.tasks.detection.report import LISTED, panels

GREY = 100
EVIL = "<script>\x1b\"&'"


def blank(width: int, height: int) -> Any:
    return Image.new("RGB", (width, height), (GREY,) * 3)


def truth(boxes: list[list[float]], classes: list[int], ignored: list[bool] | None = None) -> Truth:
    table = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Truth(table, np.array(classes, dtype=np.int64), np.array(ignored or [False] * len(table), bool))


def read(address: str) -> np.ndarray:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def is_colour(pixels: np.ndarray, number: int, classes: int) -> np.ndarray:
    return (pixels == palette(classes)[number]).all(-1)


# -- pictures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(320, 240), (1280, 960), (80, 60), (240, 320)])
def test_lines_lie_where_a_box_is(width: int, height: int) -> None:
    """A box of shares of the picture is drawn at these shares, whatever size the picture has."""
    shares = np.array([0.25, 0.5, 0.75, 0.9])
    box = (shares * [width, height, width, height]).tolist()
    (_, address), = overlays.panels(blank(width, height), truth([box], [1]), {}, ["a", "b"])  # fmt: skip
    pixels = read(address)
    high, wide = pixels.shape[:2]
    assert (wide, high) == ((320, 240) if width > height else (240, 320))
    x1, y1, x2, y2 = (round(v) for v in shares * [wide, high, wide, high])
    expected = np.zeros((high, wide), bool)
    expected[y1:y2, x1:x2] = True
    expected[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] = False
    changed = (pixels != GREY).any(-1)
    inside = np.zeros_like(expected)
    inside[y1:, :] = True  # the name stands above
    assert is_colour(pixels, 1, 2)[expected].all()
    assert not changed[inside & ~expected].any()
    above = changed & ~inside
    assert is_colour(pixels, 1, 2)[y1 - 10 : y1, x1].all()  # the name's patch, as wide as its text
    assert above[:, x1:x2].any()
    assert not above[: y1 - 20].any()


def test_lines_of_what_is_ignored_are_broken() -> None:
    picture, box = blank(320, 240), [20, 40, 300, 200]
    whole, broken = (
        read(overlays.panels(picture, truth([box], [0], [ignored]), {}, ["a"])[0][1])
        for ignored in (False, True)
    )
    line = is_colour(broken, 0, 1)[199, 20:300]
    assert is_colour(whole, 0, 1)[199, 20:300].all()
    assert 0.4 < line.mean() < 0.6
    assert np.abs(np.diff(line.astype(int))).sum() > 20


def test_detections_carry_class_and_score_in_the_colour_of_the_class() -> None:
    rows = np.array(
        [[10, 100, 60, 150, 0.9, 2], [200, 100, 260, 150, 0.8, 0], [0, 0, 5, 5, 0.0, 1]], np.float32
    )
    found = overlays.panels(blank(320, 240), truth([], []), {"m": rows, "n": rows[:0]}, ["a", "b", "c"])
    assert [caption for caption, _ in found] == ["truth", "m", "n"]
    bare, drawn, none = (read(address) for _, address in found)
    assert (bare == GREY).all()
    assert (none == GREY).all()
    assert is_colour(drawn, 2, 3)[100:150, 10].all()
    assert is_colour(drawn, 0, 3)[100:150, 200].all()
    assert not is_colour(drawn, 1, 3).any()
    other = rows * np.array([1, 1, 1, 1, 0.5, 1], np.float32)  # 0.45 and 0.40: other letters, the same boxes
    again = read(overlays.panels(blank(320, 240), truth([], []), {"m": other}, ["a", "b", "c"])[1][1])
    changed = (again != drawn).any(-1)
    assert changed[80:100].any()
    assert not changed[100:].any()


def test_the_best_are_drawn_and_lie_on_top() -> None:
    def scores(*values: float) -> list[float]:
        rows = np.array([[0, 0, 9, 9, value, 0] for value in values])
        return overlays.worth(rows.reshape(-1, 6))[:, 4].tolist()

    assert scores(0.1, 0.9, 0.29, 0.3, 0.5) == [0.9, 0.5, 0.3]
    assert scores(0.1, 0.02, 0.05, 0.2) == [0.2, 0.1, 0.05]  # no fewer than three
    assert scores(0.0, -1, 0.2) == [0.2]
    assert len(scores(*[0.5] * 99)) == overlays.MOST
    assert scores() == []
    rows = np.array([[50, 50, 150, 150, 0.4, 1], [50, 50, 150, 150, 0.7, 0]], np.float32)
    found = overlays.panels(blank(320, 240), truth([], []), {"m": rows}, ["a", "b"])
    assert is_colour(read(found[1][1]), 0, 2)[149, 50:150].all()


def test_boxes_beyond_the_picture_and_names_of_any_length_are_drawn_within_it() -> None:
    names = ["x" * 5000, "猫\n" + EVIL]
    boxes = [
        [-50.0, -50, 400, 300],
        [310, 230, 315, 235],
        [5000, 5000, 5001, 5001],
        [8, 8, 8, 8],
        [9, 9, 3, 3],
    ]
    for picture in (blank(320, 240), blank(2000, 3), blank(1, 1)):
        (_, address), = overlays.panels(picture, truth(boxes, [0, 1, 0, 1, 0]), {}, names)  # fmt: skip
        assert max(read(address).shape[:2]) == overlays.SIDE
    pixels = read(overlays.panels(blank(320, 240), truth(boxes[:1], [0]), {}, names)[0][1])
    ours = is_colour(pixels, 0, 2)
    assert 100 < ours[12].sum() < 200  # the name's patch: it is cut short
    assert ours[-2:].all()
    assert ours[:, :2].all()
    assert ours[20:, -2:].all()
    assert (pixels[20:-2, 2:-2] == GREY).all()


# -- figures -------------------------------------------------------------------------------------------------


def test_figures_are_what_is_measured() -> None:
    there = [[0, 0, 20, 20], [30, 30, 90, 90], [100, 100, 220, 220]]
    rows = np.array([[*box, 0.9, 0] for box in there], np.float32)[None]
    quality = coco_metrics([truth(there, [0, 0, 0])], rows, 1)
    part = {"name": "m", "metrics": quality.metrics, "teacher": {"name": "t", **agreement(rows, rows)}}
    values = {figure.name: figure.of(part) for figure in FIGURES}
    assert set(values) == {*quality.metrics, "teacher_recall", "teacher_precision"}
    assert all(isinstance(value, float) for value in values.values())
    assert [figure.name for figure in FIGURES if figure.axis] == ["ap"] == [FIGURES[0].name]
    assert not {figure.name for figure in FIGURES} & {figure.name for figure in GENERAL}
    assert judge(parse("ap50>=0.4", FIGURES), part) == ("m: ap50>=0.4", True, pytest.approx(1))
    with pytest.raises(UsageError, match="ap50 is a fraction, from 0 to 1"):
        parse("ap50>=40", FIGURES)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("ap>0.1", "'ap' was not measured of m in this run: it takes boxes"),
        (
            "ap_small>0.1",
            "'ap_small' was not measured of m in this run: it takes boxes, and of small objects",
        ),
        ("teacher_recall>0.1", "'teacher_recall' was not measured of m in this run: it takes --teacher"),
    ],
)
def test_a_gate_on_what_was_not_measured_says_what_it_takes(gate: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        judge(parse(gate, FIGURES), {"name": "m", "metrics": {}})


def test_figures_import_without_torch() -> None:
    code = "import sys, kdcli.tasks.detection.figures as f; sys.exit('torch' in sys.modules or not f.FIGURES)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


# -- the page ------------------------------------------------------------------------------------------------


class Read(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def reported(names: list[str], **models: np.ndarray) -> dict[str, Any]:
    """A report on what models found of one picture: an object of each of the first two classes."""
    truths = [truth([[0, 0, 60, 60], [100, 100, 180, 180]], [0, 1])]
    parts = []
    for name, rows in models.items():
        quality = coco_metrics(truths, rows[None], len(names))
        part = {"name": name, "path": f"runs/{name}", "curves": [], "metrics": quality.metrics}
        follows = agreement(rows[None], models["first"][None])
        parts.append(part | {"classes": quality.per_class, "teacher": {"name": "first", **follows}})
    return {
        "title": "A split",
        "created": "2026-11-21",
        "data": {"name": "d", "split": "test", "samples": 1, "classes": names, "fingerprint": "f"},
        "models": parts,
        "notes": [],
    }


FOUND = np.array([[0, 0, 60, 60, 0.9, 0], [100, 100, 180, 180, 0.8, 1]], np.float32)
HALF = np.array([[0, 0, 60, 60, 0.9, 0], [300, 0, 380, 80, 0.8, 0]], np.float32)


def rendered(report: dict[str, Any], shown: Any = None) -> str:
    return page.render(report, (*FIGURES, *GENERAL), panels(report, shown))


def test_the_page_has_figures_classes_and_pictures() -> None:
    names = ["cat", "dog", "eel"]
    report = reported(names, first=FOUND, second=HALF)
    there = truth([[0, 0, 60, 60], [100, 100, 180, 180]], [0, 1])
    images = overlays.panels(blank(400, 300), there, {"first": FOUND, "second": HALF}, names)
    text = rendered(report, {7: images})
    found = Read(text)
    for expected in (
        "model AP AP50 AP75 AR@100 teacher recall teacher precision",
        "first 100.0% 100.0% 100.0% 100.0% 100.0% 100.0%",
        "second 50.0% 50.0% 50.0% 50.0% 50.0% 50.0%",
        "AP, average precision, is COCO's",
        "Teacher recall is the share",
        "model AP, medium AR@1 AR@10 AR@100",
        "second 50.0% 50.0% 50.0% 50.0%",
        "class boxes AP of first AP50 of first AP of second AP50 of second",
        "cat 1 100.0% 100.0% 100.0% 100.0%",
        "dog 1 100.0% 100.0% 0.0% 0.0%",
        "eel 0 – – – –",
        "whose score is at least 0.3",
        "truth first second",
    ):
        assert expected in found.text, expected
    assert found.tags.count("img") == 3
    colours = {"#" + bytes(rgb.tolist()).hex() for rgb in palette(3)}
    assert all(f'style="background: {colour}"' in text for colour in colours)
    assert 'swatch"' not in rendered(report)
    assert "img" not in Read(rendered(report)).tags


def test_names_of_classes_and_models_are_escaped() -> None:
    names = [EVIL, "<b>dog</b>"]
    report = reported(names, first=FOUND)
    report["models"][0]["name"] = EVIL
    images = overlays.panels(blank(400, 300), truth([[0, 0, 60, 60]], [0]), {EVIL: FOUND}, names)
    for shown in (None, {3: images}):
        text = rendered(report, shown)
        assert "<script" not in text
        assert "\x1b" not in text
        assert not {"script", "b"} & set(Read(text).tags)
        assert Read(text).text.count("<script>\\x1b") >= 5


def test_of_many_classes_the_weakest_are_listed() -> None:
    names = [f"c{i}" for i in range(LISTED + 5)]
    report = reported(names, first=HALF)
    text = Read(rendered(report)).text
    assert f"Of {len(names)} classes the {LISTED} of the least AP of first." in text
    assert "c1 1 0.0% 0.0% c0 1" in text  # the weakest, the other one, then those without an object
    assert f"c{LISTED - 1} 0" in text
    assert f"c{LISTED} 0" not in text
