"""Where channels can be removed from a network of timm without anything outside its block seeing it.

A compactor stands in front of an activation (CDD, arXiv 2303.09230; ResRep, on which it builds). A row of it
that is zero gives a channel that is zero, the activation keeps it zero where ``act(0) = 0``, and so the
channel is removed exactly: from the layer that makes it, from all that carries it alone, and from the layer
that takes it.

Between two plain layers of a block the chain may be

    producer -> norm -> ACTIVATION -> squeeze-and-excitation -> consumer      a full compactor, [p, p]
    producer -> norm -> act -> depthwise -> norm -> ACTIVATION -> … -> consumer      a diagonal one, [p]

A full compactor cannot be folded through a depthwise convolution, which mixes no channels. Heads of an
attention are sites too: a number for each head scales its output in front of the projection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from kdcli.errors import InputError

Which = Literal["cdd", "resrep"]
Parts = list[tuple[str, nn.Module]]

# Blocks by their class, and their parts in the order in which they run, from the first layer to the last one
# whose inputs no other block sees.
CHAINS: dict[str, tuple[str, ...]] = {
    "timm.models.resnet.BasicBlock": ("conv1", "bn1", "drop_block", "act1", "aa", "conv2"),
    "timm.models.resnet.Bottleneck": (
        *("conv1", "bn1", "act1", "conv2", "bn2", "drop_block", "act2", "aa", "conv3"),
    ),
    "timm.models.regnet.Bottleneck": ("conv1", "conv2", "se", "conv3"),
    "timm.models._efficientnet_blocks.ConvBnAct": ("conv", "bn1", "aa"),
    "timm.models._efficientnet_blocks.DepthwiseSeparableConv": (
        *("conv_s2d", "bn_s2d", "conv_dw", "bn1", "aa", "se", "conv_pw"),
    ),
    "timm.models._efficientnet_blocks.InvertedResidual": (
        *("conv_s2d", "bn_s2d", "conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl"),
    ),
    "timm.models._efficientnet_blocks.UniversalInvertedResidual": ("pw_exp", "dw_mid", "se", "pw_proj"),
    "timm.models._efficientnet_blocks.EdgeResidual": ("conv_exp", "bn1", "aa", "se", "conv_pwl"),
    "timm.layers.mlp.Mlp": ("fc1", "act", "drop1", "norm", "fc2"),
    "timm.layers.mlp.ConvMlp": ("fc1", "norm", "act", "drop", "fc2"),
    "timm.layers.mlp.GlobalResponseNormMlp": ("fc1", "act", "drop1", "grn", "fc2"),
}
ATTENTION = "timm.layers.attention.Attention"
# Squeeze-and-excitation: what takes the channels, and what gives a factor for each of them.
GATES = {
    "timm.models._efficientnet_blocks.SqueezeExcite": ("conv_reduce", "conv_expand"),
    "timm.layers.squeeze_excite.SEModule": ("fc1", "fc2"),
    "timm.layers.squeeze_excite.EffectiveSEModule": ("fc", "fc"),
}
# Of subclasses the forward is another (standardised weights, experts): only these are plain.
_PLAIN = {
    *("torch.nn.modules.conv.Conv2d", "torch.nn.modules.linear.Linear"),
    "timm.layers.conv2d_same.Conv2dSame",
}
_NORMS = {"torch.nn.modules.batchnorm.BatchNorm2d", "timm.layers.norm_act.BatchNormAct2d"}
_CONTAINERS = {"timm.layers.conv_bn_act.ConvNormAct": ("conv", "bn", "aa")}
_IDLE = {  # nothing in eval mode
    *("torch.nn.modules.linear.Identity", "torch.nn.modules.dropout.Dropout"),
    *("timm.layers.drop.DropBlock2d", "timm.layers.drop.DropPath"),
}
_POOLS = {"torch.nn.modules.pooling.AvgPool2d", "timm.layers.pool2d_same.AvgPool2dSame"}


@dataclass(frozen=True)
class Site:
    """A set of channels inside a block, or the heads of an attention.

    Attributes:
        name: path of the activation that the compactor stands in front of; of an attention its ``norm``.
        width: number of channels, or of heads.
        producer: the layer whose outputs they are.
        norms: batch norms between the producer and the activation.
        through: depthwise convolutions between them.
        gates: squeeze-and-excitation behind the activation, the layers that take and that give channels.
        consumers: layers whose inputs they are.
        front: what stands right in front of the compactor, which a diagonal one is folded into.
        diagonal: whether the compactor has a number for each channel and not a row.
        last: whether channels are the last dimension: linear layers.
        kind: ``convolution``, ``depthwise``, ``mlp`` or ``heads``.
        each: channels of one unit: the dimension of a head, else 1.
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

    @property
    def ends(self) -> dict[tuple[str, str], int]:
        """Ends of modules that lose channels, (path, ``in`` or ``out``), and how many for one unit."""
        outputs = (self.producer, *self.norms, *self.through, *(expand for _, expand in self.gates))
        inputs = (*self.through, *(reduce for reduce, _ in self.gates), *self.consumers)
        found = {(path, "out"): self.each for path in outputs} | {(path, "in"): self.each for path in inputs}
        if self.kind == "heads":
            found[self.producer, "out"] = 3 * self.each  # query, key and value
        return found


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
        kind = _kind(module)
        if kind == ATTENTION:
            known.append(path)
            _settle(partial(_heads, module, path), path, found, refused)
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


