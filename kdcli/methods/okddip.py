"""Online knowledge distillation with diverse peers: Chen et al. 2020, arXiv 1912.00350 (OKDDip).

L = Σ_i CE(z_i, y) + CE(z_L, y)
    + w·[Σ_i T²·KL(softmax(t_i/T) ‖ softmax(z_i/T)) + T²·KL(softmax(z̄/T) ‖ softmax(z_L/T))]
t_i = Σ_j A_ij z_j, A = softmax_j((W_q f_i)·(W_k f_j)) among M auxiliary peers, z̄ their mean, L the leader
"""

from __future__ import annotations

from torch import Tensor, nn

from kdcli.losses import peers as losses
from kdcli.methods.parts import Fraction, Layout, Several, labels_of, peers, stacked
from kdcli.methods.trainings import SMALL_PICTURES, keys, published, sgd
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Phase, RampUp, Term, Turn


class PeerAttention(nn.Module):
    """W_q and W_k, shared by all peers.

    Args:
        features: shape [D] of a peer's pooled features; both matrices are [D/8, D].
    """

    def __init__(self, features: tuple[int, ...]) -> None:
        super().__init__()
        width = features[0]
        self.query = nn.Linear(width, max(1, width // 8), bias=False)
        self.key = nn.Linear(width, max(1, width // 8), bias=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Targets [B, M, C] of M pooled features [B, D], followed by M logits [B, C]."""
        half = len(inputs) // 2
        features, logits = stacked(*inputs[:half]), stacked(*inputs[half:])
        return losses.peer_targets(logits, features, self.query.weight, self.key.weight)


def okddip(
    task: Task,
    *,
    auxiliary: Several = 3,
    layout: Layout = "branches",
    trunk: str = "block-2",
    temperature: float = 3.0,
    weight: float = 1.0,
    ramp: Fraction = 80 / 300,
    detach_targets: bool = False,
) -> Method:
    """Peers with targets of their own by attention, and a leader that follows their mean; it is exported.

    Three auxiliary peers and the leader are the authors' four branches; ``layout=networks`` gives each a
    whole network. Peers are written beside the leader, as whole networks. The authors' code detaches nothing:
    gradient reaches the peers through their own targets, and the leader's loss moves them.
    ``detach_targets`` makes constants of both, but for W_q and W_k. KL's weight grows over 80 of 300 epochs,
    and attention is not scaled by √d.
    """
    parties, calls = peers(auxiliary + 1, layout, trunk, "peer")
    names = [call.name for call in calls[1:]]  # the leader takes no part
    mark = "~" if detach_targets else ""
    attention = Party("attention", "trained", build=PeerAttention, reads=("s.pooled",))
    seen = tuple(f"{mark}{name}.{tap}" for tap in ("pooled", "logits") for name in names)
    both_levels = Term(
        "kl",
        losses.okddip,
        ("peers", "attention.out", "s.logits"),
        RampUp(weight, ramp),
        {"temperature": temperature, "detach_targets": detach_targets},
    )
    everyone = (*parties, attention)
    turn = Turn(
        "all",
        tuple(party.name for party in everyone),
        (*calls, Call("attention", "attention", seen)),
        (*labels_of(task, calls), both_levels),
        (Derive("peers", stacked, tuple(f"{name}.logits" for name in names)),),
    )
    training = sgd(lr=0.1, weight_decay=5e-4, epochs=300, batch=128, drops=(150, 225), nesterov=True)
    parameters = keys("method", auxiliary=3, temperature=3.0, weight=1.0, ramp=80 / 300)
    recipe = published(
        "cifar-100", {**training, **SMALL_PICTURES, **parameters}, "the authors' train_GL.py", taught=False
    )
    beside = tuple(party.name for party in parties[1:])
    return Method("okddip", everyone, (Phase((turn,)),), beside=beside, recipes=(recipe,))
