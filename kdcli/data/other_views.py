"""Views of a sample beside the one it is trained on: its un-augmented cut, and other crops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from kdcli.artifacts.model import InputSpec
from kdcli.data.views import EvaluationCut, TrainingView
from kdcli.seeds import seed_of

PLAIN = "x@plain"
_ANOTHER = 23  # keeps the numbers of other views apart from seeds made of the same numbers


class AnotherView:
    """A second, third, … training view of a sample, called like the first: other numbers, so other crops.

    Args:
        view: cuts training views.
        number: which of the others, from 1 on.
    """

    def __init__(self, view: TrainingView, number: int) -> None:
        self.view, self.number = view, number

    def __call__(self, picture: Any, view: int, sample_id: int) -> torch.Tensor:
        """The other view beside the view number ``view`` of an RGB picture: uint8 [3, size, size]."""
        return self.view(picture, seed_of(view, self.number, _ANOTHER), sample_id)


def plain_cut(view: TrainingView) -> EvaluationCut:
    """The un-augmented cut of the size of the views: the picture's largest square, or all of it, squashed."""
    mode = view.section.interpolation
    squashed = view.section.fit == "squash"
    return EvaluationCut(
        InputSpec(
            (view.size, view.size),
            interpolation="bicubic" if mode == "random" else mode,
            crop_mode="squash" if squashed else "center",
        )
    )


def other_views(view: TrainingView, names: Iterable[str]) -> dict[str, Callable[..., torch.Tensor]]:
    """What cuts the columns ``x@plain`` and ``x@N`` of a batch, by name."""
    return {
        name: plain_cut(view) if name == PLAIN else AnotherView(view, int(name.removeprefix("x@")))
        for name in names
    }
