"""Decoupled knowledge distillation: Zhao et al. 2022, arXiv 2203.08679.

L = ce·CE(z_s, y) + w·(α·TCKD + β·NCKD), both T²·KL
TCKD: of the true class against the rest; NCKD: among the rest
"""

from __future__ import annotations

from dataclasses import replace

from kdcli.losses import logits
from kdcli.methods.parts import Fraction, Part, Positive, one_turn
from kdcli.methods.trainings import tables_cifar_100, tables_imagenet
from kdcli.tasks import Task
from kdcli.words import Linear, Method, Term


def part(
    weight: float = 1.0,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Positive = 4.0,
    name: str = "dkd",
) -> Part:
    """TCKD and NCKD on labelled rows, which know their true class."""
    keywords = {"alpha": alpha, "beta": beta, "temperature": temperature}
    taps = ("s.logits", "~t.logits", "y")
    return Part((Term(name, logits.dkd, taps, weight, keywords, rows="labelled"),))


def dkd(task: Task, taught: Part, *, ce: float = 1.0, warmup: Fraction = 20 / 240) -> Method:
    """The teacher's view of the true class and of the others, apart.

    ``beta`` is chosen for each pair in mdistiller: on CIFAR-100 8 for ResNet32x4, ResNet50 and WRN-40-2
    teaching ResNet8x4, ShuffleNets and MobileNetV2, 6 for VGG13, and for WRN-40-2 teaching another WRN, 2 for
    ResNet110 and ResNet56; on ImageNet 0.5 for ResNet34 teaching ResNet18 and 2 for ResNet50 teaching
    MobileNetV1, both at T 1. The term's weight grows in a straight line over ``warmup`` of the run: 20 of 240
    epochs on CIFAR-100, 1 of 100 on ImageNet; 0 for none. Two classes leave no distribution over others and
    are refused. Unlabelled pictures teach nothing here.
    """
    term = taught.terms[0]
    if warmup:
        term = replace(term, weight=Linear(0.0, 1.0, 0.0, warmup))
    recipes = (
        tables_cifar_100(
            {"method.ce": 1.0, "method.alpha": 1.0, "method.beta": 8.0, "method.temperature": 4.0}
            | {"method.warmup": 20 / 240},
            {"method.beta": "by pair: 8, 6 (VGG13; WRN to WRN) or 2 (ResNet110, ResNet56)"},
            "mdistiller configs/cifar100/dkd",
        ),
        tables_imagenet(
            {"method.ce": 1.0, "method.alpha": 1.0, "method.beta": 0.5, "method.temperature": 1.0}
            | {"method.warmup": 1 / 100},
            "mdistiller configs/imagenet/r34_r18/dkd.yaml",
            {
                "method.beta": "2 for ResNet50 teaching MobileNetV1",
                "method.warmup": "WARMUP 1, and so whole from the first epoch on in the code",
            },
        ),
    )
    labels = replace(task.supervised("s"), weight=ce)
    return one_turn("dkd", Part((labels, term)), recipes=recipes)
