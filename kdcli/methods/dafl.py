"""Data-free learning of student networks: Chen et al. 2019, arXiv 1904.01186 (DAFL), the joint form.

Generator G: oh·CE(z_t, argmax z_t) + ie·Σ_k p̄_k log₁₀ p̄_k − a·mean|f_t|, all on G(noise) through the teacher
Student: KL(softmax z_t ‖ softmax z_s) on G(noise), a constant
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from kdcli.losses import datafree
from kdcli.losses.logits import kl_divergence
from kdcli.methods.parts import STUDENT, TEACHER, Count
from kdcli.models.generator import Generator
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, Term, Turn


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
    oh: float = 0.05,
    ie: float = 5.0,
    a: float = 0.01,
    base: float = 10.0,
    reduction: Literal["mean", "sum"] = "mean",
    generator_opt: str = "adam",
    generator_lr: float = 0.02,
) -> Method:
    """A generator learns to make what the teacher is sure of; the student copies the teacher on that alone.

    No picture is learned from: ``--data`` names the classes and serves for evaluation. Defaults are the
    code's for CIFAR-10 (CIFAR-100: oh 0.5, ie 20, a 0.1; MNIST: oh 1, ie 5, a 0.1, latent 100, and a learning
    rate of 0.2), for batches of 1024 and 240,000 steps of an SGD student at 0.1. Its entropy has log₁₀
    (``base``) and its activation a mean, where the paper prints the natural log and a sum. The code updates
    both from one pass; here the student's turn draws noise of its own, after the generator's step. Two
    replications of the published accuracies disagree with one another. A generator that is first and then
    sampled is ``kdcli synthesize --mixer dafl``.
    """
    drawn = Derive("noise", noise, ("x",), {"latent": latent})
    fake = Call("g", "generator", ("noise",))
    generator = Turn(
        "generator",
        trains=("generator",),
        calls=(fake, Call("t", "teacher", ("g.out",))),
        terms=(
            Term("one-hot", datafree.one_hot, ("t.logits",), oh),
            Term("entropy", datafree.information_entropy, ("t.logits",), ie, {"base": base}, scope="batch"),
            Term("activation", datafree.activation, ("t.pooled",), a, {"reduction": reduction}),
        ),
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
        calls=(fake, Call("s", "student", ("~g.out",)), Call("t", "teacher", ("~g.out",))),
        terms=(Term("kl", kl_divergence, ("s.logits", "~t.logits")),),
        derives=(drawn,),
    )
    party = Party("generator", "trained", build=partial(build_generator, latent), reads=("x",))
    return Method("dafl", (STUDENT, TEACHER, party), (Phase((generator, student)),))
