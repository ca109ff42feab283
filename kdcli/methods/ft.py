"""Factor transfer: Kim et al. 2018, arXiv 1802.04977. First factors of the teacher's map, then the student.

Phase 1: mean (D(E(F_t)) − F_t)², E a paraphraser and D what rebuilds the map of its factors
Phase 2: ce·CE(z_s, y) + kd·T²·KL + weight·mean |Q(R(F_s)) − Q(E(F_t))|, R a translator, Q as in ``at``
"""

from __future__ import annotations

from functools import partial

from torch.nn.functional import mse_loss

from kdcli.losses import features
from kdcli.methods.parts import STUDENT, TEACHER, Fraction, S, Share, T, labels_and_teacher
from kdcli.methods.trainings import keys, tables_cifar_100
from kdcli.models.adapters import paraphraser, rebuilder, translator
from kdcli.models.taps import as_map_tap
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Term, Turn


def paraphrase(
    *,
    teacher: str = "stage4",
    share: Fraction = 0.5,
    paraphrase_share: Share = 1 / 9,
    paraphrase_lr: float = 0.01,
) -> tuple[Phase, tuple[Party, ...], Call]:
    """Phase 1, what it trains, and the call that gives the teacher's factors."""
    its = f"t.{as_map_tap(teacher)}"
    factors = Call("its", "paraphraser", (f"~{its}",))
    turn = Turn(
        "paraphrase",
        trains=("paraphraser", "rebuilder"),
        calls=(T, factors, Call("again", "rebuilder", ("its.out",))),
        terms=(Term("rebuild", mse_loss, ("again.out", f"~{its}")),),
        optim={"lr": paraphrase_lr},
    )
    parties = (
        Party("paraphraser", "trained", build=partial(paraphraser, share=share), reads=(its,)),
        Party("rebuilder", "trained", build=rebuilder, reads=("its.out", its)),
    )
    return Phase((turn,), "paraphrase", paraphrase_share), parties, factors


def ft(
    task: Task,
    paraphrase: tuple[Phase, tuple[Party, ...], Call],
    *,
    weight: float = 200.0,
    student: str = "stage4",
    ce: float = 1.0,
    kd: float = 0.0,
    temperature: float = 4.0,
) -> Method:
    """The student's factors after those of the teacher, which a paraphraser has learned without labels.

    In RepDistiller's form: weight 200, the last map, half as many factors as channels, without batch norms in
    the paraphraser and with them in the translator; factors are compared by where they are large
    (``at``'s maps), where the paper compares all of them at length 1. 30 epochs of paraphrasing before 240 of
    the student, which makes a ninth of the steps, at a learning rate of 0.01.
    """
    first, parties, factors = paraphrase
    mine = f"s.{as_map_tap(student)}"
    own = Party("translator", "trained", build=translator, reads=(mine, "its.out"))
    turn = Turn(
        "student",
        ("student", "translator"),
        (S, T, Call("mine", "translator", (mine,)), factors),
        (
            *labels_and_teacher(task, ce=ce, kd=kd, temperature=temperature),
            Term("ft", features.ft, ("mine.out", "~its.out"), weight),
        ),
    )
    weights = keys("method", weight=200.0, ce=1.0, kd=0.0, student="stage4", teacher="stage4", share=0.5)
    recipe = tables_cifar_100(
        {**weights, "optim.epochs": 270},
        {
            "optim.epochs": "30 of the paraphraser, 240 of the student",
            "optim.milestones": "of the student's epochs",
        },
    )
    phases = (first, Phase((turn,), "distill", 1 - first.share))
    return Method("ft", (STUDENT, TEACHER, *parties, own), phases, recipes=(recipe,))
