"""The dry step: every turn once, on a few rows, so that the plan says what does not fit."""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.edits import edited, made_by
from kdcli.engine.states import States
from kdcli.engine.turn import TurnModule
from kdcli.engine.values import count_rows, is_gatherable
from kdcli.errors import InputError
from kdcli.models.taps import Layers
from kdcli.words import Term, Turn

# What torch says of tensors that do not fit together; its other errors are faults of the code.
_SHAPES = re.compile(r"\b(\w*sizes?|shapes?|dims?|dimensions?|dimensional|channels|elements|\dD)\b", re.I)
_ABOUT_SHAPES = {
    RuntimeError: _SHAPES,
    ValueError: _SHAPES,
    IndexError: re.compile(r"Dimension out of range|Dimension specified as|too many indices for tensor"),
}


def dry_step(
    where: str, turn: Turn, parties: Mapping[str, nn.Module], states: States, batch: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a turn's terms, and its derives with a state, need and make; states stay as they are.

    Args:
        where: names the method in messages.
        turn: is run in eval mode.
        parties: by name.
        states: by name.
        batch: a few rows with all columns.

    Raises:
        InputError: tensors that do not fit together, or could not be exchanged by processes.
    """
    module = TurnModule(turn, parties, shared=False, states=states).eval()
    values, versions = dict(batch), _versions(states)
    for term in turn.terms:
        _read(f"{where}: {term.name}", module, term.args, term.scope, values)
        _refuse_unlike_rows(f"{where}: {term.name}", module, term, values)
        with _bad_input(f"{where}: {term.name}", term.args, values):
            module.term(term, values, torch.ones(2))
    standing = [derive.out for derive in turn.derives if derive.state is not None]
    _read(where, module, standing, "sample", values)
    _refuse_changed(f"{where}, turn {turn.name}", states, versions)
    return values


def dry_edits(where: str, turn: Turn, parties: Mapping[str, nn.Module], states: States) -> None:
    """Run a turn's edits on copies of the weights and gradients of zero, and keep nothing of what they make.

    Raises:
        InputError: an edit that names no parameter, or makes tensors of other shapes.
    """
    versions = _versions(states)
    for edit in turn.edits:
        weights = {n: p.detach().clone() for n, p in edited(edit, parties[edit.party]).items()}
        zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        with _bad_input(where, (), {}):
            made_by(edit, states, *((zeros, weights) if edit.on == "gradient" else (weights,)))
    _refuse_changed(f"{where}, turn {turn.name}", states, versions)


def kind_of(value: Any) -> str:
    """What a value is that is no tensor, in words."""
    what = f"{len(value)} layers" if isinstance(value, Layers) else f"a {type(value).__name__}"
    return f"{what}, not one tensor"


@contextmanager
def _bad_input(where: str, read: Sequence[str], values: Mapping[str, Any]) -> Iterator[None]:
    """A block in which tensors that do not fit are bad input; any other error stays what it is.

    That they do not is what a loss says of shapes (ValueError), or torch. A loss that is given a tap of
    several layers, or of a module that returns no tensor, stumbles over it: that is the tap's fault.
    """
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        words = _ABOUT_SHAPES.get(type(error))
        if _is_said(error) or (words is not None and words.search(str(error))):
            raise InputError(f"{where}: {error}.") from error
        raise
    except (TypeError, AttributeError) as error:
        for reference in read:
            key = reference.removeprefix("~")
            if "." in key and key in values and not _may_be_read(values[key]):
                raise InputError(f"{where}: '{reference}' is {kind_of(values[key])}.") from error
        raise


def _is_said(error: Exception) -> bool:
    """Whether it is a ValueError that some code raises on purpose, unlike that of a function in C.

    ``math.log(0)`` and ``bytes.decode`` raise ValueErrors too, which say nothing of tensors.
    """
    if type(error) is not ValueError or (traceback := error.__traceback__) is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code.co_code
    return dis.opname[code[traceback.tb_lasti]] == "RAISE_VARARGS"


def _may_be_read(tap: Any) -> bool:
    """Whether a tap is a tensor, or a list of rows."""
    return isinstance(tap, (Tensor, list, tuple)) and not isinstance(tap, Layers)


def _read(
    where: str, module: TurnModule, references: Sequence[str], scope: str, values: dict[str, Any]
) -> None:
    """Find what is read, and before a derive what that reads.

    Raises:
        InputError: what does not fit, or rows that processes could not exchange for the scope ``batch``.
    """
    derives = {derive.out: derive for derive in module.turn.derives}
    for reference in references:
        derive, who = derives.get(reference.removeprefix("~")), where
        if derive is not None and derive.out not in values:
            who = f"{where}: derive {derive.out}"
            _read(who, module, derive.args, derive.scope, values)
        with _bad_input(who, derive.args if derive else (), values):
            value = module.value(reference, values)
        if scope == "batch" and module.has_rows(reference) and not is_gatherable(value):
            what = "is a single number" if isinstance(value, Tensor) else "is a list with an entry per row"
            raise InputError(
                f"{where}: its scope is 'batch', and '{reference}' {what}, which processes cannot gather. "
                "Make a tensor [B, …] of it, or take the scope 'sample'."
            )


def _refuse_unlike_rows(where: str, module: TurnModule, term: Term, values: dict[str, Any]) -> None:
    """Raise InputError where a mask of B rows would select among k·B rows."""
    if term.rows is None:
        return
    wanted = len(values[term.rows])
    for reference in filter(module.has_rows, term.args):
        count = count_rows(module.value(reference, values))
        if count != wanted:
            raise InputError(
                f"{where}: rows='{term.rows}' selects among the {wanted} samples of a batch, and "
                f"'{reference}' has {count or 'no'} rows: let a derive bring it to one row per sample."
            )


def _versions(states: States) -> list[int]:
    return [tensor._version for own in states.values() for tensor in own.values()]


def _refuse_changed(where: str, states: States, versions: list[int]) -> None:
    """Raise InputError where a function has changed a state in place."""
    if _versions(states) != versions:
        raise InputError(
            f"{where}: a derive or an edit changes its state in place, where it should return another tensor."
        )
