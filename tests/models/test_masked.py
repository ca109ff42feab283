"""Masked pictures: positions, and what an encoder sees."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.masked import (
    fix_positions,
    positions,
    random_visible,
    seeing,
    seen_of,
    visible_of,
)
from kdcli.models.timm import TimmModel

SIDE = 32
BARE = Wanted([], task="representation")


def vit(name: str = "test_vit", **more: Any) -> TimmModel:
    network = build(name, BARE, pretrained=False, size=SIDE, **more)
    assert isinstance(network, TimmModel)
    return network.eval()


def pictures(count: int = 3) -> Tensor:
    return torch.randint(
        256, (count, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def test_positions_are_sines_and_cosines_of_columns_then_rows() -> None:
    table = positions(8, (2, 3), 1)
    assert table.shape == (7, 8)
    assert not table[0].any()
    for row in range(2):
        for column in range(3):
            wanted = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 2) for i in range(2)]
                wanted += [*map(math.sin, angles), *map(math.cos, angles)]
            assert table[1 + 3 * row + column].tolist() == pytest.approx(wanted, abs=1e-6)


def test_positions_need_a_width_that_divides_by_4() -> None:
    with pytest.raises(ValueError, match="a width that divides by 4, not 6"):
        positions(6, (2, 2))


def test_as_many_patches_are_seen_of_each_picture() -> None:
    torch.manual_seed(0)
    visible = random_visible(torch.zeros(50, 1), torch.arange(16).view(4, 4), ratio=0.7)
    assert visible.sum(dim=1).tolist() == [int(16 * (1 - 0.7))] * 50
    assert visible.float().mean(dim=0).min() > 0, "every place is seen in some picture"


@pytest.mark.parametrize(("patches", "ratio", "seen"), [(4, 0.9, 0), (4, 0.001, 3), (1, 0.5, 0)])
def test_a_mask_hides_some_and_shows_some(patches: int, ratio: float, seen: int) -> None:
    if 0 < seen < patches:
        assert seen_of(patches, ratio) == seen
        return
    message = f"shows {seen} of {patches} patches: it must hide some and show some"
    with pytest.raises(ValueError, match=message):
        seen_of(patches, ratio)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit4"])
def test_an_encoder_sees_what_it_is_shown_behind_all_of_its_prefix_tokens(name: str) -> None:
    """As if the other tokens had been taken out by hand before the first block."""
    network, x = vit(f"{name},patch_size=8"), pictures()
    visible = visible_of(torch.rand(3, 16, generator=torch.Generator().manual_seed(1)), ratio=0.75)
    body: Any = network.body
    with torch.no_grad():
        found = network.call([x, visible], ["tokens"])["tokens"]
        tokens = body._pos_embed(body.patch_embed(network.prepare(x)))
        prefix = body.num_prefix_tokens
        kept = torch.stack(
            [torch.cat([row[:prefix], row[prefix:][shown]]) for row, shown in zip(tokens, visible)]
        )
        wanted = body.norm(body.blocks(body.norm_pre(kept)))
    assert found.shape[1] == prefix + 4
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_token_stands_for_what_is_hidden() -> None:
    network, x = vit("test_vit,patch_size=8"), pictures()
    visible = visible_of(torch.rand(3, 16, generator=torch.Generator().manual_seed(1)), ratio=0.5)
    token = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        grid = network.call([x, visible, token], ["grid"])["grid"]
        changed = x.clone()
        for picture, shown in zip(changed, visible.view(3, 4, 4)):
            picture.view(3, 4, 8, 4, 8).permute(1, 3, 0, 2, 4)[~shown] = 7
        same = network.call([changed, visible, token], ["grid"])["grid"]
        other = network.call([x, visible, token + 1], ["grid"])["grid"]
    assert grid.shape == (3, 64, 4, 4)
    torch.testing.assert_close(grid, same)
    assert not torch.allclose(grid, other)


def test_whole_pictures_are_seen_again_afterwards() -> None:
    network, x = vit(), pictures()
    with torch.no_grad():
        before = network(x)
        with seeing(network, torch.tensor([[True, False, False, False]] * 3)):
            pass
        assert torch.equal(network(x), before)


def test_networks_of_other_patches_are_refused() -> None:
    message = (
        r"test_vit divides a picture into 2x2 patches, and another network of this run into 16: both must "
        r"have as many\. --image-size sets the student's"
    )
    with pytest.raises(InputError, match=message):
        vit().call([pictures(), torch.ones(3, 16, dtype=torch.bool)], ["tokens"])


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_a_network_without_patches_is_refused(name: str) -> None:
    network = build(name, BARE, pretrained=False)
    with pytest.raises(InputError, match=f"{name} .* has no patches that could be hidden from it"):
        network.call([pictures(), torch.ones(3, 4, dtype=torch.bool)], ["tokens"])


def test_new_positions_are_fixed_and_learned_ones_are_left() -> None:
    network = vit()
    body: Any = network.body
    fix_positions(network)
    assert torch.equal(body.pos_embed[0], positions(64, (2, 2), 1))
    assert not body.pos_embed.requires_grad
    learned = vit()
    learned.trained = "artifact"
    before = learned.body.pos_embed.clone()  # type: ignore[union-attr, operator]
    fix_positions(learned)
    assert torch.equal(learned.body.pos_embed, before)  # type: ignore[arg-type]


def test_a_student_without_a_class_token_is_refused() -> None:
    for arguments in ("class_token=false,global_pool=avg", "class_token=false,global_pool=avg,reg_tokens=2"):
        with pytest.raises(InputError, match="has no class token, which decoders start with"):
            fix_positions(vit(f"test_vit,{arguments}"))


def test_a_width_without_sines_and_cosines_is_refused() -> None:
    with pytest.raises(InputError, match="a width that divides by 4, not 66"):
        fix_positions(vit("test_vit,embed_dim=66,num_heads=2"))


def test_patch_dropout_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"has no patches that could be hidden from it: .* without patch dropout"
    ):
        fix_positions(vit("test_vit,patch_drop_rate=0.5"))
