"""DeepInversion and Adaptive DeepInversion: Yin et al. 2020, arXiv 1912.08795.

    x* = argmin m·CE(T(x), y) + a_f·Σ_l (‖μ_l(x) − μ̂_l‖₂ + ‖σ²_l(x) − σ̂²_l‖₂)
                + a_tv·TV(x) + a_l2·R(x) [+ a_c·(1 − JS(student, teacher))]

over the inputs of every BatchNorm2d, norms not squared. As in the authors' deepinversion.py, each step sees
the batch shifted around its edges and perhaps mirrored, and all terms are of what it sees, the priors TV and
R too. In the half phase that is the batch pooled to half size and then shifted, by half as far at most.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from kdcli.errors import InputError
from kdcli.losses.inversion import bn_statistics, competition, image_norm, total_variation
from kdcli.losses.logits import cross_entropy
from kdcli.methods.datafree import InversionSection
from kdcli.methods.parts import TEACHER
from kdcli.models.pictures import Renormalised, first_pictures, viewed
from kdcli.models.protocol import Model
from kdcli.words import Call, Derive, Edit, Method, Party, Phase, Term, Turn


def deepinversion(section: InversionSection, *, teacher: Model) -> Method:
    """Pictures that the teacher takes for their classes ``y``, and that its batch norms take for data.

    First steps on pictures pooled to half size, where wanted, then on whole ones. The column ``view`` says
    how a step sees them.

    Args:
        section: weights and steps, resolved.
        teacher: to be inverted.

    Raises:
        InputError: a teacher without batch norm.
    """
    first = partial(first_pictures, teacher.spec, section.batch or 1, section.start)
    parties = (Party("pictures", "trained", build=first), TEACHER)
    half, steps = section.half_steps or 0, section.steps or 0
    counts = ((_turn(section, teacher, half=True), half), (_turn(section, teacher, half=False), steps))
    phases = tuple(Phase((turn,), turn.name, count / (half + steps)) for turn, count in counts if count)
    return Method("deepinversion", parties, phases, export="pictures")


def halved(pixels: Tensor, view: Tensor) -> Tensor:
    """Pictures [B, C, H, W] pooled to [B, C, H/2, W/2], then as :func:`viewed` has them."""
    return viewed(avg_pool2d(pixels, 2), view)


def _turn(section: InversionSection, teacher: Model, *, half: bool) -> Turn:
    """A turn whose terms are all of what its step sees."""
    pictures = Call("x", "pictures", () if half else ("view",))
    seen = "half" if half else "x.out"
    terms = (
        Term("label", cross_entropy, ("t.logits", "y"), section.label or 0.0),
        *_statistics(section, teacher),
        Term("tv_l2", total_variation, (seen,), section.tv_l2 or 0.0, {"norm": "l2"}),
        Term("tv_l1", total_variation, (seen,), section.tv_l1 or 0.0, {"norm": "l1"}),
        Term("l2", image_norm, (seen,), section.l2 or 0.0, {"over": section.l2_over}, scope="batch"),
    )
    return Turn(
        "half" if half else "whole",
        ("pictures",),
        (pictures, Call("t", "teacher", (seen,))),
        terms,
        (Derive("half", halved, ("x.out", "view")),) if half else (),
        edits=clipping(section, teacher),
    )


def clipping(section: InversionSection, teacher: Model) -> tuple[Edit, ...]:
    """Keeps pixels between black and white after each step, where wanted."""
    if not section.clip:
        return ()
    return (Edit("clip", "weights", "pictures", ("pixels",), clipped, {"teacher": teacher}),)


def clipped(weights: dict[str, Tensor], *, teacher: Model) -> dict[str, Tensor]:
    """Pixels [B, 3, H, W], as the teacher takes them, within what it takes black and white for."""
    black = torch.zeros((1, 3, *teacher.spec.size), dtype=torch.uint8, device=weights["pixels"].device)
    return {"pixels": weights["pixels"].clamp(*(teacher.prepare(colour) for colour in (black, ~black)))}


def _statistics(section: InversionSection, teacher: Model) -> list[Term]:
    terms = []
    for i, path in enumerate(batch_norms(teacher)):
        weight = (section.statistics or 0.0) * ((section.first_statistics or 0.0) if i == 0 else 1)
        taps = (f"t.{path}.in", f"t:{path}.running_mean", f"t:{path}.running_var")
        terms.append(Term(f"statistics/{path}", bn_statistics, taps, weight, scope="batch"))
    return terms


def batch_norms(network: Model) -> list[str]:
    """Names of the layers whose statistics are matched, in the order of the model.

    Raises:
        InputError: it has none with running statistics.
    """
    found = [
        name
        for name, module in network.tappable().items()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    ]
    if not found:
        raise InputError(
            f"{network.name} has no batch norm with running statistics (a ViT or ConvNeXt has layer norms): "
            "there is nothing to invert it by. Record activations with kdcli probe --statistics and use "
            "--mixer lopes."
        )
    return found


def adaptive_deepinversion(section: InversionSection, *, teacher: Model, student: Model) -> Method:
    """DeepInversion with the competition: the student sees what the teacher does, in its own normalisation.

    Args:
        section: weights and steps, resolved.
        teacher: to be inverted.
        student: whose answers are to be others; it is left as it is.

    Raises:
        InputError: a teacher without batch norm.
    """
    method = deepinversion(section, teacher=teacher)
    renormalised = partial(Renormalised, teacher.spec, student.spec)
    rivals = (Party("renormalise", "frozen", build=renormalised), Party("student", "frozen", "student"))
    term = Term(
        "competition", competition, ("s.logits", "t.logits"), section.competition or 0.0, scope="batch"
    )
    phases = []
    for phase in method.phases:
        (turn,) = phase.turns
        seen = next(call.inputs for call in turn.calls if call.name == "t")
        calls = (*turn.calls, Call("v", "renormalise", seen), Call("s", "student", ("v.out",)))
        phases.append(replace(phase, turns=(replace(turn, calls=calls, terms=(*turn.terms, term)),)))
    return replace(
        method, name="adaptive-deepinversion", parties=(*method.parties, *rivals), phases=tuple(phases)
    )
