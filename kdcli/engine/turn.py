"""A turn as one ``nn.Module``: its trained parties are its children, the others are held outside.

``forward`` reads what the terms need from the turn's graph and returns the terms and their scalar, so that
accelerate can prepare the turn as it stands. The gradient of a step does not depend on how many processes
share the batch: means over rows divide by the global count of rows, and relations between rows see the rows
of all processes, or those that are selected of them. Micro-batches share means over rows too; a relation sees
one of them, and so does what updates a state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.graph import Graph
from kdcli.engine.states import States
from kdcli.engine.values import gathered, needs_gradient, selected, tensors, world_size
from kdcli.words import Term, Turn


class TurnModule(nn.Module):
    """Runs one turn.

    Args:
        turn: its calls, derives and terms.
        parties: every party of the method by name, as :class:`Graph` has them.
        trained_elsewhere: names of held ones that another turn trains: they are called in the mode that
            they are trained in. All others that are held stay in eval mode.
        shared: whether the processes share each batch; else every one of them has a batch of its own.
        states: of the derives, by name; what they make of them replaces them after a forward in training.
    """

    def __init__(
        self,
        turn: Turn,
        parties: Mapping[str, nn.Module],
        trained_elsewhere: Collection[str] = (),
        *,
        shared: bool = True,
        states: States | None = None,
    ) -> None:
        super().__init__()
        self._world = world_size() if shared else 1
        self.turn = turn
        self.trained = nn.ModuleDict({name: parties[name] for name in turn.trains})
        # Held in a tuple, so outside the module tree: neither wrapped, saved nor moved.
        self._held = ({c.party: parties[c.party] for c in turn.calls if c.party not in turn.trains},)
        self._elsewhere = trained_elsewhere
        self._states = states or {}
        self._graph = (Graph(turn, self.party, self._states, self._world),)
        self._standing = tuple(derive.out for derive in turn.derives if derive.state is not None)
        self.observe: Callable[[Mapping[str, Any]], dict[str, Tensor]] | None = None
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
            ``loss``, and each term under its name (unweighted, with its share), all scalars; beside them what
            ``observe`` makes, in training, of the columns and of what the terms have found.
        """
        values: dict[str, Any] = dict(batch)
        self._graph[0].updates = {}  # of a forward that was broken off
        results: dict[str, Tensor] = {}
        loss = share.new_zeros(())
        for term in self.turn.terms:
            weight = term.weight(done) if callable(term.weight) else term.weight
            value = self.term(term, values, share) if weight or term.watched else share.new_zeros(())
            loss = loss + weight * value
            results[term.name] = value.detach()
        if torch.is_grad_enabled() and not loss.requires_grad:  # nothing weighs anything now
            loss = loss + 0.0 * sum(p.sum() for p in self.trained.parameters() if p.requires_grad)
        if self._standing:
            self._update(values)
        if self.observe is not None and self.training:
            results |= self.observe(values)
        return {"loss": loss, **results}

    def _update(self, values: dict[str, Any]) -> None:
        """Replace what derives update of their states, those that no term has read too."""
        for out in self._standing:
            self.value(out, values)
        if self.training:
            for state, new in self._graph[0].updates.items():
                self._states[state].update(new)

    def value(self, reference: str, values: dict[str, Any]) -> Any:
        """What a reference names; ``values`` grow by what it needed."""
        return self._graph[0].value(reference, values)

    def has_rows(self, reference: str) -> bool:
        """Whether what a reference names has rows of the batch."""
        return self._graph[0].rows[reference]

    def term(self, term: Term, values: dict[str, Any], share: Tensor) -> Tensor:
        """One term with its share; ``values`` grow by what it needed."""
        arguments = self._graph[0].arguments(term.args, term.scope, values)
        if term.rows is None:
            return term.loss(*arguments, **term.keywords) * share[0]
        mask, part = values[term.rows], share[1]
        if term.scope == "batch" and self._world > 1:
            mask, part = gathered(mask), gathered(share[1:2]).mean()  # how many of all there are
        if not mask.any():  # nothing selected: zero, with a zero gradient so that every process has one
            found = (t.sum() * 0.0 for a in arguments if needs_gradient(a) for t in tensors(a))
            return sum(found, share.new_zeros(()))
        if not mask.all():
            arguments = [
                selected(a, mask) if self.has_rows(reference) else a
                for reference, a in zip(term.args, arguments)
            ]
        return term.loss(*arguments, **term.keywords) * part

    def train(self, mode: bool = True) -> TurnModule:
        """Train mode for all parties in training; the frozen ones stay in eval mode."""
        super().train(mode)
        for name, module in self._held[0].items():
            module.train(mode and name in self._elsewhere)
        return self
