"""What taps, columns and derives are: a tensor, the layers of a pattern, or a list with an entry per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from kdcli.errors import InputError
from kdcli.models.taps import Layers


def each(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply to a tensor, or to every tensor in lists, tuples and dictionaries; what is none stays."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: each(entry, function) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        made = (each(entry, function) for entry in value)
        return tuple(made) if isinstance(value, tuple) else _kind(value)(made)
    return value


def _kind(value: list[Any]) -> type[list[Any]]:
    return Layers if isinstance(value, Layers) else list


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value."""
    found: list[Tensor] = []
    each(value, found.append)
    yield from found


def needs_gradient(value: Any) -> bool:
    """Whether a gradient goes to any tensor in it."""
    if isinstance(value, Tensor):
        return value.requires_grad
    return any(tensor.requires_grad for tensor in tensors(value))


def selected(value: Any, mask: Tensor) -> Any:
    """Rows of a tensor, or of each layer, or entries of a list, where a mask [B] is true."""
    if isinstance(value, Layers):
        return Layers(selected(layer, mask) for layer in value)
    if isinstance(value, (list, tuple)):
        return [entry for entry, kept in zip(value, mask.tolist()) if kept]
    return value[mask]


def count_rows(value: Any) -> int | None:
    """How many rows a value has; None of what has none, or of layers that differ in it."""
    if isinstance(value, Layers):
        counts = {count_rows(layer) for layer in value}
        return counts.pop() if len(counts) == 1 else None
    if isinstance(value, Tensor):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, (list, tuple)) else None


def gathered(value: Any) -> Any:
    """The rows of all processes in their order, [processes · B, …], of a tensor or of each layer.

    Those of other processes are constants. A gradient is averaged over processes, and each computes the whole
    of what relates all rows: so what it gives its own counts as often as there are processes.

    Raises:
        InputError: a list of rows, or a single number.
    """
    if not is_gatherable(value):
        raise InputError(
            "only tensors with rows are gathered over processes, no lists and no single numbers."
        )
    return each(value, _gathered)


def is_gatherable(value: Any) -> bool:
    """Whether it is a tensor with rows, or layers of such."""
    if isinstance(value, Layers):
        return all(is_gatherable(layer) for layer in value)
    return isinstance(value, Tensor) and value.ndim > 0


def _gathered(rows: Tensor) -> Tensor:
    distributed = torch.distributed
    world = distributed.get_world_size()
    plain = rows.detach().contiguous()
    sent = plain.byte() if plain.dtype == torch.bool else plain  # gloo has no booleans
    parts = [torch.empty_like(sent) for _ in range(world)]
    distributed.all_gather(parts, sent)
    parts = [part.to(rows.dtype) for part in parts]
    if rows.requires_grad and torch.is_grad_enabled():
        own = rows.view_as(rows)
        own.register_hook(lambda gradient: gradient * world)
        parts[distributed.get_rank()] = own
    return torch.cat(parts)


def world_size() -> int:
    """Processes of the run."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
