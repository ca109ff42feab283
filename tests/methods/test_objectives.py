"""Whole objectives through the real method functions and the real turn, on given tensors: the totals that the
authors' code gives, who gets which gradient, what vanishes, and the order of turned views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses.golden import GOLDEN, inputs, near
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.engine.turn import TurnModule
from kdcli.losses.logits import cross_entropy, kl_divergence
from kdcli.methods import function
from kdcli.methods.okddip import PeerAttention
from kdcli.methods.sskd import transfer, turned
from kdcli.models.adapters import Regressor
from kdcli.models.ensemble import Ensemble
from kdcli.models.timm import TimmModel
from kdcli.tasks.classification import Classification
from kdcli.words import Method
from kdcli.words.analysis import without_zero_terms

TASK = Classification(tuple("abcdefghij"))
CE = GOLDEN["ce"]["value"]
PEERS = ("peer2", "peer3", "peer4")


class Given(nn.Module):
    """Taps that are the parameters themselves, whatever it is called with."""

    def __init__(self, **taps: Tensor) -> None:
        super().__init__()
        self.taps = nn.ParameterDict({name: nn.Parameter(tap.clone()) for name, tap in taps.items()})

    def forward(self, *_: Tensor) -> dict[str, Tensor]:
        return {name: tap * 1.0 for name, tap in self.taps.items()}

    def grad(self, name: str) -> Tensor:
        found = self.taps[name].grad
        return torch.zeros_like(self.taps[name]) if found is None else found


def method(name: str, **settings: Any) -> Method:
    return without_zero_terms(function(name)(TASK, **settings))


def run(
    made: Method,
    parties: dict[str, nn.Module],
    y: Tensor,
    *,
    phase: int = 0,
    turn: int = 0,
    done: float = 1.0,
) -> dict[str, Tensor]:
    """The terms of one turn, after backward."""
    module = TurnModule(made.phases[phase].turns[turn], parties).train()
    x = torch.zeros(len(y), 3, 4, 4, dtype=torch.uint8)
    batch = {"x": x, "y": y, "target": y, "labelled": torch.ones(len(y), dtype=torch.bool)}
    found = module(batch, torch.ones(2), done)
    found["loss"].backward()
    return found


def pair(x: dict[str, Tensor], **taps: str) -> dict[str, nn.Module]:
    """Student and teacher with the drawn logits, and other taps of each by the drawn tensors' names."""
    return {
        role: Given(logits=x[f"logits_{end}"], **{tap: x[f"{name}_{end}"] for tap, name in taps.items()})
        for role, end in (("student", "s"), ("teacher", "t"))
    }


def peers(x: dict[str, Tensor]) -> list[Tensor]:
    return list(x["peer_logits"].unbind(dim=2))


# -- one student, perhaps a teacher --------------------------------------------------------------------------

LOGITS: dict[str, tuple[str, dict[str, Any], str, float]] = {
    # of a golden value: method, its parameters, golden name, what is added to that
    "kd": ("kd", {}, "kd_total_repdistiller", 0.0),
    "sequential": ("sequential", {}, "kd_total_repdistiller", 0.0),
    "self": ("self", {"alpha": 0.9}, "kd_total_repdistiller", 0.0),
    "dkd": ("dkd", {"warmup": 0.0}, "dkd_a1_b8_T4", CE),
    "kd-pt": ("kd-pt", {"lam": 1.0}, "tang_kd_pt_softCE", 0.0),
    "kd-topk": ("kd-topk", {"lam": 1.0, "part": 0.3}, "tang_kd_topk3_softCE", 0.0),
    "lsr": ("lsr", {}, "lsr_tfkd_repo_a0.1", 0.0),
    "lsr, paper": ("lsr", {"reading": "paper"}, "lsr_torch_a0.1", 0.0),
    "tf-kd-self": ("tf-kd-self", {}, "tfkd_loss_kd_a0.95_T20", 0.0),
    "defective": ("defective", {}, "tfkd_loss_kd_a0.95_T20", 0.0),
    "reversed": ("reversed", {"alpha": 0.95}, "tfkd_loss_kd_a0.95_T20", 0.0),
    "tf-kd-reg": ("tf-kd-reg", {}, "tfkd_reg_mobilenetv2", 0.0),
    "tf-kd-reg, T 10": ("tf-kd-reg", {"temperature": 10.0}, "tfkd_reg_shufflenetv2", 0.0),
    "tf-kd-reg, paper": (
        "tf-kd-reg",
        {"alpha": 1.0, "temperature": 20.0, "reading": "paper"},
        "tfkd_reg_paper_reading_T20",
        0.0,
    ),
}


