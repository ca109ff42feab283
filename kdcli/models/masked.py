"""Masked autoencoders: which patches are seen, an encoder that sees those alone, and the decoder of all.

He et al. 2022, arXiv 2111.06377 (MAE). The decoder sees the encoder's tokens at their places and a learned
token at every place that was hidden. G2SD (arXiv 2302.14771) gives students thin decoders of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

HEAD_WIDTH = 32  # of MAE's decoders, and of G2SD's
_EPS = 1e-6


def random_visible(x: Tensor, patches: Tensor, *, ratio: float) -> Tensor:
    """Which patches of each picture are seen, bool [B, N]: int(N·(1 − ratio)) of them, drawn anew.

    Args:
        x: [B, …], for the number of pictures.
        patches: [h, w], numbers of N = h·w patches.
        ratio: part that is hidden.
    """
    return visible_of(torch.rand(len(x), patches.numel(), device=patches.device), ratio=ratio)


def visible_of(noise: Tensor, *, ratio: float) -> Tensor:
    """The same of noise [B, N] in [0, 1): the patches of the smallest numbers are seen (MAE)."""
    seen = seen_of(noise.shape[1], ratio)
    order = noise.argsort(dim=1, stable=True)
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, order[:, :seen], True)


def seen_of(patches: int, ratio: float) -> int:
    """How many of so many patches are seen. Raises ValueError where it would be none, or all of them."""
    seen = int(patches * (1 - ratio))
    if not 0 < seen < patches:
        raise ValueError(
            f"a mask of {ratio:g} shows {seen} of {patches} patches: it must hide some and show some"
        )
    return seen


def positions(width: int, grid: tuple[int, int], prefix: int = 0) -> Tensor:
    """Fixed position embeddings [prefix + h·w, width] of sines and cosines, rows of the prefix zero.

    As MAE's code has them: half of the width says the column, half the row, each with its sines first.

    Raises:
        ValueError: a width that does not divide by 4.
    """
    if width % 4:
        raise ValueError(f"sines and cosines of rows and columns need a width that divides by 4, not {width}")
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    parts = [
        wave(places.flatten()[:, None] * rates)
        for places in (columns, rows)
        for wave in (torch.sin, torch.cos)
    ]
    table = torch.cat([torch.zeros(prefix, width, dtype=torch.float64), torch.cat(parts, dim=1)])
    return table.float()


def fix_positions(network: TimmModel) -> None:
    """Give a ViT of random weights sines and cosines for position embeddings, which stay as they are.

    MAE and G2SD train with them. A network that has learned its own keeps them, and goes on learning them.

    Raises:
        InputError: no plain ViT with a class token, or of a width that there are no such positions for.
    """
    body: Any = network.body
    patch_grid(network)
    if body.cls_token is None:
        raise InputError(
            f"{network.name} ({network.architecture}) has no class token, which decoders start with."
        )
    table = getattr(body, "pos_embed", None)
    if network.trained != "random" or not isinstance(table, Tensor) or table.ndim != 3:
        return
    grid = patch_grid(network)
    try:
        made = positions(table.shape[-1], grid, table.shape[1] - grid[0] * grid[1])
    except ValueError as error:
        raise InputError(f"{network.name}: {error}.") from error
    with torch.no_grad():
        table.copy_(made.to(table))
    table.requires_grad_(False)


def patch_grid(network: TimmModel) -> tuple[int, int]:
    """Rows and columns of patches of a ViT's pictures. Raises InputError for a network without patches."""
    grid = getattr(getattr(network.body, "patch_embed", None), "grid_size", None)
    plain = isinstance(getattr(network.body, "patch_drop", None), nn.Identity)
    if grid is None or not plain or not hasattr(network.body, "num_prefix_tokens"):
        raise InputError(
            f"{network.name} ({network.architecture}) has no patches that could be hidden from it: take a "
            "plain ViT of timm (VisionTransformer) without patch dropout, or a method that hides none."
        )
    return int(grid[0]), int(grid[1])


@contextmanager
def seeing(network: TimmModel, visible: Tensor, token: Tensor | None = None) -> Iterator[None]:
    """A block in which a ViT sees some patches of each picture alone, behind all of its prefix tokens.

    Args:
        network: a plain ViT.
        visible: bool [B, N], as many in each row unless there is a token.
        token: [B, D], which stands in the place of the others (iBOT, arXiv 2111.07832).

    Raises:
        InputError: a network without patches, or of another number of them.
    """
    rows, columns = patch_grid(network)
    if visible.shape[1] != rows * columns:
        raise InputError(
            f"{network.name} divides a picture into {rows}x{columns} patches, and another network of this "
            f"run into {visible.shape[1]}: both must have as many. --image-size sets the student's; its "
            "patches must fit the teacher's grid."
        )
    body: Any = network.body
    prefix = body.num_prefix_tokens

    def kept(_module: nn.Module, _inputs: Any, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :prefix], _chosen(tokens[:, prefix:], visible)], dim=1)

    def replaced(_module: nn.Module, _inputs: Any, patches: Tensor) -> Tensor:
        assert token is not None
        shown = visible.view(len(patches), *patches.shape[1:-1], 1)
        return torch.where(
            shown, patches, token.to(patches.dtype).view(len(patches), *[1] * (patches.ndim - 2), -1)
        )

    place, hook = (body.patch_drop, kept) if token is None else (body.patch_embed, replaced)
    handle = place.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _chosen(tokens: Tensor, visible: Tensor) -> Tensor:
    """[B, K, D] of [B, N, D], in their order; K in each row."""
    return tokens[visible].unflatten(0, (len(tokens), -1))


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
    visible: tuple[int, ...],
    patches: tuple[int, ...],
    picture: tuple[int, ...] = (),
    *,
    width: int,
    depth: int,
    heads: int,
    ratio: float,
) -> Decoder:
    """A fresh decoder for an encoder.

    Args:
        tokens: shape [P + K, D] of the encoder's tokens of a masked picture.
        visible: shape [N] of which patches are seen.
        patches: shape [h, w] of the grid.
        picture: shape [C, H, W] of the encoder's input, where its pixels are told.
        width: of the decoder; 0 for G2SD's: 128 for encoders of 192 and 256 for those of 384.
        depth: blocks.
        heads: see :class:`Decoder`.
        ratio: part of the patches that is hidden.

    Raises:
        ValueError: a mask that shows nothing, a width that the paper has no decoder for.
    """
    seen_of(visible[0], ratio)
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
