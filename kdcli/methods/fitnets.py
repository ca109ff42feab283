"""FitNets: Romero et al. 2015, arXiv 1412.6550. First the student up to one layer, then the whole student.

Phase 1: ½‖u_h(x) − r(v_g(x))‖² over the student up to the guided layer and the regressor r
Phase 2: CE(z_s, y) + λ·CE(softmax(z_s/T), softmax(z_t/T)), λ from 4 to 1
"""

from __future__ import annotations

from functools import partial

from kdcli.losses.features import fitnets_hint
from kdcli.losses.logits import soft_cross_entropy
from kdcli.methods.parts import STUDENT, TEACHER, S, Share, T
from kdcli.methods.trainings import SMALL_PICTURES, keys, published
from kdcli.models.adapters import Match, Regressor
from kdcli.models.taps import as_map_tap
from kdcli.tasks import Task
from kdcli.words import Call, Linear, Method, Party, Phase, Recipe, Term, Turn


def guided(
    *,
    student: str = "stage2",
    teacher: str = "stage2",
    hint_share: Share = 0.25,
    hint_opt: str = "rmsprop",
    hint_lr: float = 5e-3,
    match: Match = "valid",
    relu: bool = True,
) -> tuple[Phase, Party]:
    """Phase 1, and its regressor."""
    mine, its = f"s.{as_map_tap(student)}", f"t.{as_map_tap(teacher)}"
    build = partial(Regressor, match=match, relu=relu, norm=False)
    turn = Turn(
        "hint",
        trains=("student", "regressor"),
        calls=(S, T, Call("r", "regressor", (mine,))),
        terms=(Term("hint", fitnets_hint, ("r.out", f"~{its}")),),
        optim={"opt": hint_opt, "lr": hint_lr, "weight_decay": 0.0, "momentum": 0.0},
    )
    regressor = Party("regressor", "trained", build=build, reads=(mine, its))
    return Phase((turn,), "hint", hint_share), regressor


def fitnets(
    task: Task,
    guided: tuple[Phase, Party],
    *,
    lam: float = 4.0,
    lam_last: float = 1.0,
    temperature: float = 3.0,
) -> Method:
    """A hint in the middle first, then distillation of the whole student.

    From the authors' code: RMSProp at 5e-3 for the hint (without momentum and weight decay: those of the run
    are for the second phase), λ from 4 to 1 between epochs 5 and 400 of 500, T 3 without T². Theirs stops the
    first phase early (patience 100 of at most 500 epochs); here it takes ``hint_share`` of the steps,
    our choice. The regressor has the authors' kernel (H − H' + 1); ``match=conv`` or ``pool`` for grids that
    it cannot join. It is dropped after the first phase. Their norm limit of 0.9 on kernels and their
    learning-rate factors for pretrained layers are left out. What tables call FitNet is the method ``hint``.
    """
    hint, regressor = guided
    soft = Term(
        "soft-ce",
        soft_cross_entropy,
        ("s.logits", "~t.logits"),
        Linear(lam, lam_last, 0.01, 0.8),
        {"temperature": temperature},
    )
    whole = Turn("student", ("student",), (S, T), (*task.supervised("s"), soft))
    phases = (hint, Phase((whole,), "distill", 1 - hint.share))
    return Method("fitnets", (STUDENT, TEACHER, regressor), phases, recipes=(_recipe(),))


def _recipe() -> Recipe:
    """The authors' training, phases as long as they may be."""
    optimiser = keys(
        "optim",
        opt="rmsprop",
        lr=5e-3,
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        warmup=0.0,
        epochs=1000,
        batch_size=128,
        clip_grad=None,
    )
    hint = keys("method", hint_share=0.5, hint_opt="rmsprop", hint_lr=5e-3, match="valid")
    soft = keys("method", lam=4.0, lam_last=1.0, temperature=3.0)
    return published(
        "cifar-10",
        {**optimiser, **SMALL_PICTURES, **hint, **soft},
        "the authors' cifar10_fitnet19_valid.yaml",
        {"optim.epochs": "at most 500 for each phase", "optim.lr": "less for the first layers"},
        (
            "the end of a phase after 100 epochs without progress on validation pictures",
            "kernels of norm 0.9 or less",
            "contrast-normalised, whitened pictures",
            "random crops after padding by 8 pixels",
        ),
    )
