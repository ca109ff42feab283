import copy
import math
import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from kdcli.report import canvas, plots
from kdcli.report.figures import Figure
from kdcli.report.forms import percent
from kdcli.report.plots import confusion_matrix, quality_against_cost, reliability_curve, training_curves
from kdcli.tasks import figures


def model(name, scale=1.0, cost=True, curves=True):
    result = {
        "name": name,
        "metrics": {"top1": 0.6 * scale},
        "reliability": {"confidence": [0.0, 0.3, 0.9], "accuracy": [0.0, 0.2, 0.8], "count": [0, 10, 30]},
        "curves": [],
    }
    if cost:
        result["cost"] = {
            "parameters": int(3e6 * scale),
            "flops": int(2e9 * scale),
            "latency_ms": {"median": 5.0 * scale, "p10": 4.0 * scale, "p90": 9.0 * scale, "repeats": 10},
        }
    if curves:
        result["curves"] = [{"step": i, "loss": 2.0 / i, "lr": 0.1} for i in range(1, 6)]
        result["curves"][2]["loss"] = math.nan
        result["curves"][3]["loss"] = None  # as JSON writes it
        result["curves"][4]["val top-1"] = 0.5
    return result


def texts(svg):
    """All texts of the figure, which must be well-formed XML."""
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("text")]


