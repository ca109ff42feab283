"""Reader of cached teacher outputs: memory-mapped arrays, found by (sample id, view)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcli.artifacts import manifest as manifests
from kdcli.errors import InputError

SEGMENT = "segment-"
LOGITS = "logits"
Pair = tuple[int, int]  # (sample id, view)


@dataclass(frozen=True)
class Store:
    """How a tap is kept: ``fp16``, ``fp32``, or ``topK``: the K largest logits and the mass of the rest.

    The rest of a top-K row is spread evenly over the other classes, so that softmax at temperature 1 keeps
    the mass of every stored class exactly.
    """

    name: str = "fp16"

    def __post_init__(self) -> None:
        if self.name not in ("fp16", "fp32") and not self.top:
            raise InputError(f"views.store: '{self.name}' is none of fp16, fp32, topK (for example top20).")

    @property
    def top(self) -> int:
        """K of ``topK``, else 0."""
        digits = self.name.removeprefix("top")
        return (
            int(digits)
            if self.name.startswith("top") and digits.isascii() and digits.isdecimal() and len(digits) < 7
            else 0
        )

    def pack(self, tap: str, tensor: Tensor) -> dict[str, np.ndarray]:
        """Arrays for a batch of one tap, [B, …] float32; ``topK`` is for logits, all else is fp16 then.

        Raises:
            InputError: NaN, infinity, or a value that fp16 cannot hold.
        """
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{tap} of the teacher holds NaN or infinity. Check its weights, or --precision no."
            )
        if not self.top or tap != LOGITS or tensor.ndim != 2 or self.top >= tensor.shape[1] - 1:
            kind = np.float32 if self.name == "fp32" else np.float16
            array = tensor.numpy()
            if kind is np.float16 and np.abs(array).max(initial=0) > 65000:
                raise InputError(f"{tap} does not fit in fp16 (over 65,000). Use --set views.store=fp32.")
            return {tap: array.astype(kind)}
        values, places = tensor.topk(self.top, dim=1)
        rest = tensor.scatter(1, places, -torch.inf).logsumexp(dim=1, keepdim=True)
        even = rest - float(np.log(tensor.shape[1] - self.top))
        head = torch.cat([values, even], dim=1)
        shape = np.full((len(tensor), 1), tensor.shape[1], np.int32)
        places_array = np.concatenate([places.numpy().astype(np.int32), shape], axis=1)
        return {f"{tap}.top": head.numpy().astype(np.float32), f"{tap}.places": places_array}

    @staticmethod
    def unpack(arrays: dict[str, np.ndarray], taps: Sequence[str]) -> dict[str, Tensor]:
        """Float32 tensors [B, …] of the taps."""
        found = {}
        for tap in taps:
            if tap in arrays:
                found[tap] = torch.from_numpy(arrays[tap].astype(np.float32))
                continue
            head, places = (
                torch.from_numpy(arrays[f"{tap}.top"]),
                torch.from_numpy(arrays[f"{tap}.places"].astype(np.int64)),
            )
            dense = head[:, -1:].expand(-1, int(places[0, -1])).clone()
            found[tap] = dense.scatter(1, places[:, :-1], head[:, :-1])
        return found


class Cache:
    """The whole segments of one cache directory.

    Args:
        folder: holds ``segment-…`` artifacts.
        taps: names expected in each.

    Raises:
        InputError: a segment is damaged (hash, size, shape), or was copied here from another cache.
    """

    def __init__(self, folder: Path, taps: Sequence[str]) -> None:
        self.folder, self.taps = folder, tuple(taps)
        self._segments: list[dict[str, np.ndarray]] = []
        ids, views = [np.empty(0, np.uint64)], [np.empty(0, np.int32)]
        for path in sorted(folder.glob(f"{SEGMENT}*")):
            if "." in path.name:
                continue  # a partial or trash directory of another writer
            arrays = self._open(path)
            ids.append(np.asarray(arrays.pop("ids")))
            views.append(np.asarray(arrays.pop("views")))
            self._segments.append(arrays)
        self._ends = np.cumsum([len(part) for part in ids])  # the first part is empty
        self._index = _index(np.concatenate(ids), np.concatenate(views))

    def _open(self, path: Path) -> dict[str, np.ndarray]:
        try:
            manifest = manifests.read(path)
            manifests.verify(path, manifest)
            arrays = {
                name.removesuffix(".npy"): np.load(path / name, mmap_mode="r", allow_pickle=False)
                for name in manifest.files
                if name.endswith(".npy")
            }
            needed = {"ids", "views", *(f"{t}.top" if f"{t}.top" in arrays else t for t in self.taps)}
            if needed - set(arrays) or not _is_table(arrays):
                raise InputError(f"{path} is no segment of a cache of {', '.join(self.taps)}.")
            key = manifest.facts.get("key", self.folder.name)  # 0.1 wrote none
            if key != self.folder.name:
                raise InputError(f"{path} was copied here from another cache, {key}.")
        except (InputError, OSError, ValueError) as error:
            raise InputError(f"{error} Delete {path} and run again: it is computed anew.") from error
        return arrays

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self._index.values())

    def lacking(self, ids: np.ndarray, view: int) -> np.ndarray:
        """Indices of those of the sample ids [N] whose view ``view`` is not here."""
        return np.flatnonzero(self._places(ids, view) < 0)

    def holds(self, pairs: Sequence[Pair]) -> bool:
        """Whether all these pairs are here."""
        ids, views = np.array([i for i, _ in pairs], np.uint64), np.array([view for _, view in pairs])
        return all(not len(self.lacking(ids[views == view], int(view))) for view in np.unique(views))

    def _places(self, ids: np.ndarray, view: int) -> np.ndarray:
        """Places [B] of samples in the segments laid end to end, -1 where there is none."""
        known, places = self._index.get(view, _NOTHING)
        if not len(known):
            return np.full(len(ids), -1)
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, places[at], -1)

    def read(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Tensors [B, …] of each tap for the pairs, in their order.

        Raises InputError for a pair that is not here.
        """
        ids = np.array([sample_id for sample_id, _ in pairs], np.uint64)
        views = np.array([view for _, view in pairs])
        places = np.empty(len(pairs), np.int64)
        for view in np.unique(views):
            mask = views == view
            places[mask] = self._places(ids[mask], int(view))
        if len(lacking := np.flatnonzero(places < 0)):
            sample_id, view = pairs[lacking[0]]
            raise InputError(
                f"{self.folder} lacks view {view} of sample {sample_id:016x}: it was filled for other "
                "pictures or views."
            )
        segments = np.searchsorted(self._ends, places, side="right") - 1
        rows = places - self._ends[segments]
        first = self._segments[segments[0]]
        gathered = {name: np.empty((len(places), *a.shape[1:]), a.dtype) for name, a in first.items()}
        for segment in np.unique(segments):
            mask = segments == segment
            for name, array in gathered.items():
                array[mask] = self._segments[segment][name][rows[mask]]
        return Store.unpack(gathered, self.taps)


