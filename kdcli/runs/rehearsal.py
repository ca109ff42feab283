"""The parties of a training, fitted to one another by one step on made-up rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcli.data.targets import TargetColumns
from kdcli.engine.assembly import Assembly, assemble
from kdcli.models.protocol import Model
from kdcli.runs.refusals import refuse_lone_rows, rows_of_a_norm
from kdcli.words.analysis import taps_used, views_used

if TYPE_CHECKING:
    from kdcli.runs.material import Lesson

_ROWS = 4  # of the dry step
_LARGE = 1024  # pixels of a view's side


def rehearsed(
    lesson: Lesson, labels: np.ndarray, targets: TargetColumns, parties: Mapping[str, nn.Module], side: int
) -> Assembly:
    """The parties, fitted to one another, after one step on a few made-up rows.

    Where only the logits of a network are read, made-up ones stand for them, so that a large teacher is not
    run here.

    Args:
        lesson: what is trained, and how.
        labels: [N] class numbers of the samples that it learns from.
        targets: makes the columns that losses read.
        parties: those that have a source, by name.
        side: of a view, in pixels.
    """
    optim = lesson.config.optim
    made = partial(_example, lesson, len(labels), targets, parties, side)
    most = _ROWS if side <= _LARGE else 2  # rows: those of large views would fill the memory
    batch = made(min(most, optim.batch_size // optim.accumulate))
    assembly = assemble(lesson.method, parties, batch, lesson.config.seed, torch.from_numpy(labels))
    if rows_of_a_norm(lesson.config, optim) == 1:
        refuse_lone_rows(lesson.method, assembly, partial(made, 1, frozen_only=True))
    return assembly


def _example(
    lesson: Lesson,
    samples: int,
    targets: TargetColumns,
    parties: Mapping[str, nn.Module],
    side: int,
    rows: int,
    *,
    frozen_only: bool = False,
) -> dict[str, Any]:
    """Columns of so many made-up rows, and made-up logits of networks (or of frozen ones only)."""
    draw = torch.Generator().manual_seed(0)
    trained = {party.name for party in lesson.method.parties if party.role == "trained"}
    example = lesson.task.example(rows, side)
    rows = len(example["y"])  # fewer where they are large

    def views() -> Tensor:
        return torch.randint(256, (rows, 3, side, side), generator=draw, dtype=torch.uint8)

    batch = {"x": views(), "index": torch.arange(rows) % samples, **example, **targets.plain(example)}
    batch |= {name: views() for name in views_used(lesson.method)}
    for turn in lesson.method.turns:
        for call in turn.calls:
            party = None if frozen_only and call.party in trained else parties.get(call.party)
            read = call.inputs in (("x",), ("x@plain",)) and taps_used(turn)[call.name]
            if isinstance(party, Model) and read == ("logits",):
                batch[f"{call.name}.logits"] = torch.randn(rows, *party.logit_shape, generator=draw)
    return batch
