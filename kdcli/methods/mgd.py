"""Masked generative distillation: Yang et al. 2022, arXiv 2205.01529.

L = ce·CE(z_s, y) + kd·T²·KL + weight·‖G(M·f(F_s)) − F_t‖², M masks channels, f and G trained
"""

from __future__ import annotations

from functools import partial

from kdcli.losses import features
from kdcli.methods.parts import Part, Share, labels_and_teacher, one_turn
from kdcli.methods.trainings import IMAGENET, keys, published, sgd
from kdcli.models.adapters import MaskedGeneration
from kdcli.models.taps import as_map_tap
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Recipe, Term


def part(
    weight: float = 7e-5,
    *,
    student: str = "stage4",
    teacher: str = "stage4",
    masked: Share = 0.15,
    name: str = "mgd",
) -> Part:
    """The squared difference of the teacher's map and what is generated of the student's."""
    mine, its = f"s.{as_map_tap(student)}", f"t.{as_map_tap(teacher)}"
    generator = f"{name}-generator"
    build = partial(MaskedGeneration, masked=masked)
    return Part(
        (Term(name, features.mgd, (f"{generator}.out", f"~{its}"), weight),),
        (Party(generator, "trained", build=build, reads=(mine, its)),),
        (Call(generator, generator, (mine,)),),
    )


def mgd(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """The teacher's last map, which the student's shall suffice to make although channels of it are missing.

    Weight 7e-5 for the sum over channels and positions, and a mask of 0.15 of the channels, are the authors'
    for classification; for detection and segmentation they mask positions. Both maps have one grid.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("mgd", Part(labels), taught, recipes=(_recipe(),))


def _recipe() -> Recipe:
    """The authors' training of ResNet-18 by ResNet-34."""
    steps = sgd(lr=0.1, weight_decay=1e-4, epochs=100, batch=256, drops=(30, 60, 90))
    parameters = keys("method", weight=7e-5, masked=0.15, ce=1.0, kd=0.0, student="stage4", teacher="stage4")
    source = "the authors' res34_distill_res18_img.py"
    return published("imagenet", {**steps, **IMAGENET, **parameters}, source, None, ())
