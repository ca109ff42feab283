"""Decoders of masked autoencoders, and the files that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from toolbox import autoencoder
from torch import Tensor

from kdcli.errors import InputError
from kdcli.models.autoencoder import Decoder, decoder_for
from kdcli.models.build import Wanted, build
from kdcli.models.masked import patch_grid, positions
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
    keywords = {"width": 16, "depth": 1, "heads": 0, **given}
    tokens = keywords.pop("tokens")
    with pytest.raises(ValueError, match=message):
        decoder_for(tokens, (2, 2), **keywords)


@pytest.mark.parametrize(("encoder", "width", "heads"), [(192, 128, 4), (384, 256, 8)])
def test_the_paper_has_a_decoder_for_its_students(encoder: int, width: int, heads: int) -> None:
    made = decoder_for((50, encoder), (14, 14), width=0, depth=4, heads=0)
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
