"""Panels about occlusion and about how alike blocks are: drawings, tables beside them, escaping."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from kdcli.report import alike, canvas, occlusion
from kdcli.report.panels import Panel, Table
from kdcli.tasks import figures

TOP1 = next(figure for figure in figures("classification") if figure.axis)
RATIOS = [i / 10 for i in range(10)]


def model(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "teacher": {"name": "runs/teacher"},
        "occlusion": [{"ratio": r, "accuracy": 0.9 - r / 2} for r in RATIOS],
        "cka": {
            "student": ["block1", "block2"],
            "teacher": ["block1", "block2", "block3"],
            "values": [[0.875, 0.25, -0.001], [None, None, None]],
        },
        **more,
    }


def report(*models: dict[str, Any], chance: float = 0.25) -> dict[str, Any]:
    return {
        "models": models,
        "data": {"samples": 5000},
        "occlusion": {"grid": 14, "value": "accuracy", "chance": chance},
        "cka": {"pictures": 2048, "minibatch": 256},
    }


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("text")]


def html(panel: Panel | None) -> str:
    assert panel is not None
    return " ".join(str(part.html()) for part in panel.parts)


def table(panel: Panel | None) -> Table:
    assert panel is not None
    return next(part for part in panel.parts if isinstance(part, Table))


def test_there_are_none_where_nothing_was_asked_for() -> None:
    bare = {"models": [{"name": "a"}], "data": {"samples": 3}}
    assert occlusion.panel(bare, TOP1) is None
    assert alike.panel(bare) is None


def test_occlusion_is_drawn_and_stands_in_a_table() -> None:
    panel = occlusion.panel(report(model("a <b>"), model("c")), TOP1)
    assert table(panel).header == ["model", *(f"{i}0%" if i else "0%" for i in range(10))]
    assert table(panel).rows[0][:3] == ["a <b>", "90.0%", "85.0%"]
    text = html(panel)
    assert "a <b>" not in text
    assert "Shown is top-1 while a growing share of 14 × 14 cells" in text
    assert "The dotted line is chance, 25.0%." in text


def test_a_line_for_each_model_and_one_for_chance() -> None:
    models = [model("a"), {"name": "without"}, model("c")]
    svg = occlusion.curves(models, TOP1, "accuracy", 0.25)
    assert {"hidden cells (%)", "top-1 accuracy (%)", "chance", "a", "c", "0", "90"} <= set(texts(svg))
    assert canvas.PALETTE[2].lower() in svg  # the third keeps its colour
    assert canvas.PALETTE[1].lower() not in svg
    assert svg == occlusion.curves(models, TOP1, "accuracy", 0.25)
    assert "chance" not in texts(occlusion.curves(models, TOP1, "accuracy", math.nan))
    with pytest.raises(ValueError, match="no model has an occlusion to draw"):
        occlusion.curves([{"name": "without"}], TOP1, "accuracy", 0.25)


def test_blocks_are_drawn_for_each_model_with_the_nearest_in_a_table() -> None:
    panel = alike.panel(report(model("a <b>"), {"name": "without"}))
    assert table(panel).header == ["block", "block1", "block2"]
    assert table(panel).rows == [["the teacher's most like it", "block1", "–"], ["CKA", "0.88", "–"]]
    text = html(panel)
    assert "a &lt;b&gt; compared with runs/teacher" in text
    assert "on minibatches of 256 (Nguyen et al. 2021), over 2,048 of 5,000 pictures, drawn at random" in text


def test_values_stand_in_the_cells_of_few_blocks() -> None:
    shown = texts(alike.matrix(model("a")["cka"]["values"], "a"))
    assert {"block of the teacher", "block of the student", "CKA", "0.88", "0.25", "0.00"} <= set(shown)
    assert "nan" not in shown
    svg = alike.matrix([[0.123] * 40] * 30)
    assert "0.12" not in texts(svg)
    assert {"1", "block of the teacher"} <= set(texts(svg))
    assert len(svg) < 100_000
    with pytest.raises(ValueError, match=r"CKA of blocks is a matrix, not of the shape \[0\]"):
        alike.matrix([])
