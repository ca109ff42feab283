"""Compactors: bias-free 1x1 layers, the identity at the start, whose rows are to become zero.

Putting them in changes no answer: in float32 the product with the identity is exact, as all but one of its
terms are zeros. Where products are rounded (TF32, bfloat16) so is each channel, by at most 2^-10 or
2^-8 of it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.sites import Site
from kdcli.models.timm import TimmModel

COMPACTOR, ACTIVATION = "compactor", "act"  # names of the two in front of which, and behind which, it stands


class Compactor(nn.Module):
    """C of ``act(C x)`` at one site.

    Args:
        site: where it stands.
        like: a tensor of the device and type wanted.

    Attributes:
        weight: [p, p], the identity at the start; of a diagonal one [p], ones; of heads one for each head.
    """

    def __init__(self, site: Site, like: Tensor) -> None:
        super().__init__()
        self.site = site
        start = torch.ones(site.width) if site.diagonal else torch.eye(site.width)
        self.weight = nn.Parameter(start.to(like))

    def forward(self, x: Tensor) -> Tensor:
        """C x for maps [B, p, H, W], or [..., p] where channels are last; of attentions [..., heads · d]."""
        weight, site = self.weight, self.site
        if site.diagonal:
            scale = weight.to(x.dtype).repeat_interleave(site.each).repeat(site.times)
            return x * (scale if site.last else scale.view(-1, 1, 1))
        return F.linear(x, weight) if site.last else F.conv2d(x, weight[:, :, None, None])

    def extra_repr(self) -> str:
        """Its widths."""
        return f"{self.site.width}, {self.site.kind}" + (", diagonal" if self.site.diagonal else "")


def insert(network: TimmModel, sites: Sequence[Site]) -> TimmModel:
    """A copy of a network with a compactor at each site, that answers what the network answers.

    The activation at a site becomes a ``Sequential`` of ``compactor`` and ``act``; no other name changes. Its
    input (tap ``SITE.in``) is what the compactor takes, ``SITE.compactor`` what the compactor gives.

    Args:
        network: left as it is.
        sites: of :func:`kdcli.models.sites.sites`, all or some.

    Raises:
        ValueError: a site twice, or one that has a compactor.
    """
    compacted = copy.deepcopy(network)
    for site in sites:
        activation = compacted.body.get_submodule(site.name)
        if COMPACTOR in activation._modules:
            raise ValueError(f"{site.name} has a compactor")
        like = compacted.body.get_submodule(site.producer).get_parameter("weight")
        both = nn.Sequential()
        both.add_module(COMPACTOR, Compactor(site, like))
        both.add_module(ACTIVATION, activation)
        compacted.body.set_submodule(site.name, both.train(activation.training))
    return compacted


def compactors(network: TimmModel) -> dict[str, Compactor]:
    """The compactors of a network by the names of their sites, in the order of its modules."""
    found = (module for module in network.body.modules() if isinstance(module, Compactor))
    return {compactor.site.name: compactor for compactor in found}


def removed(network: TimmModel) -> TimmModel:
    """A copy without compactors, as if each were the identity."""
    plain = copy.deepcopy(network)
    for name in reversed(compactors(plain)):  # of two, one behind the other, the inner one first
        plain.body.set_submodule(name, plain.body.get_submodule(f"{name}.{ACTIVATION}"))
    return plain


def filters(network: TimmModel, sites: Sequence[Site]) -> list[Tensor]:
    """Weights [p, …] of what makes the channels of each site: a row for a channel, or for a head's values."""
    found = []
    for site in sites:
        weight = network.body.get_submodule(site.producer).get_parameter("weight").detach()
        if site.attention is None:
            found.append(weight.reshape(site.width, -1))
            continue
        heads, keys, values = site.attention
        rows = weight[: 2 * heads * keys] if site.kind == "keys" else weight[-heads * values :]
        if site.kind != "heads":  # the same channel of all heads
            rows = rows.unflatten(0, (-1, site.width)).transpose(0, 1)
        found.append(rows.reshape(site.width, -1))
    return found
