"""Knowledge distillation: Hinton, Vinyals & Dean 2015, arXiv 1503.02531.

L = ce·CE(z_s, y) + kd·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))
"""

from __future__ import annotations

from dataclasses import replace

from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Turn


def kd(
    task: Task,
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float = 4.0,
    t_squared: bool = True,
) -> Method:
    """Softened teacher logits beside labels.

    Defaults are those of RepDistiller and mdistiller (ce 0.1, kd 0.9, T 4). The paper gives no weights; it
    asks for T² so that the two gradients keep their relation when T changes. Unlabelled pictures enter the
    teacher term only.
    """
    teach = replace(task.taught("s", "t", temperature=temperature, t_squared=t_squared), weight=kd)
    turn = Turn(
        "student",
        trains=("student",),
        calls=(Call("s", "student"), Call("t", "teacher")),
        terms=(replace(task.supervised("s"), weight=ce), teach),
    )
    parties = (Party("student", "trained", "student"), Party("teacher", "frozen", "teacher"))
    return Method("kd", parties, (Phase((turn,)),))
