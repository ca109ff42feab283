"""Groups of parameters: what decays, and how fast each block learns."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from kdcli.artifacts.model import InputSpec
from kdcli.engine.optim import build_optimizer, build_schedule, section_of
from kdcli.errors import UsageError
from kdcli.models.timm import TimmModel
from kdcli.sections import OptimSection
from kdcli.words import Turn


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


# -- of a turn, of a party -----------------------------------------------------------------------------------


def test_a_party_has_its_own_rate_decay_and_layer_decay() -> None:
    section = OptimSection(lr=1e-3, weight_decay=0.1, schedule="cosine", warmup=0.2, min_lr=1e-4)
    module = parties()
    own = {"adapter": {"lr": 1e-2, "weight_decay": 0.0}, "peer": {"layer_decay": 0.5}}
    optimizer = build_optimizer(module, section, own)
    schedule = build_schedule(optimizer, section, 10, 5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(module.parameters()))
    named = dict(module.named_parameters())
    for step in range(10):
        schedule.step(step)
        student, adapter, first, head = (
            groups[id(named[name])]["lr"]
            for name in (
                *("student.body.head.weight", "adapter.weight"),
                *("peer.body.patch_embed.proj.weight", "peer.head.linear.weight"),
            )
        )
        assert adapter == pytest.approx(10 * student)  # all the way
        assert head == pytest.approx(student)
        assert first == pytest.approx(student * 0.5**7)
    assert groups[id(named["adapter.weight"])]["weight_decay"] == 0
    assert groups[id(named["student.body.head.weight"])]["weight_decay"] == 0.1


def test_no_groups_of_parties_are_the_groups_of_before() -> None:
    section = OptimSection(layer_decay=0.7)
    module = parties()
    found = [build_optimizer(module, section, groups).param_groups for groups in (None, {})]
    assert [[id(p) for p in g["params"]] for g in found[0]] == [
        [id(p) for p in g["params"]] for g in found[1]
    ]


def turn(groups: dict[str, dict[str, object]] | None = None, **optim: object) -> Turn:
    return Turn("head", ("student",), (), (), optim=optim, groups=groups or {})


def test_a_turn_has_fields_of_its_own() -> None:
    run = OptimSection(lr=1e-3, clip_grad=1.0)
    found = section_of(turn(opt="adam", lr=0.05, clip_grad=None, betas=(0.5, 0.9)), run)
    assert (found.opt, found.lr, found.clip_grad, found.betas) == ("adam", 0.05, None, (0.5, 0.9))
    assert section_of(turn(), run) == run


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (turn(learning_rate=1.0), "turn head: no field 'learning_rate' of the optimiser"),
        (turn(weigth_decay=1.0), "no field 'weigth_decay' of the optimiser. Did you mean 'weight_decay'"),
        (turn(ema=0.9), "turn head: it has no ema of its own, the run has. Its own can be: opt, lr"),
        (turn(batch_size=4), "it has no batch_size of its own"),
        (turn(epochs=4), "it has no epochs of its own"),
        (turn(accumulate=4), "it has no accumulate of its own"),
        (turn(mixup=0.4), "it has no mixup of its own"),
        (turn(lr=-1.0), "turn head: optim.lr: Input should be greater than 0"),
        (turn(opt="adamww"), "timm has no optimiser 'adamww'"),
        (turn(opt="kron"), "optimiser kron: it draws"),
        (
            turn({"student": {"momentum": 0.5}}),
            "group of student: it has no momentum of its own, .* can be: lr, weight_decay",
        ),
        (turn({"student": {"rate": 0.5}}), "turn head, group of student: no field 'rate'"),
        (turn({"student": {"lr": 0.0}}), "group of student: optim.lr: Input should be greater than 0"),
    ],
)
def test_fields_that_a_turn_cannot_have_are_refused(made: Turn, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        section_of(made, OptimSection())