@pytest.mark.parametrize("case", LOGITS)
def test_totals_on_logits(case: str) -> None:
    name, settings, golden, more = LOGITS[case]
    parties = pair(inputs())
    found = run(method(name, **settings), parties, inputs()["target"])
    assert near(found["loss"], GOLDEN[golden]["value"] + more)
    if norm := GOLDEN[golden].get("gradients", {}).get("logits_s"):
        assert near(parties["student"].grad("logits").norm(), norm)
    assert parties["teacher"].grad("logits").count_nonzero() == 0


def test_kd_sim_reads_the_teachers_last_layer() -> None:
    x, parties = inputs(), pair(inputs())
    parties["teacher"].classifier = nn.Parameter(x["w_cls"])
    found = run(method("kd-sim", lam=1.0, temperature=1.0), parties, x["target"])
    assert near(found["loss"], GOLDEN["tang_kd_sim_softCE"]["value"])


def test_rows_without_labels_leave_the_teachers_last_layer_whole() -> None:
    """As many classes as rows: a selection of rows would fit the table of classes too."""
    logits, y = inputs()["logits_s"][:, :8], torch.arange(8)
    made = without_zero_terms(function("kd-sim")(Classification(tuple("abcdefgh")), lam=1.0))
    teacher = Given(logits=logits)
    teacher.classifier = nn.Parameter(torch.randn(8, 64))
    found = []
    for rows, labelled in ((8, y < 4), (4, y[:4] < 4)):
        module = TurnModule(made.turns[0], {"student": Given(logits=logits[:rows]), "teacher": teacher})
        batch = {"x": torch.zeros(rows, 3, 4, 4), "y": y[:rows], "target": y[:rows], "labelled": labelled}
        found.append(module(batch, torch.ones(2), 0.0)["kd-sim"])
    torch.testing.assert_close(*found)


FEATURES: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, float]]] = {
    # method: taps and drawn tensors, its parameters, golden names and weights
    "rkd": ({"pooled": "feat"}, {}, {"rkd_d_official": 25, "rkd_a_official": 50}),
    "at": ({"stage4": "map"}, {"student": ("stage4",), "teacher": ("stage4",)}, {"feat_at_p2": 1000}),
    "sp": ({"stage4": "map"}, {}, {"feat_sp": 3000}),
    "cc": ({"pooled": "feat"}, {}, {"feat_cc": 0.02}),
    "hint": ({"stage2": "map"}, {"adapter": "none"}, {"fitnet_hint_mse": 100}),
}


@pytest.mark.parametrize("kd", [0.0, 0.9])
@pytest.mark.parametrize("name", FEATURES)
def test_totals_on_features_with_and_without_kd(name: str, kd: float) -> None:
    taps, settings, golden = FEATURES[name]
    parties = pair(inputs(), **taps)
    parties |= {"cc-student": nn.Identity(), "cc-teacher": nn.Identity()} if name == "cc" else {}
    found = run(method(name, kd=kd, **settings), parties, inputs()["target"])
    total = CE + kd * GOLDEN["kd_kl_T4"]["value"]
    total += sum(weight * GOLDEN[key]["value"] for key, weight in golden.items())
    rounding = 1e-6 * sum(golden.values())  # golden numbers have six decimals
    assert found["loss"].item() == pytest.approx(total, rel=1e-5, abs=rounding)
    teacher = parties["teacher"]
    assert all(teacher.grad(tap).count_nonzero() == 0 for tap in ("logits", *taps))


def test_a_hint_through_the_regressor_of_the_tables() -> None:
    x = dict(inputs(), map_t=inputs()["map_t32"])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        regressor = Regressor((16, 8, 8), (32, 8, 8))
    found = run(method("hint"), {**pair(x, stage2="map"), "hint-regressor": regressor}, inputs()["target"])
    assert near(found["hint"], GOLDEN["fitnet_convreg_same"]["value"])
    assert found["loss"].item() == pytest.approx(CE + 100 * GOLDEN["fitnet_convreg_same"]["value"], rel=1e-5)


