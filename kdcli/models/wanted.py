"""What a network is to answer, and its own classifier where that serves; else a fresh one, which is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdcli.models.banks import TextBank
from kdcli.models.heads.base import Head
from kdcli.models.protocol import Model


@dataclass(frozen=True)
class Wanted:
    """What a network is to answer.

    Attributes:
        classes: names of its logits, in order.
        task: what these are classes of; a head for another task gives way to a fresh one.
        head: a fresh head of :func:`kdcli.models.heads.fresh`; empty for the library's own classifier.
        kind: of the head wanted (``linear``, …): one of another kind gives way; None keeps any.
        order: ``same`` if the logits of a classifier that knows other names, or none, stand in this order.
        decoder: whether it keeps the decoder of a masked autoencoder, which must be there.
        bank: texts that it compares pictures with, in the place of any classifier.
    """

    classes: list[str]
    task: str = "classification"
    head: str = ""
    kind: str | None = None
    order: Literal["names", "same"] = "names"
    decoder: bool = False
    bank: TextBank | None = None


def fit(network: Model, wanted: Wanted) -> None:
    """Its own classifier where that is one for the classes wanted, else a fresh one; says which."""
    if wanted.bank is not None:
        _fit_bank(network, wanted.bank)
        return
    classes, count = wanted.classes, len(wanted.classes)
    if not count and not wanted.head:  # a backbone alone
        if network.outputs and network.trained != "random":
            network.notes += (f"the classifier of {network.name} for {network.outputs} classes is left out",)
        network.attach(None, [], wanted.task)
        return
    other = hint = ""
    if network.task != wanted.task:
        other = f" It answers {network.task}."
    elif network.head is not None and wanted.kind not in (None, network.head.kind):
        other = f" Another kind of head is asked for: {wanted.kind}."
    if network.classes == classes and not other:
        return
    note = f"the classifier of {network.name} for {network.outputs} classes"
    trained = network.trained != "random" and network.outputs > 0
    if trained and not other:
        own = network.classes or []
        if wanted.order == "same" and network.outputs == count:
            network.reorder(None, classes)
            network.notes += (f"{note} is kept: its order is said to be the data's",)
            return
        if len(set(own)) == count == len(own) and set(own) == set(classes) and _has_rows(network):
            network.reorder([own.index(c) for c in classes], classes)
            network.notes += (f"{note} is kept, in the order of the data",)
            return
        if network.outputs == count:
            knows = "knows no names of them" if not own else f"names them otherwise ({', '.join(own[:3])}, …)"
            hint = f" It {knows}: --set data.class_order=same keeps it where the order is the data's."
    if trained:
        network.notes += (f"{note} gives way to a fresh one for {count}.{other}{hint}".removesuffix("."),)
    made = None
    if wanted.head:
        name = wanted.head if wanted.kind in (None, Head.kind) else str(wanted.kind)
        made = network.head.refitted(count) if network.head is not None and not other else None
        made = made or network.fresh_head(name, count)
    network.attach(made, classes, wanted.task)


def _has_rows(network: Model) -> bool:
    return network.head is not None or bool(network.class_layers)


def _fit_bank(network: Model, bank: TextBank) -> None:
    """The bank behind what projects into its space already, or behind a fresh projection; says which."""
    own = network.bank
    trained = network.trained != "random"
    projected = trained and network.text_width == bank.width
    if own is not None and own.tower_hash != bank.tower_hash:
        network.notes += (
            f"the projection of {network.name} into the space of {own.tower} gives way to a fresh one: the "
            f"texts are embedded by another tower, {bank.tower}",
        )
        projected = False
    elif trained and not projected and network.outputs > 0:
        network.notes += (
            f"the classifier of {network.name} for {network.outputs} classes gives way to a fresh projection "
            f"to the {bank.width} numbers of texts",
        )
    network.attach_bank(bank, projected=projected)
