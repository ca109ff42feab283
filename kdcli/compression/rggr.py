"""Retrieval-guided gradient resetting of capacity dynamic distillation: Xie et al. 2023, arXiv 2303.09230.

A channel may go if it adds little to the similarity by which a student's picture finds the teacher's
features of it and of its neighbours. Each layer has a queue of the teacher's pooled features, in which the
nearest neighbours are sought, and a mask of the rows that follow the objective, which only ever loses rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.losses.products import same_shape

Distance = Literal["cosine", "l2"]


def empty(*rows: tuple[int, ...], size: int, each: Sequence[int] = ()) -> dict[str, Tensor]:
    """The first tensors of the state that :func:`observe` updates.

    For each layer, counted from 1, ``queue1`` [M, D] of zeros and ``mask1`` [p] bool, all true; for all of
    them ``filled``, an int64 without dimensions.

    Args:
        rows: shape [D] of the pooled features of each layer.
        size: M, rows of a queue, no fewer than a batch (24,000 in the authors' code, where it has to be a
            multiple of it).
        each: of each layer, channels of one of its p units, D / p (a head of an attention has many); none for
            one each.
    """
    found = {"filled": torch.zeros((), dtype=torch.int64)}
    for layer, ((width,), own) in enumerate(zip(rows, each or [1] * len(rows)), 1):
        found[f"queue{layer}"] = torch.zeros(size, width)
        found[f"mask{layer}"] = torch.ones(width // own, dtype=torch.bool)
    return found


def enqueue(queue: Tensor, filled: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A ring in which the newest rows take the places of the oldest. Nothing is changed in place.

    Args:
        queue: [M, p]; of it the first min(filled, M) rows are there.
        filled: how many rows ever went in, an integer without dimensions.
        rows: of the batch (of all processes), [B, p].

    Returns:
        The queue and the count with them.

    Raises:
        ValueError: an empty batch, or one that the queue does not hold.
    """
    size, batch = len(queue), len(rows)
    if not 0 < batch <= size:
        raise ValueError(f"a queue of {size} rows holds no batch of {batch}")
    places = (filled + torch.arange(batch, device=queue.device)) % size
    return queue.index_copy(0, places, rows.detach().to(queue.dtype)), filled + batch


def candidates(
    student: Tensor,
    teacher: Tensor,
    gallery: Tensor,
    *,
    neighbours: int = 2,
    ratio: float = 0.5,
    distance: Distance = "cosine",
    each: int = 1,
) -> Tensor:
    """Channels that contribute little to every retrieval of a batch, [p] bool.

    g_{b,k} is the k-th nearest row of the gallery to the teacher's t_b, and |g_{b,k,i}·s_{b,i}| what channel
    i contributes to the similarity of the student's s_b with it. A candidate is among the ⌊p·r⌋ channels that
    contribute least for all b and all k. Equal contributions are taken in the order of channels, as a stable
    sort leaves them. All is in float64, as similarities are in the authors' code, where the device has it.

    Args:
        student: pooled features after the compactor, [B, p].
        teacher: pooled features, [B, p].
        gallery: teacher's rows [n, p], those of the batch among them, so that each finds itself first.
        neighbours: K.
        ratio: r.
        distance: ``cosine`` takes unit rows for both steps, ``l2`` rows as they are.
        each: channels of a unit, D / p, whose contributions are added up; then it is units that are chosen.

    Raises:
        ValueError: shapes that differ, or fewer than K rows in the gallery.
    """
    same_shape(student, teacher)
    if not 1 <= neighbours <= len(gallery):
        raise ValueError(f"{neighbours} neighbours among {len(gallery)} rows of the gallery")
    wide = torch.float32 if student.device.type == "mps" else torch.float64
    with torch.autocast(student.device.type, enabled=False):
        s, t, g = (x.detach().to(wide) for x in (student, teacher, gallery))
        if distance == "cosine":
            s, t, g = (F.normalize(x, dim=1) for x in (s, t, g))
            similarity = t @ g.mT
        else:
            similarity = -torch.cdist(t, g)
    nearest = similarity.topk(neighbours, dim=1).indices
    contribution = (g[nearest] * s[:, None]).abs().unflatten(2, (-1, each)).sum(dim=3)  # [B, K, p]
    width = contribution.shape[2]
    smallest = math.floor(round(width * ratio, 9))  # 100·0.29 is 28.999999999999996
    order = contribution.argsort(dim=2, stable=True)[..., :smallest]
    small = torch.zeros_like(contribution, dtype=torch.bool).scatter_(2, order, True)
    return small.flatten(0, 1).sum(dim=0) == small.shape[0] * small.shape[1]


def cumulative(mask: Tensor, candidates: Tensor) -> Tensor:
    """The mask [p] without the candidates [p], both bool: a row that was reset is never let off."""
    return mask & ~candidates


def observe(
    state: Mapping[str, Tensor],
    *pooled: Tensor,
    neighbours: int = 2,
    ratio: float = 0.5,
    distance: Distance = "cosine",
    each: Sequence[int] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """A derive with a state (:class:`kdcli.words.Derive`) that updates queues and masks of all layers.

    The batch is enqueued first, then its neighbours are sought.

    Args:
        state: as of :func:`empty`.
        pooled: s_1, t_1, s_2, t_2, …, each as in :func:`candidates`.
        neighbours: K, or as many as there are rows in the first batches.
        ratio: r.
        distance: of :func:`candidates`.
        each: as in :func:`empty`.

    Returns:
        The number of rows that are reset, of all layers, a float without dimensions, and what changes.

    Raises:
        ValueError: not two values for each layer of the state; see also :func:`enqueue` and
            :func:`candidates`.
    """
    layers = sum(name.startswith("queue") for name in state)
    if len(pooled) != 2 * layers:
        raise ValueError(f"{layers} layers need student's and teacher's rows of each, got {len(pooled)}")
    changes: dict[str, Tensor] = {}
    rows = int(state["filled"]) + len(pooled[0])
    near = min(neighbours, rows)
    for layer, (student, teacher) in enumerate(zip(pooled[::2], pooled[1::2]), 1):
        queue, changes["filled"] = enqueue(state[f"queue{layer}"], state["filled"], teacher)
        own = each[layer - 1] if each else 1
        found = candidates(
            student, teacher, queue[:rows], neighbours=near, ratio=ratio, distance=distance, each=own
        )
        changes[f"queue{layer}"] = queue
        changes[f"mask{layer}"] = cumulative(state[f"mask{layer}"], found)
    reset = [(~changes[f"mask{layer}"]).sum() for layer in range(1, layers + 1)]
    return torch.stack(reset).sum().float(), changes
