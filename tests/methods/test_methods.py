"""Every method in process on real small pictures: it trains what it should, leaves the rest, and resumes."""

import pytest
import torch
from toolbox import QUIET, StopAfter, facts, method_options, rows

from kdcli import methods
from kdcli.config import resolve
from kdcli.console import Console
from kdcli.engine.turn import TurnModule
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.models.build import build
from kdcli.models.exits import load_exits
from kdcli.stages import distill

# of other kinds: two phases, two phases with a frozen head, turns in sequence, branches, exits, a memory bank
KINDS = {
    "fitnets": {},
    "sskd": {},
    "dml": {"method.update": "sequential"},
    "okddip": {},
    "byot": {},
    "crd": {},
    "g2sd-detection": {},
}


@pytest.fixture
def plan(options_of, tmp_path):
    def make(name, **more):
        options = options_of(name, tmp_path, **more)
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    return make


def columns(rows_=8, side=32, classes=4, *, boxed=False):
    made = torch.Generator().manual_seed(0)
    y = torch.arange(rows_) % classes
    labelled = torch.ones(rows_, dtype=torch.bool)
    x = torch.randint(256, (rows_, 3, side, side), generator=made, dtype=torch.uint8)
    mask = y[:, None, None].expand(-1, side, side)
    boxes = [torch.tensor([[0.5, 0.5, 0.3, 0.2]] * (i % 3)).view(-1, 4) for i in range(rows_)]
    objects = {
        "boxes": boxes,
        "classes": [torch.zeros(len(found), dtype=torch.int64) for found in boxes],
        "objects": torch.tensor([float(len(found)) for found in boxes]),
    }
    return {
        "x": x,
        "x@plain": x,
        "y": y,
        "target": y,
        "labelled": labelled,
        "mask": mask,
        "index": torch.arange(rows_),
    } | (objects if boxed else {})


@pytest.mark.parametrize("name", methods.METHODS)
def test_end_to_end(name, plan):
    made = plan(name)
    out = distill.run(made, QUIET).path
    assert facts(out)["method"]["name"] == name
    logged = [row for row in rows(out) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    seen = {key.rpartition("/")[2] for row in logged for key in row}
    assert {term.name for turn in made.method.turns for term in turn.terms} <= seen
    unlabelled = methods.METHODS[name].needs == "features"
    assert build(str(out)).classes == (None if unlabelled else made.data.classes)
    assert not any(name in ("regressor", "adapter1", "gate") for name in (p.name for p in out.iterdir()))


@pytest.mark.parametrize("name", methods.METHODS)
def test_gradients_reach_what_is_trained_and_nothing_else(name, plan):
    made = plan(name)
    parties, side = made.material.assembly.parties, made.material.view.size
    frozen = {party.name: parties[party.name] for party in made.method.parties if party.role == "frozen"}
    before = {key: t.clone() for net in frozen.values() for key, t in net.state_dict().items()}
    for phase in made.method.phases:
        trained = {name for turn in phase.turns for name in turn.trains}
        for turn in phase.turns:
            module = TurnModule(turn, parties, trained, states=made.material.assembly.states).train()
            boxed = methods.METHODS[name].needs == "object"
            module(columns(side=side, boxed=boxed), torch.ones(2), 0.3)["loss"].backward()
            for party in turn.trains:
                parameters = list(parties[party].parameters())
                if not parameters:  # nothing is needed between two maps of one shape
                    assert name == "ab", party
                    continue
                gradients = [p.grad for p in parameters if p.grad is not None]
                assert sum(float(g.abs().sum()) for g in gradients) > 0, party
            for network in parties.values():
                network.zero_grad()
    for network in frozen.values():
        assert not network.training
        assert all(not p.requires_grad for p in network.parameters())
        assert all(torch.equal(t, before[key]) for key, t in network.state_dict().items())


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("stop", [2, 4])
def test_a_stopped_run_continues_bit_for_bit(name, stop, plan, tmp_path):
    """Step 2 is the end of a first phase: that state has the optimiser of the phase before."""
    whole = distill.run(plan(name, **KINDS[name], out=str(tmp_path / "whole")), QUIET).path
    made = plan(name, **KINDS[name], out=str(tmp_path / "stopped"))
    with pytest.raises(Preempted, match=r"after step \d of 4"):
        distill.run(made, QUIET, stop=StopAfter(stop))
    stopped = distill.run(made, QUIET).path
    files = sorted(p.relative_to(whole) for p in whole.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (whole / file).read_bytes() == (stopped / file).read_bytes(), file


@pytest.mark.long
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_continues_bit_for_bit(name, plan, tmp_path):
    whole = distill.run(plan(name, out=str(tmp_path / "whole")), QUIET).path
    for stop in (1, 2, 3):
        made = plan(name, out=str(tmp_path / f"stopped-{stop}"))
        with pytest.raises(Preempted):
            distill.run(made, QUIET, stop=StopAfter(stop))
        stopped = distill.run(made, QUIET).path
        for file in sorted(p.relative_to(whole) for p in whole.rglob("*.safetensors")):
            assert (whole / file).read_bytes() == (stopped / file).read_bytes(), (stop, file)


def test_phases_and_schedules_change_where_they_should(plan, tmp_path):
    out = distill.run(plan("fitnets", **{"optim.max_steps": 8}), QUIET).path
    logged = [row for row in rows(out) if "loss" in row]
    assert ["hint" in row for row in logged] == [True] * 4 + [False] * 4
    lam = [row["weight/soft-ce"] for row in logged[4:]]
    assert lam == pytest.approx([4, 4 - 3 * 0.24 / 0.79, 4 - 3 * 0.49 / 0.79, 4 - 3 * 0.74 / 0.79])
    more = {"optim.max_steps": 8, "method.stop": 0.5, "out": str(tmp_path / "eskd")}
    logged = [row for row in rows(distill.run(plan("eskd", **more), QUIET).path) if "loss" in row]
    assert [row["weight/kl"] for row in logged] == [0.9] * 4 + [0.0] * 4
    assert [row["weight/ce"] for row in logged] == [0.1] * 4 + [1.0] * 4
    assert all(row["kl"] > 0 for row in logged[:4])
    assert all(row["kl"] == 0 for row in logged[4:])


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        ("kd", 32, 32),
        ("kd-sim", 32, 0),
        ("eskd", 32, 16),
        ("sskd", 2 * 8 * 4, 4 * 8 * 4),
        ("dafl", 32, 64),
        ("supervised", 32, 0),
    ],
)
def test_cost_counts_views_calls_and_what_schedules_leave_out(name, student, teacher, plan):
    """Four steps of eight pictures; SSKD turns each three times and its student waits for the head."""
    found = plan(name, **{"views.count": "live"}).material.forwards
    assert (found["student"], found.get("teacher", 0)) == (student, teacher)


