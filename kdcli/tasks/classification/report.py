"""Panels of the report on classifiers: effects of a teacher, models together, analyses, exits, confusions.

A model's part of the report has, beside its metrics::

    "reliability": {"confidence", "accuracy", "count"},
    "calibrated"?: {"nll", "ece"} of the logits over the temperature that probe fitted,
    "confusion": [[int]], rows truth, or, of many classes,
    "confused": [[truth, predicted, count]] and "per_class": {"samples": [int], "right": [int]},
    "effects"?: see kdcli.metrics.effects.effects,
    "exits"?: {"exits": [{"name", "tap", "top1", "nll", "ece", "flops", "latency_ms"?, ...}],
               "ensemble": {"top1", ...},
               "curve": [{"threshold", "top1", "flops", "exits": [fraction]}],
               "early"?: a row of "curve", with "latency_ms"? and
                         "validation": {"samples", "top1", "last", "slack"}}

and the report ``"peers"?``, see :func:`kdcli.metrics.peers.peers`. Analyses that were asked for are described
in :mod:`kdcli.tasks.analyses`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.report import alike, occlusion, plots
from kdcli.report.forms import MISSING, correlation, gflops, number, percent
from kdcli.report.panels import Beside, Block, Drawing, Heading, Panel, Table, Text, spread
from kdcli.tasks.classification.figures import FIGURES

QUALITY = next(figure for figure in FIGURES if figure.axis)
PAIRS = 10  # of classes that are shown as taken for one another

_NO_MATRIX = (
    "Of {classes:,} classes no matrix is kept or drawn: report.json has the most frequent confusions, and of "
    "each class how many samples there are and how many are right."
)

Model = Mapping[str, Any]


def panels(report: Mapping[str, Any], shown: None = None) -> list[Panel]:
    """The panels of a report (see :mod:`kdcli.report.page`)."""
    models, classes = report["models"], report["data"]["classes"]
    found = [
        _effects([model for model in models if model.get("effects")]),
        _together(models, report.get("peers")),
        occlusion.panel(report, QUALITY),
        alike.panel(report),
        _exits([model for model in models if model.get("exits")]),
        Panel("Calibration", [Drawing(plots.reliability_curve(models))]),
        Panel("Confusions", [block for model in models for block in _confusions(model, classes)]),
    ]
    return [panel for panel in found if panel is not None]


# -- confusions ----------------------------------------------------------------------------------------------


def _confusions(model: Model, classes: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    if "confusion" in model:
        blocks.append(Drawing(plots.confusion_matrix(model["confusion"], classes, str(model["name"]))))
    if rows := confused_pairs(model, classes):
        header = ("true class", "taken for", "samples", "of the class")
        cells = [[truth, other, str(count), percent(share)] for truth, other, count, share in rows]
        blocks.append(Table(header, cells, text=(1,)))
    left_out = [] if "confusion" in model else [Text(_NO_MATRIX.format(classes=len(classes)), faint=True)]
    return [Heading(str(model["name"])), Beside(blocks), *left_out]


def confused_pairs(model: Model, classes: Sequence[str]) -> list[tuple[str, str, int, float]]:
    """The most frequent confusions of a model, which a matrix of many classes does not let one read.

    Args:
        model: its part of a report.
        classes: C names.

    Returns:
        True class, predicted class, samples, and their share of the true class; the most frequent first.
    """
    if "confusion" in model:
        matrix = model["confusion"]
        samples = [sum(row) for row in matrix]
        wrong = [(i, j, n) for i, row in enumerate(matrix) for j, n in enumerate(row) if i != j and n > 0]
    else:
        samples, wrong = model["per_class"]["samples"], model["confused"]
    most = sorted(wrong, key=lambda pair: -pair[2])[:PAIRS]
    return [(classes[i], classes[j], count, count / samples[i]) for i, j, count in most]


# -- models together -----------------------------------------------------------------------------------------


def _together(models: Sequence[Model], peers: Mapping[str, Any] | None) -> Panel | None:
    if not peers:
        return None
    answers = [(str(m["name"]), m["metrics"], percent(peers["only"][m["name"]])) for m in models]
    answers += [(f"mean of {kind}", found, MISSING) for kind, found in peers["ensemble"].items()]
    first = Table(
        ("answer", "top-1", "NLL", "ECE", "only this one right"),
        [[name, *_quality(found), only] for name, found, only in answers],
    )
    second = Table(
        ("first", "second", "disagreement", "KL (nats)", "KL back"),
        [
            [p["first"], p["second"], percent(p["disagreement"]), number(p["kl"]), number(p["kl_back"])]
            for p in peers["pairs"]
        ],
        text=(1,),
    )
    text = (
        f"Of all samples, all models get {percent(peers['all_right'])} right and none "
        f"{percent(peers['none_right'])}; the others are in between. Disagreement is the share of samples "
        "for which two models predict different classes, KL the mean divergence of the second's "
        "probabilities from the first's, and KL back that of the first's from the second's. Diversity, the "
        f"mean distance of two models' probabilities, is {number(peers['diversity'])}."
    )
    return Panel("Models together", [Beside([first, second]), Text(text, faint=True)])


def _quality(found: Mapping[str, Any]) -> tuple[str, str, str]:
    return percent(found["top1"]), number(found["nll"]), percent(found["ece"])


# -- exits ---------------------------------------------------------------------------------------------------

_EXITS = (
    "An exit is a classifier on one of the network's earlier maps. GFLOPs and latency are those of the way "
    "to an exit: the network up to its map and all exits before it, for one image. Exits' mean is the mean "
    "of the probabilities of all exits and of the network."
)
_CURVE = (
    "Early exit on the pictures measured here, by threshold of the largest probability: 0 stops at the first "
    "exit, more than 1 never. To choose a threshold from this table would be to choose it on the test."
)


def _exits(models: Sequence[Model]) -> Panel | None:
    if not models:
        return None
    blocks: list[Block] = [Text(_EXITS, faint=True)]
    for model in models:
        found = model["exits"]
        blocks += [Heading(str(model["name"])), _each_exit(found)]
        if found.get("early"):
            blocks.append(Text(_early(found["early"])))
        blocks += [_thresholds(found), Text(_CURVE, faint=True)]
    return Panel("Exits", blocks)


def _each_exit(found: Mapping[str, Any]) -> Table:
    last = found["exits"][-1]
    mean = {**last, **found["ensemble"], "name": "exits' mean", "tap": ""}
    timed = "latency_ms" in last
    header = ("exit", "map", "top-1", "NLL", "ECE", "GFLOPs", *(("latency (ms)",) if timed else ()))
    rows = [
        [
            row["name"],
            row["tap"] or MISSING,
            *_quality(row),
            gflops(row["flops"]),
            *((spread(row["latency_ms"]),) if timed else ()),
        ]
        for row in (*found["exits"], mean)
    ]
    return Table(header, rows, text=(1,))


def _early(early: Mapping[str, Any]) -> str:
    chosen = early["validation"]
    time = f" and {number(early['latency_ms'])} ms" if "latency_ms" in early else ""
    return (
        "Early exit, where each image stops at the first exit whose largest probability is at least "
        f"{early['threshold']:g}: top-1 {percent(early['top1'])} at {gflops(early['flops'])} GFLOPs{time} on "
        f"average. On {chosen['samples']:,} validation pictures, apart from those measured here, it was the "
        f"cheapest threshold to lose at most {percent(chosen['slack'])} of accuracy "
        f"({percent(chosen['top1'])}, always to the end {percent(chosen['last'])})."
    )


def _thresholds(found: Mapping[str, Any]) -> Table:
    header = ("threshold", "top-1", "GFLOPs", *(f"at {row['name']}" for row in found["exits"]))
    rows = [
        [f"{row['threshold']:g}", percent(row["top1"]), gflops(row["flops"]), *map(percent, row["exits"])]
        for row in found["curve"]
    ]
    return Table(header, rows)


# -- effects -------------------------------------------------------------------------------------------------

_EFFECTS = (
    "What the teacher's answers offer beyond the labels, and how much of it shows in the student: how soft "
    "they are, which classes they hold to be alike, and how much they say of the single sample (Tang et al. "
    "2020). The two permuted teachers are controls. Shuffled classes: the probabilities of the wrong classes "
    "are permuted within each sample, which destroys the relations between classes. Shuffled samples: the "
    "probability of the true class is permuted among the samples of a class, which destroys what the teacher "
    "says of the sample."
)
_FACTOR = (
    "All at temperature 1. Norms are those of the logits without their mean. Class relations are the mean "
    "probabilities of the other classes, class by class, and the cosines of the classifier's rows; "
    "correlations are Spearman's. The gradient factor (1 − λ) + λ(q − p)/(1 − p), with p and q the student's "
    "and the teacher's probability of the true class and λ = {mix}, is what distillation puts on a sample's "
    "gradient of the true class."
)


def _effects(models: Sequence[Model]) -> Panel | None:
    if not models:
        return None
    blocks: list[Block] = [Text(_EFFECTS, faint=True)]
    for model in models:
        found = model["effects"]
        heading = f"{model['name']} compared with {model['teacher']['name']}"
        blocks += [Heading(heading), _teachers(found), _factors(found), Text(_smoothing(found))]
    return Panel(
        "Effects of distillation",
        [*blocks, Text(_FACTOR.format(mix=models[-1]["effects"]["mix"]), faint=True)],
    )


def _teachers(found: Mapping[str, Any]) -> Table:
    """The student, the teacher and the permuted ones side by side."""
    teachers = [found["teachers"][key] for key in ("teacher", "shuffled_classes", "shuffled_samples")]
    scales = [teacher["rescaling"] for teacher in teachers]
    soft = (
        ("entropy (nats)", "entropy", number),
        ("largest probability", "max_prob", percent),
        ("norm of the logits", "logit_norm", number),
        ("ECE", "ece", percent),
    )
    quantiles = [", ".join(number(scale["quantiles"][i]) for i in (0, 2, 4)) for scale in scales]
    rows = [
        *([label, *(form(own[key]) for own in (found["student"], *teachers))] for label, key, form in soft),
        ["class relations like the student's", MISSING, *(correlation(t["relations"]) for t in teachers)],
        ["gradient factor, mean", MISSING, *(number(scale["mean"]) for scale in scales)],
        ["gradient factor, at 5 %, 50 % and 95 % of the samples", MISSING, *quantiles],
        ["factor and teacher's probability", MISSING, *(correlation(s["with_teacher"]) for s in scales)],
        ["factor and student's loss", MISSING, *(correlation(s["with_difficulty"]) for s in scales)],
    ]
    return Table(("", "student", "teacher", "shuffled classes", "shuffled samples"), rows)


def _factors(found: Mapping[str, Any]) -> Table:
    bins = found["teachers"]["teacher"]["rescaling"]["bins"]
    header = [
        "samples by the teacher's probability of the true class",
        *(percent(b["teacher"]) for b in bins),
    ]
    return Table(header, [["gradient factor, mean", *(number(b["weight"]) for b in bins)]])


def _smoothing(found: Mapping[str, Any]) -> str:
    text = (
        f"The teacher leaves {percent(found['smoothing'])} to the wrong classes on average: label smoothing "
        "of that size is the control for the first effect."
    )
    if found["weights"] is None:
        return text
    alike = correlation(found["weights"])
    return (
        f"{text} The rows of the two classifiers are alike in the same places with a correlation of {alike}."
    )
