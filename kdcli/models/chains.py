"""Blocks of timm as chains of layers, and what may stand between two of them.

Blocks are told by their class and its module: the names of timm's blocks alone are not unique, and the
forward of a subclass may be another.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

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
ATTENTIONS = ("timm.layers.attention.Attention", "kdcli.models.attention.NarrowAttention")
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
NORMS = {"torch.nn.modules.batchnorm.BatchNorm2d", "timm.layers.norm_act.BatchNormAct2d"}
_CONTAINERS = {"timm.layers.conv_bn_act.ConvNormAct": ("conv", "bn", "aa")}
IDLE = {  # nothing in eval mode
    *("torch.nn.modules.linear.Identity", "torch.nn.modules.dropout.Dropout"),
    *("timm.layers.drop.DropBlock2d", "timm.layers.drop.DropPath"),
}
POOLS = {"torch.nn.modules.pooling.AvgPool2d", "timm.layers.pool2d_same.AvgPool2dSame"}


def flat(path: str, module: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """A part as the layers, norms and activations that it is made of."""
    if module is None or kind_of(module) in IDLE:
        return
    kind = kind_of(module)
    names: tuple[str, ...] = _CONTAINERS.get(kind, ())
    if isinstance(module, nn.Sequential):
        names = tuple(module._modules)
    if not names:
        yield path, module
        names = ("drop", "act") if kind == "timm.layers.norm_act.BatchNormAct2d" else ()
    for name in names:
        yield from flat(f"{path}.{name}", module._modules.get(name))


def kind_of(module: nn.Module) -> str:
    """Where its class is from, and its name: the names of timm's blocks alone are not unique."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def is_layer(module: nn.Module) -> bool:
    """Whether it is a convolution or a linear layer, plain or not."""
    return isinstance(module, nn.Conv2d | nn.Linear)


def is_depthwise(module: nn.Module) -> bool:
    """Whether it is a plain convolution that gives a channel for each of its inputs, and mixes none."""
    if not isinstance(module, nn.Conv2d) or kind_of(module) not in _PLAIN:
        return False
    return module.groups == module.in_channels == module.out_channels != 1


def outputs_of(layer: Any) -> int:
    """Number of outputs of a convolution or a linear layer."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def refuse_layer(path: str, layer: nn.Module) -> None:
    """Refuse a layer that cannot lose single inputs or outputs. Raises ValueError with the reason."""
    if kind_of(layer) not in _PLAIN:
        raise ValueError(f"{path} is a {type(layer).__name__}, no plain convolution or linear layer")
    if getattr(layer, "groups", 1) > 1:
        raise ValueError(f"{path} has {layer.groups} groups, which would have to lose channels alike")


def refuse_in_front(path: str, module: Any) -> None:
    """Refuse what mixes channels in front of the compactor, or keeps no statistics to fold.

    Raises:
        ValueError: with the reason.
    """
    kind = kind_of(module)
    if kind in NORMS:
        if not module.affine or not module.track_running_stats:
            raise ValueError(f"{path} is a batch norm without weights or running statistics")
    elif kind in GATES:
        raise ValueError(f"{path} reads the channels before they are removed")
    elif kind not in POOLS and not is_depthwise(module):
        _refuse_function(path, module)


def behind(path: str, module: Any) -> Iterator[tuple[str, str]]:
    """The layers of a gate behind the compactor. Raises ValueError where a zero would not stay one."""
    kind = kind_of(module)
    if kind in GATES:
        pair = [f"{path}.{name}" for name in GATES[kind]]
        for layer in pair:
            refuse_layer(layer, module._modules[layer.rpartition(".")[2]])
        yield pair[0], pair[1]
    elif kind not in POOLS:
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
