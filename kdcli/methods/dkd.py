"""Decoupled knowledge distillation: Zhao et al. 2022, arXiv 2203.08679.

L = ce·CE(z_s, y) + w·(α·TCKD + β·NCKD), both T²·KL
TCKD: of the true class against the rest; NCKD: among the rest
"""

from __future__ import annotations

from dataclasses import replace

from kdcli.losses import logits
from kdcli.methods.parts import Fraction, Part, Positive, labels, one_turn
from kdcli.methods.trainings import keys, tables_cifar_100, tables_imagenet
from kdcli.tasks import Task
from kdcli.words import Linear, Method, Recipe, Term


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

    mdistiller, the authors' code, has α 1 and CE at weight 1 everywhere, and one β for each pair, so there is
    a recipe for each. CIFAR-100 at T 4: 8 (the default) for ResNet32x4, ResNet50 and WRN-40-2 teaching
    ResNet8x4, ShuffleNets and MobileNetV2; 6 for VGG13, and for WRN-40-2 teaching another WRN; 2 for ResNet56
    and ResNet110. ImageNet at T 1: 0.5 for ResNet34 teaching ResNet18, 2 for ResNet50 teaching MobileNetV1.
    The term's weight grows over ``warmup`` of the run (0 for none), 20 of 240 epochs on CIFAR-100 and 1 of
    100 on ImageNet: in a straight line here, in the code once an epoch, from 1/20 in the first. Two classes
    leave no distribution over others and are refused. Unlabelled pictures teach nothing here.
    """
    term = taught.terms[0]
    if warmup:
        term = replace(term, weight=Linear(0.0, 1.0, 0.0, warmup))
    return one_turn("dkd", Part((*labels(task, ce), term)), recipes=_recipes())


def _recipes() -> tuple[Recipe, ...]:
    """One for each β of the authors' configurations."""
    return (
        _small("", 8.0, "res32x4_res8x4", "ResNet32x4, ResNet50 and WRN-40-2, teaching no WRN"),
        _small("-vgg13", 6.0, "vgg13_vgg8", "VGG13"),
        _small("-wrn", 6.0, "wrn40_2_wrn_16_2", "WRN-40-2 teaching WRN-16-2 or WRN-40-1"),
        _small("-resnet56", 2.0, "res56_res20", "ResNet56 and ResNet110"),
        _large("", 0.5, "r34_r18", "ResNet34 teaching ResNet18"),
        _large("-mobilenetv1", 2.0, "r50_mv1", "ResNet50 teaching MobileNetV1"),
    )


def _small(pair: str, beta: float, file: str, teachers: str) -> Recipe:
    parameters = keys("method", ce=1.0, alpha=1.0, beta=beta, temperature=4.0, warmup=20 / 240)
    source = f"mdistiller configs/cifar100/dkd/{file}.yaml"
    recipe = tables_cifar_100(parameters, {"method.beta": f"of {teachers}"}, source)
    return replace(recipe, name=f"cifar-100{pair}")


def _large(pair: str, beta: float, folder: str, networks: str) -> Recipe:
    parameters = keys("method", ce=1.0, alpha=1.0, beta=beta, temperature=1.0, warmup=1 / 100)
    source = f"mdistiller configs/imagenet/{folder}/dkd.yaml"
    notes = {
        "method.beta": f"of {networks}",
        "method.warmup": "WARMUP 1, and so whole from the first epoch on in the code",
    }
    return replace(tables_imagenet(parameters, source, notes), name=f"imagenet{pair}")
