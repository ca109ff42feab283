"""What an encoder sees of masked pictures: which patches, at which positions.

He et al. 2022, arXiv 2111.06377 (MAE): an encoder sees a few patches alone; :mod:`kdcli.models.autoencoder`
has what tells the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel


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
