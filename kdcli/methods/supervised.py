"""The baseline: labels only.

L = CE(z_s, y)
"""

from __future__ import annotations

from kdcli.methods.parts import STUDENT, S
from kdcli.methods.trainings import tables_cifar_100
from kdcli.tasks import Task
from kdcli.words import Method, Phase, Turn


def supervised(task: Task) -> Method:
    """Train the student on labels alone; also the way to train a first teacher."""
    turn = Turn("student", ("student",), (S,), task.supervised("s"))
    return Method("supervised", (STUDENT,), (Phase((turn,)),), recipes=(tables_cifar_100({}, taught=False),))
