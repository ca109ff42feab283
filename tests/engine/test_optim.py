"""Groups of parameters: what decays, and how fast each block learns."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import list_optimizers
from torch import nn

from kdcli.artifacts.model import InputSpec
from kdcli.config import resolve
from kdcli.engine.optim import REFUSED, build_optimizer, build_schedule, make_step, section_of
from kdcli.errors import Diverged, UsageError
from kdcli.models.timm import TimmModel
from kdcli.sections import OptimSection
from kdcli.stages import distill
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


def test_groups_of_patterns_take_their_parameters_out_of_the_others() -> None:
    module = nn.ModuleDict({"student": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))})
    section = OptimSection(opt="momentum", lr=0.1, weight_decay=0.01, momentum=0.9)
    own = {"student:2.*": {"lr": 0.15}, "student:0.weight": {"weight_decay": 0.0, "momentum": 0.99}}
    optimizer = build_optimizer(module, section, own)
    build_schedule(optimizer, section.model_copy(update={"schedule": "constant", "warmup": 0.0}), 10, 5).step(
        0
    )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(module.parameters()))
    named = dict(module["student"].named_parameters())
    found = {n: [groups[id(p)][k] for k in ("lr", "weight_decay", "momentum")] for n, p in named.items()}
    assert found == {
        "0.weight": pytest.approx([0.1, 0.0, 0.99]),
        "0.bias": pytest.approx([0.1, 0.0, 0.9]),
        "1.weight": pytest.approx([0.1, 0.0, 0.9]),
        "1.bias": pytest.approx([0.1, 0.0, 0.9]),
        "2.weight": pytest.approx([0.15, 0.01, 0.9]),
        "2.bias": pytest.approx([0.15, 0.01, 0.9]),
    }
    with pytest.raises(UsageError, match=r"no trained parameter of student is called '3\.\*'"):
        build_optimizer(module, section, {"student:3.*": {"lr": 0.1}})


def test_the_rate_that_is_held_before_it_falls() -> None:
    """The schedule of arXiv 2303.09230's code: warm-up from a tenth, flat to epoch 40, cosine to 1e-7."""
    module = nn.Linear(2, 2)
    section = OptimSection(
        opt="momentum", lr=0.01, warmup=10 / 120, warmup_from=0.1, hold=40 / 120, min_lr=1e-7
    )
    optimizer = build_optimizer(module, section)
    schedule, found = build_schedule(optimizer, section, 120, 1), []
    for epoch in (119, 0, 5, 9, 10, 40, 41, 80, 119):  # of each from its number alone
        schedule.step(epoch)
        found.append(optimizer.param_groups[0]["lr"])
    golden = [3.955e-6, 1e-3, 5.5e-3, 9.1e-3, 1e-2, 1e-2, 9.996e-3, 5e-3, 3.955e-6]
    assert found == pytest.approx(golden, rel=2e-4)


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
            turn({"student": {"warmup": 0.5}}),
            "group of student: it has no warmup of its own, .* can be: lr, weight_decay",
        ),
        (
            turn({"student": {"momentum": 0.5}}),
            "group of student: optimiser adamw has no momentum",
        ),
        (turn({"student": {"rate": 0.5}}), "turn head, group of student: no field 'rate'"),
        (turn({"student": {"lr": 0.0}}), "group of student: optim.lr: Input should be greater than 0"),
    ],
)
def test_fields_that_a_turn_cannot_have_are_refused(made: Turn, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        section_of(made, OptimSection())


# -- settings that an optimiser cannot take ------------------------------------------------------------------


@pytest.mark.parametrize("opt", ["sgd", "sgdw", "sgdp", "momentum", "lars", "nlars"])
def test_without_momentum_there_is_none_of_nesterovs(opt: str) -> None:
    """``--opt sgd --set optim.momentum=0`` is plain SGD."""
    section = section_of(turn(), OptimSection(opt=opt, momentum=0.0, lr=0.5, weight_decay=0.0))
    optimizer = build_optimizer(nn.Linear(2, 2, bias=False), section)
    (weight,) = (p for group in optimizer.param_groups for p in group["params"])
    before = weight.detach().clone()
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    if opt in ("sgd", "momentum"):
        torch.testing.assert_close(weight.detach(), before - 1.0)
    assert weight.isfinite().all()


@pytest.mark.parametrize("opt", [name for name in list_optimizers() if not name.startswith(tuple(REFUSED))])
def test_every_optimizer_takes_zero_momentum(opt: str) -> None:
    section_of(turn(), OptimSection(opt=opt))
    section = section_of(turn(), OptimSection(opt=opt, momentum=0.0))
    optimizer = build_optimizer(nn.Linear(2, 2), section)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize(
    ("opt", "message"),
    [
        ("sgd", r"turn head: optimiser sgd has no betas\. Set optim\.betas=null\."),
        ("adan", r"turn head: optimiser adan takes 3 betas, and optim\.betas are 2\."),
    ],
)
def test_betas_that_it_has_not_are_refused(opt: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        section_of(turn(), OptimSection(opt=opt, betas=(0.9, 0.99)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", 1e300),
        ("lr", float("inf")),
        ("lr", float("nan")),
        ("weight_decay", 1e300),
        ("weight_decay", float("inf")),
        ("betas", [5, 5]),
        ("betas", [0.9, 1.0]),
        ("min_lr", 1e300),
        ("milestones", [float("inf")]),
        ("milestones", [-1]),
        ("decay_epochs", float("inf")),
        ("decay_rate", 1e300),
        ("epochs", float("inf")),
        ("stop_epoch", float("inf")),
        ("mixup", float("inf")),
        ("clip_grad", float("inf")),
        ("clip_grad", 1e300),
        ("clip_grad", 0),
    ],
)
def test_numbers_that_no_weight_could_hold_are_refused(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"^(optim\.{key}|--{key.replace('_', '-')}): "):
        resolve(distill.Config, options={f"optim.{key}": value})


def test_a_number_that_outgrows_the_weights_type_is_a_divergence() -> None:
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e39)
    layer(torch.ones(1, 1)).sum().backward()
    with pytest.raises(Diverged, match="the optimiser's step is too large for its numbers"):
        make_step(optimizer)

    class Broken:
        def step(self) -> None:
            raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        make_step(Broken())


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_all_decays_where_nothing_is_spared(layer_decay: float | None) -> None:
    """As torch's optimisers have it that are given ``parameters()``: biases, norms and positions too."""
    module = parties()
    section = OptimSection(weight_decay=0.3, decay_all=True, layer_decay=layer_decay)
    optimizer = build_optimizer(module, section, {"adapter": {"weight_decay": 0.1}})
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in module.named_parameters()}
    assert found == {name: 0.1 if name.startswith("adapter") else 0.3 for name in found}


def test_drops_are_parts_of_the_phase_and_milestones_epochs() -> None:
    section = OptimSection(
        lr=1.0, schedule="multistep", warmup=0.0, drops=[0.5, 0.75], milestones=[4.5], decay_rate=0.5
    )
    optimizer = build_optimizer(nn.Linear(2, 2), section)
    schedule, found = build_schedule(optimizer, section, 20, 4), []
    for step in range(20):
        schedule.step(step)
        found.append(optimizer.param_groups[0]["lr"])
    assert found == [1.0] * 10 + [0.5] * 5 + [0.25] * 3 + [0.125] * 2


@pytest.mark.parametrize("drop", [0.0, 1.0, -0.5, 30.0])
def test_a_drop_outside_the_training_is_refused(drop: float) -> None:
    with pytest.raises(UsageError, match=r"turn head: optim\.drops\.0: Input should be (greater|less) than"):
        section_of(turn(drops=[drop]), OptimSection())
