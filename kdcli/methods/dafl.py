"""Data-free learning of student networks: Chen et al. 2019, arXiv 1904.01186 (DAFL).

    L_G = oh·CE(z_t, argmax z_t) + ie·Σ_k p̄_k·log₁₀ p̄_k − a·mean|f_t|

on the teacher's logits z_t and last features f_t of generated pictures G(noise), p̄ the mean probabilities of
a batch; weights and the base of the logarithm are those of the authors' code. In the joint form the student
learns beside the generator: KL(softmax z_t ‖ softmax z_s) on G(noise), a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdcli.losses import datafree
from kdcli.losses.logits import kl_divergence
from kdcli.methods.datafree import InversionSection
from kdcli.methods.parts import STUDENT, TEACHER, Count
from kdcli.methods.trainings import SMALL_PICTURES, keys, published, sgd
from kdcli.models.generator import Generator
from kdcli.models.protocol import Model
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, Recipe, Term, Turn

Reduction = Literal["mean", "sum"]


def generator_terms(
    one_hot: float, entropy: float, activation: float, *, base: float = 10.0, reduction: Reduction = "mean"
) -> tuple[Term, ...]:
    """L_G, on call ``t`` of the teacher.

    Args:
        one_hot: weight oh of the cross-entropy with the pseudo-labels.
        entropy: weight ie of the balance of classes.
        activation: weight a of the features' size.
        base: of the entropy's logarithm.
        reduction: over the features' units.
    """
    return (
        Term("one_hot", datafree.one_hot, ("t.logits",), one_hot),
        Term("entropy", datafree.information_entropy, ("t.logits",), entropy, {"base": base}, scope="batch"),
        Term("activation", datafree.activation, ("t.pooled",), activation, {"reduction": reduction}),
    )


def generated(noise: str) -> tuple[Call, Call]:
    """The calls of a generator on noise, and of the teacher on its pictures."""
    return Call("g", "generator", (noise,)), Call("t", "teacher", ("g.out",))


def dafl_generator(section: InversionSection, *, teacher: Model) -> Method:
    """A generator, trained alone on the noise ``z`` [B, latent]; its log watches how even the classes are.

    Args:
        section: weights and steps, resolved.
        teacher: what it is trained against.
    """
    weights = (section.one_hot or 0.0, section.entropy or 0.0, section.activation or 0.0)
    terms = generator_terms(*weights, base=section.base or 10.0, reduction=section.reduction or "mean")
    watched = Term("label_entropy", datafree.label_entropy, ("t.logits",), 0.0, scope="batch", watched=True)
    turn = Turn("generator", ("generator",), generated("z"), (*terms, watched))
    build = partial(Generator, section.latent or 1, 3, teacher.spec.size[0])
    parties = (Party("generator", "trained", build=build), TEACHER)
    return Method("dafl", parties, (Phase((turn,), "generator"),), export="generator")


def noise(x: Tensor, *, latent: int) -> Tensor:
    """[B, latent] normal numbers, for B rows of anything."""
    return torch.randn(len(x), latent, device=x.device)


def build_generator(latent: int, picture: tuple[int, ...]) -> Generator:
    """A generator of pictures with the shape [3, H, W] of the views."""
    return Generator(latent, size=picture[-1])


def dafl(
    task: Task,
    *,
    latent: Count = 1000,
    one_hot: float = 0.05,
    entropy: float = 5.0,
    activation: float = 0.01,
    base: Annotated[float, Field(gt=1)] = 10.0,
    reduction: Reduction = "mean",
    generator_opt: str = "adam",
    generator_lr: float = 0.02,
) -> Method:
    """A generator learns to make what the teacher is sure of; the student copies the teacher on that alone.

    No picture is learned from: ``--data`` names the classes and serves for evaluation. Defaults are the
    code's for CIFAR-10 (CIFAR-100: one_hot 0.5, entropy 20, activation 0.1; MNIST: one_hot 1, entropy 5,
    activation 0.1, latent 100, and a learning rate of 0.2), for batches of 1024 and 240,000 steps of an SGD
    student at 0.1. Its entropy has log₁₀ (``base``) and its activation a mean, where the paper prints the
    natural log and a sum. The code updates both from one pass; here the student's turn draws noise of its
    own, after the generator's step. Two replications of the published accuracies disagree with one another. A
    generator that is first and then sampled is ``kdcli synthesize --mixer dafl``.
    """
    drawn = Derive("noise", noise, ("x",), {"latent": latent})
    on_fake = generated("noise")
    generator = Turn(
        "generator",
        trains=("generator",),
        calls=on_fake,
        terms=generator_terms(one_hot, entropy, activation, base=base, reduction=reduction),
        derives=(drawn,),
        optim={
            "opt": generator_opt,
            "lr": generator_lr,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0.0,
        },
    )
    student = Turn(
        "student",
        trains=("student",),
        calls=(on_fake[0], Call("s", "student", ("~g.out",)), Call("t", "teacher", ("~g.out",))),
        terms=(Term("kl", kl_divergence, ("s.logits", "~t.logits")),),
        derives=(drawn,),
    )
    party = Party("generator", "trained", build=partial(build_generator, latent), reads=("x",))
    return Method("dafl", (STUDENT, TEACHER, party), (Phase((generator, student)),), recipes=_recipes())


def _recipes() -> tuple[Recipe, ...]:
    """The code's trainings. Its epochs have 120 steps; those here are passes over 50,000 pictures."""
    steps = sgd(lr=0.1, weight_decay=5e-4, epochs=4915, batch=1024, drops=(1966, 3932))
    notes = {
        "optim.epochs": "2000 of 120 steps, in passes over 50,000 pictures",
        "optim.milestones": "after 800 and 1600 of the 2000",
    }
    small = keys(
        "optim",
        opt="adam",
        lr=2e-3,
        weight_decay=0.0,
        schedule="constant",
        warmup=0.0,
        max_steps=24_000,
        batch_size=512,
        clip_grad=None,
    )
    return (
        _recipe("cifar-10", steps, _weights(0.05, 5.0, 0.01), notes),
        _recipe("cifar-100", steps, _weights(0.5, 20.0, 0.1), notes),
        _recipe(
            "mnist",
            small,
            {**_weights(1.0, 5.0, 0.1), **keys("method", latent=100, generator_lr=0.2)},
            {"optim.max_steps": "200 epochs of 120 steps"},
        ),
    )


def _weights(one_hot: float, entropy: float, activation: float) -> dict[str, Any]:
    """Parameters of a run on CIFAR."""
    return keys(
        "method",
        latent=1000,
        one_hot=one_hot,
        entropy=entropy,
        activation=activation,
        base=10.0,
        reduction="mean",
        generator_opt="adam",
        generator_lr=0.02,
    )


def _recipe(
    name: str, training: Mapping[str, Any], parameters: Mapping[str, Any], notes: Mapping[str, str]
) -> Recipe:
    settings = {**training, **SMALL_PICTURES, **parameters}
    notes = {**notes, "views.count": "pictures are counted and evaluated on, not learned from"}
    return published(name, settings, "README.md and DAFL-train.py of the authors' code", notes, ())
