"""Small networks between student and teacher that several methods have. None enters the exported student."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def connector(student: tuple[int, ...], teacher: tuple[int, ...], *, match: Match = "conv") -> nn.Module:
    """A :class:`Regressor` with a batch norm and no ReLU; nothing between two maps of one shape, for AB.

    Raises:
        ValueError: as there.
    """
    return nn.Identity() if student == teacher else Regressor(student, teacher, match=match, relu=False)


class VariationalMean(nn.Module):
    """The mean of a normal distribution over the teacher's map, regressed from the student's, for VID.

    Three convolutions of kernel 1 with ReLUs between them, as wide as the teacher's map and without biases,
    as in the authors' code; a student's larger map is averaged to the teacher's grid before.

    Args:
        student: shape [C, H, W].
        teacher: shape [C', H', W'].
        variance: of each channel at the start.

    Attributes:
        scale: [C'], the softplus of which is the variance.

    Raises:
        ValueError: not maps.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], *, variance: float = 5.0) -> None:
        super().__init__()
        if len(student) != 3 or len(teacher) != 3:
            raise ValueError(f"a regressor joins maps [C, H, W], not {list(student)} and {list(teacher)}")
        width, (h, w), (h2, w2) = teacher[0], student[1:], teacher[1:]
        self.grid = (min(h, h2), min(w, w2))
        self.layers = nn.Sequential(
            nn.Conv2d(student[0], width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
        )
        self.scale = nn.Parameter(torch.full((width,), variance).expm1().log())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C', …] of the student's map [B, C, H, W], on the smaller of the two grids."""
        return self.layers(F.adaptive_avg_pool2d(x, self.grid) if x.shape[2:] != self.grid else x)


class MaskedGeneration(nn.Module):
    """The teacher's map made anew of the student's, of which whole channels are masked: for MGD.

    A convolution of kernel 1 to the teacher's width where the widths differ, then two of kernel 3 with a ReLU
    between them. In training each channel of each picture is zero with probability ``masked``; the others
    are not scaled up.

    Args:
        student: shape [C, H, W].
        teacher: shape [C', H, W].
        masked: λ.

    Raises:
        ValueError: not maps of one grid.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], *, masked: float = 0.15) -> None:
        super().__init__()
        if len(student) != 3 or len(teacher) != 3 or student[1:] != teacher[1:]:
            raise ValueError(
                f"masked generation needs two maps of one grid, not {list(student)} and {list(teacher)}: tap "
                "blocks of equal grids"
            )
        width, self.masked = teacher[0], masked
        self.align = nn.Conv2d(student[0], width, 1) if student[0] != width else nn.Identity()
        self.generation = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C', H, W] of the student's map [B, C, H, W]."""
        x = self.align(x)
        if self.training:
            x = x * (torch.rand(*x.shape[:2], 1, 1, device=x.device) >= self.masked)
        return self.generation(x)


def paraphraser(teacher: tuple[int, ...], *, share: float = 0.5) -> nn.Module:
    """Three convolutions of kernel 3 from the teacher's map [C, H, W] to its factors, with leaky ReLUs.

    Args:
        teacher: shape of its map.
        share: of its channels, that the factors have.

    Raises:
        ValueError: no map, or a share that leaves no channel.
    """
    if len(teacher) != 3:
        raise ValueError(f"factors are made of maps [C, H, W], not of {list(teacher)}")
    if (width := int(teacher[0] * share)) < 1:
        raise ValueError(f"a share of {share:g} of {teacher[0]} channels is no channel")
    return _leaky([(teacher[0], teacher[0]), (teacher[0], width), (width, width)], nn.Conv2d)


def rebuilder(factors: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """Three transposed convolutions of kernel 3 from factors [F, H, W] back to the teacher's map."""
    width, own = factors[0], teacher[0]
    return _leaky([(width, width), (width, own), (own, own)], nn.ConvTranspose2d)


def translator(student: tuple[int, ...], factors: tuple[int, ...]) -> nn.Module:
    """As :func:`paraphraser`, from the student's map to as many factors, with batch norms.

    Raises:
        ValueError: no map.
    """
    if len(student) != 3:
        raise ValueError(f"factors are made of maps [C, H, W], not of {list(student)}")
    own, width = student[0], factors[0]
    return _leaky([(own, own), (own, width), (width, width)], nn.Conv2d, norm=True)


def _leaky(widths: list[tuple[int, int]], kind: Any, norm: bool = False) -> nn.Module:
    """Layers of these widths with leaky ReLUs of slope 0.1."""
    layers: list[nn.Module] = []
    for one, other in widths:
        layers += [
            kind(one, other, 3, padding=1),
            *([nn.BatchNorm2d(other)] if norm else []),
            nn.LeakyReLU(0.1),
        ]
    return nn.Sequential(*layers)


def embedding(features: tuple[int, ...], *, width: int) -> nn.Module:
    """A linear map of features [D] to ``width``."""
    return nn.Linear(features[0], width)
