"""Edits of a turn, bound to their parameters: gradients before they are clipped, weights after a step."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from kdcli.engine.states import States, checked
from kdcli.errors import InputError, nearest
from kdcli.words import Edit, Turn


class Edits:
    """The edits of one turn.

    Args:
        turn: whose.
        parties: by name.
        states: of the edits, by name; replaced where an edit updates them.

    Raises:
        InputError: a pattern that fits no trained parameter.
    """

    def __init__(self, turn: Turn, parties: Mapping[str, nn.Module], states: States) -> None:
        self._states = states
        bound = [(edit, edited(edit, parties[edit.party])) for edit in turn.edits]
        self._gradients = [pair for pair in bound if pair[0].on == "gradient"]
        self._weights = [pair for pair in bound if pair[0].on == "weights"]

    @torch.no_grad()
    def of_gradients(self) -> None:
        """Change the gradients that are there."""
        for edit, parameters in self._gradients:
            gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
            weights = {name: parameters[name].detach() for name in gradients}
            self._apply(edit, gradients, weights)

    @torch.no_grad()
    def of_weights(self) -> None:
        """Change the weights."""
        for edit, parameters in self._weights:
            self._apply(edit, {name: p.detach() for name, p in parameters.items()})

    def _apply(self, edit: Edit, tensors: Mapping[str, Tensor], *more: Mapping[str, Tensor]) -> None:
        new, changes = made_by(edit, self._states, tensors, *more)
        owner = {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors.items()}
        for name, tensor in new.items():  # one that is another's, as it was, is kept before that one changes
            if owner.get(tensor.untyped_storage().data_ptr(), name) != name:
                new[name] = tensor.clone()
        for name, tensor in new.items():
            tensors[name].copy_(tensor)
        if edit.state is not None:
            self._states[edit.state.name].update(changes)


def edited(edit: Edit, party: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of a party that an edit names, by name.

    Raises:
        InputError: a pattern that fits none of them.
    """
    trained = {name: p for name, p in party.named_parameters() if p.requires_grad}
    for pattern in edit.parameters:
        if not any(fnmatchcase(name, pattern) for name in trained):
            raise InputError(
                f"edit {edit.name}: {edit.party} has no trained parameter '{pattern}'."
                + nearest(pattern, trained)
            )
    return {n: p for n, p in trained.items() if any(fnmatchcase(n, pattern) for pattern in edit.parameters)}


def made_by(
    edit: Edit, states: States, *given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What an edit makes of tensors (it changes those of the first mapping), and of its state.

    Raises:
        ValueError: a tensor that it was not given, or of another shape; see also :func:`checked`.
    """
    who, changes = f"edit {edit.name}", {}
    if edit.state is None:
        new = edit.function(*map(dict, given), **edit.keywords)
    else:
        own, state = states[edit.state.name], edit.state.name
        new, changes = edit.function(dict(own), *map(dict, given), **edit.keywords)
        changes = checked(own, changes, (t for part in given for t in part.values()), who, state)
    for name, tensor in new.items():
        if name not in given[0]:
            raise ValueError(f"{who} changes '{name}', which it was not given")
        if (wanted := given[0][name].shape) != tensor.shape:
            raise ValueError(f"{who} makes '{name}' {list(tensor.shape)}, and it is {list(wanted)}")
    return new, changes
