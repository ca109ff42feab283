"""Decoders of masked autoencoders: made for an encoder, or read of MAE's files.

He et al. 2022, arXiv 2111.06377 (MAE). The decoder sees the encoder's tokens at their places and a learned
token at every place that was hidden. G2SD (arXiv 2302.14771) gives students thin decoders of the same kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models.masked import patch_grid, positions

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

HEAD_WIDTH = 32  # of MAE's decoders, and of G2SD's
_EPS = 1e-6


class Decoder(nn.Module):
    """A ViT over the places of all patches, which reads the encoder's tokens of some of them.

    Args:
        encoder: width of the encoder's tokens.
        width: its own.
        depth: blocks.
        heads: of attention; 0 for one to each 32 of the width, as MAE and G2SD have it.
        grid: rows and columns of patches.
        pixels: numbers that are told of each patch; 0 for none, and no norm behind the last block.

    Raises:
        ValueError: a width that its heads do not divide.
    """

    def __init__(
        self, encoder: int, width: int, depth: int, heads: int, grid: tuple[int, int], pixels: int = 0
    ) -> None:
        super().__init__()
        from timm.models.vision_transformer import Block

        heads = heads or max(width // HEAD_WIDTH, 1)
        if width % heads:
            raise ValueError(f"a decoder of width {width} does not divide into {heads} heads")
        self.facts = {"width": width, "depth": depth, "heads": heads, "grid": list(grid), "pixels": pixels}
        norm = partial(nn.LayerNorm, eps=_EPS)
        self.embed = nn.Linear(encoder, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", positions(width, grid, 1)[None])
        blocks = [Block(width, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(width) if pixels else None
        self.pred = nn.Linear(width, pixels) if pixels else None
        self.apply(_begin)
        nn.init.normal_(self.mask_token, std=0.02)

    @property
    def depth(self) -> int:
        """Number of its blocks."""
        return len(self.blocks)

    def forward(self, tokens: Tensor, visible: Tensor) -> dict[str, Tensor]:
        """What the last block gives, and where it tells them the pixels.

        Args:
            tokens: [B, P + K, D] of the encoder: P prefix tokens, of which the first, the class token, is
                read, then those of the visible patches in their order.
            visible: bool [B, N], K in each row.

        Returns:
            ``out`` [B, 1 + N, W] (class token first), without a norm; ``pixels`` [B, N, Q].
        """
        out = self.hidden(tokens, visible)
        if self.pred is None or self.norm is None:
            return {"out": out}
        return {"out": out, "pixels": self.pred(self.norm(out))[:, 1:]}

    def hidden(self, tokens: Tensor, visible: Tensor, blocks: int | None = None) -> Tensor:
        """[B, 1 + N, W] behind so many of the blocks; those that follow are not run."""
        positions: Any = self.pos_embed
        if visible.shape[1] != positions.shape[1] - 1:
            raise InputError(
                f"a decoder of {positions.shape[1] - 1} patches is given pictures of {visible.shape[1]}."
            )
        read: Tensor = self.embed(tokens)
        seen = int(visible[0].sum())
        whole = self.mask_token.to(read.dtype).expand(len(read), visible.shape[1], -1)
        places = visible[..., None].expand_as(whole)
        whole = whole.masked_scatter(places, read[:, read.shape[1] - seen :])
        x = torch.cat([read[:, :1], whole], dim=1) + positions
        for block in self.blocks[:blocks]:
            x = block(x)
        return x


def _begin(module: nn.Module) -> None:
    """MAE's initial weights: Xavier's uniform ones of linear layers, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_OFFICIAL = {
    "mask_token": "mask_token",
    "decoder_pos_embed": "pos_embed",
    "decoder_embed.": "embed.",
    "decoder_blocks.": "blocks.",
    "decoder_norm.": "norm.",
    "decoder_pred.": "pred.",
}
"""Names in MAE's files, and those of :class:`Decoder`."""


