"""Metrics of retrieval (re-identification, instance search): exact search of a gallery by cosine similarity.

A gallery row of the query's identity is a match. Two kinds of rows never count: the query's own picture, and
by the camera rule (Zheng et al. 2015, "Scalable Person Re-identification: A Benchmark") a match that was
taken by the query's own camera. Ties are misses: among rows of one similarity those of other identities stand
first, so that a network that sees no difference does not look good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcli.metrics.neighbours import check_pair, unit_rows

CUTS = (1, 5, 10)
"""The k of CMC@k and of Recall@k."""

SHOWN = 5
"""K, how many rows of a query's ranking are kept."""

_ENTRIES = 2**24  # of similarities that are looked at together: 128 MB in fp64, and masks


@dataclass(frozen=True)
class Embedded:
    """Pictures as a network sees them, and what is known of each.

    Attributes:
        features: [N, D], of any length: only directions count. A row of zeros is similar to none (0).
        identities: [N] integers; equal ones match.
        cameras: [N] integers, −1 where unknown, or None where nothing is known of any.
        keys: [N] integers, equal for the very same picture, or None where query and gallery share none.
    """

    features: Tensor
    identities: Tensor
    cameras: Tensor | None = None
    keys: Tensor | None = None


@dataclass(frozen=True)
class Retrieved:
    """What came of a search.

    All but ``recall`` follow the camera rule where cameras are known. It takes matches away, so a query may
    be left without any: it is skipped by ``mAP`` and ``cmc``, while ``recall`` still counts it. Only a query
    without a match in the whole gallery, but for its own picture, is skipped by both.

    Attributes:
        metrics: fractions. ``mAP``; ``cmc1``, ``cmc5`` and ``cmc10`` where cameras are known: queries with a
            match among the first k rows; ``recall1``, ``recall5`` and ``recall10``: the same without the
            camera rule.
        average_precision: [Q] float64, NaN where skipped.
        ranks: [Q] int64, place of the first match, 0 for the best; −1 where skipped.
        top: [Q, 5] int64, the first gallery rows after removal, also of a skipped query; −1 where fewer are
            left.
        skipped: number of queries that ``mAP`` does not count.
    """

    metrics: dict[str, float]
    average_precision: Tensor
    ranks: Tensor
    top: Tensor
    skipped: int