# -- blocks --------------------------------------------------------------------------------------------------


def _search(block: nn.Module, path: str, which: Which, found: list[Site], refused: dict[str, str]) -> None:
    """Add the sites of one block, and the reasons where there is none."""
    own = getattr(block, "_modules", {})
    parts: Parts = [p for name in CHAINS[_kind(block)] for p in _flat(f"{path}.{name}", own.get(name))]
    ends = [i for i, (_, module) in enumerate(parts) if _is_layer(module) and not _is_depthwise(module)]
    pairs = list(pairwise(ends))
    if not pairs:
        carried = any(_is_depthwise(module) for _, module in parts)
        refused[path] = (
            "its depthwise convolution takes the channels that other blocks give"
            if carried
            else "nothing in it stands between two plain layers"
        )
    for start, end in pairs if which == "resrep" else pairs[-1:]:
        make = partial(_between, parts[start : end + 1], _kind(block).startswith("timm.layers.mlp."))
        _settle(make, parts[start][0], found, refused)


def _settle(make: Callable[[], Site], path: str, found: list[Site], refused: dict[str, str]) -> None:
    try:
        found.append(make())
    except ValueError as error:
        refused[path] = str(error)


def _flat(path: str, module: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """A part as the layers, norms and activations that it is made of."""
    if module is None or _kind(module) in _IDLE:
        return
    kind = _kind(module)
    names: tuple[str, ...] = _CONTAINERS.get(kind, ())
    if isinstance(module, nn.Sequential):
        names = tuple(module._modules)
    if not names:
        yield path, module
        names = ("drop", "act") if kind == "timm.layers.norm_act.BatchNormAct2d" else ()
    for name in names:
        yield from _flat(f"{path}.{name}", module._modules.get(name))


def _between(parts: Parts, mlp: bool) -> Site:
    """The site between two layers. Raises ValueError, with the reason, where it cannot be."""
    (producer, first), *inner, (consumer, second) = parts
    _refuse_layer(producer, first)
    _refuse_layer(consumer, second)
    width = _outputs(first)
    if width == 1:
        raise ValueError("it has one channel")
    through = [i for i, (_, module) in enumerate(inner) if _is_depthwise(module)]
    start = through[-1] + 1 if through else 0
    at = start
    while at < len(inner) and _kind(inner[at][1]) in _NORMS:
        at += 1
    if at == len(inner) or _kind(inner[at][1]) in {*GATES, *_POOLS}:
        raise ValueError(
            f"no activation stands between {inner[at - 1][0] if at else producer} and {consumer}"
        )
    if at - start > 1:
        raise ValueError(f"{at - start} norms stand in front of {inner[at][0]}")
    for path, module in inner[:at]:
        _refuse_in_front(path, module)
    gates = [pair for path, module in inner[at:] for pair in _behind(path, module)]
    front = inner[at - 1][0] if at else producer
    last = isinstance(first, nn.Linear)
    return Site(
        name=inner[at][0],
        width=width,
        producer=producer,
        norms=tuple(path for path, module in inner[:at] if _kind(module) in _NORMS),
        through=tuple(inner[i][0] for i in through),
        gates=tuple(gates),
        consumers=(consumer,),
        front=front,
        diagonal=bool(through),
        last=last,
        kind="depthwise" if through else "mlp" if mlp else "convolution",
    )


def _heads(attention: Any, path: str) -> Site:
    """The heads of an attention. Raises ValueError, with the reason, where they cannot be removed."""
    for name in ("qkv", "proj"):
        _refuse_layer(f"{path}.{name}", getattr(attention, name))
    if _kind(attention.norm) not in _IDLE:
        raise ValueError(f"{path}.norm is a {type(attention.norm).__name__}, which normalises over the heads")
    if attention.gate is not None:
        raise ValueError(f"{path}.gate scales all heads by a layer of its own")
    if attention.num_heads == 1:
        raise ValueError("it has one head")
    return Site(
        name=f"{path}.norm",
        width=attention.num_heads,
        producer=f"{path}.qkv",
        norms=(),
        through=(),
        gates=(),
        consumers=(f"{path}.proj",),
        front=f"{path}.qkv",
        diagonal=True,
        last=True,
        kind="heads",
        each=attention.head_dim,
    )


def _leave(body: nn.Module, known: list[str], refused: dict[str, str]) -> None:
    """Say of all other layers that no chain of them is known here; the network's own are its two ends."""
    inside = tuple(f"{path}." for path in known)
    others: dict[str, list[str]] = {}
    for path, module in body.named_modules():
        parent, _, name = path.rpartition(".")
        if _is_layer(module) and parent and not path.startswith(inside):
            others.setdefault(parent, []).append(name)
    for parent, names in others.items():
        kind = type(body.get_submodule(parent)).__name__
        refused.setdefault(parent, f"in a {kind}, {', '.join(names)}: no chain of layers that is known here")


# -- one part ------------------------------------------------------------------------------------------------


def _kind(module: nn.Module) -> str:
    """Where its class is from, and its name: the names of timm's blocks alone are not unique."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


def _is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels != 1
    ) and _kind(module) in _PLAIN


def _outputs(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _refuse_layer(path: str, layer: nn.Module) -> None:
    if _kind(layer) not in _PLAIN:
        raise ValueError(f"{path} is a {type(layer).__name__}, no plain convolution or linear layer")
    if getattr(layer, "groups", 1) > 1:
        raise ValueError(f"{path} has {layer.groups} groups, which would have to lose channels alike")


def _refuse_in_front(path: str, module: Any) -> None:
    """Refuse what mixes channels in front of the compactor, or keeps no statistics to fold."""
    kind = _kind(module)
    if kind in _NORMS:
        if not module.affine or not module.track_running_stats:
            raise ValueError(f"{path} is a batch norm without weights or running statistics")
    elif kind in GATES:
        raise ValueError(f"{path} reads the channels before they are removed")
    elif kind not in _POOLS and not _is_depthwise(module):
        _refuse_function(path, module)


def _behind(path: str, module: Any) -> Iterator[tuple[str, str]]:
    """The layers of a gate behind the compactor. Raises ValueError where a zero would not stay one."""
    kind = _kind(module)
    if kind in GATES:
        pair = [f"{path}.{name}" for name in GATES[kind]]
        for layer in pair:
            _refuse_layer(layer, module._modules[layer.rpartition(".")[2]])
        yield pair[0], pair[1]
    elif kind not in _POOLS:
        _refuse_function(path, module)
        with torch.no_grad():
            value = float(copy.deepcopy(module).eval()(torch.zeros(1)))
        if value != 0:
            raise ValueError(f"{path} is a {type(module).__name__}, which gives {value:.3g} for 0")


def _refuse_function(path: str, module: nn.Module) -> None:
    """Refuse all but functions of each number by itself, without weights."""
    kind = type(module).__name__
    if "norm" in kind.lower():
        raise ValueError(f"{path} is a {kind}, which normalises over channels or shifts them")
    if next(module.parameters(), None) is not None or next(module.buffers(), None) is not None:
        raise ValueError(f"{path} is a {kind}, which has weights of its own")
    x = torch.linspace(-2, 2, 8)
    try:
        with torch.no_grad():
            whole, part = (copy.deepcopy(module).eval()(x[:n].clone()) for n in (8, 4))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is a {kind}, no function of each channel by itself") from error
    if whole.shape != x.shape or not torch.equal(whole[:4], part):
        raise ValueError(f"{path} is a {kind}, no function of each channel by itself")
