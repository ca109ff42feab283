"""Where channels can be removed from a network of timm without anything outside its block seeing it.

A compactor stands in front of an activation (CDD, arXiv 2303.09230; ResRep, on which it builds). A row of it
that is zero gives a channel that is zero, the activation keeps it zero where ``act(0) = 0``, and so the
channel is removed exactly: from the layer that makes it, from all that carries it alone, and from the layer
that takes it.

Between two plain layers of a block the chain may be

    producer -> norm -> ACTIVATION -> squeeze-and-excitation -> consumer      a full compactor, [p, p]
    producer -> norm -> act -> depthwise -> norm -> ACTIVATION -> … -> consumer      a diagonal one, [p]

A full compactor cannot be folded through a depthwise convolution, which mixes no channels. An attention has
diagonal ones: a number for each head, and one for each channel of a head's values, scale its output in front
of the projection; one for each channel of queries scales these, and with it goes the channel of the keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from kdcli.errors import InputError
from kdcli.models.attention import dimensions
from kdcli.models.chains import (
    ATTENTIONS,
    CHAINS,
    GATES,
    IDLE,
    NORMS,
    POOLS,
    Parts,
    behind,
    flat,
    is_depthwise,
    is_layer,
    kind_of,
    outputs_of,
    refuse_in_front,
    refuse_layer,
)
from kdcli.models.protocol import Model

Which = Literal["cdd", "resrep"]


@dataclass(frozen=True)
class Site:
    """A set of channels inside a block, or the heads of an attention.

    Attributes:
        name: path of the activation that the compactor stands in front of; of an attention its ``norm``, or
            its ``q_norm`` for ``keys``. Where heads have a compactor, that of ``values`` stands behind it.
        width: number of channels, or of heads.
        producer: the layer whose outputs they are.
        norms: batch norms between the producer and the activation.
        through: depthwise convolutions between them.
        gates: squeeze-and-excitation behind the activation, the layers that take and that give channels.
        consumers: layers whose inputs they are.
        front: what stands right in front of the compactor, which a diagonal one is folded into.
        diagonal: whether the compactor has a number for each channel and not a row.
        last: whether channels are the last dimension: linear layers.
        kind: ``convolution``, ``depthwise``, ``mlp``, or of an attention ``heads``, ``keys`` or ``values``.
        each: channels of one unit: of a head those of its values, else 1.
        times: how often the units stand in a row: channels of values, once for each head.
        attention: of the last three, heads, channels of a head's keys and of its values.
    """

    name: str
    width: int
    producer: str
    norms: tuple[str, ...]
    through: tuple[str, ...]
    gates: tuple[tuple[str, str], ...]
    consumers: tuple[str, ...]
    front: str
    diagonal: bool
    last: bool
    kind: str
    each: int = 1
    times: int = 1
    attention: tuple[int, int, int] | None = None

    @property
    def ends(self) -> dict[tuple[str, str], int]:
        """Ends of modules that lose channels, (path, ``in`` or ``out``), and how many for one unit."""
        outputs = (self.producer, *self.norms, *self.through, *(expand for _, expand in self.gates))
        inputs = (*self.through, *(reduce for reduce, _ in self.gates), *self.consumers)
        if self.attention is None:
            found = {(path, "out"): self.each for path in outputs}
            return found | {(path, "in"): self.each for path in inputs}
        heads, keys, values = self.attention
        rows = {"heads": 2 * keys + values, "keys": 2 * heads, "values": heads}[self.kind]
        columns = {"heads": values, "values": heads}
        taken = {(path, "in"): columns[self.kind] for path in self.consumers}
        return {(self.producer, "out"): rows, **taken}


@dataclass(frozen=True)
class Found:
    """The sites of a network, in the order of its modules.

    Attributes:
        sites: where a compactor can stand.
        refused: paths of layers and blocks where none can, and why.
    """

    sites: tuple[Site, ...]
    refused: dict[str, str]


def sites(body: nn.Module, which: Which = "cdd") -> Found:
    """Where compactors can stand in a network of timm.

    Args:
        body: the timm model, without compactors.
        which: of the inner layers of a block that has several (a bottleneck), ``cdd`` takes the last, as CDD
            does, and ``resrep`` all, as ResRep does; blocks of one inner layer are the same for both.

    Raises:
        InputError: there is none; says which layers were looked at and why none of them will do.
        ValueError: another ``which``.
    """
    if which not in ("cdd", "resrep"):
        raise ValueError(f"which is cdd or resrep, not {which!r}")
    found: list[Site] = []
    refused: dict[str, str] = {}
    known: list[str] = []
    for path, module in body.named_modules():
        kind = kind_of(module)
        if kind in ATTENTIONS:
            known.append(path)
            _attention(module, path, which, found, refused)
        elif kind in CHAINS:
            known.append(path)
            _search(module, path, which, found, refused)
    _leave(body, known, refused)
    if not found:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(refused.items())[:5])
        more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
        raise InputError(
            f"{type(body).__name__} has no layer whose channels a compactor can remove "
            f"({reasons or 'none of its blocks is known here'}{more})."
        )
    return Found(tuple(found), refused)


def sites_of(network: Model, which: Which = "cdd") -> Found:
    """Where compactors can stand in a model; see :func:`sites`.

    Raises:
        InputError: it is no network of timm, or there is none.
    """
    from kdcli.models.timm import TimmModel

    if not isinstance(network, TimmModel):
        raise InputError(f"{network.name} is no network of timm, whose layers alone are known here.")
    return sites(network.body, which)


# -- blocks --------------------------------------------------------------------------------------------------


def _search(block: nn.Module, path: str, which: Which, found: list[Site], refused: dict[str, str]) -> None:
    """Add the sites of one block, and the reasons where there is none."""
    own = getattr(block, "_modules", {})
    parts: Parts = [p for name in CHAINS[kind_of(block)] for p in flat(f"{path}.{name}", own.get(name))]
    ends = [i for i, (_, module) in enumerate(parts) if is_layer(module) and not is_depthwise(module)]
    pairs = list(pairwise(ends))
    if not pairs:
        carried = any(is_depthwise(module) for _, module in parts)
        refused[path] = (
            "its depthwise convolution takes the channels that other blocks give"
            if carried
            else "nothing in it stands between two plain layers"
        )
    for start, end in pairs if which == "resrep" else pairs[-1:]:
        make = partial(_between, parts[start : end + 1], kind_of(block).startswith("timm.layers.mlp."))
        _settle(make, parts[start][0], found, refused)


def _settle(make: Callable[[], Site], path: str, found: list[Site], refused: dict[str, str]) -> None:
    try:
        found.append(make())
    except ValueError as error:
        refused[path] = str(error)


def _between(parts: Parts, mlp: bool) -> Site:
    """The site between two layers. Raises ValueError, with the reason, where it cannot be."""
    (producer, first), *inner, (consumer, second) = parts
    refuse_layer(producer, first)
    refuse_layer(consumer, second)
    width = outputs_of(first)
    if width == 1:
        raise ValueError("it has one channel")
    through = [i for i, (_, module) in enumerate(inner) if is_depthwise(module)]
    start = through[-1] + 1 if through else 0
    at = start
    while at < len(inner) and kind_of(inner[at][1]) in NORMS:
        at += 1
    if at == len(inner) or kind_of(inner[at][1]) in {*GATES, *POOLS}:
        raise ValueError(
            f"no activation stands between {inner[at - 1][0] if at else producer} and {consumer}"
        )
    if at - start > 1:
        raise ValueError(f"{at - start} norms stand in front of {inner[at][0]}")
    for path, module in inner[:at]:
        refuse_in_front(path, module)
    gates = [pair for path, module in inner[at:] for pair in behind(path, module)]
    front = inner[at - 1][0] if at else producer
    last = isinstance(first, nn.Linear)
    return Site(
        name=inner[at][0],
        width=width,
        producer=producer,
        norms=tuple(path for path, module in inner[:at] if kind_of(module) in NORMS),
        through=tuple(inner[i][0] for i in through),
        gates=tuple(gates),
        consumers=(consumer,),
        front=front,
        diagonal=bool(through),
        last=last,
        kind="depthwise" if through else "mlp" if mlp else "convolution",
    )


def _attention(attention: Any, path: str, which: Which, found: list[Site], refused: dict[str, str]) -> None:
    """Add the sites of an attention, in the order of its parts, and the reasons where there is none."""
    if which == "resrep":
        _settle(partial(_keys, attention, path), f"{path}.q_norm", found, refused)
    before = len(found)
    _settle(partial(_heads, attention, path), path, found, refused)
    if which == "resrep":
        name = f"{path}.norm.act" if len(found) > before else f"{path}.norm"
        _settle(partial(_values, attention, path, name), f"{path}.norm", found, refused)


def _heads(attention: Any, path: str) -> Site:
    """The heads of an attention. Raises ValueError, with the reason, where they cannot be removed."""
    _refuse_behind(attention, path)
    if attention.num_heads == 1:
        raise ValueError("it has one head")
    heads, _, values = dimensions(attention)
    return _of_attention(attention, path, f"{path}.norm", "heads", heads, each=values)


def _values(attention: Any, path: str, name: str) -> Site:
    """Channels of the values of all heads. Raises ValueError, with the reason, where they cannot go."""
    _refuse_behind(attention, path)
    heads, _, values = dimensions(attention)
    if values == 1:
        raise ValueError("its values have one channel")
    return _of_attention(attention, path, name, "values", values, times=heads)


def _keys(attention: Any, path: str) -> Site:
    """Channels of queries and keys of all heads. Raises ValueError, with the reason, where they cannot go."""
    refuse_layer(f"{path}.qkv", attention.qkv)
    for name in ("q_norm", "k_norm"):
        if kind_of(norm := getattr(attention, name)) not in IDLE:
            raise ValueError(f"{path}.{name} is a {type(norm).__name__}, which normalises over its channels")
    _, keys, _ = dimensions(attention)
    if keys == 1:
        raise ValueError("its keys have one channel")
    return _of_attention(attention, path, f"{path}.q_norm", "keys", keys, consumers=())


def _refuse_behind(attention: Any, path: str) -> None:
    """Raise ValueError for what stands behind the values and sees all channels at once."""
    for name in ("qkv", "proj"):
        refuse_layer(f"{path}.{name}", getattr(attention, name))
    if kind_of(attention.norm) not in IDLE:
        raise ValueError(f"{path}.norm is a {type(attention.norm).__name__}, which normalises over the heads")
    if attention.gate is not None:
        raise ValueError(f"{path}.gate scales all heads by a layer of its own")


def _of_attention(attention: Any, path: str, name: str, kind: str, width: int, **more: Any) -> Site:
    return Site(
        name=name,
        width=width,
        producer=f"{path}.qkv",
        norms=(),
        through=(),
        gates=(),
        consumers=more.pop("consumers", (f"{path}.proj",)),
        front=f"{path}.qkv",
        diagonal=True,
        last=True,
        kind=kind,
        attention=dimensions(attention),
        **more,
    )


def _leave(body: nn.Module, known: list[str], refused: dict[str, str]) -> None:
    """Say of all other layers that no chain of them is known here; the network's own are its two ends."""
    inside = tuple(f"{path}." for path in known)
    others: dict[str, list[str]] = {}
    for path, module in body.named_modules():
        parent, _, name = path.rpartition(".")
        if is_layer(module) and parent and not path.startswith(inside):
            others.setdefault(parent, []).append(name)
    for parent, names in others.items():
        kind = type(body.get_submodule(parent)).__name__
        refused.setdefault(parent, f"in a {kind}, {', '.join(names)}: no chain of layers that is known here")
