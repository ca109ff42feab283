"""What a network takes on this machine once its sites have other widths: a table of its blocks, measured.

Operations do not tell the time: narrow layers fill a machine less, and what stands between them takes its
own. So networks whose sites all have one part of their width are made, one for each part, and their blocks
are timed inside a forward of one picture. The time of a block is a function of its FLOPs, a straight line
between those that were measured; that of a network is its own at full width less what its blocks save.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import nn

from kdcli.metrics.efficiency import evaluating, synchronize
from kdcli.models.compactors import insert
from kdcli.models.costs import Polynomial
from kdcli.models.folding import fold
from kdcli.models.sites import Site
from kdcli.models.timm import TimmModel

PARTS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125, 0.0)  # of the widths; the last of which is one channel a site
_ROUNDS, _LEAST, _SECONDS = 60, 7, 20.0  # forwards of each: at most, at least, and until when
_QUIET = 0.25  # quantile of times: above it are those of a machine that does other things too


@dataclass(frozen=True)
class Table:
    """Times of a network and its blocks.

    Attributes:
        whole: milliseconds of a forward of one picture, at each part of :data:`PARTS`.
        inner: of each block too, by its path.
    """

    whole: tuple[float, ...]
    inner: Mapping[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """As :meth:`from_json` reads it."""
        return {"parts": list(PARTS), "whole": list(self.whole), "inner": dict(self.inner)}

    @classmethod
    def from_json(cls, found: Any) -> Table:
        """Raises ValueError for what :meth:`to_json` has not made."""
        try:
            if found["parts"] != list(PARTS):
                raise ValueError("other parts of the widths")
            rows = {str(name): _times(row) for name, row in found["inner"].items()}
            return cls(_times(found["whole"]), rows)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no table of times ({error})") from error


def _times(row: Any) -> tuple[float, ...]:
    times = tuple(map(float, row))
    if len(times) != len(PARTS) or not all(0 <= each < 1e9 for each in times):
        raise ValueError("no times of as many parts")
    return times


def measure(network: TimmModel, sites: Sequence[Site], device: torch.device) -> Table:
    """Time the blocks of a network at several widths, in random order, and take the lower quartile.

    Args:
        network: with its full widths and no compactors, left as it is.
        sites: of this network.
        device: to measure on.
    """
    made = [_narrow(network, sites, part).to(device).eval() for part in PARTS]
    spec = network.spec
    x = torch.randn((1, spec.channels, *spec.size), generator=torch.Generator().manual_seed(0)).to(device)
    paths = list(dict.fromkeys(map(block_of, sites)))
    order, ends = random.Random(0), time.monotonic() + _SECONDS
    whole: list[list[float]] = [[] for _ in PARTS]
    inner: list[dict[str, list[float]]] = [defaultdict(list) for _ in PARTS]
    with torch.inference_mode():
        for turn in range(-2, _ROUNDS):
            if turn >= _LEAST and time.monotonic() > ends:
                break
            for at in order.sample(range(len(PARTS)), len(PARTS)):
                with evaluating(made[at]):
                    total = _timed(made[at], x)
                    with _watched(made[at].body, paths, device) as blocks:
                        made[at](x)
                if turn >= 0:  # the first ones warm up
                    whole[at].append(total)
                    for path in paths:
                        inner[at][path].append(blocks.get(path, 0.0))
    return Table(
        tuple(float(np.quantile(times, _QUIET)) for times in whole),
        {path: tuple(float(np.quantile(times[path], _QUIET)) for times in inner) for path in paths},
    )


def block_of(site: Site) -> str:
    """Path of the smallest module that holds all layers of a site."""
    paths = [path.split(".")[:-1] for path, _ in site.ends]
    shared = takewhile(lambda names: len(set(names)) == 1, zip(*paths))
    return ".".join(names[0] for names in shared)


def latency_of(table: Table, sites: Sequence[Site], flops: Polynomial) -> Callable[[Sequence[int]], float]:
    """Milliseconds of a forward of one picture, at widths of the sites; no less for wider ones.

    Args:
        table: of the network.
        sites: of this network.
        flops: of this network.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, site in enumerate(sites):
        groups[block_of(site)].append(number)
    points = [[width_at(site, part) for site in sites] for part in PARTS]
    curves: list[tuple[Polynomial, list[float], list[float]]] = []
    for path, numbers in groups.items():
        own = flops.part(numbers)
        knots: dict[float, list[float]] = defaultdict(list)
        for widths, milliseconds in zip(points, table.inner[path]):
            knots[own(widths)].append(milliseconds)
        ordered = sorted(knots)
        curves.append((own, ordered, _rising([float(np.mean(knots[at])) for at in ordered])))
    saved = sum(times[-1] for _, _, times in curves)

    def latency(widths: Sequence[int]) -> float:
        left = sum(_between(own(widths), knots, times) for own, knots, times in curves)
        return max(table.whole[0] - saved + left, 0.0)

    return latency


def width_at(site: Site, part: float) -> int:
    """Channels of a site at a part of its width."""
    return max(1, round(part * site.width))


def _narrow(network: TimmModel, sites: Sequence[Site], part: float) -> TimmModel:
    masks = {site.name: torch.arange(site.width) < width_at(site, part) for site in sites}
    return fold(insert(network, sites), masks)


def _timed(module: nn.Module, x: torch.Tensor) -> float:
    synchronize(x.device)
    start = time.perf_counter()
    module(x)
    synchronize(x.device)
    return 1e3 * (time.perf_counter() - start)


@contextmanager
def _watched(body: nn.Module, paths: Sequence[str], device: torch.device) -> Iterator[dict[str, float]]:
    """Milliseconds inside modules of a network, by path, of the forwards in the block."""
    found: dict[str, float] = defaultdict(float)
    began: dict[str, float] = {}

    def before(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronize(device)
            began[path] = time.perf_counter()

        return hook

    def after(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            synchronize(device)
            found[path] += 1e3 * (time.perf_counter() - began[path])

        return hook

    modules = [(path, body.get_submodule(path)) for path in paths]
    handles = [module.register_forward_pre_hook(before(path)) for path, module in modules]
    handles += [module.register_forward_hook(after(path)) for path, module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _rising(times: Sequence[float]) -> list[float]:
    """Times that never fall, in the middle of what the noise leaves open."""
    up = np.maximum.accumulate(times)
    down = np.minimum.accumulate(np.asarray(times)[::-1])[::-1]
    return [float(each) for each in (up + down) / 2]


def _between(at: float, knots: Sequence[float], times: Sequence[float]) -> float:
    """On the straight line between two knots; beyond the last ones their own."""
    right = bisect_left(knots, at)
    if right == 0:
        return times[0]
    if right == len(knots):
        return times[-1]
    share = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
    return times[right - 1] + share * (times[right] - times[right - 1])
