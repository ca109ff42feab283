"""Deep mutual learning: Zhang et al. 2018, arXiv 1706.00384. Networks that teach one another.

L_i = CE(z_i, y) + Σ_{j ≠ i} KL(softmax z_j ‖ softmax z_i) / (M − 1), z_j constant
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.losses.peers import dml as kl_to_peers
from kdcli.methods.parts import STUDENT, labels_of, named, stacked
from kdcli.methods.trainings import PADDED, SMALL_PICTURES, keys, published
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Recipe, Term, Turn


def mutual_kl(logits: Tensor, *peers: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """KL to each peer's distribution: logits and peers [B, C] each."""
    return kl_to_peers(logits, stacked(*peers), reduction=reduction)


def dml(
    task: Task,
    *,
    networks: Annotated[int, Field(le=64)] = 2,
    peers: tuple[str, ...] = (),
    update: Literal["simultaneous", "sequential"] = "simultaneous",
    reduction: Literal["mean", "sum"] = "mean",
    weight: float = 1.0,
) -> Method:
    """M networks from different seeds, each learning from labels and from all others; the first is exported.

    ``networks`` of the student's architecture, or ``peers`` names others' (``--set
    method.peers=[resnet34]``). ``reduction=mean`` is the printed 1/(M − 1), ``sum`` the authors' TensorFlow
    code. ``simultaneous`` computes all outputs once, then steps all networks (as DML-PT does);
    ``sequential`` is the paper's algorithm: a network steps, and its new outputs teach the next one. All take
    part in train mode. Unlabelled pictures enter the KL, as in the semi-supervised variant. Peers are written
    to ``OUT/peer2`` and so on: report their mean, and never the best of them chosen on the test split.
    Pretrained peers start from the same weights but for the head.
    """
    if not peers and networks < 2:
        raise UsageError(f"method.networks: mutual learning needs 2 or more, got {networks}.")
    if peers and networks not in (2, 1 + len(peers)):
        raise UsageError(f"method.networks={networks} and method.peers names {len(peers)}: give one of them.")
    others = peers or ("student",) * (networks - 1)
    parties = (
        STUDENT,
        *(Party(f"peer{i}", "trained", other, seed=i - 1) for i, other in enumerate(others, 2)),
    )
    names = ["s", *(f"p{i}" for i in range(2, len(parties) + 1))]
    calls = tuple(Call(name, party.name) for name, party in zip(names, parties))

    def terms(call: Call) -> tuple[Term, ...]:
        constants = (f"~{other}.logits" for other in names if other != call.name)
        taps = (f"{call.name}.logits", *constants)
        taught = Term(named("kl", call), mutual_kl, taps, weight, {"reduction": reduction})
        return *labels_of(task, [call]), taught

    if update == "sequential":
        turns = tuple(Turn(call.party, (call.party,), calls, terms(call)) for call in calls)
    else:
        together = tuple(term for call in calls for term in terms(call))
        turns = (Turn("all", tuple(party.name for party in parties), calls, together),)
    beside = tuple(party.name for party in parties[1:])
    return Method("dml", parties, (Phase(turns),), beside=beside, recipes=_recipes())


def _recipes() -> tuple[Recipe, ...]:
    """CIFAR-100 from memory, Market-1501 as the authors' code has it."""
    common = keys("optim", warmup=0.0, clip_grad=None) | keys("method", networks=2, update="sequential")
    small = keys(
        "optim",
        opt="sgd",
        momentum=0.9,
        lr=0.1,
        schedule="multistep",
        milestones=[60, 120, 180],
        decay_rate=0.1,
        epochs=200,
        batch_size=64,
    )
    market = keys(
        "optim",
        opt="adam",
        betas=[0.5, 0.999],
        lr=2e-4,
        weight_decay=4e-5,
        schedule="constant",
        max_steps=200_000,
        batch_size=16,
        label_smoothing=0.1,
        ema=0.9999,
    )
    return (
        Recipe(
            "cifar-100",
            {**common, **small, **SMALL_PICTURES, "method.reduction": "mean"},
            "from memory",
            {
                "optim.opt": "with Nesterov's momentum",
                "optim.milestones": "every 60 epochs",
                "method.update": "algorithm 1",
            },
            left_out=(PADDED,),
            unknown=("weight decay, and whether biases and norms have it",),
        ),
        published(
            "market-1501",
            {**common, **market, **SMALL_PICTURES, "method.reduction": "sum"},
            "the authors' train_dml_mobilenet_on_market.sh and train_models.py",
            left_out=(
                "pictures of 160 by 64 pixels, stretched to squares",
                "a batch for each step",
            ),
            taught=False,
        ),
    )
