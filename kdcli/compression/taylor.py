"""Pruning by what the loss would lose: Molchanov et al. 2019, arXiv 1906.10771, gates behind norms.

With a gate z = 1 at each channel, (∂L/∂z)² estimates the squared change of the loss without the channel, to
first order. Its mean over batches ranks all channels of a network, without any scale of layers. The authors
remove a few channels every few batches of a fine-tuning; here all go at once, and what is left learns on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from kdcli.compression.magnitude import learns_on
from kdcli.compression.shrinking import Compaction
from kdcli.methods.parts import Positive
from kdcli.tasks import Task
from kdcli.words import Method, Recipe


def taylor(
    task: Task,
    of: Compaction,
    *,
    target: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    pictures: Annotated[int, Field(ge=1, le=10_000_000)] = 512,
    kd: float = 1.0,
    temperature: Positive = 4.0,
) -> Method:
    """The smaller network learns on, without the channels that its loss on labels can do without.

    ``target`` is the part of FLOPs (``--target params=…``: of parameters) that is left, ``pictures`` how many
    are looked at to choose, in whole batches. A teacher teaches by its answers, with weight ``kd``.
    """
    return learns_on("taylor", task, of, kd, temperature)


def importance(gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Mean over batches of the squared derivative by each channel's gate, [p] of each site.

    Args:
        gradients: of each batch, of each site: of a full compactor [p, p], whose diagonal holds the gates, or
            of a diagonal one [p].
    """
    sites = zip(*([_gates(gradient) ** 2 for gradient in batch] for batch in gradients))
    return [torch.stack(rows).mean(0) for rows in sites]


def recipes() -> tuple[Recipe, ...]:
    """None: the paper's trainings prune while they fine-tune, which this does not."""
    return ()


def _gates(gradient: Tensor) -> Tensor:
    found = gradient.detach().double().cpu()
    return found.diagonal() if found.ndim > 1 else found
