"""Reader of cached teacher outputs: memory-mapped arrays, found by (sample id, view)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdcli.artifacts import manifest as manifests
from kdcli.errors import InputError

SEGMENT = "segment-"
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
        return int(digits) if self.name.startswith("top") and digits.isdigit() else 0

    def pack(self, tap: str, tensor: Tensor) -> dict[str, np.ndarray]:
        """Arrays for a batch of one tap, [B, …] float32."""
        if not self.top or tensor.ndim != 2 or self.top >= tensor.shape[1] - 1:
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
        InputError: a segment is damaged (hash, size, shape).
    """

    def __init__(self, folder: Path, taps: Sequence[str]) -> None:
        self.folder, self.taps = folder, tuple(taps)
        self._segments: list[dict[str, np.ndarray]] = []
        ids, views, places = [], [], []
        for path in sorted(folder.glob(f"{SEGMENT}*")):
            if "." in path.name:
                continue  # a partial or trash directory of another writer
            arrays = self._open(path)
            rows = len(arrays["ids"])
            ids.append(np.asarray(arrays.pop("ids")))
            views.append(np.asarray(arrays.pop("views")))
            places.append(np.stack([np.full(rows, len(self._segments)), np.arange(rows)], axis=1))
            self._segments.append(arrays)
        self._index: dict[Pair, tuple[int, int]] = {}
        for i, v, p in zip(ids, views, places):
            self._index.update(zip(zip(i.tolist(), v.tolist()), map(tuple, p.tolist())))

    def _open(self, path: Path) -> dict[str, np.ndarray]:
        manifest = manifests.read(path)
        try:
            manifests.verify(path, manifest)
            arrays = {
                name.removesuffix(".npy"): np.load(path / name, mmap_mode="r", allow_pickle=False)
                for name in manifest.files
                if name.endswith(".npy")
            }
        except (InputError, ValueError) as error:
            raise InputError(f"{error} Delete {path} and run again: it is computed anew.") from error
        return arrays

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._index

    def read(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Tensors [B, …] of each tap for the pairs, in their order.

        Raises InputError for a pair that is not here.
        """
        try:
            places = [self._index[pair] for pair in pairs]
        except KeyError as error:
            raise InputError(
                f"{self.folder} lacks {error}: it was filled for other pictures or views."
            ) from error
        segments = np.array([s for s, _ in places])
        rows = np.array([r for _, r in places])
        first = self._segments[places[0][0]]
        gathered = {name: np.empty((len(places), *a.shape[1:]), a.dtype) for name, a in first.items()}
        for segment in np.unique(segments):
            mask = segments == segment
            for name, array in gathered.items():
                array[mask] = self._segments[segment][name][rows[mask]]
        return Store.unpack(gathered, self.taps)


class Columns:
    """Columns that several caches add to a batch, named ``call.tap``."""

    def __init__(self, caches: dict[str, Cache]) -> None:
        self.caches = caches

    def read(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """All columns for the pairs."""
        return {
            f"{call}.{tap}": t for call, cache in self.caches.items() for tap, t in cache.read(pairs).items()
        }
