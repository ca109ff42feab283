"""Exact search: the rows of a gallery that are most similar to a query, by the cosine of their features."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from kdcli.errors import NotFinite
from kdcli.losses.products import product, unit

LARGE = 1_000_000
"""Above so many gallery rows :func:`nearest` leaves the search to faiss, where it is installed."""

_ENTRIES = 2**24  # of similarities that are looked at together


def check_pair(query: Tensor, gallery: Tensor) -> None:
    """Refuse features, [Q, D] and [G, D], in which nothing can be searched.

    Raises:
        ValueError: no query, an empty gallery, features that are not finite in fp32, or two widths.
    """
    for name, features in (("query", query), ("gallery", gallery)):
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(
                f"features of the {name} must have the shape [pictures, width], not {list(features.shape)}"
            )
        if not len(features):
            raise ValueError(f"the {name} holds no pictures: there is nothing to search")
        bad = int((~features.float().isfinite().all(dim=1)).sum())
        if bad:
            raise NotFinite(
                f"features of {bad} of {len(features)} pictures of the {name} are not finite (NaN or Inf)"
            )
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"features of the query are {query.shape[1]} wide and those of the gallery {gallery.shape[1]}: "
            "one network must have made both"
        )


def nearest(query: Tensor, gallery: Tensor, count: int, *, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """The gallery rows most similar to each query, by cosine: exact, in memory that does not grow with Q·G.

    Above :data:`LARGE` gallery rows faiss's flat index searches, where faiss is installed. It is exact too:
    the results are the same, but for rounding and the order of rows of equal similarity, which is open in
    either.

    Args:
        query: [Q, D].
        gallery: [G, D]; the search runs on the query's device.
        count: k; at most G are found.
        chunk: queries that are looked at together.

    Returns:
        Similarities [Q, min(k, G)] in fp32, falling, and the gallery rows [Q, min(k, G)], int64.

    Raises:
        ValueError: no query, an empty gallery, features that are not finite or of two widths, count < 1, or
            chunk < 1.
    """
    check_pair(query, gallery)
    if min(count, chunk) < 1:
        raise ValueError(f"count and chunk must be at least 1, not {count} and {chunk}")
    count = min(count, len(gallery))
    ours, theirs = (unit_rows(features, query.device) for features in (query, gallery))
    faiss = _faiss() if len(theirs) > LARGE else None
    if faiss is not None:
        index = faiss.IndexFlatIP(theirs.shape[1])
        index.add(theirs.cpu().numpy())
        found = index.search(ours.cpu().numpy(), count)
        similar, rows = (torch.from_numpy(part).to(query.device) for part in found)
        return similar, rows
    parts = [_search(part, theirs, count, max(count, _ENTRIES // chunk)) for part in ours.split(chunk)]
    similar, rows = (torch.cat(part) for part in zip(*parts))
    return similar, rows


def unit_rows(features: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Rows of features [N, D] at length 1, in fp32; a row of zeros stays one.

    The largest entry of a row is brought to 1 first, so that no square overflows.
    """
    rows = features.detach().to(device, torch.float32)
    largest = rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return unit(rows / largest)


def _search(ours: Tensor, theirs: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best of the gallery, which is read ``size`` rows at a time."""
    best = ours.new_empty(len(ours), 0)
    rows = torch.empty_like(best, dtype=torch.int64)
    for start in range(0, len(theirs), size):
        part = product(ours, theirs[start : start + size].mT)
        part, places = part.topk(min(count, part.shape[1]), dim=1)
        best, rows = torch.cat([best, part], dim=1), torch.cat([rows, places + start], dim=1)
        best, places = best.topk(min(count, best.shape[1]), dim=1)
        rows = rows.gather(1, places)
    return best, rows


def _faiss() -> ModuleType | None:
    try:
        return import_module("faiss")
    except ImportError:
        return None
