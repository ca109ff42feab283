"""Batch norms that would see one value of each channel, of which there is no variance to learn by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def lone_values() -> Iterator[list[nn.Module]]:
    """The batch norms that are run in this block, in whatever mode, on one value of each channel."""
    found: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and isinstance(x := inputs[0], Tensor) and x.numel() == x.shape[1]:
            found.append(module)

    hook = register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        hook.remove()


def named_in(modules: list[nn.Module], parties: Mapping[str, nn.Module]) -> str:
    """``party: path`` of the first module of some that is part of a party, empty if none is."""
    wanted = set(map(id, modules))
    for name, party in parties.items():
        for path, module in party.named_modules():
            if id(module) in wanted:
                return f"{name}: {path}"
    return ""
