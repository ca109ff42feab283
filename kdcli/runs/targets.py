"""``--target KIND=HOW MUCH``: what a compression is to leave of a network's cost."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcli.errors import InputError, UsageError, nearest
from kdcli.methods import parameters

KINDS = {"flops": "FLOPs", "params": "parameters", "latency": "latency"}
FACTS = {"flops": "flops", "params": "parameters", "latency": "latency_ms"}  # what the manifest calls them
_COUNTS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_UNITS = {"flops": _COUNTS, "params": _COUNTS, "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3}}
_EXAMPLES = {"flops": "0.45, or 1.2G for as many", "params": "0.5, or 3M", "latency": "0.6, or 8ms"}
Cost = Callable[[Sequence[int]], float]


@dataclass(frozen=True)
class Goal:
    """What a target is of.

    Attributes:
        kind: one of :data:`KINDS`.
        text: as it was given; None where the method's own stands.
        most: the cost itself, in FLOPs of a picture, parameters or milliseconds; None for a part.
    """

    kind: str = "flops"
    text: str | None = None
    most: float | None = None

    def settled(self, arguments: Mapping[str, Any], widths: Sequence[int], cost: Cost) -> dict[str, Any]:
        """The arguments, with a target that is a part of the cost at these widths.

        Raises:
            InputError: the network does not cost as much as is asked for.
        """
        if self.most is None:
            return dict(arguments)
        now = cost(widths)
        if now <= self.most:
            raise InputError(
                f"--target {self.text}: the network has {amount(self.kind, now)} already. Ask for less, or "
                "use it as it is."
            )
        return {**arguments, "target": self.most / now}


def given(method: str, target: str | None, arguments: Mapping[str, Any]) -> tuple[Goal, dict[str, Any]]:
    """What is meant, and the arguments of a method with the target among them if it is a part.

    Args:
        method: its name.
        target: ``flops=0.45`` or ``latency=8ms``, as the user wrote it, or None.
        arguments: given to the method.

    Raises:
        UsageError: a target that the method has not, is given twice, or is none.
    """
    found = dict(arguments)
    if target is None:
        return Goal(), found
    kind, equals, number = target.partition("=")
    if "target" not in parameters(method):
        raise UsageError(
            f"--target: method {method} has none; its parameters and the training decide the size."
        )
    if kind not in KINDS or not equals:
        raise UsageError(
            f"--target {target}: there are {', '.join(KINDS)}.{nearest(kind, KINDS)} Say flops=0.45."
        )
    if "target" in found:
        raise UsageError("--target and method.target say the same: give one.")
    digits, unit = re.fullmatch(r"(.*?)([A-Za-z]*)", number, re.DOTALL).groups()  # type: ignore[union-attr]
    try:
        value = float(digits)
    except ValueError:
        raise UsageError(f"--target {target}: '{number}' is no number. Say {_EXAMPLES[kind]}.") from None
    if not unit:
        if not 0 < value < 1:
            raise UsageError(
                f"--target {target}: what is left is a part of 1, between 0 and 1, or has a unit: "
                f"{_EXAMPLES[kind]}."
            )
        return Goal(kind, target), {**found, "target": value}
    if unit not in _UNITS[kind]:
        known = ", ".join(_UNITS[kind])
        raise UsageError(f"--target {target}: no unit '{unit}' of {KINDS[kind]}; there are {known}.")
    if not 0 < value < math.inf:
        raise UsageError(f"--target {target}: more than nothing is left.")
    return Goal(kind, target, value * _UNITS[kind][unit]), found


def amount(kind: str, value: float) -> str:
    """A cost in words."""
    if kind == "latency":
        return f"{value:.3g} ms"
    unit = next((unit for unit in reversed(_COUNTS) if value >= _COUNTS[unit]), "")
    return f"{value / _COUNTS.get(unit, 1):.4g}{f' {unit}' if unit else ''} {KINDS[kind]}"


def refuse_unreachable(target: float | None, goal: Goal, widths: Sequence[int], cost: Cost) -> None:
    """Raise InputError for a target below what is left where one channel of each site stays.

    Args:
        target: as a part, None for none.
        goal: whose kind and words are said.
        widths: of the sites.
        cost: at widths.
    """
    from kdcli.compression.budget import reachable

    if target is None or target >= (least := reachable(widths, cost)):
        return
    said = goal.text or f"{goal.kind}={target:g}"
    raise InputError(
        f"--target {said} cannot be met: with one channel left at every site {least:.1%} of the "
        f"{KINDS[goal.kind]} stay{_in_numbers(goal, least, widths, cost)}. Ask for "
        f"{math.ceil(least * 1000) / 1000:g} or more, or for a smaller student."
    )


def _in_numbers(goal: Goal, least: float, widths: Sequence[int], cost: Cost) -> str:
    return f", {amount(goal.kind, least * cost(widths))}" if goal.most is not None else ""
