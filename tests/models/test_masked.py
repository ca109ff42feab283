"""Masked autoencoders: positions, what an encoder sees, decoders, and the files they come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from toolbox import autoencoder
from torch import Tensor

from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.masked import (
    Decoder,
    decoder_for,
    fix_positions,
    patch_grid,
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


def test_a_decoder_puts_tokens_back_in_their_places() -> None:
    torch.manual_seed(0)
    decoder = Decoder(64, 32, 2, 0, (2, 2), 12).eval()
    tokens = torch.randn(2, 3, 64)
    visible = torch.tensor([[True, False, False, True], [False, True, True, False]])
    with torch.no_grad():
        found = decoder(tokens, visible)
        read = decoder.embed(tokens)
        rows = []
        for picture, shown in zip(read, visible):
            row, rest = [picture[0]], iter(picture[1:])
            row += [next(rest) if seen else decoder.mask_token[0, 0] for seen in shown]
            rows.append(torch.stack(row))
        x = torch.stack(rows) + positions(32, (2, 2), 1)
        for block in decoder.blocks:
            x = block(x)
        assert decoder.norm is not None
        assert decoder.pred is not None
        torch.testing.assert_close(found["out"], x)
        torch.testing.assert_close(found["pixels"], decoder.pred(decoder.norm(x))[:, 1:])
        first = decoder.hidden(tokens, visible, 1)
    assert not torch.allclose(first, found["out"])


def test_register_tokens_are_left_out_of_what_a_decoder_reads() -> None:
    decoder = Decoder(64, 32, 1, 0, (2, 2)).eval()
    tokens, visible = torch.randn(2, 4, 64), torch.tensor([[True, False, False, False]] * 2)
    with torch.no_grad():
        before = decoder(tokens, visible)["out"]
        tokens[:, 1:3] += 1  # between the class token and the patch
        assert torch.equal(decoder(tokens, visible)["out"], before)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": (2, 24), "width": 0}, r"students of width 192 and 384, and this one is 24 wide: say"),
        ({"tokens": (2, 24), "width": 16, "heads": 3}, "a decoder of width 16 does not divide into 3 heads"),
    ],
)
def test_decoders_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    keywords = {"width": 16, "depth": 1, "heads": 0, "ratio": 0.75, **given}
    tokens = keywords.pop("tokens")
    with pytest.raises(ValueError, match=message):
        decoder_for(tokens, (4,), (2, 2), **keywords)


@pytest.mark.parametrize(("encoder", "width", "heads"), [(192, 128, 4), (384, 256, 8)])
def test_the_paper_has_a_decoder_for_its_students(encoder: int, width: int, heads: int) -> None:
    made = decoder_for((50, encoder), (196,), (14, 14), width=0, depth=4, heads=0, ratio=0.75)
    assert made.facts == {"width": width, "depth": 4, "heads": heads, "grid": [14, 14], "pixels": 0}


# -- files ---------------------------------------------------------------------------------------------------


def official_file(path: Path, *, drop: str = "", before: str = "") -> Path:
    """An MAE file of the authors' names, of random weights; ``drop`` begins the names that are left out."""
    torch.manual_seed(1)
    network = vit()
    decoder = Decoder(64, 32, 3, 0, (2, 2), 3 * 16 * 16)
    tensors = {n: t for n, t in network.body.state_dict().items() if not n.startswith("head")}
    names = {"mask_token": "mask_token", "pos_embed": "decoder_pos_embed"}
    for name, tensor in decoder.state_dict().items():
        tensors[names.get(name, f"decoder_{name}")] = tensor
    kept = {f"{before}{n}": t.clone() for n, t in tensors.items() if not (drop and n.startswith(drop))}
    if path.suffix == ".pth":
        torch.save({"model": kept}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in kept.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "before"), [("full.pth", ""), ("ddp.pth", "module."), ("full.safetensors", "")]
)
def test_one_of_mae_s_files_is_read_whole(tmp_path: Path, name: str, before: str) -> None:
    file = official_file(tmp_path / name, before=before)
    network = build("test_vit", Wanted([], task="representation", decoder=True), weights=str(file), size=SIDE)
    assert network.decoder is not None
    assert (network.decoder.depth, network.decoder.facts["heads"], network.task) == (3, 1, "representation")
    torch.manual_seed(1)
    vit()
    same = Decoder(64, 32, 3, 0, (2, 2), 3 * 16 * 16)
    for name, tensor in same.state_dict().items():
        assert torch.equal(network.decoder.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (
            "decoder_",
            "has no decoder: the names of one .* are missing, as in MAE's files of the encoder alone",
        ),
        ("mask_token", "its decoder does not fit test_vit: it misses mask_token"),
        ("decoder_blocks.1", "its decoder does not fit test_vit: it misses blocks.1.norm1.weight"),
        ("decoder_norm", "its decoder does not fit test_vit: it misses norm.weight"),
    ],
)
def test_a_decoder_that_is_not_whole_is_refused(tmp_path: Path, drop: str, message: str) -> None:
    file = official_file(tmp_path / "part.pth", drop=drop)
    with pytest.raises(InputError, match=message):
        build("test_vit", Wanted([], task="representation", decoder=True), weights=str(file), size=SIDE)


def test_an_artifact_keeps_the_decoder_and_plain_timm_loads_the_encoder(tmp_path: Path) -> None:
    import timm

    path = autoencoder(tmp_path / "mae")
    network = build(str(path))
    assert isinstance(network, TimmModel)
    assert network.decoder is not None
    visible = torch.tensor([[True, False, False, False]] * 3)
    hidden = network.eval().call([pictures(), visible], ["decoder2"])["decoder2"]
    assert hidden.shape == (3, 5, 32)
    body = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(body(network.prepare(pictures())), network(pictures()))
    assert patch_grid(network) == (2, 2)


@pytest.mark.parametrize(
    ("taps", "shown", "message"),
    [
        (["decoder4"], True, r"no 'decoder4': the decoder of .* has blocks 1 to 3\."),
        (["decoder1"], False, r"'decoder1' is of a call that sees some of the patches\."),
    ],
)
def test_blocks_of_a_decoder_that_are_not_there(
    tmp_path: Path, taps: list[str], shown: bool, message: str
) -> None:
    network = build(str(autoencoder(tmp_path / "mae")))
    visible = [torch.tensor([[True, False, False, False]] * 3)] if shown else []
    with pytest.raises(InputError, match=message):
        network.call([pictures(), *visible], taps)


def test_a_network_for_a_task_leaves_the_decoder_out_and_says_so(tmp_path: Path) -> None:
    network = build(str(autoencoder(tmp_path / "mae")), Wanted(["a", "b"]))
    assert network.decoder is None
    assert any("the decoder of" in note and "is left out" in note for note in network.notes)
