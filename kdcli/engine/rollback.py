"""The way back to before a step whose loss is no number, and a look whether weights still are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.errors import Diverged


class Buffers:
    """The buffers of networks as they were before a step: a forward in training moves those of batch norms.

    Args:
        parties: the networks.
    """

    def __init__(self, parties: Iterable[nn.Module]) -> None:
        self._own = [buffer for party in parties for buffer in party.buffers()]
        self._kept = [torch.empty_like(buffer) for buffer in self._own]

    @torch.no_grad()
    def keep(self) -> None:
        """Keep them as they are now."""
        if self._own:
            torch._foreach_copy_(self._kept, self._own)

    @torch.no_grad()
    def put_back(self) -> None:
        """Make them what they were when they were kept."""
        if self._own:
            torch._foreach_copy_(self._own, self._kept)


def all_finite(parties: Iterable[nn.Module]) -> bool:
    """Whether every weight and every running statistic is a number.

    A step can spoil them without a loss that shows it: the last one, or where a batch norm divides by Inf.
    """
    return all(bool(tensor.isfinite().all()) for party in parties for tensor in _learned(party))


def _learned(party: nn.Module) -> Iterable[Tensor]:
    yield from party.parameters()
    for module in party.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            yield from (buffer for buffer in module.buffers() if buffer.is_floating_point())


@contextmanager
def answering_in_numbers(network: nn.Module) -> Iterator[None]:
    """A block that raises Diverged where a network answers with NaN or Inf; its weights may be numbers."""

    def look(module: nn.Module, inputs: Any, answer: Any) -> None:
        if isinstance(answer, Tensor) and not answer.isfinite().all():
            raise Diverged("logits of validation pictures became NaN or Inf")

    hook = network.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