def test_every_peer_counts(plan):
    assert plan("dml", **{"method.networks": 3}).material.forwards == {
        "student": 32,
        "peer2": 32,
        "peer3": 32,
    }


def test_only_the_last_phase_is_judged(plan):
    out = distill.run(plan("sskd", **{"evaluate_steps": 1}), QUIET).path
    assert [row["step"] for row in rows(out) if "validation/top1" in row] == [3, 4]


def test_maps_of_one_position_are_warned_of(plan, warnings):
    plan("at")
    assert [text.split()[0] for text in warnings] == ["at4"]
    assert "maps of one position" in warnings[0]


@pytest.mark.parametrize("name", ["hint", "fitnets"])
def test_a_relu_before_signed_features_is_warned_of(name, plan, probed, warnings):
    vit, cnn = ({"teacher": str(probed(kind))} for kind in ("test_vit", "test_resnet"))
    plan(name, **vit)
    assert [text.split(":")[0] for text in warnings] == ["hint"]
    assert "negative values, which a regressor that ends in a ReLU cannot give" in warnings.pop()
    plan(name, **vit, **{"method.relu": False})
    plan(name, **cnn)
    assert not warnings


def test_a_twin_of_the_same_seed_is_warned_of(plan, tmp_path, warnings):
    first = str(distill.run(plan("supervised", seed=3, out=str(tmp_path / "first")), QUIET).path)
    plan("self", teacher=first, seed=4)
    assert not warnings
    plan("self", teacher=first, seed=3)
    assert [text.partition(" ")[0] for text in warnings] == [first]
    assert "was trained with the same --seed" in warnings[0]


def test_a_turn_with_an_optimiser_of_its_own_leaves_the_others_decay_and_momentum(plan):
    """AdamW's decay of 0.05 would be an L2 penalty to RMSProp and SGD."""
    own = {name: plan(name).method.turns[0].optim for name in ("fitnets", "sskd", "dafl")}
    assert own["fitnets"] == {"opt": "rmsprop", "lr": 5e-3, "weight_decay": 0.0, "momentum": 0.0}
    assert [own["sskd"][key] for key in ("opt", "momentum", "weight_decay")] == ["momentum", 0.9, 5e-4]
    assert (own["dafl"]["weight_decay"], own["dafl"]["schedule"], own["dafl"]["warmup"]) == (0, "constant", 0)


def test_generated_pictures_are_for_networks_of_one_input(plan):
    message = "method dafl shows the same generated pictures to .* whose inputs differ"
    with pytest.raises(InputError, match=message):
        plan("dafl", student="resnet18")  # it is normalised otherwise
    with pytest.raises(InputError, match=message):
        plan("dafl", image_size=64)


