"""Terms beside a method's own: their sum, their names, their form in YAML; networks of two kinds together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toolbox import QUIET, facts, method_options
from torch import Tensor

from kdcli import methods
from kdcli.config import resolve
from kdcli.engine.turn import TurnModule
from kdcli.errors import InputError, UsageError
from kdcli.losses.features import hint
from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.losses.relations import cc, pkt, rkd_angle, rkd_distance
from kdcli.methods.parts import added
from kdcli.stages import distill
from kdcli.studies import chains
from kdcli.tasks.classification import Classification


@pytest.fixture
def plan(pictures, probed, tmp_path):
    def make(name, file=None, **more):
        options = method_options(name, pictures, probed, tmp_path, **more)
        return distill.plan(resolve(distill.Config, options=options, file=file), QUIET)

    return make


def columns(rows: int = 8) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (rows, 3, 32, 32), generator=draw, dtype=torch.uint8)
    y = torch.arange(rows) % 4
    return {"x": x, "y": y, "target": y, "labelled": torch.ones(rows, dtype=torch.bool)}


def module(made: Any, phase: int = -1) -> TurnModule:
    """The turn of a plan, in eval mode, so that a second forward gives the same."""
    return TurnModule(made.method.phases[phase].turns[0], made.material.assembly.parties).eval()


def objective(made: Any) -> dict[str, Tensor]:
    return module(made)(columns(), torch.ones(2), 1.0)


# -- sums ----------------------------------------------------------------------------------------------------


def test_the_objective_is_the_weighted_sum_of_its_parts(plan, probed):
    """The map of a ViT's block for a CNN: the tap, the adapter and the weight of each term as written."""
    made = plan(
        "kd",
        teacher=str(probed("test_vit")),
        terms=[
            "rkd=2",
            "hint=100,student=layer2,teacher=blocks.3,adapter=conv",
            "hint=3,student=layer4,teacher=block-1,adapter=linear,as=deep",
            "rkd=0.5,distance=1,angle=2,student=grid,as=metric",
            "cc,width=16",
            "pkt=7",
        ],
    )
    found, parties, x = objective(made), made.material.assembly.parties, columns()
    fitted = parties["teacher"].temperature
    with torch.no_grad():
        s = parties["student"].call([x["x"]], ["logits", "pooled", "grid", "layer2.map", "layer4.map"])
        t = parties["teacher"].call([x["x"]], ["logits", "pooled", "blocks.3.map", "map-1"])
        features = s["pooled"], t["pooled"]
        embedded = [parties[f"cc-{side}"](f) for side, f in zip(("student", "teacher"), features)]
        wanted = {
            "ce": (0.1, cross_entropy(s["logits"], x["y"])),
            "kl": (0.9, kl_divergence(s["logits"], t["logits"] / fitted, temperature=4.0)),
            "rkd-distance": (50.0, rkd_distance(*features)),
            "rkd-angle": (100.0, rkd_angle(*features)),
            "hint": (100.0, hint(parties["hint-regressor"](s["layer2.map"]), t["blocks.3.map"])),
            "deep": (3.0, hint(parties["deep-regressor"](s["layer4.map"]), t["map-1"])),
            "metric-distance": (0.5, rkd_distance(s["grid"], t["pooled"])),
            "metric-angle": (1.0, rkd_angle(s["grid"], t["pooled"])),
            "cc": (1.0, cc(*embedded)),
            "pkt": (7.0, pkt(*features)),
        }
    assert list(found) == ["loss", *wanted]
    for name, (_, value) in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    total = sum(weight * float(value) for weight, value in wanted.values())
    assert float(found["loss"].detach()) == pytest.approx(total, rel=1e-4)
    table = {row["term"]: row for row in made.to_json()["objective"]}
    assert {name: float(row["weight"]) for name, row in table.items()} == {
        name: pytest.approx(weight) for name, (weight, _) in wanted.items()
    }
    assert "~t.blocks.3.map [64, 2, 2]" in table["hint"]["taps"]
    kinds = {type(m).__name__ for m in parties["hint-regressor"].modules()}
    assert {"BatchNorm2d", "ReLU"} <= kinds
    kinds = {type(m).__name__ for m in parties["deep-regressor"].modules()}
    assert not {"BatchNorm2d", "ReLU"} & kinds


