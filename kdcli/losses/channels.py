"""Losses of class maps, or of features, as distributions over space: Shu et al. 2021, arXiv 2011.13256 (CWD).

Each map of logits is softened over its positions, not over the classes: what counts is where a class is, and
not how large its logits are beside those of others. Maps of one grid are compared as networks give them. Of
two grids both are brought to the mask's size, as :mod:`kdcli.losses.pixels` does it. Every position counts,
void pixels too: the authors' code has no mask, and the teacher answers there as well.

Both losses are means over the classes of a picture, then over pictures, so that a batch may be divided.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.pixels import at_size


def channel_cross_entropy(
    logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """τ²·H(softmax_hw(t/τ), softmax_hw(s/τ)) of each class's map, mean over the B·C maps.

    The paper has the KL divergence; the code of G2SD's segmentation (Huang et al. 2023, arXiv
    2302.14771) takes the cross-entropy, as here. The gradients are equal. The value is larger by τ² times
    the entropy of the teacher's maps (up to log h·w), below which it cannot fall: the figure to read is
    :func:`channel_kl_divergence`.

    Args:
        logits: student's [B, C, h, w].
        teacher_logits: [B, C, h', w']; gradient flows into them unless the caller detaches.
        mask: [B, H, W]; only its size matters, and that only where the two grids differ; else None will do.
        temperature: τ.
    """
    student, teacher = _over_space(logits, teacher_logits, mask, temperature)
    return -(teacher.exp() * student).sum(dim=2).mean() * temperature**2


def channel_kl_divergence(
    logits: Tensor, teacher_logits: Tensor, mask: Tensor | None = None, *, temperature: float = 1.0
) -> Tensor:
    """τ²·KL(softmax_hw(t/τ) ‖ softmax_hw(s/τ)) of each class's map, mean over the B·C maps.

    :func:`channel_cross_entropy` less the part that is the teacher's alone, with the same arguments: 0 for a
    student whose maps are its teacher's, whatever constant is added to a map.
    """
    student, teacher = _over_space(logits, teacher_logits, mask, temperature)
    maps = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=2)
    return maps.mean() * temperature**2


def _over_space(
    logits: Tensor, teacher_logits: Tensor, mask: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, C, h·w] of the positions of each map, in fp32, both on one grid."""
    if logits.shape[-2:] != teacher_logits.shape[-2:]:
        if mask is None:
            shapes = f"{list(logits.shape[-2:])} and {list(teacher_logits.shape[-2:])}"
            raise ValueError(f"maps of grids {shapes} meet at the size of a mask, and there is none")
        logits, teacher_logits = at_size(logits, mask), at_size(teacher_logits, mask)
    student, teacher = (
        F.log_softmax(z.float().flatten(2) / temperature, dim=2) for z in (logits, teacher_logits)
    )
    return student, teacher