MODELS = [model("one"), model("two", 0.8)]
TOP1 = Figure("top1", "top-1", ("metrics", "top1"), percent, fraction=True, axis="top-1 accuracy (%)")
FIGURES = {
    "reliability": lambda: reliability_curve(MODELS),
    "confusion": lambda: confusion_matrix([[3, 1], [0, 4]], ["cat", "dog"]),
    "cost": lambda: quality_against_cost(MODELS, TOP1),
    "curves": lambda: training_curves(MODELS),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_one_deterministic_inline_svg(draw):
    svg = draw()
    assert svg.startswith('<svg role="img" aria-label="')
    assert svg.endswith("</svg>")
    for unwanted in ("<?xml", "<!DOCTYPE", "http", "xmlns", "<style", "<metadata", "date"):
        assert unwanted not in svg
    used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert used
    assert used <= set(re.findall(r'\sid="([^"]+)"', svg))
    assert draw() == svg


def test_ids_of_two_figures_differ():
    ids = [set(re.findall(r'\sid="([^"]+)"', draw())) for draw in FIGURES.values()]
    assert sum(map(len, ids)) == len(set.union(*ids))


def test_the_users_matplotlib_settings_neither_matter_nor_change():
    expected = reliability_curve(MODELS)
    with mpl.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": "other"}):
        assert reliability_curve(MODELS) == expected
        assert (mpl.rcParams["font.size"], mpl.rcParams["svg.fonttype"]) == (30, "path")


def test_axes_carry_labels_with_units_and_a_legend_names_the_models():
    labels = {
        "reliability": {"confidence (%)", "accuracy (%)", "samples (%)", "one", "two"},
        "confusion": {"true class", "predicted class", "share of the true class (%)", "cat", "dog", "3", "1"},
        "cost": {
            "top-1 accuracy (%)",
            "parameters (M)",
            "GFLOPs per image (2 × MACs)",
            "latency at batch 1 (ms)",
            "one",
        },
        "curves": {"loss", "lr", "val top-1", "step", "one", "two"},
    }
    for name, expected in labels.items():
        assert expected <= set(texts(FIGURES[name]()))


def test_a_confusion_matrix_of_many_classes_is_numbered_and_small():
    counts = np.eye(200, dtype=int) * 50
    svg = confusion_matrix(counts.tolist(), [f"bird {i}" for i in range(200)])
    shown = texts(svg)
    assert not any("bird" in text for text in shown)
    assert "true class (number)" in shown
    assert "100" in shown
    assert len(svg) < 100_000
    names = [f"flower {i}" for i in range(60)]
    shown = texts(confusion_matrix(np.eye(60, dtype=int).tolist(), names))
    assert set(names) <= set(shown)  # named, but without counts in the cells
    assert shown.count("1") <= 1


def test_a_class_without_samples_and_a_count_of_zero_draw_nothing():
    shown = texts(confusion_matrix([[0, 0], [2, 5]], ["a", "b"]))
    assert shown.count("2") == 1
    assert shown.count("0") == 1


def test_a_misfit_is_refused():
    with pytest.raises(ValueError, match=r"3 classes cannot have the shape \[2, 2\]"):
        confusion_matrix([[1, 0], [0, 1]], ["a", "b", "c"])
    with pytest.raises(ValueError, match="0 classes cannot"):
        confusion_matrix([], [])
    bare = model("bare", cost=False, curves=False)
    with pytest.raises(ValueError, match="no model has a cost to draw"):
        quality_against_cost([bare], TOP1)
    with pytest.raises(ValueError, match="no model has training curves to draw"):
        training_curves([bare])
    with pytest.raises(ValueError, match="no model has a reliability curve"):
        reliability_curve([])


def test_a_model_keeps_its_colour_where_another_is_left_out():
    svg = quality_against_cost([model("bare", cost=False), model("other")], TOP1)
    second = canvas.PALETTE[1].lower()
    assert second in svg
    assert canvas.PALETTE[0].lower() not in svg.replace(second, "")


def test_names_are_text_never_markup_or_mathematics():
    names = ["<script>alert(1)</script>", 'a" id="x', "$\\frac{1}{2}$ & co", "_hidden", "字"]
    svg = confusion_matrix(np.eye(5, dtype=int).tolist(), names)
    assert "<script" not in svg
    shown = texts(svg)
    assert all(canvas.short(name, 20) in shown for name in names)
    assert {"_hidden", "$x^2$"} <= set(texts(training_curves([model("_hidden"), model("$x^2$")])))


def test_long_names_are_cut_in_the_middle():
    assert canvas.short("short") == "short"
    cut = canvas.short("runs/distill-0123456789abcdef/students/vit_tiny_patch16_224")
    assert len(cut) == 28
    assert cut.startswith("runs/distill-")
    assert cut.endswith("patch16_224")
    assert "…" in cut


def test_many_models_and_wide_costs_are_drawn():
    many = [model(f"model {i}", 2.0**-i) for i in range(15)]
    assert {f"model {i}" for i in range(15)} <= set(texts(quality_against_cost(many, TOP1)))
    looks = [(look["color"], look["linestyle"]) for look in map(canvas.looks_of, range(15))]
    assert len(set(looks)) == 15
    equal = copy.deepcopy(many[:1])
    equal[0]["cost"]["flops"] = 0
    assert "<svg" in quality_against_cost(equal, TOP1)


def smaller(name, **more):
    found = {"widths": {"layer1.0.act1": [8, 3], "layer2.0.act1": [16, 16]}, "removed": 5}
    found |= {"flops": [10.0, 4.0], "parameters": [20.0, 5.0], "metrics": {"folded": {"top1": 0.5}}}
    return {"name": name, "compression": found, "curves": [], **more}


def course(*points):
    return [{"step": i, "validation/flops_left": x, "validation/top1": y} for i, (x, y) in enumerate(points)]


def test_widths_before_and_after_are_drawn_of_each_network():
    svg = plots.widths([smaller("a <b>"), {"name": "dense"}, smaller("c")])
    assert svg.count("layer1.0.act1") == 2
    assert "a &lt;b&gt;" in svg
    assert "dense" not in svg
    assert svg == plots.widths([smaller("a <b>"), {"name": "dense"}, smaller("c")])
    with pytest.raises(ValueError, match="no model has a compression to draw"):
        plots.widths([{"name": "dense"}])


def test_a_course_pairs_what_is_left_with_the_quality_of_the_same_evaluation():
    top1 = next(figure for figure in figures("classification") if figure.axis)
    shrunk = smaller("a", curves=[{"step": 3, "loss": 1.0}, *course((1.0, 0.25), (0.5, 0.75))])
    assert plots.has_course(shrunk, top1)
    assert not plots.has_course(smaller("b"), top1)
    svg = plots.along([shrunk, smaller("b")], top1)
    assert "FLOPs left (%)" in svg
    assert "top-1 accuracy (%)" in svg
    with pytest.raises(ValueError, match="no model has a course to draw"):
        plots.along([smaller("b")], top1)
