"""The small networks between student and teacher, or between peers. None enters the exported student."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.losses.peers import peer_attention
from kdcli.losses.products import product

Match = Literal["conv", "pool", "valid"]


class Regressor(nn.Module):
    """A convolution from the student's map to the shape of the teacher's, with BN and ReLU behind it.

    Args:
        student: shape [C, H, W].
        teacher: shape [C', H', W'].
        match: what brings one grid to the other. ``conv`` is the rule of RepDistiller: kernel 3 with stride 2
            for H = 2H', a transposed kernel 4 for 2H = H', else kernel H − H' + 1. ``valid``, of FitNets, has
            the last kernel only. ``pool`` averages the student's larger map to the teacher's grid, or
            stretches its smaller one, before a kernel of 1.
        relu: whether a ReLU ends it. Then no negative value can be matched: leave it out for features that
            are taken before a nonlinearity, as those of transformers are.
        norm: whether a batch norm precedes it.

    Raises:
        ValueError: not maps, or grids that the rule has no kernel for.
    """

    def __init__(
        self,
        student: tuple[int, ...],
        teacher: tuple[int, ...],
        *,
        match: Match = "conv",
        relu: bool = True,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if len(student) != 3 or len(teacher) != 3:
            raise ValueError(f"a regressor joins maps [C, H, W], not {list(student)} and {list(teacher)}")
        (c, h, w), (c2, h2, w2) = student, teacher
        self.grid = (h2, w2) if match == "pool" and (h, w) != (h2, w2) else None
        conv: nn.Module
        if match == "pool":
            conv = nn.Conv2d(c, c2, 1)
        elif match == "conv" and (h, w) == (2 * h2, 2 * w2):
            conv = nn.Conv2d(c, c2, 3, stride=2, padding=1)
        elif match == "conv" and (2 * h, 2 * w) == (h2, w2):
            conv = nn.ConvTranspose2d(c, c2, 4, stride=2, padding=1)
        elif h >= h2 and w >= w2:
            conv = nn.Conv2d(c, c2, (1 + h - h2, 1 + w - w2))
        else:
            raise ValueError(
                f"no kernel brings the student's {h}x{w} map to the teacher's {h2}x{w2}: tap other blocks, "
                "or let match=pool resize it"
            )
        self.relu = relu
        self.layers = nn.Sequential(
            conv, *([nn.BatchNorm2d(c2)] if norm else []), *([nn.ReLU()] if relu else [])
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C', H', W'] of the student's map [B, C, H, W]."""
        if self.grid is not None:
            larger = x.shape[2] >= self.grid[0] and x.shape[3] >= self.grid[1]
            x = (
                F.adaptive_avg_pool2d(x, self.grid)
                if larger
                else F.interpolate(x, self.grid, mode="bilinear")
            )
        return self.layers(x)


class Gate(nn.Module):
    """ONE's gate: scores of M branches from the trunk's map (Lan et al. 2018, arXiv 1806.04606).

    Args:
        trunk: shape [C, H, W].
        branches: M.
    """

    def __init__(self, trunk: tuple[int, ...], *, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(trunk[0], branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, x: Tensor) -> Tensor:
        """[B, M] of [B, C, H, W], before the softmax."""
        return self.norm(self.linear(x.mean(dim=(2, 3)))).relu()


class PeerAttention(nn.Module):
    """OKDDip's W_q and W_k, shared by all peers (Chen et al. 2020, arXiv 1912.00350).

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
        features, logits = (torch.stack(part, dim=1) for part in _halves(inputs))
        return product(peer_attention(features, self.query.weight, self.key.weight), logits)


def _halves(items: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def projection_head(features: tuple[int, ...]) -> nn.Module:
    """SSKD's head: linear, ReLU, linear, all D wide (Xu et al. 2020, arXiv 2006.07114)."""
    width = features[0]
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def embedding(features: tuple[int, ...], *, width: int) -> nn.Module:
    """A linear map of features [D] to ``width``."""
    return nn.Linear(features[0], width)
