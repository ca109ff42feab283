"""Random occlusion: how many cells are hidden, which, and where they lie in a picture."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kdcli.metrics.occlusion import RATIOS, hidden_cells, hidden_pixels, hiding_order

IDS = [3, 2**63 + 5, 77]


def test_ratios_and_counts() -> None:
    assert RATIOS == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert [hidden_cells(r, 14) for r in RATIOS] == [0, 20, 39, 59, 78, 98, 118, 137, 157, 176]
    assert [hidden_cells(r, 3) for r in (0.5, 0.9)] == [4, 8]


def test_the_order_of_a_picture_hangs_on_its_id_and_the_seed_alone() -> None:
    order = hiding_order(0, IDS, 5)
    assert order.sort(1).values.tolist() == [list(range(25))] * 3
    assert torch.equal(order[1:2], hiding_order(0, IDS[1:2], 5))
    assert not torch.equal(order[0], order[1])
    assert not torch.equal(order, hiding_order(1, IDS, 5))


@pytest.mark.parametrize(("grid", "size"), [(4, (8, 8)), (4, (10, 7)), (14, (224, 224)), (7, (7, 7))])
def test_hidden_cells_are_whole_nested_and_as_many_as_the_ratio_says(
    grid: int, size: tuple[int, int]
) -> None:
    order, before = hiding_order(0, IDS, grid), torch.zeros(3, 1, *size, dtype=torch.bool)
    edges = [[i * side // grid + (i * side % grid > 0) for i in range(grid + 1)] for side in size]
    for part in edges:
        sides = [b - a for a, b in pairwise(part)]
        assert max(sides) - min(sides) <= 1
    for ratio in (*RATIOS, 1.0):
        hidden = hidden_pixels(order, ratio, size)
        assert hidden.shape == (3, 1, *size)
        assert not (before & ~hidden).any()
        for picture, ranks in zip(hidden[:, 0], order):
            cells = [
                picture[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
                for i in range(grid)
                for j in range(grid)
            ]
            assert all(cell.all() or not cell.any() for cell in cells)
            assert sum(bool(cell.all()) for cell in cells) == hidden_cells(ratio, grid)
            assert [bool(c.all()) for c in cells] == (ranks < hidden_cells(ratio, grid)).tolist()
        before = hidden


def test_networks_of_other_sizes_see_the_same_cells() -> None:
    order = hiding_order(0, IDS, 4)
    small, large = (hidden_pixels(order, 0.5, (side, side)) for side in (8, 32))
    assert torch.equal(small.repeat_interleave(4, 2).repeat_interleave(4, 3), large)


def test_every_cell_is_hidden_about_as_often() -> None:
    order = hiding_order(0, range(2000), 3)
    assert ((order < 3).double().mean(0) - 1 / 3).abs().max() < 0.05


def test_more_cells_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="9 cells do not fit along a side of 8 pixels"):
        hidden_pixels(hiding_order(0, IDS, 9), 0.5, (8, 16))
