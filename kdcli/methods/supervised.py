"""The baseline: labels only.

L = CE(z_s, y)
"""

from __future__ import annotations

from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Turn


def supervised(task: Task) -> Method:
    """Train the student on labels alone; also the way to train a first teacher."""
    return Method(
        name="supervised",
        parties=(Party("student", "trained", "student"),),
        phases=(Phase((Turn("student", ("student",), (Call("s", "student"),), (task.supervised("s"),)),)),),
    )
