"""DAFL's generator loss: Chen et al. 2019, arXiv 1904.01186.

    L_G = oh·CE(z_t, argmax z_t) + ie·Σ_k p̄_k·log₁₀ p̄_k − a·mean|f|

on the teacher's logits z_t and last features f of generated pictures, with p̄ the mean probabilities of a
batch. Weights and the base of the logarithm are those of the authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdcli.losses.datafree import activation, information_entropy, one_hot
from kdcli.models.timm import Network
from kdcli.synthesis.settings import InversionSection
from kdcli.words import Call, Phase, Term, Turn


def label_entropy(teacher_logits: Tensor) -> Tensor:
    """Entropy, in nats, of the histogram of pseudo-labels in a batch; low where few classes are generated.

    Args:
        teacher_logits: [B, C].
    """
    counts = torch.bincount(teacher_logits.argmax(dim=1), minlength=teacher_logits.shape[1])
    return torch.special.entr(counts / counts.sum()).sum()


def dafl(network: Network, section: InversionSection) -> tuple[Phase, ...]:
    """The one phase in which the party ``generator`` is trained; column ``z`` [B, latent] is noise.

    Args:
        network: the teacher; its last features are what its classifier takes.
        section: weights, resolved.
    """
    terms = (
        Term("one_hot", one_hot, ("t.logits",), section.one_hot or 0.0),
        Term("entropy", information_entropy, ("t.logits",), section.entropy or 0.0, scope="batch"),
        Term("activation", activation, ("t.pooled",), section.activation or 0.0),
        Term("label_entropy", label_entropy, ("t.logits",), 0.0, scope="batch"),  # watched only
    )
    calls = (Call("g", "generator", ("z",)), Call("t", "teacher", ("g.out",)))
    return (Phase((Turn("generator", ("generator",), calls, terms),), "generator"),)
