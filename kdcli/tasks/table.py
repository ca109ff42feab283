"""The table of tasks: one row each, by name. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_ALL = ("agreement", "kl", "both_right", "only_student", "only_teacher", "neither_right")


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        target: ``module:Class`` of the :class:`kdcli.tasks.Task`.
        reader: ``module:Class`` of its :class:`kdcli.data.targets.Reader`.
        figures: ``module:TABLE`` of its :class:`kdcli.report.figures.Figure`.
        help: one line.
        provides: what terms beside the task's own may read: ``picture`` (one answer a picture: logits
            [B, C]), ``class`` (class numbers ``y`` [B]), ``pixel`` (logits [B, C, h, w], and ``mask``
            [B, H, W]), ``object`` (what detectors give of each place and query) and ``text`` (an
            ``embedding`` [B, D] in the space of texts, whose bank is the ``classifier`` [C, D]).
            ``features`` stands alone: networks answer nothing, whatever their task is they may teach by
            their features, and labels are optional.
        options: fields of the data section that mean nothing to tasks which do not list them.
        subsets: whether networks can be measured on data that lack some of their classes: the task then has
            these behind its own, and :class:`kdcli.tasks.settings.EvalOptions` says which they are.
        settings: parameters of methods, by method, that stand in the place of their own defaults: what was
            measured (``examples/results/pairs.md``) where no paper has any for the task.
        beside: the split that :meth:`kdcli.tasks.Task.wants_validation` speaks of.
        by_steps: whether its heads learn step by step, as students do, and not on features in a cache.
        defaults: keys of the configuration that have other defaults here, where a stage has them.
        head: of a probe, where the task has one that is not fitted.
        follows: figures of :data:`kdcli.report.figures.FOLLOWING` that are measured beside a teacher.
        given: columns of a batch that networks in training are given beside the pictures.
        serves: other tasks whose data its networks answer too.
        embeds: whether networks answer with an embedding, so that a backbone without a head is one of its
            networks (``probe --head none``) and a probe trains none of it further.
    """

    target: str
    reader: str
    figures: str
    help: str
    provides: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    subsets: bool = False
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    beside: Literal["validation", "train"] = "validation"
    by_steps: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    head: str = ""
    follows: tuple[str, ...] = _ALL
    given: tuple[str, ...] = ()
    serves: tuple[str, ...] = ()
    embeds: bool = False


TASKS: dict[str, Entry] = {
    "segmentation": Entry(
        "kdcli.tasks.segmentation:Segmentation",
        "kdcli.tasks.segmentation.target:MaskReader",
        "kdcli.tasks.segmentation.figures:FIGURES",
        "a class for every pixel",
        provides=frozenset({"pixel"}),
        options=("mask_column", "void", "class_names"),
        subsets=True,
    ),
    "detection": Entry(
        "kdcli.tasks.detection:Detection",
        "kdcli.tasks.detection.target:BoxReader",
        "kdcli.tasks.detection.figures:FIGURES",
        "boxes of objects, and their classes",
        provides=frozenset({"object"}),
        options=("box_column", "box_format", "class_names"),
        subsets=True,
        by_steps=True,
        defaults={"grid.lr": [1e-3], "grid.batch_size": 16, "optim.batch_size": 16, "views.fit": "squash"},
        follows=(),
        given=("boxes", "classes", "labelled"),
    ),
    "multi-label": Entry(
        "kdcli.tasks.multilabel:MultiLabel",
        "kdcli.tasks.multilabel.target:AnswerReader",
        "kdcli.tasks.multilabel.figures:FIGURES",
        "any number of labels for each picture",
        provides=frozenset({"picture"}),
        options=("label_columns", "class_names"),
    ),
    "retrieval": Entry(
        "kdcli.tasks.retrieval:Retrieval",
        "kdcli.tasks.retrieval.target:IdentityReader",
        "kdcli.tasks.retrieval.figures:FIGURES",
        "pictures of the same identity found by an embedding",
        provides=frozenset({"picture"}),
        options=("camera_column", "per_identity"),
        settings={"kd": {"ce": 1.0, "kd": 0.1}},
        follows=("agreement",),
        embeds=True,
    ),
    "representation": Entry(
        "kdcli.tasks.representation:Representation",
        "kdcli.tasks.representation.target:UnreadReader",
        "kdcli.tasks.representation.figures:FIGURES",
        "features of pictures, without labels",
        provides=frozenset({"features"}),
        beside="train",
        follows=(),
    ),
    "zeroshot": Entry(
        "kdcli.tasks.zeroshot:ZeroShot",
        "kdcli.tasks.zeroshot.target:TextReader",
        "kdcli.tasks.zeroshot.figures:FIGURES",
        "classes told apart by texts about them",
        provides=frozenset({"picture", "class", "text"}),
        options=("captions",),
        beside="train",
        head="texts",
        serves=("classification",),
    ),
    "classification": Entry(
        "kdcli.tasks.classification:Classification",
        "kdcli.tasks.classification.target:LabelReader",
        "kdcli.tasks.classification.figures:FIGURES",
        "one class for each picture",
        provides=frozenset({"picture", "class"}),
        subsets=True,
    ),
}
"""In the order in which they are asked whether data are theirs; the last one takes what is left."""
