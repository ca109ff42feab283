"""Tiny networks of several families for compactors, with statistics and scales that no default has."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from kdcli.models.checks import input_spec
from kdcli.models.compactors import compactors, insert
from kdcli.models.sites import Site, sites
from kdcli.models.timm import TimmModel

CLASSES = ["bag", "shoe", "shirt"]
# name: of timm, its options, which sites, the side of its pictures
FAMILIES: dict[str, tuple[str, dict[str, Any], Any, int]] = {
    "basic": ("test_resnet", {}, "cdd", 32),
    "bottleneck": ("resnet26", {"channels": (8, 12, 16, 8)}, "cdd", 32),
    "bottleneck twice": ("resnet26", {"channels": (8, 12, 16, 8)}, "resrep", 32),
    "inverted": ("mobilenetv3_small_050", {}, "cdd", 32),
    "edge": ("test_efficientnet", {}, "cdd", 32),
    "universal": ("mobilenetv4_conv_small_035", {}, "cdd", 32),
    "gated": ("regnety_002", {"group_size": 1000}, "resrep", 32),  # one group
    "convnext": ("test_convnext", {}, "cdd", 32),
    "convolutional mlp": ("test_convnext", {"conv_mlp": True}, "cdd", 32),
    "vit": ("test_vit", {"img_size": 64}, "cdd", 64),
    "vit channels": ("test_vit", {"img_size": 64}, "resrep", 64),
    "vit of one head": ("test_vit", {"img_size": 64, "num_heads": 1, "qkv_bias": False}, "resrep", 64),
}


def body_of(name: str, **options: Any) -> nn.Module:
    """A timm model of random weights, statistics, affine parts and layer scales of order one."""
    torch.manual_seed(3)
    body = timm.create_model(name, num_classes=len(CLASSES), **options)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.2)
    for path, parameter in body.named_parameters():
        if path.endswith("gamma"):
            nn.init.normal_(parameter, 1, 0.2)
    return body


def network_of(family: str, dtype: torch.dtype = torch.float32) -> TimmModel:
    """A network of the family in eval mode."""
    name, options, _, _ = FAMILIES[family]
    body = body_of(name, **options)
    return TimmModel(body, input_spec(body), CLASSES, name=family, temperature=2.5).to(dtype).eval()


def sites_of(family: str, network: TimmModel) -> tuple[Site, ...]:
    """Its sites."""
    return sites(network.body, FAMILIES[family][2]).sites


def pictures(family: str, dtype: torch.dtype = torch.float32, count: int = 2) -> Tensor:
    """Prepared pictures of its size."""
    side = FAMILIES[family][3]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=dtype)


def compacted(family: str, network: TimmModel, strength: float = 0.3) -> TimmModel:
    """The network with compactors that are no longer the identity."""
    made = insert(network, sites_of(family, network))
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for compactor in compactors(made).values():
            noise = torch.randn(compactor.weight.shape, generator=draw).to(compactor.weight)
            compactor.weight += strength * noise / len(noise) ** (0.5 * (noise.ndim - 1))
    return made


def masks(network: TimmModel, keep: float = 0.5) -> dict[str, Tensor]:
    """Rows kept of each compactor, at random: at the first site and at every third one row alone."""
    draw, kept = torch.Generator().manual_seed(13), {}
    for number, (name, compactor) in enumerate(compactors(network).items()):
        mask = torch.rand(compactor.site.width, generator=draw) < keep
        if number % 3 == 0 or not mask.any():
            mask = torch.zeros_like(mask)
            mask[compactor.site.width // 2] = True
        kept[name] = mask
    return kept