@pytest.mark.parametrize("name", ["at", "nst"])
def test_maps_are_compared_at_the_ends_of_all_stages(name: str) -> None:
    """RepDistiller takes ``feat[1:-1]`` and mdistiller ``feats[1:]``: layer1 to layer4 of a ResNet-18."""
    x = inputs()
    stages = {f"stage{i}": x["map_s"] * i for i in (1, 2, 3, 4)}
    parties: dict[str, Any] = {
        "student": Given(logits=x["logits_s"], **stages),
        "teacher": Given(logits=x["logits_t"], **dict.fromkeys(stages, x["map_t"])),
    }
    found = run(method(name), parties, x["target"])
    assert [term for term in found if term.startswith(name)] == [f"{name}{i}" for i in (1, 2, 3, 4)]
    assert all(parties["student"].grad(stage).norm() > 0 for stage in stages)


def test_a_hint_is_of_layer2() -> None:
    """``hint_layer`` 2 of RepDistiller and mdistiller, whose feature 0 is the stem's."""
    (term,) = [term for term in method("hint", adapter="none").turns[0].terms if term.name == "hint"]
    assert term.args == ("s.stage2", "~t.stage2")


def test_fitnets_two_phases() -> None:
    made, y = method("fitnets", temperature=4.0), inputs()["target"]
    parties = {**pair(inputs(), stage2="map"), "regressor": nn.Identity()}
    assert near(run(made, parties, y)["loss"], GOLDEN["fitnet_hint_official_scale"]["value"])
    assert parties["student"].grad("logits").count_nonzero() == 0  # the hint alone
    soft = GOLDEN["kd_soft_ce_T4"]["value"] / 16  # without T²
    for done, lam in ((0.0, 4.0), (0.01, 4.0), (0.405, 2.5), (0.8, 1.0), (1.0, 1.0)):
        found = run(made, parties, y, phase=1, done=done)
        assert found["loss"].item() == pytest.approx(CE + lam * soft, rel=1e-5)


def test_early_stopped_distillation_drops_the_term() -> None:
    made, y = method("eskd", stop=0.4, ce_after=0.7), inputs()["target"]
    assert near(run(made, pair(inputs()), y, done=0.39)["loss"], GOLDEN["kd_total_repdistiller"]["value"])
    assert near(run(made, pair(inputs()), y, done=0.4)["loss"], 0.7 * CE)


@pytest.mark.parametrize(
    ("mean", "temperature", "golden"),
    [
        ("logits", 4.0, "ens_kd_logitmean_T4"),
        ("probabilities", 4.0, "ens_kd_probmean_T4"),
        ("probabilities", 1.0, "ens_kd_probmean_T1"),
    ],
)
def test_an_ensemble_is_the_mean_of_softened_probabilities(
    mean: Any, temperature: float, golden: str
) -> None:
    class Logits(nn.Module):
        def __init__(self, logits: Tensor) -> None:
            super().__init__()
            self.register_buffer("logits", logits)

        def forward(self, x: Tensor) -> Tensor:
            return self.logits

    x = inputs()
    members = [TimmModel(Logits(z), InputSpec((4, 4)), list("abcdefghij"), name="m") for z in peers(x)]
    parties = {"student": Given(logits=x["logits_s"]), "teacher": Ensemble(members, mean, temperature).eval()}
    found = run(method("ensemble", alpha=1.0, temperature=temperature), parties, x["target"])
    assert near(found["loss"], GOLDEN[golden]["value"])


# -- what vanishes, and what temperature leaves --------------------------------------------------------------


def test_the_gradient_of_kd_does_not_shrink_with_temperature() -> None:
    norms: dict[tuple[bool, float], float] = {}
    for t_squared in (True, False):
        for temperature in (4.0, 20.0):
            parties = pair(inputs())
            made = method("kd", ce=0.0, kd=1.0, temperature=temperature, t_squared=t_squared)
            run(made, parties, inputs()["target"])
            norms[t_squared, temperature] = float(parties["student"].grad("logits").norm())
    assert norms[True, 20.0] == pytest.approx(norms[True, 4.0], rel=0.1)
    assert norms[False, 20.0] < norms[False, 4.0] / 20


