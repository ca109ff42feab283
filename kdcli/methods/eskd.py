"""On the efficacy of knowledge distillation: Cho & Hariharan 2019, ICCV.

L = ce(e)·CE(z_s, y) + kd(e)·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T)), kd(e) = 0 from a part of the training on
"""

from __future__ import annotations

from kdcli.methods.parts import Few, Fraction, Part, labels_and_teacher, one_turn
from kdcli.methods.trainings import IMAGENET, PADDED, SMALL_PICTURES, keys
from kdcli.tasks import Task
from kdcli.words import Method, Recipe, Until


def eskd(
    task: Task,
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float = 4.0,
    stop: Fraction = 0.4,
    ce_after: float = 1.0,
) -> Method:
    """Early-stopped distillation: the teacher's term is dropped when ``stop`` of the training is done.

    No official code was found, and neither the paper's stopping point nor the weight of the labels
    afterwards could be read: ``stop`` is an axis, and ``ce_after`` says what labels weigh then (the weight
    from the beginning, 0.1, keeps the learning rate's effect low to the end). The other early stopping of the
    paper is the teacher's, and two different things are called so: a short run of its own (``kdcli distill
    --method supervised --epochs 50``), and a long run that is cut off (``--epochs 200 --set
    optim.stop_epoch=50``: the learning rate is still high).
    """
    labels, teacher = Until(ce, stop, ce_after), Until(kd, stop)
    terms = labels_and_teacher(task, ce=labels, kd=teacher, temperature=temperature)
    return one_turn("eskd", Part(terms), recipes=_recipes("the stopping point"))


def sequential(
    task: Task,
    *,
    ce: float = 0.1,
    kd: float = 0.9,
    temperature: float = 4.0,
    generations: Few = 2,
) -> Method:
    """Sequential distillation: teacher → student 1 → student 2 …, each a full run of kd by the one before.

    Every generation is an artifact of its own (``OUT-via-1`` and so on), as with ``--via``. Cho & Hariharan
    report that it does not work; beside it, look at one run of as many steps in all.
    """
    terms = labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature)
    return one_turn("sequential", Part(terms), recipes=_recipes("the number of generations"))


def _recipes(unknown: str) -> tuple[Recipe, ...]:
    """What is remembered of the paper's trainings; nothing of them could be read."""
    common = keys("optim", opt="momentum", schedule="multistep", warmup=0.0, clip_grad=None)
    common |= keys("method", ce=0.1, kd=0.9, temperature=4.0) | {"teacher_temperature": "raw"}
    small = keys("optim", lr=0.1, weight_decay=5e-4, epochs=200, milestones=[60, 120, 160], decay_rate=0.2)
    large = keys("optim", epochs=90, milestones=[30, 60], decay_rate=0.1)
    return (
        Recipe(
            "cifar-10",
            {**common, **small, **SMALL_PICTURES},
            "from memory",
            left_out=(PADDED,),
            unknown=("the batch size", "whether biases and norms decay", unknown),
        ),
        Recipe(
            "imagenet",
            {**common, **large, **IMAGENET},
            "from memory",
            unknown=("learning rate, weight decay, on what, and batch size", unknown),
        ),
    )
