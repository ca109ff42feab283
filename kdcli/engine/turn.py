"""A turn as one ``nn.Module``: its trained parties are its children, the others are held outside.

``forward`` reads what the terms need from the turn's graph and returns the terms and their scalar, so that
accelerate can prepare the turn as it stands. The gradient of a step does not depend on how many processes
share the batch: means over rows divide by the global count of rows, and relations between rows see the rows
of all processes. Micro-batches share means over rows too; a relation sees one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.graph import Graph, each, needs_gradient
from kdcli.words import Term, Turn
from kdcli.words.analysis import split_reference


class TurnModule(nn.Module):
    """Runs one turn.

    Args:
        turn: its calls, derives and terms.
        parties: every party of the method by name, as :class:`Graph` has them.
        trained_elsewhere: names of held ones that another turn trains: they are called in the mode that
            they are trained in. All others that are held stay in eval mode.
        shared: whether the processes share each batch; else every one of them has a batch of its own.
    """

    def __init__(
        self,
        turn: Turn,
        parties: Mapping[str, nn.Module],
        trained_elsewhere: Collection[str] = (),
        *,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self._world = _world_size() if shared else 1
        self.turn = turn
        self.trained = nn.ModuleDict({name: parties[name] for name in turn.trains})
        # Held in a tuple, so outside the module tree: neither wrapped, saved nor moved.
        self._held = ({c.party: parties[c.party] for c in turn.calls if c.party not in turn.trains},)
        self._elsewhere = trained_elsewhere
        self._graph = (Graph(turn, self.party),)
        self.train(self.training)

    def party(self, name: str) -> nn.Module:
        """The network behind a party's name."""
        return self.trained[name] if name in self.trained else self._held[0][name]

    def forward(self, batch: dict[str, Tensor], share: Tensor, done: float) -> dict[str, Tensor]:
        """The terms and their weighted sum.

        Args:
            batch: columns; ``x`` are views, ``labelled`` selects rows. A column named like a tap
                (``t.logits``) stands for the tap, and its call is not run.
            share: [2] factors: rows here / rows of the global batch, times the number of processes; first
                for all rows, then for ``labelled``.
            done: part of the phase, for scheduled weights. Nothing is computed for a term that weighs 0 now.

        Returns:
            ``loss``, and each term under its name (unweighted, with its share), all scalars.
        """
        values: dict[str, Any] = dict(batch)
        results: dict[str, Tensor] = {}
        loss = share.new_zeros(())
        for term in self.turn.terms:
            weight = term.weight(done) if callable(term.weight) else term.weight
            value = self.term(term, values, share) if weight or term.watched else share.new_zeros(())
            loss = loss + weight * value
            results[term.name] = value.detach()
        if torch.is_grad_enabled() and not loss.requires_grad:  # nothing weighs anything now
            loss = loss + 0.0 * sum(p.sum() for p in self.trained.parameters() if p.requires_grad)
        return {"loss": loss, **results}

    def term(self, term: Term, values: dict[str, Any], share: Tensor) -> Tensor:
        """One term with its share; ``values`` grow by what it needed."""
        arguments = [self._graph[0].value(a, values) for a in term.args]
        if term.rows is None:
            if term.scope == "batch":
                return self._related(term, arguments) * share[0]
            return term.loss(*arguments, **term.keywords) * share[0]
        mask = values[term.rows]
        if not mask.any():  # nothing selected here: zero, with a zero gradient so that every process has one
            return sum((a.sum() * 0.0 for a in arguments if needs_gradient(a)), share.new_zeros(()))
        if not mask.all():
            arguments = [
                a if split_reference(reference)[2] == ":" else each(a, lambda tensor: tensor[mask])
                for reference, a in zip(term.args, arguments)  # parameters have no rows of the batch
            ]
        return term.loss(*arguments, **term.keywords) * share[1]

    def _related(self, term: Term, arguments: list[Any]) -> Tensor:
        """A relation between the rows of all processes.

        Each process computes it whole, with a gradient for its own rows only; as gradients are averaged over
        processes, that gradient counts as often as there are processes.
        """
        if self._world > 1:
            arguments = [each(a, _gathered) for a in arguments]
        value = term.loss(*arguments, **term.keywords)
        return value + (self._world - 1) * (value - value.detach())

    def train(self, mode: bool = True) -> TurnModule:
        """Train mode for all parties in training; the frozen ones stay in eval mode."""
        super().train(mode)
        for name, module in self._held[0].items():
            module.train(mode and name in self._elsewhere)
        return self


def _world_size() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _gathered(rows: Tensor) -> Tensor:
    """[processes · B, …]: the rows of all processes in their order, constants but for this one's own."""
    parts = [torch.empty_like(rows) for _ in range(_world_size())]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    parts[torch.distributed.get_rank()] = rows
    return torch.cat(parts)
