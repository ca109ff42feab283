"""Groups of parameters: what decays, and how fast each block learns."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from kdcli.artifacts.model import InputSpec
from kdcli.engine.optim import build_optimizer, build_schedule
from kdcli.models.timm import TimmModel
from kdcli.sections import OptimSection


def parties() -> nn.ModuleDict:
    """A student with timm's own head, a peer with one of ours, and an adapter."""
    networks = {
        name: TimmModel(
            timm.create_model("test_vit", num_classes=3), InputSpec((32, 32)), list("abc"), name=name
        )
        for name in ("student", "peer")
    }
    networks["peer"].attach_linear("pooled+avg", torch.zeros(3, 128), torch.zeros(3), list("abc"))
    return nn.ModuleDict({**networks, "adapter": nn.Linear(4, 4)})


def rates(section: OptimSection) -> dict[str, float]:
    """Learning rate of every parameter in the first step, over the section's."""
    module = parties()
    optimizer = build_optimizer(module, section)
    build_schedule(optimizer, section, 10, 5).step(0)
    found = {id(p): group["lr"] / section.lr for group in optimizer.param_groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in optimizer.param_groups)
    return {name: found[id(p)] for name, p in module.named_parameters()}


def test_layer_decay_goes_from_the_head_down() -> None:
    """Six blocks: the patch embedding is seven steps below the head."""
    found = rates(OptimSection(layer_decay=0.5, schedule="constant", warmup=0.0))
    wanted = {
        "student.body.head.weight": 1.0,
        "student.body.blocks.5.attn.qkv.weight": 0.5,
        "student.body.blocks.0.attn.qkv.weight": 0.5**6,
        "student.body.patch_embed.proj.weight": 0.5**7,
        "peer.head.linear.weight": 1.0,
        "peer.body.blocks.5.attn.qkv.weight": 0.5,
        "peer.body.patch_embed.proj.bias": 0.5**7,
        "adapter.weight": 1.0,
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_without_layer_decay_all_learn_alike() -> None:
    assert set(rates(OptimSection(schedule="constant", warmup=0.0)).values()) == {1.0}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_biases_norms_and_positions_do_not_decay(layer_decay: float | None) -> None:
    module = parties()
    optimizer = build_optimizer(module, OptimSection(weight_decay=0.3, layer_decay=layer_decay))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        positions = name.endswith(("pos_embed", "cls_token"))
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 and not positions else 0.0), name
