"""Pictures from recorded activations: Lopes, Fenu & Starner 2017, arXiv 1710.07535.

``kdcli probe --statistics`` records, for each class, the mean μ and the covariance Σ of a teacher's
activations over its training pictures. For a picture of class c activations a* are drawn once, with those
moments, and

    x* = argmin Σ_l mean( (relu(a*_l) − relu(a_l(x)))² ) / size_l

(one layer: without its size). As in the authors' code, activations are those before the ReLU, and the top
layer's are logits/T, T = 8: the moments of logits are recorded as they are and scaled here. The mean of a few
pictures tells much about them, so a class of few is not recorded, and is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kdcli.engine.moments import Moments
from kdcli.errors import InputError
from kdcli.losses.datafree import sampled_activations, top_layer
from kdcli.methods.datafree import InversionSection
from kdcli.methods.deepinversion import clipping
from kdcli.methods.parts import TEACHER
from kdcli.models.pictures import first_pictures
from kdcli.models.protocol import Model
from kdcli.words import Call, Derive, Method, Party, Phase, Term, Turn


def lopes(section: InversionSection, *, teacher: Model, moments: Moments) -> Method:
    """Pictures whose activations are those that :func:`sampled` draws for them, columns ``a0``, ``a1``, ….

    Args:
        section: resolved.
        teacher: whose activations they are.
        moments: of its taps.
    """
    derives, terms = [], []
    for i, (tap, means) in enumerate(moments.means.items()):
        weight = 1.0 if len(moments.means) == 1 else 1 / means.shape[1]
        derives.append(Derive(f"f{i}", softened, (f"t.{tap}",), {"temperature": _temperature(tap, section)}))
        terms.append(Term(f"activations/{tap}", top_layer, (f"f{i}", f"a{i}"), weight))
    first = partial(first_pictures, teacher.spec, section.batch or 1, section.start)
    calls = (Call("x", "pictures", ("view",)), Call("t", "teacher", ("x.out",)))
    clip = clipping(section, teacher)
    turn = Turn("pictures", ("pictures",), calls, tuple(terms), tuple(derives), edits=clip)
    parties = (Party("pictures", "trained", build=first), TEACHER)
    return Method("lopes", parties, (Phase((turn,), "pictures"),), export="pictures")


def softened(activations: Tensor, *, temperature: float) -> Tensor:
    """Activations [B, …] of a layer as rows [B, D], over the temperature."""
    return activations.flatten(1) / temperature


def _temperature(tap: str, section: InversionSection) -> float:
    """That of the top layer, whose ReLU is the objective's; other layers have none."""
    return (section.temperature or 1.0) if tap == "logits" else 1.0


def sampled(moments: Moments, section: InversionSection, seed: int, targets: Tensor) -> dict[str, Tensor]:
    """Activations a* drawn for pictures of the classes ``targets`` [B]: a0, a1, … of the taps, [B, D]."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for i, (tap, means) in enumerate(moments.means.items()):
        noise = torch.randn((len(targets), means.shape[1]), generator=random)
        drawn = torch.empty_like(noise)
        for k, number in enumerate(moments.classes.tolist()):
            if (rows := targets == number).any():
                drawn[rows] = sampled_activations(noise[rows], means[k], moments.spreads[tap][k])
        found[f"a{i}"] = softened(drawn, temperature=_temperature(tap, section))
    return found


def allowed(moments: Moments, classes: Sequence[str], section: InversionSection) -> list[int]:
    """Numbers of the classes that pictures are made of.

    Args:
        moments: of the teacher.
        classes: names of all its classes.
        section: ``min_count``, and what is done about smaller ones.

    Raises:
        InputError: classes that are not recorded or of too few pictures, unless they are to be skipped.
    """
    least = section.min_count or 0
    kept = [c for c, n in zip(moments.classes.tolist(), moments.counts.tolist()) if n >= least]
    refused = [name for number, name in enumerate(classes) if number not in kept]
    if refused and (section.small_classes == "refuse" or not kept):
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        way = "--set inversion.small_classes=skip makes pictures of the others."
        raise InputError(
            f"fewer than {least} pictures were recorded of {', '.join(refused[:3])}{more}: their mean would "
            f"give away too much of them. {way if kept else 'No class is left: record more of each.'}"
        )
    return kept
