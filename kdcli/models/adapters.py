"""Small networks between student and teacher that several methods have. None enters the exported student."""

from __future__ import annotations

from typing import Literal

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


def embedding(features: tuple[int, ...], *, width: int) -> nn.Module:
    """A linear map of features [D] to ``width``."""
    return nn.Linear(features[0], width)