def _is_table(arrays: dict[str, np.ndarray]) -> bool:
    """Whether arrays have one row for each id."""
    ids, views = arrays["ids"], arrays["views"]
    kinds = ids.dtype == np.uint64 and views.dtype == np.int32 and ids.ndim == views.ndim == 1
    return kinds and all(array.shape[:1] == ids.shape for array in arrays.values())


_NOTHING = np.empty(0, np.uint64), np.empty(0, np.int64)


def _index(ids: np.ndarray, views: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each view the sorted ids and their places: 16 bytes a row, where a dictionary takes 300."""
    index = {}
    for view in np.unique(views):
        places = np.flatnonzero(views == view)
        known, first = np.unique(ids[places], return_index=True)
        index[int(view)] = known, places[first]
    return index


class Columns:
    """Columns that several caches add to a batch, named ``call.tap``.

    Args:
        caches: by call.
        plain: calls whose cache holds one view of each sample, the un-augmented one.
    """

    def __init__(self, caches: dict[str, Cache], plain: Collection[str] = ()) -> None:
        self.caches, self.plain = caches, plain

    def read(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """All columns for the pairs."""
        found: dict[str, Tensor] = {}
        only = [(sample_id, 0) for sample_id, _ in pairs]
        for call, cache in self.caches.items():
            taps = cache.read(only if call in self.plain else pairs)
            found |= {f"{call}.{tap}": tensor for tap, tensor in taps.items()}
        return found
