"""Matched queries of detection transformers: Chang et al. 2022, arXiv 2211.10156 (DETRDistill).

L = ce·(losses of the labels) + weight·Σ over matched queries of (divergence of classes + distance of boxes)

Of the paper's three parts this is the first, the logits distillation by Hungarian matching.
"""

from __future__ import annotations

from dataclasses import replace

from kdcli.methods.parts import Part, Positive, labels, one_turn
from kdcli.methods.trainings import keys, published
from kdcli.tasks import Task
from kdcli.tasks.detection.matching import query_terms
from kdcli.words import Method, Recipe


def part(
    weight: float = 1.0,
    *,
    l1: float = 5.0,
    giou: float = 2.0,
    temperature: Positive = 1.0,
    name: str = "queries",
) -> Part:
    """What the teacher says of each of its queries, taught to the student's query that is matched to it."""
    term = query_terms("s", "t", temperature=temperature, l1=l1, giou=giou)
    return Part((replace(term, name=name, weight=weight),))


def logits(task: Task, taught: Part, *, ce: float = 1.0) -> Method:
    """Labels, and each of the teacher's queries by the student's query that is matched to it.

    The matching of teacher and student takes the place of that of truth and student in DETR: one to one, of
    least cost, anew in each step. Classes (weight 1), L1 (``l1``) and GIoU (``giou``) weigh as in the
    authors' configuration; ``temperature`` softens the classes, as KD-DETR does. Unlike the authors' code it
    takes all of the teacher's queries, not the 100 most confident answers, weighs them by confidence alone,
    where that multiplies it by the overlap with the truth, and compares the last decoder layer, not each.
    The target-aware feature distillation and the query-prior assignment of the paper are not there;
    ``--add cwd-features=5`` brings features. Unlabelled pictures enter all but the labels' terms.
    """
    return one_turn("detrdistill-logits", Part(labels(task, ce)), taught, recipes=(_recipe(),))


def _recipe() -> Recipe:
    """The released training of Deformable DETR on COCO."""
    steps = keys(
        "optim",
        opt="adamw",
        betas=[0.9, 0.999],
        lr=2e-4,
        weight_decay=1e-4,
        decay_all=True,
        schedule="multistep",
        milestones=[40],
        decay_rate=0.1,
        warmup=0.0,
        epochs=50,
        batch_size=16,
        clip_grad=0.1,
    )
    views = keys("views", count="live", scale=[1.0, 1.0], hflip=0.5, interpolation="bilinear")
    notes = {
        "optim.batch_size": "8 processes of 2",
        "optim.clip_grad": "of detection transformers alone",
        "views.scale": "sides of 480 to 800 pixels there, of every other picture a crop",
    }
    left_out = (
        "a tenth of the learning rate for backbone, sampling offsets and reference points",
        "a part of the loss for each decoder layer",
        "features where the teacher sees objects, and its queries and assignments as a second group",
        "views of several sizes",
    )
    settings = {**steps, **views, **keys("method", ce=1.0, weight=1.0, l1=5.0, giou=2.0)}
    return published("coco", settings, "the authors' configuration of Deformable DETR", notes, left_out)
