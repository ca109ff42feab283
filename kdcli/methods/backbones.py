"""Backbones from foundation models, without labels: what a student learns of their features.

    generic    L = Σ_teachers p·(1 − cos(A_p(f_s), f_t)) + m·match(A_m(g_s), g_t) + r·relations(g_s, g_t)
    proteus    Zhang et al. 2024, arXiv 2407.10366: MSE of class tokens, of all tokens, of hidden patches
    radio      Ranzinger et al. 2024, arXiv 2312.06709 (AM-RADIO), with the scale of arXiv 2410.01680 (PHI-S)
    seed       Fang et al. 2021, arXiv 2101.04731: likeness to a queue of the teacher's features

f pooled features, g maps of patch tokens (class and register tokens left out), A adapters of each teacher's
own, which are not written.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses import representation as losses
from kdcli.losses.features import hint
from kdcli.methods.mae import Ratio
from kdcli.methods.matching import Standard, Teacher, matched, on_one_grid, patches, pooled, relations
from kdcli.methods.parts import Fraction, Part, Positive
from kdcli.methods.trainings import IMAGENET, keys, published, sgd
from kdcli.models import feature_adapters as adapters
from kdcli.models.feature_adapters import Adapter, Align
from kdcli.models.masked import visible_of
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Recipe, State, Term

Rows = Annotated[int, Field(ge=2, le=1_000_000)]


def generic(
    task: Task,
    teachers: int = 1,
    *,
    pooled_weight: float = 1.0,
    patches_weight: float = 1.0,
    relations_weight: float = 0.0,
    cosine: float = 0.9,
    smooth_l1: float = 0.1,
    adapter: Adapter = "mlp",
    align: Align = "teacher",
    standard: Standard = "scale",
) -> Method:
    """Any foundation model, or several, into any student: pooled features, patch tokens and their relations.

    Each ``--teacher`` is matched by itself, through adapters of its own; its features are brought to mean 0
    and one scale first (``standard``), so that no teacher outweighs another and cosines tell more. Patch
    tokens and a CNN's last map are maps; where grids differ, the student's is interpolated to the teacher's
    (``align=teacher``), the teacher's to the student's (``student``, cheaper), or a strided or transposed
    convolution of the adapter does it (``regressed``). ``relations_weight`` adds DINOv3's Gram objective for
    dense tasks. The weights are no paper's: those of AM-RADIO, measured in ``examples/results/backbone.md``.
    ``--views K`` keeps the teacher's features of K fixed views in the cache, else each view is new and the
    teacher runs live. The backbone of the last step is written.
    """
    weights = {"cosine": cosine, "smooth_l1": smooth_l1}

    def of(teacher: Teacher) -> list[Part]:
        adapted: Any = {"adapter": adapter, "standard": standard}
        return [
            pooled(teacher, pooled_weight, losses.cosine_distance, **adapted),
            patches(teacher, patches_weight, losses.spatial_match, weights, align=align, **adapted),
            relations(teacher, relations_weight, align),
        ]

    return matched("generic", teachers, of)


def radio(
    task: Task,
    teachers: int = 1,
    *,
    summary: float = 1.0,
    spatial: float = 1.0,
    cosine: float = 0.9,
    smooth_l1: float = 0.1,
    align: Align = "teacher",
    standard: Standard = "none",
) -> Method:
    """AM-RADIO: cosine of summaries, of maps 0.9 cosine and 0.1 smooth L1, each by a two-layer adapter.

    ``standard=scale`` is the step that PHI-S and RADIOv2.5 took: the teacher's maps at mean 0 and one scale,
    then compared by mean squared error (``cosine`` and ``smooth_l1`` are not read). PHI-S rotates them too,
    so that every direction has the same variance; the squared error is blind to a rotation, which the
    adapter's last layer makes as well, and it is left out. Summaries stay as they are.
    """
    loss: Any = losses.spatial_match
    keywords = {"cosine": cosine, "smooth_l1": smooth_l1}
    if standard == "scale":
        loss, keywords = hint, {}

    def of(teacher: Teacher) -> list[Part]:
        return [
            pooled(teacher, summary, losses.cosine_distance, adapter="mlp", standard="none"),
            patches(teacher, spatial, loss, keywords, adapter="mlp", align=align, standard=standard),
        ]

    return matched("radio", teachers, of)


def proteus(
    task: Task,
    teachers: int = 1,
    *,
    token: float = 1.0,
    feature: float = 1.0,
    patch: float = 1.0,
    mask_probability: Fraction = 0.5,
    mask_ratio: Ratio = 0.5,
    align: Align = "teacher",
) -> Method:
    """Proteus: the class token, all tokens, and patches that were hidden from the student, by MSE.

    Each through a LayerNorm and a linear layer, as in the authors' code, which trains 300 epochs with weights
    of 1 (of CLIP, the class token alone). There patches are hidden in blocks, of half of the pictures and in
    three kinds of shape; here at random places. A second pass of the student sees them: a student without
    patches, or of another grid than the teacher's, needs ``method.patch=0``.
    """

    def of(teacher: Teacher) -> list[Part]:
        first = pooled(teacher, token, hint, adapter="linear", standard="none")
        its = (f"{first.calls[0].name}.out", f"~{teacher.tap('backbone')}")
        found = [first, _all_tokens(teacher, feature, its, align)]
        return [*found, _hidden(teacher, patch, mask_probability, mask_ratio)] if patch else found

    return matched("proteus", teachers, of, (_proteus_recipe(),))


def _all_tokens(teacher: Teacher, weight: float, pooled: tuple[str, str], align: Align) -> Part:
    """The feature objective, on what ``pooled`` names of both and on their maps."""
    its = f"~{teacher.tap('grid')}"
    build = partial(adapters.map_adapter, kind="linear", align=align)
    party, call = teacher.between("grid-adapter", build, "s.grid", teacher.tap("grid"))
    grids, aligned = on_one_grid(f"grid{teacher.ending}", f"{call.name}.out", its, align)
    args = (pooled[0], grids[0], pooled[1], grids[1])
    return Part(
        (Term(f"features{teacher.ending}", losses.all_tokens, args, weight),), (party,), (call,), aligned
    )


def _hidden(teacher: Teacher, weight: float, probability: float, ratio: float) -> Part:
    """The patch objective: the student once more, with a token in the place of hidden patches."""
    keywords = {"probability": probability, "ratio": ratio}
    shown = Derive("shown", some_hidden, ("x", "~s:patches"), keywords)
    token = Party("mask-token", "trained", build=adapters.MaskToken, reads=("s.tokens",))
    calls = (Call("mask", "mask-token", ("x",)), Call("m", "student", ("x", "shown", "mask.out")))
    build = partial(adapters.TokenAdapter, kind="linear")
    head = Party(
        f"patch-adapter{teacher.ending}", "trained", build=build, reads=("s.grid", teacher.tap("grid"))
    )
    made = Call(head.name, head.name, ("m.grid",))
    args = (f"{head.name}.out", f"~{teacher.tap('grid')}", "shown")
    term = Term(f"hidden{teacher.ending}", losses.hidden_places, args, weight)
    return Part((term,), (token, head), (*calls, made), (shown,))


def some_hidden(x: Tensor, patches: Tensor, *, probability: float, ratio: float) -> Tensor:
    """Which patches are shown, bool [B, N]: all of a picture, or all but a part of them.

    Of a part of the pictures, the same number in every batch: so a mean over hidden patches is one over the
    batches of all processes.
    """
    noise = torch.rand(len(x), patches.numel(), device=patches.device)
    order = torch.rand(len(x), device=patches.device).argsort()
    chosen = (order < math.ceil(probability * len(x)))[:, None]
    return visible_of(noise, ratio=ratio) | ~chosen


def _proteus_recipe() -> Recipe:
    """The released training by DINOv2 on ImageNet."""
    steps = keys(
        "optim",
        opt="adamw",
        lr=5e-4,
        weight_decay=0.05,
        schedule="cosine",
        warmup=5 / 300,
        min_lr=1e-5,
        epochs=300,
        batch_size=512,
        clip_grad=None,
    )
    weights = keys("method", token=1.0, feature=1.0, patch=1.0, mask_probability=0.5, mask_ratio=0.5)
    return published(
        "imagenet",
        {**steps, **IMAGENET, "views.interpolation": "bicubic", **weights},
        "run_pretrain.sh and main.py of the authors' code",
        {"optim.lr": "5e-4 for each 512 of a batch", "optim.warmup": "5 of 300 epochs"},
        ("masks in blocks", "its augmentations beside crop and flip"),
        taught=False,
    )


def seed(
    task: Task,
    teachers: int = 1,
    *,
    queue: Rows = 65_536,
    temperature: Positive = 0.2,
    teacher_temperature: Positive = 0.01,
) -> Method:
    """SEED: a softmax over likeness to a queue of the teacher's features, the student's after the teacher's.

    Temperatures 0.2 and 0.01 are the paper's (from memory; the code's own default for the teacher is 1e-4),
    the queue holds 65,536 pictures. The student has two layers to the teacher's width; the authors' teachers
    end in a projection of 128 numbers, here the pooled features are compared. A queue much larger than the
    data holds each picture several times.
    """
    keywords = {"temperature": temperature, "teacher_temperature": teacher_temperature}

    def of(teacher: Teacher) -> list[Part]:
        name, tap = f"queue{teacher.ending}", teacher.tap("backbone")
        build = partial(adapters.TokenAdapter, kind="head")
        party, call = teacher.between("head", build, "s.backbone", tap)
        state = State(name, partial(adapters.queue_state, size=queue), reads=(tap,))
        rows = Derive(name, adapters.queued, (f"~{tap}",), scope="batch", state=state)
        args = (f"{call.name}.out", f"~{tap}", f"~{name}")
        term = Term(f"seed{teacher.ending}", losses.queue_similarities, args, 1.0, keywords)
        return [Part((term,), (party,), (call,), (rows,))]

    return matched("seed", teachers, of, (_seed_recipe(),))


def _seed_recipe() -> Recipe:
    """The released training on ImageNet."""
    steps = sgd(lr=0.03, weight_decay=1e-4, epochs=200, batch=256, drops=(120, 160))
    parameters = keys("method", queue=65_536, temperature=0.2, teacher_temperature=0.01)
    return published(
        "imagenet",
        {**steps, **IMAGENET, "views.scale": [0.2, 1.0], **parameters},
        "tools/opts.py of the authors' code; the temperatures from memory of the paper",
        None,
        ("MoCo's colour jitter, grey and blur",),
        taught=False,
    )
