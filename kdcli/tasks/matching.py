"""The classes of the data, and those that a network knows, brought into their order by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.models.protocol import Model


def refuse_one_class(classes: Sequence[str]) -> None:
    """Raise InputError where there is nothing to tell apart."""
    if len(classes) < 2:
        raise InputError(f"the data have one class only ('{classes[0]}'); a classifier needs two.")


def bring_into_order(
    network: Model, classes: Sequence[str], order: Literal["names", "same"], who: str
) -> None:
    """Put a network's logits into the order of ``classes``; see :func:`permutation`."""
    network.reorder(permutation(classes, network.classes, order, who), list(classes))


def permutation(
    classes: Sequence[str], known: Sequence[str] | None, order: Literal["names", "same"], who: str
) -> list[int] | None:
    """Columns of a network's logits in the order of ``classes``; None if they already are.

    Args:
        classes: of the data.
        known: of the network.
        order: whether they match by name, or are the same in the same order whatever their names.
        who: the network, for messages.

    Raises:
        InputError: other names or another number of classes.
    """
    if known is None:
        raise InputError(f"{who} has no trained classifier; fit one with kdcli probe.")
    if list(known) == list(classes):
        return None
    if len(known) != len(classes):
        raise InputError(
            f"{who} knows {len(known)} classes, the data has {len(classes)}. Probe the teacher on this "
            "data first."
        )
    if order == "same":
        return None
    if twice := [name for name, count in Counter(known).items() if count > 1]:
        raise InputError(
            f"{who} has the class '{twice[0]}' more than once: no matching by name. If the order is the "
            "same, say --set data.class_order=same; else probe the teacher on this data."
        )
    if odd := sorted(set(known) ^ set(classes))[:4]:
        raise InputError(
            f"{who} and the data name their classes differently ({', '.join(odd)}, …). If the order is the "
            "same, say --set data.class_order=same; else probe the teacher on this data."
        )
    place = {name: i for i, name in enumerate(known)}
    return [place[name] for name in classes]
