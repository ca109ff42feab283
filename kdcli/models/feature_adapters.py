"""Between the features of student and teacher: adapters, grids brought together, targets scaled, a queue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.models.adapters import Regressor

Adapter = Literal["linear", "mlp"]
Align = Literal["teacher", "student", "regressed"]


class TokenAdapter(nn.Module):
    """From tokens of one width to those of another, each by itself: rows [B, D] or maps [B, D, h, w].

    Args:
        student: shape [D] or [D, h, w].
        teacher: shape [D'] or [D', h', w'].
        kind: ``linear`` is a LayerNorm and a linear layer (Proteus), ``mlp`` linear, LayerNorm, GELU and
            linear, as wide as the student (AM-RADIO); ``head`` linear, ReLU and linear (SEED).

    Raises:
        ValueError: a map and a vector.
    """

    def __init__(
        self,
        student: tuple[int, ...],
        teacher: tuple[int, ...],
        *,
        kind: Adapter | Literal["head"] = "linear",
    ) -> None:
        super().__init__()
        if len(student) != len(teacher):
            raise ValueError(f"an adapter joins vectors or maps, not {list(student)} and {list(teacher)}")
        width, wanted = student[0], teacher[0]
        last = nn.Linear(width, wanted)
        self.layers = {
            "linear": nn.Sequential(nn.LayerNorm(width), last),
            "mlp": nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU(), last),
            "head": nn.Sequential(nn.Linear(width, width), nn.ReLU(), last),
        }[kind]

    def forward(self, x: Tensor) -> Tensor:
        """[B, D', …] of [B, D, …]."""
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)


def map_adapter(
    student: tuple[int, ...], teacher: tuple[int, ...], *, kind: Adapter, align: Align
) -> nn.Module:
    """What brings a student's map to the teacher's width, and with ``align=regressed`` to its grid too."""
    if align == "regressed":
        return Regressor(student, teacher, match="conv", relu=False, norm=False)
    return TokenAdapter(student, teacher, kind=kind)


def on_grid_of(grid: Tensor, other: Tensor) -> Tensor:
    """A map [B, D, h, w] on the grid of another: bilinear, and averaged where it gets smaller."""
    size = other.shape[2:]
    if grid.shape[2:] == size:
        return grid
    return F.interpolate(grid.float(), size, mode="bilinear", antialias=True, align_corners=False)


def objectness_on_grid_of(logits: Tensor, other: Tensor) -> Tensor:
    """Probabilities [B, A, h, w] of logits [B, A, …], or [B, …] of one a place, on another map's grid."""
    probabilities = (logits if logits.ndim == 4 else logits[:, None]).float().sigmoid()
    return on_grid_of(probabilities, other)


def convolution(
    student: tuple[int, ...], teacher: tuple[int, ...], *, kernel: int, always: bool = True
) -> nn.Module:
    """A convolution with bias from a student's map to the width of a teacher's, on the student's grid.

    Args:
        student: shape [D, h, w].
        teacher: shape [D', h', w'].
        kernel: its side, an odd number.
        always: whether it stands between maps of one width too; else nothing does.

    Raises:
        ValueError: not maps.
    """
    if len(student) != 3 or len(teacher) != 3:
        raise ValueError(f"a convolution joins maps [D, h, w], not {list(student)} and {list(teacher)}")
    if student[0] == teacher[0] and not always:
        return nn.Identity()
    return nn.Conv2d(student[0], teacher[0], kernel, padding=kernel // 2)


class MaskToken(nn.Module):
    """A learned token that stands for hidden patches, as wide as the student's tokens."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(tokens[-1]))
        nn.init.normal_(self.token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] for B rows of anything."""
        return self.token.expand(len(x), -1)


# -- targets at one scale ------------------------------------------------------------------------------------


def scale_state(features: tuple[int, ...]) -> dict[str, Tensor]:
    """No rows seen of features [D, …]: their number, mean [D], and mean square deviation of all numbers."""
    return {
        "rows": torch.zeros((), dtype=torch.float64),
        "mean": torch.zeros(features[0], dtype=torch.float64),
        "spread": torch.zeros((), dtype=torch.float64),
    }


def scale_of(state: Mapping[str, Tensor], features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean and scale [D + 1] of all features so far, those given among them: the mean, then √(mean variance).

    Args:
        state: of :func:`scale_state`.
        features: [B, D, …] of this step.
    """
    rows = features.movedim(1, -1).flatten(0, -2).double()
    count, mean = float(len(rows)), rows.mean(dim=0)
    spread = (rows - mean).square().mean(dim=1).sum()
    total = state["rows"] + count
    apart = mean - state["mean"]
    new = {
        "rows": total,
        "mean": state["mean"] + apart * (count / total),
        "spread": state["spread"] + spread + apart.square().mean() * (state["rows"] * count / total),
    }
    scale = (new["spread"] / total).sqrt().clamp(min=1e-12)
    return torch.cat([new["mean"], scale[None]]).float(), new


def scaled(features: Tensor, scale: Tensor) -> Tensor:
    """Features [B, D, …] less their mean, over one scale: variance 1 on average, no direction stretched."""
    mean = scale[:-1].view(1, -1, *[1] * (features.ndim - 2))
    return (features.float() - mean) / scale[-1]


def some_places(grid: Tensor, count: int = 8) -> Tensor:
    """Maps [B, D, h, w] at evenly spaced places [B, D, count], the same in each, or vectors as they are."""
    if grid.ndim == 2:
        return grid
    places = grid.shape[2] * grid.shape[3]
    return grid.flatten(2)[:, :, torch.linspace(0, places - 1, min(count, places)).round().long()]


# -- a queue -------------------------------------------------------------------------------------------------


def queue_state(features: tuple[int, ...], *, size: int) -> dict[str, Tensor]:
    """A queue [K, D] of random directions, as MoCo and SEED begin, and where the next rows go."""
    rows = F.normalize(torch.randn(size, features[0]), dim=1)
    return {"rows": rows, "next": torch.zeros((), dtype=torch.int64)}


def queued(state: Mapping[str, Tensor], features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The queue [K, D] as it was, and with the oldest rows replaced by these, at length 1.

    Args:
        state: of :func:`queue_state`.
        features: [B, D]; of more than K the last K are kept.
    """
    rows, size = state["rows"], len(state["rows"])
    new = F.normalize(features.detach().float(), dim=1)[-size:].to(rows.dtype)
    places = (state["next"] + torch.arange(len(new), device=rows.device)) % size
    changed = rows.index_copy(0, places, new)
    return rows, {"rows": changed, "next": (state["next"] + len(new)) % size}
