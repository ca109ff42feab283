"""Re-ranking by k-reciprocal encoding: Zhong et al. 2017, arXiv 1701.08398.

Two pictures are near if the same neighbours have them as neighbours. Where the authors' code is more definite
than the paper, or departs from it, it is followed, because published figures are the code's: queries and
gallery rows are neighbours of one another alike, a row is its own nearest neighbour, the original distance is
the squared Euclidean one of unit rows divided by the greatest of its row, the weights of a row are brought to
the sum 1, and an overlap must exceed two thirds, where the paper lets it reach them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kdcli.losses.products import product
from kdcli.metrics.neighbours import check_pair, nearest, unit_rows

_ENTRIES = 2**24  # of tables that are looked at together


def reranked(query: Tensor, gallery: Tensor, *, k1: int = 20, k2: int = 6, weight: float = 0.3) -> Tensor:
    """Distances [Q, G] in [0, 1], fp32 on the CPU: (1 − λ)·Jaccard + λ·original (equation 12).

    A query's distances depend on the other queries too. Beside the result, memory grows with (Q + G)·k1·k2.

    Args:
        query: [Q, D].
        gallery: [G, D].
        k1: neighbours among which reciprocal ones are sought; half of them (rounded to even) expand the set.
        k2: neighbours over which encodings are averaged, the row itself included; 1 leaves them alone.
        weight: λ, the share of the original distance.

    Raises:
        ValueError: no query, an empty gallery, features that are not finite or of two widths, k1 or k2 < 1,
            or a weight outside [0, 1].
    """
    if min(k1, k2) < 1:
        raise ValueError(f"k1 and k2 must be at least 1, not {k1} and {k2}")
    if not 0 <= weight <= 1:
        raise ValueError(f"the weight of the original distance must lie in [0, 1], not {weight}")
    check_pair(query, gallery)
    queries, features = len(query), torch.cat([unit_rows(query), unit_rows(gallery)])
    near = _neighbours(features, max(k1, k2))
    encoded = _packed(_encoded(features, near, k1))
    if k2 > 1:
        encoded = _packed(_averaged(encoded, near[:, :k2]))
    result = _jaccard(encoded, queries).mul_(1 - weight)
    for rows in torch.arange(queries).split(max(1, _ENTRIES // len(features))):
        result[rows] += weight * _original(features, rows)[:, queries:]
    return result


def _original(features: Tensor, rows: Tensor) -> Tensor:
    """Squared Euclidean distances of some unit rows to all, divided by the greatest of the row: [n, N]."""
    distances = (2 - 2 * product(features[rows], features.mT)).clamp(min=0)
    return distances / distances.amax(dim=1, keepdim=True).clamp(min=1e-12)


def _neighbours(features: Tensor, count: int) -> Tensor:
    """Each row and its ``count`` nearest others (all where there are fewer), [N, 1 + count]."""
    count = min(count, len(features) - 1)
    own = torch.arange(len(features))[:, None]
    near = nearest(features, features, count + 1)[1]
    # Where rows coincide a row need not be its own first find, nor a find at all.
    others = near.gather(1, (near == own).byte().argsort(dim=1, stable=True))[:, :count]
    return torch.cat([own, others], dim=1)


def _reciprocal(near: Tensor) -> Tensor:
    """R(p, k) of every row p (equation 3), [N, 1 + k]; p itself stands in the place of what is left out."""
    parts = []
    for rows in torch.arange(len(near)).split(max(1, _ENTRIES // near.shape[1] ** 2)):
        own = rows[:, None]
        mutual = (near[near[rows]] == own[:, :, None]).any(dim=2)
        parts.append(near[rows].where(mutual, own))
    return torch.cat(parts)


def _expanded(sets: Tensor, halves: Tensor, rows: Tensor) -> Tensor:
    """R*(p, k1) of some rows (equation 4), [n, N] of booleans.

    Of each member q of R(p, k1) all of R(q, k1/2) joins if more than two thirds of it are members already.
    """
    own, members = rows[:, None], sets[rows]
    inside = torch.zeros(len(rows), len(sets), dtype=torch.bool).scatter_(1, members, True)
    candidates = halves[members]  # [n, 1 + k1, 1 + k1/2], q itself first
    others = candidates[:, :, 1:] != members[:, :, None]
    common = inside.gather(1, candidates[:, :, 1:].flatten(1)).view_as(others) & others
    enough = 3 * (1 + common.sum(dim=2)) > 2 * (1 + others.sum(dim=2))
    joining = candidates.where(enough[:, :, None], own[:, :, None])
    return inside.scatter_(1, joining.flatten(1), True)


class _Rows(NamedTuple):
    """A table [N, N] with few entries other than 0: those of row i stand from starts[i] to starts[i + 1]."""

    starts: Tensor
    columns: Tensor
    values: Tensor


def _packed(tables: Iterable[Tensor]) -> _Rows:
    """Dense rows [n, N], some at a time, without their zeros."""
    counts, columns, values = [], [], []
    for table in tables:
        row, column = table.nonzero(as_tuple=True)
        counts.append(torch.bincount(row, minlength=len(table)))
        columns.append(column)
        values.append(table[row, column])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    return _Rows(starts, torch.cat(columns), torch.cat(values))


def _spans(first: Tensor, counts: Tensor) -> Tensor:
    """The places first[i], first[i] + 1, ... of counts[i] numbers, one span after the other."""
    return torch.arange(int(counts.sum())) + (first + counts - counts.cumsum(0)).repeat_interleave(counts)


def _encoded(features: Tensor, near: Tensor, k1: int) -> Iterator[Tensor]:
    """exp(−d) on the expanded set of a row (equation 7), brought to the sum 1: [n, N] at a time."""
    sets, halves = _reciprocal(near[:, : k1 + 1]), _reciprocal(near[:, : round(k1 / 2) + 1])
    size = max(1, _ENTRIES // max(len(features), sets.shape[1] * halves.shape[1]))
    for rows in torch.arange(len(features)).split(size):
        weights = torch.exp(-_original(features, rows)) * _expanded(sets, halves, rows)
        yield weights / weights.sum(dim=1, keepdim=True)


def _averaged(encoded: _Rows, near: Tensor) -> Iterator[Tensor]:
    """Local query expansion: the mean of the encodings of a row's nearest (equation 11), [n, N] at a time."""
    total, count = near.shape
    for rows in near.split(max(1, _ENTRIES // total)):
        first = encoded.starts[rows.flatten()]
        counts = encoded.starts[rows.flatten() + 1] - first
        places = _spans(first, counts)
        owners = torch.arange(len(rows)).repeat_interleave(count).repeat_interleave(counts)
        table = torch.zeros(len(rows) * total)
        table.index_add_(0, owners * total + encoded.columns[places], encoded.values[places] / count)
        yield table.view(len(rows), total)


def _jaccard(encoded: _Rows, queries: int) -> Tensor:
    """1 − Σ min / Σ max of the encodings of queries and gallery rows (equation 10), [Q, G].

    Both sum to 1, so that Σ max = 2 − Σ min; and only columns in which the query has a weight add to Σ min.
    """
    starts, columns, values = encoded
    total, edge = len(starts) - 1, int(starts[queries])
    order = columns[edge:].argsort(stable=True)  # the gallery's weights, column by column
    weights, owners = values[edge:][order], torch.arange(total - queries)
    owners = owners.repeat_interleave(starts[queries:].diff())[order]
    bounds = torch.searchsorted(columns[edge:][order], torch.arange(total + 1))
    shared = torch.zeros(queries, total - queries)
    for i in range(queries):
        own = slice(int(starts[i]), int(starts[i + 1]))
        first = bounds[columns[own]]
        counts = bounds[columns[own] + 1] - first
        places = _spans(first, counts)
        least = weights[places].minimum(values[own].repeat_interleave(counts))
        shared[i].index_add_(0, owners[places], least)
    return 1 - shared / (2 - shared)
