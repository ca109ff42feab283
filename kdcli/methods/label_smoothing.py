"""Distillation seen as label smoothing: Yuan et al. 2020, "Revisiting Knowledge Distillation via Label
Smoothing Regularization" (Tf-KD), arXiv 1909.11723.

L = (1 − a)·CE(z_s, y) + a·multiplier·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)) / C

The division by C, the number of classes, is in the authors' code (a mean over all elements), and their
weights belong to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from kdcli.losses import logits
from kdcli.methods.parts import Fraction, Part, labels, one_turn
from kdcli.methods.trainings import PADDED, SMALL_PICTURES, keys, published, sgd
from kdcli.tasks import Task
from kdcli.words import Method, Recipe, Term

Reading = Literal["code", "paper"]


def lsr(task: Task, *, smoothing: Fraction = 0.1, reading: Reading = "code") -> Method:
    """Label smoothing, the baseline without a teacher.

    ``code``: 1 − a for the true class, a/(C − 1) for each other. ``paper`` is the usual (1 − a)·onehot + a/C,
    also to be had as ``--set optim.label_smoothing``.
    """
    keywords = {"smoothing": smoothing, "reading": reading}
    term = Term("lsr", logits.lsr, ("s.logits", "y"), 1.0, keywords, rows="labelled")
    settings = keys("method", smoothing=0.1, reading="code")
    recipe = _recipe("cifar-100", settings, "main.py and my_loss_function.py", taught=False)
    return one_turn("lsr", Part((term,)), teacher=False, recipes=(recipe,))


def tf_kd_self(
    task: Task, *, alpha: float = 0.95, temperature: float = 20.0, multiplier: float = 1.0
) -> Method:
    """Tf-KD_self: the teacher is the student's own architecture, trained before.

    Published settings differ by network, and so there is a recipe for each: MobileNetV2 and ShuffleNetV2 a
    0.95, T 20, multiplier 1; ResNet18 0.95, 6, 50; GoogLeNet, DenseNet121, ResNeXt29 0.4, 0.9, 0.9 at T 20
    with 50, 50, 100 (CIFAR-100).
    """
    at = "kd_experiments/{}_distill/{}_self_teacher".format
    recipes = (
        _recipe("cifar-100", _kl(0.95, 20.0, 1.0), at("mobilenet", "mobilenet")),
        _recipe("cifar-100-resnet18", _kl(0.95, 6.0, 50.0), at("resnet18", "resnet18")),
        _recipe("cifar-100-googlenet", _kl(0.4, 20.0, 50.0), at("googlenet", "googlenet"), batch=64),
        _recipe("cifar-100-densenet121", _kl(0.9, 20.0, 50.0), at("densenet121", "densenet"), batch=100),
        _recipe("cifar-100-resnext29", _kl(0.9, 20.0, 100.0), at("resnext29", "resnext29"), batch=64),
    )
    return _taught("tf-kd-self", task, alpha, temperature, multiplier, recipes)


def tf_kd_reg(
    task: Task,
    *,
    alpha: float = 0.95,
    temperature: float = 40.0,
    multiplier: float = 1.0,
    correct: Annotated[float, Field(gt=0, lt=1)] = 0.99,
    reading: Reading = "code",
) -> Method:
    """Tf-KD_reg: a teacher made by hand, ``correct`` for the true class.

    ``code`` softens the probabilities as if they were logits, which leaves nearly uniform smoothing (1.05
    times the uniform probability at C = 100, T = 20), and not the student; ``paper`` softens
    log-probabilities and has T². Published settings: MobileNetV2 a 0.95, T 40; ShuffleNetV2 0.95, 10;
    ResNet18 0.1, 20 with multiplier 100. With a 0.95 the whole loss is some 20 times smaller: compare at a
    matched learning rate.
    """
    keywords = {"correct": correct, "temperature": temperature, "reading": reading}
    taught = Term(
        "tf-kd-reg",
        logits.tf_kd_regularisation,
        ("s.logits", "y"),
        alpha * multiplier,
        keywords,
        rows="labelled",
    )
    made = partial(_recipe, taught=False)
    recipes = (
        made("cifar-100", _kl(0.95, 40.0, 1.0), "base_experiments/base_mobilenetv2"),
        made("cifar-100-shufflenetv2", _kl(0.95, 10.0, 1.0), "base_experiments/base_shufflenetv2"),
        made("cifar-100-resnet18", _kl(0.1, 20.0, 100.0), "base_experiments/base_resnet18"),
        made("cifar-100-googlenet", _kl(0.1, 40.0, 50.0), "base_experiments/base_googlenet", batch=64),
    )
    return one_turn("tf-kd-reg", Part((*labels(task, 1 - alpha), taught)), teacher=False, recipes=recipes)


def reversed_kd(
    task: Task, *, alpha: float = 0.6, temperature: float = 20.0, multiplier: float = 1.0
) -> Method:
    """Re-KD: a smaller, weaker teacher for a larger student.

    Published: a 0.6, T 20 for ResNet18, ResNet50 and ResNeXt29 students, 0.95 for MobileNet and ShuffleNet.
    """
    recipe = _recipe("cifar-100", _kl(0.6, 20.0, 1.0), "kd_experiments/resnet18_distill/mobilenet_v2_teacher")
    return _taught("reversed", task, alpha, temperature, multiplier, (recipe,))


def defective(
    task: Task, *, alpha: float = 0.95, temperature: float = 20.0, multiplier: float = 1.0
) -> Method:
    """De-KD: a badly trained teacher.

    Published teachers stopped after 1 epoch (ResNet18, 15.48 %) or 50 epochs (ResNet50, 45.82 %; ResNeXt29):
    train one with ``kdcli distill --method supervised --epochs …``.
    """
    at = "kd_experiments/{}_distill/{}_teacher".format
    recipes = (
        _recipe("cifar-100", _kl(0.95, 20.0, 1.0), at("mobilenet", "resnet18")),
        _recipe("cifar-100-resnet18", _kl(0.6, 20.0, 1.0), at("resnet18", "resnet50"), batch=64),
    )
    return _taught("defective", task, alpha, temperature, multiplier, recipes)


def _taught(
    name: str,
    task: Task,
    alpha: float,
    temperature: float,
    multiplier: float,
    recipes: tuple[Recipe, ...],
) -> Method:
    taught = Term(
        "kl",
        logits.kl_elements,
        ("s.logits", "~t.logits"),
        alpha * multiplier,
        {"temperature": temperature},
    )
    return one_turn(name, Part((*labels(task, 1 - alpha), taught)), recipes=recipes)


def _kl(alpha: float, temperature: float, multiplier: float) -> dict[str, float]:
    """Parameters of a method that learns from a teacher."""
    return keys("method", alpha=alpha, temperature=temperature, multiplier=multiplier)


def _recipe(
    name: str, parameters: Mapping[str, Any], where: str, *, batch: int = 128, taught: bool = True
) -> Recipe:
    """The authors' training, which all their experiments share but for the batch."""
    training = sgd(
        lr=0.1 * batch / 128,
        weight_decay=5e-4,
        epochs=200,
        batch=batch,
        drops=(60, 120, 160),
        factor=0.2,
    )
    warmup = {"optim.warmup": 1 / 200}
    return published(
        name,
        {**training, **warmup, **SMALL_PICTURES, **parameters},
        f"the authors' {where}",
        {"optim.lr": "0.1 for a batch of 128", "optim.warmup": "1 of 200 epochs"},
        (PADDED, "rotations by up to 15 degrees"),
        taught,
    )
