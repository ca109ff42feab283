"""Deep mutual learning: Zhang et al. 2018, arXiv 1706.00384. Networks that teach one another.

L_i = CE(z_i, y) + Σ_{j ≠ i} KL(softmax z_j ‖ softmax z_i) / (M − 1), z_j constant
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kdcli.errors import UsageError
from kdcli.losses.peers import dml as peers_loss
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Term, Turn


def mutual_kl(logits: Tensor, *peers: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """KL to each peer's distribution: logits and peers [B, C] each."""
    return peers_loss(logits, torch.stack(peers, dim=1), reduction=reduction)


def dml(
    task: Task,
    *,
    networks: int = 2,
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
        Party("student", "trained", "student"),
        *(Party(f"peer{i}", "trained", source, seed=i - 1) for i, source in enumerate(others, 2)),
    )
    names = ["s", *(f"p{i}" for i in range(2, len(parties) + 1))]
    calls = tuple(Call(name, party.name) for name, party in zip(names, parties))

    def terms(name: str) -> tuple[Term, ...]:
        suffix = "" if name == "s" else f"-{name}"
        constants = (f"~{other}.logits" for other in names if other != name)
        taught = Term(
            f"kl{suffix}", mutual_kl, (f"{name}.logits", *constants), weight, {"reduction": reduction}
        )
        return replace(task.supervised(name), name=f"ce{suffix}"), taught

    if update == "sequential":
        turns = tuple(Turn(c.party, (c.party,), calls, terms(c.name)) for c in calls)
    else:
        together = tuple(term for name in names for term in terms(name))
        turns = (Turn("all", tuple(p.name for p in parties), calls, together),)
    return Method("dml", parties, (Phase(turns),), beside=tuple(p.name for p in parties[1:]))