def test_what_stands_beside_the_student_is_averaged_with_it(plan, tmp_path):
    """The average lags behind the raw weights."""
    moved = {}
    for decay in (0.0, 0.999):
        made = plan("byot", **{"optim.lr": 0.1, "optim.ema": decay, "out": str(tmp_path / f"{decay}")})
        first = made.material.assembly.parties["exit1"].state_dict()
        last = load_exits(distill.run(made, QUIET).path)["exit1"].state_dict()
        moved[decay] = max(float((last[key] - first[key]).abs().max()) for key in first if "weight" in key)
    assert 0.05 < moved[0.999] < 0.95 * moved[0.0]


def test_a_teacher_given_twice_is_refused(plan, probed):
    twice = [str(probed("test_resnet"))] * 2
    with pytest.raises(UsageError, match="is given twice: the mean of equals"):
        plan("ensemble", teacher=twice)


def test_a_step_in_which_nothing_weighs_anything_is_a_step(plan):
    out = distill.run(plan("eskd", **{"method.ce_after": 0.0}), QUIET).path
    assert [row["loss"] > 0 for row in rows(out) if "loss" in row] == [True, True, False, False]


def test_a_truncated_run_is_the_beginning_of_a_long_one(plan, tmp_path):
    """58 pictures in batches of 8: 7.25 steps are an epoch."""
    common = {"optim.max_steps": "absent", "optim.epochs": 2, "views.count": "live"}
    long = distill.run(plan("supervised", **common, out=str(tmp_path / "long")), QUIET).path
    cut = distill.run(
        plan("supervised", **common, **{"optim.stop_epoch": 1, "out": str(tmp_path / "cut")}), QUIET
    ).path
    kept = [row for row in rows(cut) if "loss" in row]
    assert [row["step"] for row in kept] == list(range(1, 9))
    assert kept == [row for row in rows(long) if "loss" in row][:8]
    assert facts(cut)["steps"] == 8
    assert facts(long)["steps"] == 15


def test_generations_are_runs_that_teach_one_another(plan, tmp_path):
    made = plan("sequential", **{"method.generations": 3, "optim.max_steps": 2})
    out = distill.run(made, QUIET).path
    first, second = (tmp_path / f"out-via-{i}" for i in (1, 2))
    assert [parent["path"] for parent in facts(second)["parents"] if parent["role"] == "teacher"] == [
        str(first)
    ]
    assert [p["path"] for p in facts(out)["parents"] if p["role"] == "teacher"] == [str(second)]


