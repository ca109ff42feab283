"""DeepInversion and Adaptive DeepInversion: Yin et al. 2020, arXiv 1912.08795.

    x* = argmin m·CE(T(x), y) + a_f·Σ_l (‖μ_l(x) − μ̂_l‖₂ + ‖σ²_l(x) − σ̂²_l‖₂)
                + a_tv·TV(x) + a_l2·R(x) [+ a_c·(1 − JS(student, teacher))]

over the inputs of every BatchNorm2d, norms not squared, as in the authors' code. Each step sees the batch
shifted and perhaps mirrored; the priors TV and R are those of the pictures themselves, not of the shifted
ones.
"""

from __future__ import annotations

from torch import nn

from kdcli.errors import InputError
from kdcli.losses.inversion import bn_statistics, competition, image_norm, total_variation
from kdcli.losses.logits import cross_entropy
from kdcli.models.timm import Network
from kdcli.synthesis.settings import InversionSection
from kdcli.words import Call, Phase, Term, Turn

STATISTICS = "statistics/"


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


def deepinversion(network: Network, section: InversionSection) -> tuple[Phase, ...]:
    """Phases of DeepInversion: steps on pictures pooled to half size, where wanted, then whole ones.

    Parties: ``pictures`` (trained), ``teacher``, ``half`` (pooling), and with a weight of the competition
    ``student`` behind ``renormalise``. Columns: ``y`` [B], the target classes, and ``view``.

    Args:
        network: the teacher.
        section: weights and steps, resolved.

    Raises:
        InputError: a teacher without batch norm.
    """
    layers = batch_norms(network)
    rival = bool(section.competition)
    terms = [Term("label", cross_entropy, ("t.logits", "y"), section.label or 0.0)]
    for i, path in enumerate(layers):
        weight = (section.statistics or 0.0) * ((section.first_statistics or 0.0) if i == 0 else 1)
        taps = (f"t.{path}.in", f"t:{path}.running_mean", f"t:{path}.running_var")
        terms.append(Term(f"{STATISTICS}{path}", bn_statistics, taps, weight, scope="batch"))
    for norm, tv in (("l2", section.tv_l2), ("l1", section.tv_l1)):
        terms.append(Term(f"tv_{norm}", total_variation, ("whole.out",), tv or 0.0, {"norm": norm}))
    over = {"over": section.l2_over}
    terms.append(Term("l2", image_norm, ("whole.out",), section.l2 or 0.0, over, scope="batch"))
    if rival:
        weight = section.competition or 0.0
        terms.append(Term("competition", competition, ("s.logits", "t.logits"), weight, scope="batch"))
    heeded = tuple(term for term in terms if term.weight)

    def turn(name: str, pooled: bool) -> Turn:
        seen = "small.out" if pooled else "x.out"
        calls = [Call("whole", "pictures", ()), Call("x", "pictures", ("view",))]
        calls += [Call("small", "half", ("x.out",))] if pooled else []
        calls += [Call("t", "teacher", (seen,))]
        calls += [Call("v", "renormalise", (seen,)), Call("s", "student", ("v.out",))] if rival else []
        return Turn(name, ("pictures",), tuple(calls), heeded)

    half, steps = section.half_steps or 0, section.steps or 0
    phases = [Phase((turn("half", True),), "half", half / (half + steps))] if half else []
    return (*phases, Phase((turn("whole", False),), "whole", steps / (half + steps)))