def retrieval(
    query: Embedded, gallery: Embedded, *, chunk: int = 1024, distances: Tensor | None = None
) -> Retrieved:
    """Mean average precision, CMC and recall of queries against a gallery.

    AP is the mean, over a query's matches, of the precision at the place of each: (matches up to there) /
    (rows up to there). Similarities are products of unit rows in float64, rounded to float32: a product in
    float32 depends on where a row stands, and would part equal rows.

    Args:
        query: Q pictures.
        gallery: G pictures.
        chunk: queries that are looked at together, at most; fewer for a large gallery.
        distances: [Q, G] to rank by instead, the smaller the nearer
            (:func:`kdcli.metrics.reranking.reranked`).

    Raises:
        ValueError: no query, an empty gallery, or no query with a match in the gallery (that the camera rule
            leaves); features that are not finite or of two widths; what does not fit the features, or
            distances that do not fit both; chunk < 1.
    """
    _check(query, gallery, chunk, distances)
    size = max(1, min(chunk, _ENTRIES // len(gallery.features)))
    ours, theirs = unit_rows(query.features), unit_rows(gallery.features)
    parts = []
    for rows in torch.arange(len(ours)).split(size):
        if distances is None:
            similar = _similarities(ours[rows], theirs)
        else:
            similar = -distances[rows].detach().cpu().float()
        parts.append(_measured(similar, *_relations(query, gallery, rows)))
    precision, ranks, free, top = (torch.cat(part) for part in zip(*parts))
    counted, known = ranks >= 0, _cameras_known(query, gallery)
    if not bool(counted.any()):
        left = " that the camera rule leaves" if bool((free >= 0).any()) else ""
        raise ValueError(f"no query has a match in the gallery{left}: there is nothing to measure")
    metrics = {"mAP": float(precision[counted].mean())}
    if known:
        metrics |= {f"cmc{k}": _within(ranks, k) for k in CUTS}
    metrics |= {f"recall{k}": _within(free, k) for k in CUTS}
    return Retrieved(metrics, precision, ranks, top, int((~counted).sum()))


def _similarities(ours: Tensor, theirs: Tensor) -> Tensor:
    """Cosines of unit rows, [Q, G] in fp32; equal rows have equal ones, wherever they stand."""
    size = max(1, _ENTRIES // theirs.shape[1])
    return torch.cat([(ours.double() @ part.double().mT).float() for part in theirs.split(size)], dim=1)


def _relations(query: Embedded, gallery: Embedded, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Matches, those that the camera rule leaves, and misses: [q, G] each, of some queries."""

    def equal(ours: Tensor, theirs: Tensor) -> Tensor:
        return ours.cpu()[rows, None] == theirs.cpu()

    match = equal(query.identities, gallery.identities)
    miss = ~match
    if query.keys is not None and gallery.keys is not None:
        other = ~equal(query.keys, gallery.keys)
        match, miss = match & other, miss & other
    if query.cameras is None or gallery.cameras is None:
        return match, match, miss
    known = query.cameras.cpu()[rows, None] >= 0  # an unknown camera equals none
    return match, match & ~(known & equal(query.cameras, gallery.cameras)), miss


def _measured(similar: Tensor, match: Tensor, left: Tensor, miss: Tensor) -> tuple[Tensor, ...]:
    """Average precision, rank by the camera rule and without it, and the first rows, of some queries."""
    precision, ranks = _precision(similar, left, miss)
    best = similar.masked_fill(~match, -math.inf).amax(dim=1, keepdim=True)
    free = (miss & (similar >= best)).sum(dim=1).masked_fill(~match.any(dim=1), -1)
    return precision, ranks, free, _first(similar, left, miss)


def _precision(similar: Tensor, match: Tensor, miss: Tensor) -> tuple[Tensor, Tensor]:
    """AP [q] and the place of the first match [q]; NaN and −1 where there is none.

    The ranking is never made: the place of a match is the number of matches before it and of misses that are
    at least as similar, which a histogram of misses over a query's few matches tells.
    """
    matches = match.sum(dim=1, keepdim=True)
    most = max(1, int(matches.max()))
    hits = similar.masked_fill(~match, -math.inf).topk(most, dim=1).values  # falling, −∞ after the last
    passed = torch.searchsorted(hits.flip(1), similar, right=True)  # how many of them a row is level with
    misses = torch.zeros(len(similar), most + 1, dtype=torch.int64).scatter_add_(1, passed, miss.long())
    before = misses.flip(1).cumsum(dim=1)[:, :most]
    numbers = torch.arange(1, most + 1)
    precision = (numbers / (before + numbers).double()).masked_fill(numbers > matches, 0).sum(dim=1)
    return precision / matches[:, 0], before[:, 0].masked_fill(matches[:, 0] == 0, -1)


def _first(similar: Tensor, match: Tensor, miss: Tensor) -> Tensor:
    """The first rows of the ranking [q, K]: misses before matches among equals, then the lower index."""
    rest, found = similar.masked_fill(~(match | miss), -math.inf), []
    for _ in range(SHOWN):
        best = rest.amax(dim=1, keepdim=True)
        level = rest == best
        place = (level.byte() + (level & miss).byte()).argmax(dim=1, keepdim=True)
        found.append(place.masked_fill(best == -math.inf, -1))
        rest.scatter_(1, place, -math.inf)
    return torch.cat(found, dim=1)


def _within(ranks: Tensor, k: int) -> float:
    """Fraction of the queries that are not skipped whose first match is among the first k rows."""
    return float((ranks[ranks >= 0] < k).double().mean())


def _cameras_known(query: Embedded, gallery: Embedded) -> bool:
    return all(e.cameras is not None and bool((e.cameras >= 0).any()) for e in (query, gallery))


def _check(query: Embedded, gallery: Embedded, chunk: int, distances: Tensor | None) -> None:
    check_pair(query.features, gallery.features)
    for name, embedded in (("query", query), ("gallery", gallery)):
        rows = len(embedded.features)
        for field in ("identities", "cameras", "keys"):
            values = getattr(embedded, field)
            if values is not None and (values.shape != (rows,) or values.is_floating_point()):
                raise ValueError(
                    f"{field} of the {name} must be {rows} integers, one for each picture, not "
                    f"{values.dtype} of the shape {list(values.shape)}"
                )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    shape = len(query.features), len(gallery.features)
    if distances is not None and (distances.shape != shape or not bool(distances.isfinite().all())):
        raise ValueError(f"distances must be finite and of the shape {list(shape)}: queries by gallery rows")
