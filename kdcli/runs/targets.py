"""``--target KIND=PART``: what a compression is to leave of a network's cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kdcli.errors import InputError, UsageError, nearest
from kdcli.methods import parameters

KINDS = {"flops": "FLOPs", "params": "parameters"}
FACTS = {"flops": "flops", "params": "parameters"}  # what the manifest calls them
Cost = Callable[[Sequence[int]], float]


def given(method: str, target: str | None, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of cost that is meant, and the arguments of a method with the target among them.

    Args:
        method: its name.
        target: ``flops=0.45``, as the user wrote it, or None.
        arguments: given to the method.

    Raises:
        UsageError: a target that the method has not, is given twice, or is none.
    """
    found = dict(arguments)
    if target is None:
        return "flops", found
    kind, equals, number = target.partition("=")
    if "target" not in parameters(method):
        raise UsageError(
            f"--target: method {method} has none; its parameters and the training decide the size."
        )
    if kind not in KINDS or not equals:
        raise UsageError(f"--target {target}: no {' or '.join(KINDS)}.{nearest(kind, KINDS)} Say flops=0.45.")
    if "target" in found:
        raise UsageError("--target and method.target say the same: give one.")
    try:
        found["target"] = float(number)
    except ValueError:
        raise UsageError(f"--target {target}: '{number}' is no part of 1.") from None
    if not 0 < found["target"] < 1:
        raise UsageError(f"--target {target}: what is left is a part of 1, between 0 and 1.")
    return kind, found


def refuse_unreachable(target: float | None, kind: str, widths: Sequence[int], cost: Cost) -> None:
    """Raise InputError for a target below what is left where one channel of each site stays.

    Args:
        target: as a part, None for none.
        kind: of cost.
        widths: of the sites.
        cost: at widths.
    """
    from kdcli.compression.budget import reachable

    if target is None or target >= (least := reachable(widths, cost)):
        return
    raise InputError(
        f"--target {kind}={target:g} cannot be met: with one channel left at every site {least:.1%} of the "
        f"{KINDS[kind]} stay. Ask for {math.ceil(least * 1000) / 1000:g} or more, or for a smaller student."
    )
