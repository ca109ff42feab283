"""Golden values of losses: numbers that the authors' code (or the named formula) gives for tensors drawn from
one seed, rounded to six decimals. ``agree`` holds a loss against a naive loop."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

GOLDEN: dict[str, dict[str, Any]] = {}
_RECIPES: dict[str, dict[str, Any]] = {}


def _load() -> None:
    document = json.loads((Path(__file__).parent / "golden.json").read_text())
    GOLDEN.update(document["golden"])
    _RECIPES.update(document["inputs"])


_load()


@cache
def inputs() -> dict[str, Tensor]:
    """The tensors behind the golden values, drawn in their order from one seed, with fingerprints checked."""
    generator = torch.Generator().manual_seed(0)
    drawn: dict[str, Tensor] = {}
    for name, row in _RECIPES.items():
        found = re.fullmatch(r"(randn|randint|rand)\((?:0,10,\()?([\d,]+?),?\)?\)([*+][\d.]+)?", row["draw"])
        assert found is not None, row["draw"]
        kind, sizes, change = found.groups()
        shape = [int(n) for n in sizes.split(",")]
        if kind == "randint":
            drawn[name] = torch.randint(0, 10, shape, generator=generator)
        else:
            drawn[name] = getattr(torch, kind)(shape, generator=generator)
        if change:
            number = float(change[1:])
            drawn[name] = drawn[name] * number if change[0] == "*" else drawn[name] + number
        assert drawn[name].sum().item() == pytest.approx(row["sum"], abs=1e-4), name
        assert drawn[name].flatten()[:4].tolist() == pytest.approx(row["first"], abs=1e-6), name
    return drawn


def near(value: Any, golden: float | Sequence[float]) -> bool:
    """Within 1e-5 of the golden number and what rounding to six decimals took."""
    found = torch.as_tensor(value).detach().double().flatten()
    wanted = torch.as_tensor(golden, dtype=torch.float64).flatten()
    return found.shape == wanted.shape and bool(((found - wanted).abs() <= 1e-5 * wanted.abs() + 6e-7).all())


def agree(
    loss: Callable[..., Tensor],
    naive: Callable[..., Any],
    *tensors: Tensor,
    rel: float = 2e-5,
    **keywords: Any,
) -> None:
    """A loss is its naive loop, over Python floats, on fp32 tensors, and under bf16 autocast on bf16 ones."""
    _close(loss(*tensors, **keywords), naive(*(t.tolist() for t in tensors), **keywords), rel)
    rounded = [t.bfloat16() if t.is_floating_point() else t for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(*rounded, **keywords)
    _close(inside, naive(*(t.tolist() for t in rounded), **keywords), rel)


def _close(value: Tensor, expected: Any, rel: float) -> None:
    assert value.dtype in (torch.float32, torch.bool, torch.int64)
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(value.detach().double(), wanted, rtol=rel, atol=1e-6)


def soften(row: list[float], temperature: float = 1.0) -> list[float]:
    """softmax(row / T) over Python floats."""
    powers = [math.exp(v / temperature) for v in row]
    return [p / sum(powers) for p in powers]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels(count: int, classes: int, seed: int = 0) -> Tensor:
    """Class numbers."""
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def gradients(value: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """Of a loss with respect to leaves; zeros where there is none."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    found = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
    return tuple(torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found))
