"""DeepInversion and Adaptive DeepInversion: Yin et al. 2020, arXiv 1912.08795.

    x* = argmin m·CE(T(x), y) + a_f·Σ_l (‖μ_l(x) − μ̂_l‖₂ + ‖σ²_l(x) − σ̂²_l‖₂)
                + a_tv·TV(x) + a_l2·R(x) [+ a_c·(1 − JS(student, teacher))]

over the inputs of every BatchNorm2d, norms not squared, as in the authors' code. Each step sees the batch
shifted and perhaps mirrored; the priors TV and R are those of the pictures themselves, not of the shifted
ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from kdcli.errors import InputError
from kdcli.losses.inversion import bn_statistics, competition, image_norm, total_variation
from kdcli.losses.logits import cross_entropy
from kdcli.methods.datafree import InversionSection
from kdcli.methods.parts import TEACHER
from kdcli.models.pictures import Renormalised, first_pictures
from kdcli.models.timm import Network
from kdcli.words import Call, Method, Party, Phase, Term, Turn


def deepinversion(section: InversionSection, *, teacher: Network) -> Method:
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
    parties = (
        Party("pictures", "trained", build=first),
        TEACHER,
        Party("half", "frozen", build=partial(nn.AvgPool2d, 2)),
    )
    half, steps = section.half_steps or 0, section.steps or 0
    phases = tuple(
        Phase((_turn(name, seen, section, teacher),), name, count / (half + steps))
        for name, seen, count in (("half", "small.out", half), ("whole", "x.out", steps))
        if count
    )
    return Method("deepinversion", parties, phases, export="pictures")


def _turn(name: str, seen: str, section: InversionSection, teacher: Network) -> Turn:
    """A turn in which the teacher sees the pictures as the tap ``seen`` has them."""
    calls = (
        Call("whole", "pictures", ()),
        Call("x", "pictures", ("view",)),
        Call("small", "half", ("x.out",)),
        Call("t", "teacher", (seen,)),
    )
    terms = (
        Term("label", cross_entropy, ("t.logits", "y"), section.label or 0.0),
        *_statistics(section, teacher),
        Term("tv_l2", total_variation, ("whole.out",), section.tv_l2 or 0.0, {"norm": "l2"}),
        Term("tv_l1", total_variation, ("whole.out",), section.tv_l1 or 0.0, {"norm": "l1"}),
        Term("l2", image_norm, ("whole.out",), section.l2 or 0.0, {"over": section.l2_over}, scope="batch"),
    )
    return Turn(name, ("pictures",), calls, terms)


def _statistics(section: InversionSection, teacher: Network) -> list[Term]:
    terms = []
    for i, path in enumerate(batch_norms(teacher)):
        weight = (section.statistics or 0.0) * ((section.first_statistics or 0.0) if i == 0 else 1)
        taps = (f"t.{path}.in", f"t:{path}.running_mean", f"t:{path}.running_var")
        terms.append(Term(f"statistics/{path}", bn_statistics, taps, weight, scope="batch"))
    return terms


def batch_norms(network: Network) -> list[str]:
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


def adaptive_deepinversion(section: InversionSection, *, teacher: Network, student: Network) -> Method:
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