@pytest.mark.parametrize("name", ["kd", "dkd", "rkd", "hint", "at", "nst", "sp", "pkt"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it(name: str) -> None:
    x = inputs()
    taps = {"pooled": x["feat_s"], **{f"stage{i}": x["map_s"] for i in (1, 2, 3, 4)}}
    parties = {role: Given(logits=x["logits_s"], **taps) for role in ("student", "teacher")}
    settings = {"hint": {"adapter": "none"}, "dkd": {"warmup": 0.0}}.get(name, {})
    found = run(method(name, ce=0.0, **settings), parties, x["target"])
    assert abs(found["loss"].item()) < 1e-4
    student: Any = parties["student"]
    assert max(float(student.grad(tap).abs().max()) for tap in student.taps) < 1e-4


def test_relations_are_computed_in_fp32_under_autocast() -> None:
    """Features with a common offset: in bf16 their distances would be noise."""
    x = {**inputs(), "feat_s": inputs()["feat_s"] + 30, "feat_t": inputs()["feat_t"] + 30}
    outside = run(method("rkd"), pair(x, pooled="feat"), x["target"])
    with torch.autocast("cpu", torch.bfloat16):
        inside = run(method("rkd"), pair(x, pooled="feat"), x["target"])
    assert inside["loss"].item() == outside["loss"].item()
    assert outside["rkd-distance"].item() == pytest.approx(GOLDEN["rkd_d_official"]["value"], rel=1e-3)


# -- exits, peers, branches ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "golden"), [("code", "byot_total_official"), ("paper", "byot_total_paper_reading")]
)
def test_be_your_own_teacher(reading: str, golden: str) -> None:
    """The drawn exits stand deepest first; the method counts from the shallowest."""
    x = inputs()
    z, f = x["exit_logits"], x["exit_feats"]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        adapters = [nn.Linear(64, 64) for _ in range(3)]
    maps = {f"stage{i}": torch.zeros(8, 1, 1, 1) for i in (1, 2, 3)}
    parties: dict[str, Any] = {"student": Given(logits=z[0], pooled=f[0], **maps)}
    for number in (1, 2, 3):
        parties[f"exit{number}"] = Given(logits=z[4 - number], features=f[4 - number])
        parties[f"adapter{number}"] = adapters[3 - number]
    made = method("byot", reading=reading)
    found = run(made, parties, x["target"])
    assert near(found["loss"], GOLDEN[golden]["value"])
    features = [term.name for term in made.turns[0].terms if term.name.startswith("features")]
    assert features == ["features-1", "features-2", "features-3"][: 2 if reading == "code" else 3]
    # the deepest exit learns from labels alone: z_0 and f_0 are constants where they teach
    assert parties["student"].grad("pooled").count_nonzero() == 0
    ce = (z[0].softmax(dim=1) - nn.functional.one_hot(x["target"], 10)) / 8
    torch.testing.assert_close(parties["student"].grad("logits"), ce)


def dml_parties(x: dict[str, Tensor], count: int) -> dict[str, Any]:
    logits = [x["logits_s"], x["logits_t"]] if count == 2 else peers(x)
    return {name: Given(logits=z) for name, z in zip(("student", "peer2", "peer3"), logits)}


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_deep_mutual_learning_of_two(update: str) -> None:
    x, wanted = inputs(), [GOLDEN[f"dml_M2_net{i}"]["value"] for i in (0, 1)]
    made, parties = method("dml", update=update), dml_parties(x, 2)
    if update == "simultaneous":
        assert near(run(made, parties, x["target"])["loss"], sum(wanted))
    else:
        assert [turn.trains for turn in made.turns] == [("student",), ("peer2",)]
        for turn, value in enumerate(wanted):
            assert near(run(made, parties, x["target"], turn=turn)["loss"], value)
    # the other's term sends no gradient here: p_j is constant
    assert near(parties["student"].grad("logits").norm(), GOLDEN["dml_M2_net0"]["gradients"]["logits_s"])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_deep_mutual_learning_of_three(reduction: str) -> None:
    x = inputs()
    found = run(method("dml", networks=3, reduction=reduction), dml_parties(x, 3), x["target"])
    golden = "dml_M3_net0" if reduction == "mean" else "dml_M3_net0_official_tf_sum"
    assert near(found["ce"] + found["kl"], GOLDEN[golden]["value"])


def test_mutual_networks_may_change_places() -> None:
    x = inputs()
    one, other = dml_parties(x, 3), dml_parties(x, 3)
    other["student"], other["peer3"] = other["peer3"], other["student"]
    a, b = (run(method("dml", networks=3), p, x["target"]) for p in (one, other))
    torch.testing.assert_close(a["loss"], b["loss"])
    torch.testing.assert_close(a["kl"], b["kl-p3"])
    torch.testing.assert_close(a["ce"], b["ce-p3"])
    for name, elsewhere in (("student", "peer3"), ("peer2", "peer2"), ("peer3", "student")):
        torch.testing.assert_close(one[name].grad("logits"), other[elsewhere].grad("logits"))


def one_parties(x: dict[str, Tensor]) -> dict[str, Any]:
    z = peers(x)
    block = {"block-2": torch.zeros(8, 1, 1, 1), "map-2": torch.zeros(8, 1, 1, 1)}
    return {
        "student": Given(logits=z[0], **block),
        "branch2": Given(logits=z[1]),
        "branch3": Given(logits=z[2]),
        "gate": Given(out=x["gate_logits"]),
    }


def test_one_is_its_equation_and_its_gate_learns_from_the_ensembles_labels_alone() -> None:
    x, parties = inputs(), one_parties(inputs())
    found = run(method("one"), parties, x["target"])
    scores = x["gate_logits"].clone().requires_grad_()
    z = [logits.clone().requires_grad_() for logits in peers(x)]
    gate = scores.softmax(dim=1)
    ensemble = sum(gate[:, m, None] * z[m] for m in range(3))
    assert isinstance(ensemble, Tensor)
    labels = cross_entropy(ensemble, x["target"])
    (alone,) = torch.autograd.grad(labels, scores, retain_graph=True)
    total = labels + sum(cross_entropy(row, x["target"]) for row in z)
    total = total + sum(kl_divergence(row, ensemble.detach(), temperature=3) for row in z)
    torch.testing.assert_close(found["loss"], total)
    assert alone.norm() > 0.01
    torch.testing.assert_close(parties["gate"].grad("out"), alone)
    total.backward()
    for name, row in zip(("student", "branch2", "branch3"), z):
        torch.testing.assert_close(parties[name].grad("logits"), row.grad)


@pytest.mark.parametrize(("done", "part"), [(0.0, "e0"), (20 / 300, "e20"), (40 / 300, "e40"), (1.0, "e80")])
def test_consistency_is_ramped_up_over_80_of_300_epochs(done: float, part: str) -> None:
    x = inputs()
    found = run(method("one"), one_parties(x), x["target"], done=done)
    labels = sum(value for name, value in found.items() if name.startswith("ce"))
    weight = GOLDEN[f"rampup80_{part}"]["value"]
    torch.testing.assert_close(found["loss"], labels + weight * found["kl"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        run(method("one", ramp=0.0), one_parties(x), x["target"], done=done)["loss"], labels + found["kl"]
    )


def okddip_parties(x: dict[str, Tensor], leader: Tensor | None = None) -> dict[str, Any]:
    attention = PeerAttention((64,))
    with torch.no_grad():
        attention.query.weight.copy_(x["wq"])
        attention.key.weight.copy_(x["wk"])
    features, logits = x["peer_feats"].unbind(dim=1), peers(x)
    leads = x["leader_logits"] if leader is None else leader
    return {
        "student": Given(logits=leads, pooled=torch.ones(8, 64), **{"block-2": torch.zeros(8, 1)}),
        **{name: Given(logits=z, pooled=f) for name, z, f in zip(PEERS, logits, features)},
        "attention": attention,
    }


@pytest.mark.parametrize("detach", [False, True])
def test_okddip(detach: bool) -> None:
    x, parties = inputs(), okddip_parties(inputs())
    found = run(method("okddip", detach_targets=detach), parties, x["target"])
    golden = GOLDEN["okddip_total_detached_targets" if detach else "okddip_total_code"]
    assert near(found["loss"], golden["value"])
    moved = torch.stack([parties[name].grad("logits") for name in PEERS])
    assert near(moved.norm(), golden["gradients"]["peer_logits"])
    assert near(parties["attention"].query.weight.grad.norm(), 3.960677)
    assert parties["attention"].key.weight.grad.norm() > 0.1
    assert near(parties["student"].grad("logits").norm(), 0.408481)
    through_features = sum(float(parties[name].grad("pooled").norm()) for name in PEERS)
    assert (through_features == 0) == detach


def test_strict_targets_are_constants_for_the_peers() -> None:
    x, parties = inputs(), okddip_parties(inputs())
    run(method("okddip", detach_targets=True), parties, x["target"])
    z = torch.stack(peers(x), dim=1)
    targets = parties["attention"](*(parties[n].taps["pooled"] for n in PEERS), *z.unbind(1)).detach()
    for i, name in enumerate(PEERS):
        row = z[:, i].clone().requires_grad_()
        (cross_entropy(row, x["target"]) + kl_divergence(row, targets[:, i], temperature=3)).backward()
        torch.testing.assert_close(parties[name].grad("logits"), row.grad)


def test_the_leader_is_not_in_the_attention() -> None:
    x = inputs()
    found = []
    for leader in (x["leader_logits"], 5 * x["leader_logits"].flip(0)):
        parties = okddip_parties(x, leader)
        run(method("okddip", detach_targets=True), parties, x["target"])
        assert parties["student"].grad("pooled").count_nonzero() == 0
        found.append([parties[n].grad("logits") for n in PEERS] + [parties["attention"].query.weight.grad])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


# -- self-supervision ----------------------------------------------------------------------------------------


def test_sskd_two_phases() -> None:
    x = inputs()
    parties: dict[str, Any] = {
        "student": Given(logits=x["ss_logits_s"], pooled=torch.zeros(16, 64)),
        "teacher": Given(logits=x["ss_logits_t"], pooled=torch.zeros(16, 64)),
        "student_head": Given(out=x["ss_rep_s"]),
        "teacher_head": Given(out=x["ss_rep_t"]),
    }
    made, y = method("sskd"), x["ss_target"]
    assert near(run(made, parties, y)["loss"], GOLDEN["sskd_teacher_ssp_loss"]["value"])
    assert parties["teacher_head"].grad("out").norm() > 0
    parties["teacher_head"].zero_grad()
    found = run(made, parties, y, phase=1)
    assert near(found["loss"], GOLDEN["sskd_total"]["value"])
    names = {"ce": "ce", "kl": "kd", "transfer": "tf", "table": "ss"}
    assert all(near(found[name], GOLDEN[f"sskd_{golden}"]["value"]) for name, golden in names.items())
    assert parties["teacher_head"].grad("out").count_nonzero() == 0
    assert parties["teacher"].grad("logits").count_nonzero() == 0
    assert parties["student_head"].grad("out").norm() > 0


def test_sskd_where_nothing_is_kept_teaches_nothing() -> None:
    """A ratio of 0 keeps what the teacher gets right, and here that is nothing."""
    logits = torch.randn(2, 4, 3, requires_grad=True)
    wrong = torch.tensor([9.0, 0, 0]).expand(2, 4, 3)
    value = transfer(logits, wrong, torch.tensor([1, 2]), ratio=0.0, temperature=4.0)
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    right = transfer(logits, wrong, torch.tensor([0, 2]), ratio=0.0, temperature=4.0)
    wanted = kl_divergence(logits[0, 1:], wrong[0, 1:], temperature=4.0)
    torch.testing.assert_close(right, wanted)


ARROWS = {
    "up": ["..#..", ".###.", "..#..", "..#.."],
    "left": ["....", ".#..", "####", ".#..", "...."],
    "down": ["..#..", "..#..", ".###.", "..#.."],
    "right": ["....", "..#.", "####", "..#.", "...."],
}


def drawn(direction: str) -> Tensor:
    rows = [[float(c == "#") for c in row] for row in ARROWS[direction]]
    square = torch.zeros(1, 5, 5)
    top, side = (5 - len(rows)), (5 - len(rows[0]))
    # the arrow's base lies on the border that it leaves
    down, along = {"up": (top, 0), "left": (0, side), "down": (0, 0), "right": (0, 0)}[direction]
    square[0, down : down + len(rows), along : along + len(rows[0])] = torch.tensor(rows)
    return square


def test_an_arrow_is_turned_anticlockwise_view_by_view() -> None:
    views = turned(torch.stack([drawn("up"), drawn("right")]))
    assert views.shape == (8, 1, 5, 5)
    order = ["up", "left", "down", "right", "right", "up", "left", "down"]
    for view, direction in zip(views, order):
        assert torch.equal(view, drawn(direction)), direction
    assert torch.equal(turned(views)[::4], views)
