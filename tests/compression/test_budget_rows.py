"""ResRep's choice of rows: golden masks, a literal loop beside it, rows that come back, bounds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kdcli.compression.budget import reachable, select, updated


def operations(widths: Sequence[int]) -> float:
    """Of three convolutions 3×3, the last of 16 channels."""
    first, second = widths
    return 3 * first * 9 * 64 + first * second * 9 * 64 + second * 16 * 9 * 16


def golden_norms() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(8, generator=generator), torch.rand(12, generator=generator)]


def off(masks: Sequence[Tensor]) -> list[list[int]]:
    return [(~mask).nonzero().flatten().tolist() for mask in masks]


def ratio(masks: Sequence[Tensor]) -> float:
    return operations([int(m.sum()) for m in masks]) / operations([len(m) for m in masks])


def test_golden_masks() -> None:
    norms = golden_norms()
    masks = [torch.ones(len(norm), dtype=torch.bool) for norm in norms]
    found = []
    for _ in range(4):
        masks = updated(masks, norms, operations, target=0.5, granularity=4)
        found.append((off(masks), round(ratio(masks), 6)))
    later = ([[2, 3, 4], [4, 5, 6, 10, 11]], 0.464286)
    assert found == [([[2, 3], [4, 10]], 0.702381), later, later, later]
    assert [int(mask.sum()) for mask in masks] == [5, 7]


def naive_select(
    norms: list[list[float]], target: float, granularity: int, deactivated: int, least: int
) -> list[list[int]]:
    full = operations([len(norm) for norm in norms])
    gone: list[set[int]] = [set() for _ in norms]
    for _, layer, row in sorted(
        (v, layer, row) for layer, norm in enumerate(norms) for row, v in enumerate(norm)
    ):
        left = [len(norm) - len(rows) for norm, rows in zip(norms, gone)]
        if operations(left) <= target * full or sum(map(len, gone)) == deactivated + granularity:
            break
        if left[layer] > least:
            gone[layer].add(row)
    return [sorted(rows) for rows in gone]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("target", "granularity", "deactivated", "least"),
    [(0.5, 4, 0, 1), (0.5, 4, 8, 1), (0.2, 3, 6, 1), (0.01, 50, 0, 1), (0.01, 50, 0, 3), (1.0, 4, 0, 1)],
)
def test_it_is_the_literal_loop(
    seed: int, target: float, granularity: int, deactivated: int, least: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    norms = [torch.rand(9, generator=generator), 2 * torch.rand(13, generator=generator)]
    masks = select(
        norms, operations, target=target, granularity=granularity, deactivated=deactivated, least=least
    )
    expected = naive_select([n.tolist() for n in norms], target, granularity, deactivated, least)
    assert off(masks) == expected
    assert all(mask.dtype == torch.bool for mask in masks)
    if target == 1.0:
        assert expected == [[], []]
    if target == 0.01:
        assert [int(mask.sum()) for mask in masks] == [least, least]


def test_a_row_can_come_back() -> None:
    norms = golden_norms()
    masks = [torch.ones(len(norm), dtype=torch.bool) for norm in norms]
    masks = updated(masks, norms, operations, target=0.5, granularity=4)
    assert not masks[0][2]
    norms[0] = norms[0].clone()
    norms[0][2] = 5.0
    assert updated(masks, norms, operations, target=0.5, granularity=4)[0][2]


def test_once_the_target_is_met_nothing_bounds_the_number() -> None:
    """Five rows meet the target; then the smallest are those of another compactor, and it takes eight."""

    def cost(widths: Sequence[int]) -> float:
        return 2.0 * widths[0] + widths[1]

    steep, level = torch.arange(1.0, 11.0), torch.full((12,), 20.0)
    masks = select([steep, level], cost, target=0.7, granularity=5, deactivated=0)
    assert off(masks) == [[0, 1, 2, 3, 4], []]
    swapped = updated(masks, [steep + 90, level], cost, target=0.7, granularity=1)
    assert off(swapped) == [[], list(range(10))]
    bounded = select([steep + 90, level], cost, target=0.7, granularity=1, deactivated=5)
    assert off(bounded) == [[], list(range(6))]


def test_equal_norms_are_taken_in_order() -> None:
    norms = [torch.ones(3), torch.ones(3)]
    masks = select(norms, sum, target=0.1, granularity=3, deactivated=0)
    assert off(masks) == [[0, 1], [0]]  # the first compactor keeps one


def test_a_compactor_narrower_than_the_least_is_left_alone() -> None:
    masks = select([torch.ones(2), torch.ones(5)], sum, target=0.0, granularity=9, deactivated=0, least=3)
    assert off(masks) == [[], [0, 1]]


def test_the_smallest_target_that_can_be_met() -> None:
    assert reachable([8, 12], operations) == operations([1, 1]) / operations([8, 12])
    assert reachable([8, 12], sum, least=10) == 18 / 20
    lowest = reachable([8, 12], operations, least=2)
    met = select(golden_norms(), operations, target=lowest, granularity=20, deactivated=0, least=2)
    assert ratio(met) == lowest
