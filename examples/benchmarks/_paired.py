"""Interleaved paired timing, for the benchmarks of this folder.

Arms that are compared run within seconds of each other, in random order, so that whatever else the machine
does falls on all of them; the ratio is taken inside each pair, and its interval is a bootstrap over pairs.
"""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch


def paired(arms: dict[str, Callable[[], Any]], pairs: int, seed: int) -> dict[str, list[float]]:
    """Run each arm once to warm up, then all arms `pairs` times in a random order, and time them.

    Args:
        arms: name → what to run. On CUDA the call is timed until the device is idle. An arm that returns a
            float has timed itself.
        pairs: number of rounds.
        seed: of the orders.

    Returns:
        name → seconds per round, index i of all arms being the same round.
    """
    order = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(-1, pairs):
        for name in order.sample(list(arms), len(arms)):
            _idle()
            start = time.perf_counter()
            own = arms[name]()
            _idle()
            if turn >= 0:
                times[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], a: str, b: str) -> tuple[float, float, float]:
    """How many times the time of `b` arm `a` takes: median over pairs and its 90 % bootstrap interval.

    Returns:
        (median, low, high); above 1 means that `b` is the faster.
    """
    ratios = np.asarray(times[a]) / np.asarray(times[b])
    draws = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [5, 95])
    return float(np.median(ratios)), float(low), float(high)


def device_line() -> str:
    """One line on what was measured: device, threads, versions and date (UTC)."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        device = f"{models[0] if models else platform.processor() or platform.machine()}, {len(models)} cores"
        device += f", {torch.backends.cpu.get_cpu_capability()}"
    threads = torch.get_num_threads()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    return f"{device}; {threads} thread{'s' * (threads > 1)}; {versions}; {datetime.now(UTC):%Y-%m-%d}"


def _idle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
