"""Joint hints, the "FitNet" of tables: Romero et al. 2015, arXiv 1412.6550, as RepDistiller has it.

L = ce·CE(z_s, y) + kd·T²·KL + weight·mean (r(F_s) − F_t)², F maps, r a trained regressor
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from kdcli.losses import features
from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.methods.trainings import keys, tables_cifar_100
from kdcli.models.adapters import Match, Regressor
from kdcli.models.taps import as_map_tap
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Term

Adapter = Literal["conv", "linear", "none"]


def part(
    weight: float = 100.0,
    *,
    student: str = "stage2",
    teacher: str = "stage2",
    adapter: Adapter = "conv",
    match: Match = "conv",
    relu: bool = True,
    name: str = "hint",
) -> Part:
    """Mean squared difference of the teacher's map and an adapter on the student's.

    ``conv`` is a regressor with BN, and ``match`` and ``relu`` are its own; ``linear`` is one linear map at
    every position, on the teacher's grid; ``none`` compares the maps as they are.
    """
    mine, its = f"s.{as_map_tap(student)}", f"t.{as_map_tap(teacher)}"
    if adapter == "none":
        return Part((Term(name, features.hint, (mine, f"~{its}"), weight),))
    build = (
        partial(Regressor, match=match, relu=relu)
        if adapter == "conv"
        else partial(Regressor, match="pool", relu=False, norm=False)
    )
    regressor = f"{name}-regressor"
    return Part(
        (Term(name, features.hint, (f"{regressor}.out", f"~{its}"), weight),),
        (Party(regressor, "trained", build=build, reads=(mine, its)),),
        (Call(regressor, regressor, (mine,)),),
    )


def hint(task: Task, taught: Part, *, ce: float = 1.0, kd: float = 0.0, temperature: float = 4.0) -> Method:
    """Joint hint: labels and one regressed map in one phase.

    This is what RepDistiller and mdistiller call FitNet, and what published tables mean by it (weight 100
    beside labels, no kd, convolution with BN and ReLU); the two phases of the paper are ``fitnets``. Both
    take ``HINT_LAYER`` 2 of features of which the stem's is 0: layer2 of a ResNet (``stage2``). Taps: stage1
    to stage4, mapK, or any module's path. With a transformer for a teacher say ``relu=false`` or
    ``adapter=linear``: its features have signs. ``match`` and ``relu`` belong to ``adapter=conv``; ``none``
    asks for two maps of one shape.
    """
    labels = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    recipe = tables_cifar_100(
        keys("method", weight=100.0, ce=1.0, kd=0.0, student="stage2", teacher="stage2", adapter="conv"),
        {"method.student": "hint_layer 2, layer2 of a ResNet", "method.teacher": "hint_layer 2"},
    )
    return one_turn("hint", Part(labels), taught, recipes=(recipe,))
