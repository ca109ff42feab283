"""Seeds as functions of what they are for: everything random can be made again from a few integers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

_MASK = (1 << 64) - 1


def seed_of(*parts: int) -> int:
    """A 64-bit hash of integers (splitmix64 folded over the parts), the seed of everything stateless."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state ^ (part & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state ^= state >> 27
        state = (state * 0x94D049BB133111EB + 0x9E3779B97F4A7C15) & _MASK
        state ^= state >> 31
    return state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch (CPU), numpy and random for a block, and put their states back afterwards."""
    import numpy as np

    states = np.random.get_state(), random.getstate()
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    try:
        with torch_seeded(seed):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """:func:`seeded` for blocks that draw from torch's CPU generator alone, in a thirtieth of its time."""
    import torch

    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed & (_MASK >> 1))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
