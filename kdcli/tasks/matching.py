"""The classes of the data, and those that a network knows, brought into their order by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
    """Put a network's logits into the order of ``classes``; see :func:`permutation`.

    One that has texts of more classes is asked about these alone.
    """
    bank = network.bank
    if bank is not None and order == "names" and set(classes) <= set(bank.whole().classes):
        network.select(classes)
        return
    network.reorder(permutation(classes, network.classes, order, who), list(classes))


def beyond(
    classes: Sequence[str], known: Mapping[str, Sequence[str] | None], order: Literal["names", "same"]
) -> list[str]:
    """Classes that networks know and data lack, where the networks can be measured on such data all the same.

    Args:
        classes: of the data.
        known: of each network, by how messages call it.
        order: see :func:`permutation`, which refuses what this says nothing about.

    Returns:
        Their names, in the order of the first network.

    Raises:
        InputError: a class of the data that a network does not know, or networks that know different ones.
    """
    if order == "same":
        return []
    there, found = set(classes), dict[str, list[str]]()
    for who, names in known.items():
        if names is None or len(set(names)) < len(names):
            continue
        unknown = [name for name in classes if name not in set(names)] if there - set(names) else []
        if unknown and len(names) != len(classes):
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise InputError(
                f"{who} does not know {', '.join(map(repr, unknown[:3]))}{more}, which the data has; it "
                f"knows {len(names)} classes ({_few(names)}). Leave these pictures out, or probe it on this "
                "data."
            )
        found[who] = [] if unknown else [name for name in names if name not in there]
    for who, names in found.items():
        first, own = next(iter(found.items()))
        if odd := set(own) ^ set(names):
            raise InputError(
                f"of {first} and {who} only one knows the class '{min(odd)}', which the data lack: they have "
                "no answers to compare. Measure them one at a time."
            )
    return next(iter(found.values()), [])


def unseen(classes: Sequence[str], counts: Sequence[float], what: str) -> list[str]:
    """What a report says of classes that the data have and the measured split has not.

    Args:
        classes: of the data.
        counts: how often each occurs in the split.
        what: is counted.
    """
    missing = [name for name, count in zip(classes, counts) if not count]
    of = f"{len(missing)} of the {len(classes)} classes ({_few(missing)})"
    return [f"The split has no {what} of {of}."] if missing else []


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}, …" if len(names) > 4 else ", ".join(names)


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
        by_name = "Leave data.class_order=same out to have them matched by name"
        remedy = by_name if order == "same" else "Probe the teacher on this data first"
        raise InputError(f"{who} knows {len(known)} classes, the data has {len(classes)}. {remedy}.")
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