def test_peers_and_exits_are_written_beside_the_student(plan, tmp_path):
    out = distill.run(plan("dml", **{"method.networks": 3}), QUIET).path
    peers = [build(str(out / name)) for name in ("peer2", "peer3")]
    own = build(str(out))
    weights = [next(net.parameters()) for net in (own, *peers)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert {net.classes[0] for net in (own, *peers)} == {own.classes[0]}
    one = distill.run(plan("one", out=str(tmp_path / "one")), QUIET).path
    trunk, branch = (build(str(path)).body.state_dict() for path in (one, one / "branch2"))
    same = {name for name, tensor in trunk.items() if torch.equal(tensor, branch[name])}
    assert {name.split(".")[0] for name in same} >= {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert {"fc.weight", "layer4.0.conv1.weight"}.isdisjoint(same)
    exits = distill.run(plan("byot", out=str(tmp_path / "byot")), QUIET).path
    assert {"exits.safetensors", "exits.json"} <= {p.name for p in exits.iterdir()}


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("hint", {"method.match": "valid", "method.teacher": "stage1"}, "no kernel brings the student's"),
        ("hint", {"method.student": "block9"}, "no 'map9': ResNet has blocks 1 to 5"),
        ("hint", {"method.student": "layer7"}, "no module 'layer7.map' to tap"),
        ("rkd", {"optim.batch_size": 2}, "rkd: rkd-distance: .* at least 3"),
        ("rkd", {"optim.batch_size": 8, "optim.accumulate": 4}, "at least 3"),
        ("byot", {"student": "levit_128s", "image_size": "absent"}, "has 3 stages; name maps"),
        ("rkd", {"method.student": "BatchNorm2d.in"}, "rkd-distance: 's.BatchNorm2d.in' is 15 layers"),
        ("self", {"student": "test_vit"}, "the student's own architecture"),
        ("okddip", {"method.trunk": "block9"}, "no 'block9'"),
    ],
)
def test_impossible_pairs_are_refused_by_the_plan(name, more, message, plan):
    with pytest.raises(InputError, match=message):
        plan(name, **more)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("dkd", {"optim.mixup": 0.2}, "reads class numbers, and mixed pictures have none"),
        ("sskd", {"data.extra": ["example:fashion-mnist"]}, "reads the labels of all pictures"),
        ("dml", {"method.networks": 1}, "mutual learning needs 2 or more"),
        ("dml", {"method.networks": 4, "method.peers": ["test_vit"]}, "peers names 1: give one"),
        ("byot", {"method.maps": ["grid"]}, "names the blocks that exits stand on"),
        ("byot", {"method.maps": []}, "names the blocks that exits stand on"),
        ("kd-pt", {"method.lam": 1.5}, "lam: Input should be less than or equal to 1"),
        ("tf-kd-reg", {"method.correct": 1.0}, "correct: Input should be less than 1"),
        ("okddip", {"method.auxiliary": 1}, "method.auxiliary: Input should be greater than or equal to 2"),
        ("one", {"method.branches": 1}, "method.branches: Input should be greater than or equal to 2"),
        ("eskd", {"method.stop": -1}, "method.stop: Input should be greater than or equal to 0"),
        ("dkd", {"method.warmup": 2}, "method.warmup: Input should be less than or equal to 1"),
        ("kd-topk", {"method.part": 0}, "method.part: Input should be greater than 0"),
        ("sequential", {"method.generations": 0}, "generations: Input should be greater than or equal to 1"),
        ("dafl", {"method.latent": 0}, "method.latent: Input should be greater than or equal to 1"),
        ("dafl", {"method.oh": 1.0}, "dafl has no 'method.oh'. It has: latent, one_hot, entropy, activ"),
        ("dafl", {"method.onehot": 1.0}, "no 'method.onehot'. Did you mean 'one_hot'"),
        ("kd", {"method.ce": -1}, "term ce would weigh -"),
        ("eskd", {"method.kd": -1}, "term kl would weigh -"),
        ("kd", {"terms": ["rkd=-1"]}, "term rkd-distance would weigh -"),
        ("hint", {"teacher": "absent"}, "needs --teacher"),
        ("supervised", {"terms": ["rkd=1"]}, "--add needs --teacher: its terms"),
        ("at", {"method.student": ["stage4"]}, "1 maps of the student and 4 of the teacher"),
        ("sequential", {"method.generations": 2, "via": ["test_vit"]}, "give one"),
        ("fitnets", {"method.hint_opt": "rmspropp"}, "no optimiser 'rmspropp'. Did you mean 'rmsprop"),
        ("sskd", {"method.head_share": 0.0}, "head_share=0 leaves the teacher's head untrained"),
        ("lsr", {"optim.label_smoothing": 0.1}, "label_smoothing: no term of method lsr heeds it"),
        ("dafl", {"optim.label_smoothing": 0.1}, "no term of method dafl heeds it"),
        ("kd", {"optim.label_smoothing": 0.1, "method.ce": 0.0}, "no term of method kd heeds it"),
        ("lsr", {"data.class_balance": "loss"}, "no term of method lsr weighs its rows; take sampler"),
        ("rkd", {"optim.auto_batch": True, "student": "test_vit"}, "relates the rows of a micro-batch"),
    ],
)
def test_misuse_is_refused(name, more, message, plan):
    with pytest.raises(UsageError, match=message):
        plan(name, **more)


def test_one_name_is_a_tuple_of_one():
    assert methods.arguments("dml", {"peers": "resnet34"})["peers"] == ("resnet34",)
    assert methods.arguments("at", {"student": "stage4"})["student"] == ("stage4",)


def test_a_teacher_that_is_not_read_is_said(plan, probed, capsys):
    config = plan("byot", teacher=str(probed("test_resnet"))).config
    distill.plan(config, Console())
    said = capsys.readouterr().err
    assert said.count("method byot has no teacher: --teacher is not read.") == 1


def test_two_classes_leave_nothing_to_decouple(pictures, probed, tmp_path):
    import datasets

    two = datasets.load_from_disk(str(pictures))
    for split in two:
        two[split] = two[split].filter(lambda row: row["label"] < 2)
        features = two[split].features.copy()
        features["label"] = datasets.ClassLabel(names=["a", "b"])
        two[split] = two[split].cast(features)
    two.save_to_disk(str(tmp_path / "two"))
    teacher = method_options("supervised", tmp_path / "two", probed, tmp_path, out=str(tmp_path / "t"))
    taught = distill.run(distill.plan(resolve(distill.Config, options=teacher), QUIET), QUIET).path
    options = method_options("dkd", tmp_path / "two", probed, tmp_path, teacher=str(taught))
    with pytest.raises(InputError, match="method dkd: dkd: DKD needs at least 3 classes"):
        distill.plan(resolve(distill.Config, options=options), QUIET)