def test_yaml_says_the_same(plan, tmp_path):
    text = """
terms:
  - rkd: 1
  - {student: layer2, teacher: layer2, hint: 100, adapter: conv, relu: false}
  - {at: 1000, student: [stage3, stage4], teacher: [stage3, stage4], as: maps}
"""
    (tmp_path / "run.yaml").write_text(text)
    written = [
        "rkd=1",
        "hint=100,student=layer2,teacher=layer2,adapter=conv,relu=false",
        "at=1000,student=stage3+stage4,teacher=stage3+stage4,as=maps",
    ]
    by_option = plan("kd", terms=written)
    by_file = plan("kd", file=tmp_path / "run.yaml")
    assert by_file.to_json()["objective"] == by_option.to_json()["objective"]
    assert objective(by_file)["loss"] == objective(by_option)["loss"]
    names = [row["term"] for row in by_file.to_json()["objective"]]
    assert names == ["ce", "kl", "rkd-distance", "rkd-angle", "hint", "maps1", "maps2"]
    again = resolve(distill.Config, options={"terms": by_file.config.terms})  # as a manifest keeps them
    assert again.terms == by_file.config.terms


@pytest.mark.parametrize("text", ["terms: rkd=1", "terms: {rkd: 1}"])
def test_one_term_of_a_yaml_file_needs_no_list(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    assert resolve(distill.Config, file=tmp_path / "run.yaml").terms == ["rkd=1"]


def test_added_terms_train_what_they_bring_and_drop_it(plan, probed):
    more = {"terms": ["hint=1"], "teacher": str(probed("test_resnet")), "optim.max_steps": 2}
    made = plan("dml", **more, **{"method.update": "sequential"})
    assert [turn.trains for turn in made.method.turns] == [("student", "hint-regressor"), ("peer2",)]
    out = distill.run(made, QUIET).path
    assert "teacher" in {parent["role"] for parent in facts(out)["parents"]}
    assert not any("regressor" in path.name for path in out.rglob("*"))


def test_the_last_phase_takes_the_added_terms(plan):
    made = plan("fitnets", terms=["rkd=1"])
    assert [[t.name for t in turn.terms] for turn in made.method.turns] == [
        ["hint"],
        ["ce", "soft-ce", "rkd-distance", "rkd-angle"],
    ]


def test_weight_zero_is_labels_alone_bit_for_bit(plan, tmp_path):
    common = {"optim.max_steps": 2, "views.count": "live"}
    settings = {"method.ce": 1.0, "method.kd": 0.0, "terms": ["rkd=0", "hint=0"]}
    with_zero = plan("kd", **common, **settings, out=str(tmp_path / "zero"))
    assert list(with_zero.material.assembly.parties) == ["student"]
    alone = plan("supervised", **common, out=str(tmp_path / "alone"))
    files = [distill.run(made, QUIET).path / "model.safetensors" for made in (with_zero, alone)]
    assert files[0].read_bytes() == files[1].read_bytes()


# -- a CNN and a ViT -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("student", "teacher"), [("test_vit", "test_resnet"), ("test_resnet", "test_vit")])
@pytest.mark.parametrize(
    "name", ["hint", "fitnets", "at", "nst", "sp", "rkd", "cc", "pkt", "vid", "darkrank"]
)
def test_networks_of_two_kinds(name, student, teacher, plan, probed):
    made = plan(name, student=student, teacher=str(probed(teacher)))
    parties = made.material.assembly.parties
    found = module(made, phase=0)(columns(), torch.ones(2), 0.5)
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    own = [v for key, v in found.items() if key.startswith(name) or key == "hint"]
    assert own
    assert any(float(v.detach()) > 0 for v in own)  # on a grid of one cell all attention maps are alike
    for party in made.method.phases[0].turns[0].trains:
        assert sum(float(p.grad.abs().sum()) for p in parties[party].parameters() if p.grad is not None) > 0
    assert all(p.grad is None for p in parties["teacher"].parameters())


@pytest.mark.parametrize("layout", ["branches", "networks"])
@pytest.mark.parametrize("name", ["one", "okddip"])
def test_peers_of_a_vit(name, layout, plan):
    made = plan(name, student="test_vit", **{"method.layout": layout})
    found = objective(made)
    found["loss"].backward()
    parties = made.material.assembly.parties
    for party in made.method.turns[0].trains:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parties[party].parameters()), party


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_exits_of_a_vit_stand_at_its_quarters(reading, plan):
    made = plan("byot", student="test_vit", **{"method.reading": reading})
    objective(made)["loss"].backward()
    shapes = made.material.assembly.shapes
    assert [shapes[f"e{i}.logits"] for i in (1, 2, 3)] == [(4,)] * 3
    exits = [made.material.assembly.parties[f"exit{i}"] for i in (1, 2, 3)]
    assert {head.kind for head in exits} == {"attention" if reading == "code" else "bottleneck"}
    assert all(p.grad is not None for head in exits for p in head.linear.parameters())


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rdk=1", r"no term 'rdk'\. Did you mean 'rkd'\? Terms: kd, dkd, hint"),
        ("hint=1,studnet=layer2", r"--add hint: no 'studnet=layer2'\. Did you mean 'student'\? It has: stu"),
        ("hint=1,adaptr=conv", r"Did you mean 'adapter'\?"),
        ("hint=1,adapter=mlp", r"--add hint: adapter: Input should be 'conv', 'linear' or 'none', got 'mlp'"),
        ("hint=1,relu=perhaps", "--add hint: relu: .* boolean"),
        ("rkd=much", "--add rkd: Input should be a valid number"),
        ("rkd=nan", "--add rkd: Input should be a finite number"),
        ("rkd=1,angle", "--add rkd: no 'angle'"),
        ("kd=1,temperature=0", "--add kd: temperature: Input should be greater than 0"),
        ("rkd=1,angle=1,angle=2", "--add rkd: 'angle=2' is given a second time"),
        ("rkd=1,as=", "as= is no name for a term"),
        ("hint=1,as=a.b", r"as=a\.b is no name for a term"),
        ("kd=1,as=loss", "as=loss is no name for a term"),
    ],
)
def test_what_is_no_addition(text, message):
    with pytest.raises(UsageError, match=message):
        methods.addition(text)


