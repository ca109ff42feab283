"""G2SD's specific distillation of detectors: Huang et al. 2023, arXiv 2302.14771.

With o the objectness of a place, m = σ(o_t) and A a convolution, for each level of the neck

    L_f = Σ m·|F_t − A(F_s)|² / Σ m        L_c = Σ m·BCE(σ(o_s), σ(o_t)) / Σ m

    L = ce·(losses of the labels) + r·(features·Σ_levels L_f + objectness·Σ_levels L_c)

and r = min(1, step/warmup).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from kdcli.losses import detection as losses
from kdcli.methods.matching import on_one_grid
from kdcli.methods.parts import Few, Part, labels, one_turn
from kdcli.methods.trainings import keys, published
from kdcli.models import feature_adapters as adapters
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Recipe, Term, Warmup, Weight

Steps = Annotated[int, Field(ge=0, le=1_000_000)]

_STEPS = 184_375  # of the paper's training


def detection(
    task: Task,
    *,
    ce: float = 1.0,
    features: float = 0.001,
    objectness: float = 0.1,
    levels: Few = 3,
    warmup: Steps = 500,
) -> Method:
    """Maps of the neck and scores of places, both where the teacher sees objects; labels for the rest.

    ``levels`` maps of student and teacher are compared, the finest first, the student's through a
    convolution of 3x3 to the teacher's width, on the student's grid: where the teacher's is another, its
    maps and probabilities are interpolated. Boxes and classes of the teacher are not taught, as in the paper
    (``--add detrdistill-logits=1`` does). Both terms grow from 0 over the first ``warmup`` steps. Unlabelled
    pictures enter all but the labels' terms. Two things are unlike the authors' code: there the objectness
    is that of a Mask R-CNN's region proposals, of three anchors a place, and here the largest class score
    that a detection transformer's encoder gives it; and the teacher's drop path stays active there, which
    here answers as it does when it is measured.
    """
    grown = partial(_grown, warmup=warmup)
    parts = [_level(level, grown(features), grown(objectness)) for level in range(1, levels + 1)]
    return one_turn("g2sd-detection", Part(labels(task, ce)), *parts, recipes=(_recipe(),))


def _grown(value: float, *, warmup: int) -> Weight:
    return Warmup(value, warmup) if value and warmup else value


def _level(level: int, features: Weight, objectness: Weight) -> Part:
    """Both terms of one level of the neck, with the convolution between the maps."""
    mine, its = f"s.neck{level}", f"t.neck{level}"
    build: Callable[..., Any] = partial(adapters.convolution, kernel=3)
    party = Party(f"adapter{level}", "trained", build=build, reads=(mine, its))
    call = Call(party.name, party.name, (mine,))
    seen, count, mean = f"seen{level}", f"places{level}", f"mean-places{level}"
    maps, aligned = on_one_grid(f"neck{level}", f"{call.name}.out", f"~{its}", "student")
    derives = (
        Derive(seen, adapters.objectness_on_grid_of, (f"~t.objectness{level}", f"~{mine}")),
        Derive(count, losses.places, (f"~{seen}",)),
        Derive(mean, losses.mean_places, (f"~{count}",), scope="batch"),
        *aligned,
    )
    where = (f"~{seen}", f"~{mean}")
    terms = (
        Term(f"features{level}", losses.imitated_features, (*maps, *where), features),
        Term(f"objectness{level}", losses.imitated_objectness, (f"s.objectness{level}", *where), objectness),
    )
    return Part(terms, (party,), (call,), derives)


def _recipe() -> Recipe:
    """The released training of ViTDet on COCO."""
    steps = keys(
        "optim",
        opt="adamw",
        betas=[0.9, 0.999],
        lr=1e-4,
        weight_decay=0.05,
        layer_decay=0.7,
        schedule="multistep",
        drops=[163_889 / _STEPS, 177_546 / _STEPS],
        decay_rate=0.1,
        warmup=250 / _STEPS,
        warmup_from=0.001,
        max_steps=_STEPS,
        batch_size=64,
        clip_grad=None,
    )
    views = keys(
        "views", count="live", scale=[0.25, 1.0], ratio=[1.0, 1.0], hflip=0.5, interpolation="bilinear"
    )
    parameters = keys("method", ce=1.0, features=0.001, objectness=0.1, warmup=500)
    notes = {
        "optim.weight_decay": "0.1 in ViTDet",
        "optim.drops": "after steps 163,889 and 177,546",
        "optim.warmup": "250 of 184,375 steps",
        "views.scale": "resized by 0.1 to 2 there and cut or padded, which makes objects smaller too",
    }
    left_out = (
        "views of 1024 pixels (--image-size 1024)",
        "ViTDet with a Mask R-CNN, whose masks are learned too",
        "five levels of its neck, where a detection transformer has three",
        "stochastic depth of 0.1, in the teacher too (drop_path=0.1 for the student)",
    )
    settings = {**steps, **views, **parameters}
    return published("coco", settings, "G2SD's code of detection", notes, left_out)
