"""What watches that a training stays one of numbers, and knows the way back to before a step that was not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.artifacts.store import Output
from kdcli.engine.optim import make_step
from kdcli.engine.runtime import Runtime
from kdcli.errors import Diverged, NotFinite


class Guard:
    """Looks after the trained networks of a run.

    Args:
        trained: by name.
        runtime: its processes, which agree whether weights are numbers.
        output: whose committed state is what is left of a run that diverges.
        remedy: what the message advises.
        keeps: whether a step can be undone: then the buffers before it are kept.

    Attributes:
        stepped: whether a turn of this step has changed weights already, so that it cannot be undone.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Module],
        runtime: Runtime,
        output: Output,
        remedy: str,
        *,
        keeps: bool = True,
    ) -> None:
        self._trained, self._runtime, self._output, self._remedy = trained, runtime, output, remedy
        self._buffers = Buffers(trained.values() if keeps else ())
        self.stepped = False

    def begin(self) -> None:
        """A step begins."""
        self._buffers.keep()
        self.stepped = False

    def undo(self) -> bool:
        """Go back to before the step, in which nothing has stepped; returns whether that is worth keeping."""
        self._buffers.put_back()
        return self._finite()

    def make_step(self, optimizer: Any, number: int) -> None:
        """Step number ``number`` of an optimiser. Raises Diverged where it is too large for the weights."""
        try:
            make_step(optimizer)
        except Diverged as error:
            raise self.error(f"{error} in step {number}") from error
        self.stepped = True

    def refuse_spoilt(self, step: int) -> None:
        """Raise Diverged for weights that are no numbers after some steps, which no later loss may show."""
        if not self._finite():
            raise self.error(f"weights became NaN or Inf by step {step}")

    def _finite(self) -> bool:
        """On all processes: each may have batch norms of its own."""
        spoilt = not all_finite(self._trained.values())
        return self._runtime.largest([float(spoilt)])[0] == 0

    @contextmanager
    def answering(self, network: nn.Module, step: int) -> Iterator[None]:
        """A block that raises Diverged where a network answers with NaN or Inf, by weights that are none."""

        def look(module: nn.Module, inputs: Any, answer: Any) -> None:
            if isinstance(answer, Tensor) and not answer.isfinite().all():
                raise self.error(f"logits of validation pictures became NaN or Inf by step {step}")

        hook = network.register_forward_hook(look)
        try:
            yield
        except NotFinite as error:
            raise self.error(f"by step {step} {error}") from error
        finally:
            hook.remove()

    def error(self, what: str) -> Diverged:
        """The error that says what happened, which state is left, and what to do."""
        found = self._output.last_state()
        kept = f" The state after step {found[0]} is kept." if found else ""
        return Diverged(f"{what}.{kept} {self._remedy}")


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