def official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's tensors of one of MAE's files, by the names that :class:`Decoder` has.

    What stands before the names of all of them in the file is left out.
    """
    anchor = "decoder_embed.weight"
    prefix = next((name.removesuffix(anchor) for name in tensors if name.endswith(anchor)), "")
    found = {}
    for name, tensor in ((n.removeprefix(prefix), t) for n, t in tensors.items() if n.startswith(prefix)):
        for theirs, ours in _OFFICIAL.items():
            if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
                found[ours + name.removeprefix(theirs)] = tensor
                break
        else:
            if name.startswith("decoder_"):
                found[name] = tensor  # none of a decoder's, which its reader refuses
    return found


def read_decoder(tensors: Mapping[str, Tensor], network: TimmModel, heads: int, where: str) -> Decoder:
    """A decoder of its tensors, none of which may be missing.

    Args:
        tensors: by the names of :class:`Decoder`.
        network: the encoder.
        heads: of attention; 0 for one to each 32 of the width.
        where: the file, for messages.

    Raises:
        InputError: tensors that are missing, too many, or of other shapes.
    """
    embed, pred = tensors.get("embed.weight"), tensors.get("pred.weight")
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    if embed is None or pred is None or embed.ndim != 2 or not depth:
        raise InputError(
            f"{where} has no decoder: the names of one (mask_token, decoder_embed, decoder_blocks, …) are "
            "missing, as in MAE's files of the encoder alone. Take the file with both "
            "(mae_pretrain_vit_base_full.pth for mae_pretrain_vit_base.pth)."
        )
    grid = patch_grid(network)
    try:
        made = Decoder(embed.shape[1], embed.shape[0], depth, heads, grid, len(pred))
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    own, tensors = made.state_dict(), dict(tensors)
    if "pos_embed" in tensors and tensors["pos_embed"].shape != own["pos_embed"].shape:
        tensors["pos_embed"] = own["pos_embed"]  # of another number of patches: sines and cosines too
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    missing = [name for name in own if name not in tensors]
    other = [name for name in tensors if name not in own or tuple(tensors[name].shape) != shapes[name]]
    if missing or other:
        kind = f"misses {missing[0]}" if missing else f"has another {other[0]}"
        raise InputError(f"{where}: its decoder does not fit {network.name}: it {kind}.")
    if embed.shape[1] != getattr(network.body, "embed_dim", None):
        raise InputError(
            f"{where}: its decoder reads tokens of {embed.shape[1]} numbers, not {network.name}'s."
        )
    made.load_state_dict(tensors)
    return made


def decoder_for(
    tokens: tuple[int, ...],
    patches: tuple[int, ...],
    picture: tuple[int, ...] = (),
    *,
    width: int,
    depth: int,
    heads: int,
) -> Decoder:
    """A fresh decoder for an encoder.

    Args:
        tokens: shape [P + K, D] of the encoder's tokens of a masked picture.
        patches: shape [h, w] of the grid.
        picture: shape [C, H, W] of the encoder's input, where its pixels are told.
        width: of the decoder; 0 for G2SD's: 128 for encoders of 192 and 256 for those of 384.
        depth: blocks.
        heads: see :class:`Decoder`.

    Raises:
        ValueError: a width that the paper has no decoder for, or that its heads do not divide.
    """
    encoder = tokens[1]
    if not width and encoder not in _PAPER:
        raise ValueError(
            f"the paper has decoders for students of width {' and '.join(map(str, _PAPER))}, and this one is "
            f"{encoder} wide: say how wide its decoder is (--set method.decoder=…)"
        )
    rows, columns = patches
    pixels = picture[0] * (picture[1] // rows) * (picture[2] // columns) if picture else 0
    return Decoder(encoder, width or _PAPER[encoder], depth, heads, (rows, columns), pixels)


_PAPER = {192: 128, 384: 256}  # G2SD's decoders, by the width of the encoder


class Predictor(nn.Module):
    """Two layers from the student's decoder to the teacher's, as wide as the teacher's (G2SD)."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        super().__init__()
        width, wanted = student[-1], teacher[-1]
        self.fc1, self.act, self.fc2 = nn.Linear(width, wanted), nn.GELU(), nn.Linear(wanted, wanted)
        self.apply(_begin)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, W'] of [B, N, W]."""
        return self.fc2(self.act(self.fc1(x)))
