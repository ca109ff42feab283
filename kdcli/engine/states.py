"""States while a run lasts: tensors by name, which derives and edits replace and never change in place.

They stand outside of all modules, so that DDP neither sends nor overwrites them. Every process has the same:
what updates them sees the rows of all processes, or what is equal on all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

States = dict[str, dict[str, Tensor]]
"""Tensors by state and name."""


def copied(states: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> States:
    """Copies of all tensors, on a device."""
    return {
        state: {name: tensor.detach().to(device, copy=True) for name, tensor in own.items()}
        for state, own in states.items()
    }


def held(states: States) -> States:
    """The states as they are now, to go back to with :func:`put_back`. Costs nothing: no tensor is copied."""
    return {state: dict(own) for state, own in states.items()}


def put_back(states: States, before: States) -> None:
    """Make the states what they were when they were held."""
    for state, own in before.items():
        states[state].update(own)


def checked(
    own: Mapping[str, Tensor], changes: Mapping[str, Tensor], given: Iterable[Tensor], who: str, state: str
) -> dict[str, Tensor]:
    """The tensors of a state that an update changes, as they are kept: constants, of the type they had.

    Args:
        own: its tensors.
        changes: what a derive or an edit gave.
        given: what that was given beside the state. A tensor that shares its memory is copied: it may be a
            parameter, which a step changes in place.
        who: that derive or edit, for messages.
        state: its name, for messages.

    Raises:
        ValueError: a tensor that the state has not, of another shape, or of a type that loses its kind
            (numbers with a fraction for whole ones).
    """
    places = {tensor.untyped_storage().data_ptr() for tensor in given}
    found = {}
    for name, new in changes.items():
        old = own.get(name)
        if old is None:
            raise ValueError(f"{who} updates '{name}' of state '{state}', which has {', '.join(own)}")
        if new.shape != old.shape:
            raise ValueError(
                f"{who} makes '{name}' of state '{state}' {list(new.shape)}, and it is {list(old.shape)}"
            )
        if not torch.can_cast(new.dtype, old.dtype):
            raise ValueError(f"{who} makes '{name}' of state '{state}' {new.dtype}, and it is {old.dtype}")
        copy = new.untyped_storage().data_ptr() in places
        found[name] = new.detach().to(old.dtype, copy=copy)
    return found
