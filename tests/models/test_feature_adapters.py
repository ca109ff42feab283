"""Adapters between features, one grid for two maps, targets at one scale, and a queue."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcli.models.feature_adapters import (
    MaskToken,
    TokenAdapter,
    map_adapter,
    on_grid_of,
    queue_state,
    queued,
    scale_of,
    scale_state,
    scaled,
    some_places,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("linear", [nn.LayerNorm, nn.Linear]),
        ("mlp", [nn.Linear, nn.LayerNorm, nn.GELU, nn.Linear]),
        ("head", [nn.Linear, nn.ReLU, nn.Linear]),
    ],
)
def test_every_token_is_adapted_by_itself(kind: str, layers: list[type]) -> None:
    adapter = TokenAdapter((4, 3, 2), (6, 5, 5), kind=kind)  # type: ignore[arg-type]
    assert [type(layer) for layer in adapter.layers] == layers
    maps = drawn(2, 4, 3, 2)
    found = adapter(maps)
    assert found.shape == (2, 6, 3, 2)
    rows = torch.stack([adapter.layers(maps[:, :, i, j]) for i in range(3) for j in range(2)], dim=2)
    torch.testing.assert_close(found.flatten(2), rows)
    assert TokenAdapter((4,), (6,), kind=kind)(drawn(2, 4)).shape == (2, 6)  # type: ignore[arg-type]


def test_a_map_and_a_vector_have_no_adapter() -> None:
    with pytest.raises(ValueError, match=r"vectors or maps, not \[4\] and \[6, 5, 5\]"):
        TokenAdapter((4,), (6, 5, 5))


def test_a_regressed_map_stands_on_the_teacher_s_grid() -> None:
    regressed = map_adapter((4, 8, 8), (6, 4, 4), kind="linear", align="regressed")
    assert regressed(drawn(2, 4, 8, 8)).shape == (2, 6, 4, 4)
    assert (regressed(drawn(2, 4, 8, 8)) < 0).any(), "no ReLU ends it"
    resized = map_adapter((4, 8, 8), (6, 4, 4), kind="linear", align="teacher")
    assert resized(drawn(2, 4, 8, 8)).shape[2:] == (8, 8)


def test_a_larger_grid_is_averaged_and_a_smaller_one_is_stretched() -> None:
    large, small = drawn(1, 3, 8, 8), drawn(1, 3, 4, 4)
    assert on_grid_of(large, large) is large
    assert on_grid_of(small, large).shape == large.shape
    down = on_grid_of(large, small)
    assert down.shape == small.shape
    torch.testing.assert_close(down.mean(), large.mean(), rtol=0, atol=0.05)
    constant = torch.ones(1, 3, 8, 8)
    torch.testing.assert_close(on_grid_of(constant, small), torch.ones(1, 3, 4, 4))


def test_mean_and_scale_are_those_of_all_rows_so_far() -> None:
    state, seen = scale_state((5, 2, 2)), []
    for step, count in enumerate((3, 7, 1)):
        batch = 4 * drawn(count, 5, 6, seed=step) + torch.arange(5.0).view(1, 5, 1)
        seen.append(batch.transpose(1, 2).reshape(-1, 5))
        found, state = scale_of(state, batch)
        rows = torch.cat(seen).double()
        torch.testing.assert_close(found[:-1].double(), rows.mean(dim=0), rtol=1e-5, atol=1e-5)
        wanted = rows.var(dim=0, correction=0).mean().sqrt()
        assert found[-1].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert int(state["rows"]) == 6 * 11
    targets = scaled(torch.cat(seen), found)
    torch.testing.assert_close(targets.mean(dim=0), torch.zeros(5), rtol=0, atol=1e-4)
    assert targets.var(dim=0, correction=0).mean().item() == pytest.approx(1, rel=1e-4)


def test_one_scale_stretches_no_direction() -> None:
    rows = drawn(50, 2) * torch.tensor([10.0, 1.0])
    found, _ = scale_of(scale_state((2,)), rows)
    deviations = scaled(rows, found).std(dim=0)
    assert (deviations[0] / deviations[1]).item() == pytest.approx(
        (rows.std(dim=0)[0] / rows.std(dim=0)[1]).item()
    )


def test_some_places_are_places_of_the_map() -> None:
    grid = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    found = some_places(grid, 6)
    assert torch.equal(found, grid.flatten(2)[:, :, [0, 3, 6, 9, 12, 15]])
    assert some_places(grid[:, :, :2, :2]).shape == (2, 3, 4)
    rows = drawn(2, 3)
    assert some_places(rows) is rows


def test_a_queue_forgets_its_oldest_rows_first() -> None:
    torch.manual_seed(0)
    state = queue_state((3,), size=5)
    first = state["rows"].clone()
    batches = [drawn(2, 3, seed=i) for i in range(1, 4)]
    unit = [nn.functional.normalize(batch, dim=1) for batch in batches]
    before, state = queued(state, batches[0])
    assert torch.equal(before, first), "rows of this step are compared with those before"
    _, state = queued(state, batches[1])
    torch.testing.assert_close(state["rows"], torch.cat([unit[0], unit[1], first[4:]]))
    _, state = queued(state, batches[2])
    torch.testing.assert_close(state["rows"], torch.stack([unit[2][1], unit[0][1], *unit[1], unit[2][0]]))
    assert int(state["next"]) == 1


def test_of_more_rows_than_a_queue_holds_the_last_are_kept() -> None:
    rows = drawn(7, 3)
    _, state = queued(queue_state((3,), size=4), rows)
    torch.testing.assert_close(state["rows"], nn.functional.normalize(rows[3:], dim=1))


def test_a_mask_token_is_one_for_all_rows() -> None:
    token = MaskToken((5, 8))
    found = token(torch.zeros(3, 1))
    assert found.shape == (3, 8)
    assert torch.equal(found[0], found[2])
    assert token.token.requires_grad
