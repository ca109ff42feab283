"""Trainings that several papers share, as settings of a :class:`~kdcli.words.Recipe`.

Read in the code of RepDistiller and mdistiller, in whose tables most methods are compared, and of the papers'
authors. None clips gradients, and all decay biases and the parameters of norms too (``optim.decay_all``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdcli.words import Recipe

PADDED = "random crops after padding by 4 pixels"

SMALL_PICTURES: Mapping[str, Any] = {"views.count": "live", "views.scale": [1.0, 1.0], "views.hflip": 0.5}
"""Views of CIFAR: whole pictures, flipped, anew in each epoch."""

IMAGENET: Mapping[str, Any] = {
    "views.count": "live",
    "views.scale": [0.08, 1.0],
    "views.ratio": [0.75, 1.3333],
    "views.hflip": 0.5,
    "views.interpolation": "bilinear",
}
"""Views of ImageNet, torchvision's ``RandomResizedCrop(224)`` and flip, anew in each epoch."""

_NOTES = {
    "optim.clip_grad": "nothing is clipped",
    "views.count": "a new view each epoch",
    "teacher_temperature": "the teacher's logits as they are",
}
SMALL_STUDENTS = {"optim.lr": "0.01 for MobileNetV2, ShuffleNetV1 and ShuffleNetV2"}


def keys(section: str, **values: Any) -> dict[str, Any]:
    """Values by key of the configuration, ``lr`` of ``optim`` as ``optim.lr``."""
    return {f"{section}.{name}": value for name, value in values.items()}


def sgd(
    *,
    lr: float,
    weight_decay: float,
    epochs: float,
    batch: int,
    drops: tuple[int, ...],
    factor: float = 0.1,
    nesterov: bool = False,
) -> dict[str, Any]:
    """SGD with momentum 0.9 and decay of all, the rate multiplied by ``factor`` after each of some epochs.

    timm calls it ``momentum``, and ``sgd`` with Nesterov's momentum.
    """
    return keys(
        "optim",
        opt="sgd" if nesterov else "momentum",
        momentum=0.9,
        lr=lr,
        weight_decay=weight_decay,
        decay_all=True,
        schedule="multistep",
        milestones=list(drops),
        decay_rate=factor,
        warmup=0.0,
        epochs=epochs,
        batch_size=batch,
        clip_grad=None,
    )


def published(
    name: str,
    settings: Mapping[str, Any],
    source: str,
    notes: Mapping[str, str] | None = None,
    left_out: tuple[str, ...] = (PADDED,),
    taught: bool = True,
) -> Recipe:
    """The recipe of some settings, with what is to be said of those that all have.

    No code of those read here calibrates a teacher: where there is one (``taught``), it has raw logits.
    """
    if taught:
        settings = {**settings, "teacher_temperature": "raw"}
    common = {key: note for key, note in _NOTES.items() if key in settings}
    return Recipe(name, settings, source, {**common, **(notes or {})}, left_out)


def tables_cifar_100(
    parameters: Mapping[str, Any],
    notes: Mapping[str, str] | None = None,
    source: str = "RepDistiller train_student.py",
    taught: bool = True,
) -> Recipe:
    """The training of CIFAR-100 tables, one in RepDistiller and mdistiller, with a method's parameters."""
    steps = sgd(lr=0.05, weight_decay=5e-4, epochs=240, batch=64, drops=(150, 180, 210))
    settings = {**steps, **SMALL_PICTURES, **parameters}
    return published("cifar-100", settings, source, {**SMALL_STUDENTS, **(notes or {})}, taught=taught)


def tables_imagenet(
    parameters: Mapping[str, Any],
    source: str,
    notes: Mapping[str, str] | None = None,
) -> Recipe:
    """mdistiller's training on ImageNet, with a method's parameters."""
    steps = sgd(lr=0.2, weight_decay=1e-4, epochs=100, batch=512, drops=(30, 60, 90))
    return published("imagenet", {**steps, **IMAGENET, **parameters}, source, notes, ())