@pytest.mark.parametrize(
    ("name", "terms", "message"),
    [
        ("kd", ["rkd=1", "rkd=2"], "has a term 'rkd-distance' already; as=NAME"),
        ("hint", ["hint=1,adapter=none"], "has a term 'hint' already"),
        ("kd", ["kd=1,as=kl"], "has a term 'kl' already"),
        ("sskd", ["dkd=1"], "--add dkd reads a label for every row, and the student of sskd sees other"),
        ("dafl", ["dkd=1"], "the student of dafl sees other rows than those: .* or generated pictures"),
    ],
)
def test_terms_that_collide_are_refused(name, terms, message):
    made = methods.function(name)(Classification(tuple("abcd")))
    with pytest.raises(UsageError, match=message):
        added(made, [methods.addition(text) for text in terms])


@pytest.mark.parametrize(
    ("name", "more", "error", "message"),
    [
        ("kd", {"terms": ["hint=1,adapter=none,student=stage3"]}, InputError, "must have one shape"),
        ("kd", {"terms": ["hint=1,student=layer9"]}, InputError, r"no module 'layer9.map'"),
        ("kd", {"method.ce": 0.0, "method.kd": 0.0}, UsageError, "every term of turn 'student' weighs 0"),
        ("sskd", {"method.head_share": 1.0}, UsageError, "head_share: Input should be less than 1"),
        ("fitnets", {"method.hint_share": -0.1}, UsageError, "hint_share: Input should be greater than or"),
        ("hint", {"optim.auto_batch": True, "student": "test_vit"}, UsageError, "regressor has batch norms"),
    ],
)
def test_impossible_objectives_are_refused_by_the_plan(name, more, error, message, plan):
    with pytest.raises(error, match=message):
        plan(name, **more)


def test_one_teacher_is_needed_for_more_than_logits(plan, probed):
    several = [str(probed("test_resnet")), str(probed("test_vit"))]
    with pytest.raises(InputError, match=r"several classifiers\. Take one teacher"):
        plan("kd-sim", teacher=several)
    with pytest.raises(InputError, match="several teachers give logits only"):
        plan("kd", teacher=several, terms=["rkd=1"])


def test_probabilities_are_averaged_as_they_are_softened(plan, probed):
    several = {
        "teacher": [str(probed("test_resnet")), str(probed("test_vit"))],
        "teacher_mean": "probabilities",
    }
    made = plan("ensemble", **several, **{"method.temperature": 3.0})
    x, teacher = columns()["x"], made.material.networks["teacher"]
    members = [distill.frame.teacher(name, made.task, "names") for name in several["teacher"]]
    with torch.no_grad():
        mean = sum((m(x) / m.temperature / 3).softmax(dim=1) for m in members) / 2
        torch.testing.assert_close((teacher(x) / 3).softmax(dim=1), mean)
    with pytest.raises(UsageError, match="soften the teachers by 2, 4, and teacher_mean=probabilities"):
        plan("ensemble", **several, terms=["kd=1,temperature=2"])


def test_a_twin_that_teaches_nothing_is_not_looked_at(plan):
    made = plan("self", **{"method.alpha": 0.0})
    assert "teacher" not in made.material.networks


def test_generations_begin_with_seeds_of_their_own(plan):
    made = plan("sequential", **{"method.generations": 3, "seed": 7})
    links = [chains._link(made.config, i, ["t"]) for i in range(3)]
    assert [link.seed for link in links] == [9, 8, 7]
