"""Task-specific distillation: Marrie et al. 2024, "On Good Practices for Task-Specific Distillation", arXiv
2402.11305.

    L = (1 − α)·CE(z_s, y)  over labelled pictures  +  α·KL(softmax(z_t/T) ‖ softmax(z_s/T))  over all
    pictures

The teacher is a frozen backbone with a probed head (``kdcli probe``); the student is finetuned whole.
"""

from __future__ import annotations

from kdcli.methods.parts import Part, labels_and_teacher, one_turn
from kdcli.tasks import Task
from kdcli.words import Linear, Method, Recipe, Weight


def task_specific(
    task: Task,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    t_squared: bool = False,
    annealing: bool = False,
) -> Method:
    """Labels on labelled pictures, the probed teacher on all, balanced by alpha.

    With ``annealing`` alpha falls to 0 in a line, so that the student ends with the labels alone and may come
    to know more than its teacher (teacher annealing: Clark et al. 2019, arXiv 1907.04829, from 1 to 0).

    The authors' α, T and whether T² multiplies the teacher term are not published in what we could read:
    they are axes to sweep (α 0 to 1, T 1, 2, 4), and T² is off as in the printed formula. α = 0 is
    ``supervised``.
    """
    ce: Weight = Linear(1 - alpha, 1.0) if annealing else 1 - alpha
    kd: Weight = Linear(alpha, 0.0) if annealing else alpha
    terms = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature, t_squared=t_squared)
    recipe = Recipe(
        "paper",
        {"method.t_squared": False},
        "the paper's loss as printed",
        unknown=("α and T", "optimiser, learning rate and schedule", "batch and epochs", "augmentation"),
    )
    return one_turn("task-specific", Part(terms), recipes=(recipe,))
