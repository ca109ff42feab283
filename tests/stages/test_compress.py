"""``kdcli compress``: what is removed, that what is left answers alike, and what is refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, Child, StopAfter, facts, measured, rows, training_plan

from kdcli.artifacts import manifest as manifests
from kdcli.config import resolve
from kdcli.console import Console
from kdcli.engine.loop import LOG
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.models.build import build
from kdcli.models.compactors import compactors
from kdcli.models.timing import PARTS, Table, block_of
from kdcli.stages import compress, distill

Make = Callable[..., compress.Plan]

QUICK = {
    **{"method.strength": 0.1, "method.momentum": 0.9, "threshold": 0.05, "optim.lr": 0.1},
    **{"method.interval": 1, "method.granularity": 100, "method.warmup": 0.1},
}


@pytest.fixture(scope="module")
def trained(pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy network that has learned a little."""
    folder = tmp_path_factory.mktemp("trained")
    more = {"method.name": "supervised", "optim.max_steps": 20, "optim.lr": 1e-3}
    return distill.run(training_plan(pictures, folder / "s", folder / "cache", **more), QUIET).path


@pytest.fixture
def make(pictures: Path, trained: Path, tmp_path: Path) -> Make:
    def plan(out: str = "o", **more: Any) -> compress.Plan:
        options = {
            **{"student": str(trained), "data.source": str(pictures), "views.count": "live"},
            **{"optim.max_steps": 60, "optim.batch_size": 16, "log_every": 1, "evaluate_steps": 10},
            **{"out": str(tmp_path / out), "cache": str(tmp_path / "cache"), **more},
        }
        options = {key: value for key, value in options.items() if value is not None}
        found = compress.plan(resolve(compress.Config, options=options), QUIET)
        assert isinstance(found, compress.Plan)
        return found

    return plan


def views(size: int = 32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8, generator=draw)


def test_resrep_meets_its_target_and_what_is_left_answers_alike(make: Make, trained: Path) -> None:
    plan = make(target="flops=0.7", **QUICK)
    made = compress.run(plan, QUIET)
    found = facts(made.path)["compression"]
    before, after = found["flops"]
    assert after <= 0.7 * before
    assert found["removed"] == sum(whole - left for whole, left in found["widths"].values()) > 0
    assert found["fold_difference"] < 1e-5
    zeroed, folded = (found["metrics"][key] for key in ("rows_zeroed", "folded"))
    assert folded == pytest.approx(zeroed, rel=1e-4)
    assert facts(made.path)["metrics"] == {f"validation/{key}": value for key, value in folded.items()}
    network, plain = build(str(made.path)).eval(), build(str(trained))
    assert (network.layout, network.task, network.classes) == ("kdcli", "classification", plain.classes)
    assert sum(p.numel() for p in network.parameters()) == found["parameters"][1]
    from kdcli.metrics.efficiency import flops

    assert flops(network, torch.zeros(1, 3, 32, 32)) == after
    assert not compactors(network)  # type: ignore[arg-type]
    log = [row for row in rows(made.path) if "small rows" in row]
    assert log[-1]["step"] == 60
    assert log[-1]["small rows"] > log[0]["small rows"] == 0
    assert json.loads((made.path / "kdcli.json").read_text())["stage"] == "compress"


def test_the_smaller_network_is_a_teacher_a_student_and_can_be_made_smaller_again(
    make: Make, pictures: Path, tmp_path: Path
) -> None:
    gentle = {**QUICK, "method.strength": 0.02, "optim.lr": 0.2, "optim.max_steps": 100}
    gentle |= {"target": "flops=0.9"}
    first = compress.run(make("first", **gentle), QUIET).path
    more = {"teacher": [str(first)], "method.name": "kd", "views.count": "live", "optim.max_steps": 2}
    student = distill.run(training_plan(pictures, tmp_path / "s", tmp_path / "cache", **more), QUIET).path
    again = {"method.name": "supervised", "student": str(first), "from_scratch": False, "image_size": None}
    kept = distill.run(
        training_plan(pictures, tmp_path / "again", tmp_path / "cache", **again, **{"optim.max_steps": 2}),
        QUIET,
    ).path
    assert build(str(kept)).operations == build(str(first)).operations  # type: ignore[attr-defined]
    again = {**gentle, "student": str(first), "target": "flops=0.95", "method.strength": 0.05}
    second = compress.run(make("second", **again), QUIET).path
    widths = [facts(path)["compression"]["widths"] for path in (first, second)]
    assert all(widths[1][name][0] == left for name, (_, left) in widths[0].items() if left > 1)
    made = measured([first, second, student], pictures, tmp_path / "report")
    report = json.loads((made.path / "report.json").read_text())
    assert [model["name"] for model in report["models"]] == ["first", "second", "s"]


def test_cdd_begins_with_the_teacher_itself(make: Make, trained: Path) -> None:
    more = {"method.name": "cdd", "teacher": [str(trained)], "student": None, "optim.max_steps": 60}
    more |= {
        "method.strength": 0.15,
        "method.ratio": 0.9,
        "method.queue": 32,
        "threshold": 0.05,
        "optim.lr": 0.1,
    }
    plan = make(**more)
    told = plan.to_json()
    assert [row["term"] for row in told["objective"]][:4] == ["ce", "kl", "layers", "reset rows"]
    assert told["states"]["rggr"]["queue1"][0] == 32
    teacher = plan.material.networks["teacher"]
    with torch.no_grad():
        assert torch.equal(plan.material.networks["student"].eval()(views()), teacher(views()))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    made = compress.run(plan, QUIET)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    found = facts(made.path)["compression"]
    assert found["removed"] > 0
    assert found["fold_difference"] < 1e-5
    reset = [row["reset rows"] for row in rows(made.path) if "reset rows" in row]
    assert reset[:10] == [0.0] * 10  # the warm-up
    assert reset == sorted(reset)  # no row comes back
    assert reset[-1] > 0


@pytest.mark.parametrize("ratio", [0.9, 0.0])
def test_a_target_of_cdd_is_met_by_the_least_norms_at_the_end(
    make: Make, trained: Path, ratio: float
) -> None:
    more = {"method.name": "cdd", "teacher": [str(trained)], "student": "same", "method.queue": 32}
    more |= {
        "method.strength": 0.08,
        "method.hint": 20.0,
        "threshold": 0.05,
        "optim.lr": 0.1,
        "target": "flops=0.55",
    }
    found = facts(compress.run(make(**more, **{"method.ratio": ratio}), QUIET).path)["compression"]
    assert found["flops"][1] <= 0.55 * found["flops"][0]
    assert found["flops"][1] > 0.5 * found["flops"][0]
    assert found["cut"] > 0
    assert found["metrics"]["folded"] == pytest.approx(found["metrics"]["rows_zeroed"], rel=1e-4)


def test_taylor_removes_what_the_loss_misses_least(make: Make, trained: Path) -> None:
    """A gate's derivative is that of the activation's input, times the input, summed."""
    from torch.nn import functional as F

    from kdcli.data.batches import training_loader
    from kdcli.runs import frame

    more = {"method.name": "taylor", "target": "flops=0.7", "method.pictures": 40}
    plan = make(**more, **{"optim.opt": "adamw", "optim.lr": 1e-3, "optim.max_steps": 4})
    own, material = plan.compacted, plan.material
    network: Any = build(str(trained)).eval()
    inputs: dict[str, torch.Tensor] = {}
    for site in own.of.sites:
        network.body.get_submodule(site).register_forward_pre_hook(partial(keep, inputs, site))
    reading = frame.reading(plan.config, plan.config.data)
    loader = training_loader(material.pool, material.view, columns=None, pin=False, others={}, **reading)
    scores = {site: torch.zeros(width) for site, width in zip(own.of.sites, own.of.widths)}
    for batch in loader([material.order.keys(step) for step in range(3)]):  # 48 of 16 each
        loss = F.cross_entropy(network(batch["x"]), batch["y"])
        for site, slope in zip(inputs, torch.autograd.grad(loss, list(inputs.values()))):
            scores[site] += (slope * inputs[site]).sum((0, 2, 3)).detach() ** 2 / 3
    kept = torch.cat([scores[site][mask] for site, mask in own.kept.items() if mask.sum() > 1])
    gone = torch.cat([scores[site][~mask] for site, mask in own.kept.items()])
    assert gone.max() <= kept.min() * (1 + 1e-4)
    made = compress.run(plan, QUIET)
    flops = facts(made.path)["compression"]["flops"]
    assert flops[1] <= 0.7 * flops[0]
    again = make("again", **more, **{"optim.opt": "adamw", "optim.lr": 1e-3, "optim.max_steps": 4})
    assert all(torch.equal(mask, own.kept[site]) for site, mask in again.compacted.kept.items())


def keep(found: dict[str, torch.Tensor], site: str, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
    """A hook that puts down what a module takes."""
    (found[site],) = inputs


def test_a_target_of_latency_is_met_by_a_table_that_is_measured_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcli.runs import latency

    times: list[Any] = []

    def measured_once(network: Any, sites: Any, device: Any) -> Any:
        """Every block takes as long as it is wide: no clock, so that the numbers are known."""
        times.append(len(sites))
        blocks = {block_of(site): tuple(4.0 * max(part, 0.01) for part in PARTS) for site in sites}
        return Table((20.0,) * len(PARTS), blocks)

    monkeypatch.setattr(latency, "measure", measured_once)
    more = {"method.name": "magnitude", "optim.max_steps": 2}
    plan = make("part", target="latency=0.6", **more)
    (file,) = (tmp_path / "cache" / "latency").glob("*.json")
    cost, widths = plan.compacted.of.cost, plan.compacted.widths_left(plan.compacted.kept)
    assert cost(plan.compacted.of.widths) == pytest.approx(20.0)
    assert cost(widths) <= 12.0 < cost([w + 1 for w in widths])
    amount = make("amount", target="latency=12ms", **more)
    assert amount.compacted.widths_left(amount.compacted.kept) == widths
    assert len(times) == 1
    found = facts(compress.run(plan, QUIET).path)["compression"]
    assert found["latency_ms"] == [pytest.approx(20.0), pytest.approx(cost(widths))]
    assert plan.to_json()["sites"]["least"]["latency"] == pytest.approx((20 - 4 * 4 * 0.99) / 20, abs=0.05)
    with pytest.raises(InputError, match=r"latency=1ms cannot be met: with one channel left .* ms\. Ask for"):
        make("other", target="latency=1ms", **more)
    file.write_text("{}")  # damaged: measured anew
    make("third", target="latency=0.6", **more)
    assert len(times) == 2
    with pytest.raises(InputError, match=r"latency=50ms: the network has 20 ms already"):
        make("other", target="latency=50ms", **more)


def test_what_times_depend_on_tells_tables_apart() -> None:
    """Equal shapes of weights are not equal times: heads, strides and sizes of pictures."""
    from timm import create_model

    from kdcli.models.sites import sites_of
    from kdcli.runs.latency import _key

    def key(name: str, size: int = 32, threads: int = 1, **options: Any) -> str:
        network: Any = build(name, pretrained=False, size=size)
        if options:
            network.body = create_model(name, num_classes=network.body.num_classes, **options)
        return _key(network, sites_of(network, "resrep").sites, torch.device("cpu"), threads)

    keys = [key("test_resnet"), key("test_resnet", 64), key("test_resnet", threads=2)]
    keys += [key("test_resnet", output_stride=8), key("test_vit", img_size=32)]
    keys += [key("test_vit", img_size=32, num_heads=4)]
    assert len(set(keys)) == 6
    assert key("test_resnet") == keys[0]


def test_processes_measure_once(make: Make, tmp_path: Path) -> None:
    """Two at a time: one of them measures, and both choose the same."""
    torch.set_num_threads(1)

    def choose(report: Any) -> None:
        plan = make("o", target="latency=0.95", **{"method.name": "magnitude"})
        (tmp_path / f"{os.getpid()}.widths").write_text(str(plan.compacted.widths_left(plan.compacted.kept)))

    children = [Child(choose) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    first, second = (file.read_text() for file in tmp_path.glob("*.widths"))
    assert first == second


def test_magnitude_removes_before_it_trains(make: Make, trained: Path) -> None:
    more = {"method.name": "magnitude", "target": "params=0.7", "teacher": [str(trained)], "student": "same"}
    plan = make(**more, **{"optim.opt": "adamw", "optim.lr": 1e-3, "optim.max_steps": 6})
    student, whole = plan.material.networks["student"], build(str(trained))
    widths = plan.compacted.widths_left(plan.compacted.kept)
    site, left = plan.compacted.found.sites[0], widths[0]
    weight = whole.tensor(f"{site.producer}.weight")
    norms = weight.detach().flatten(1).norm(dim=1)
    best = norms.topk(left).indices.sort().values
    own = student.tensor(f"{site.producer}.weight").flatten(1)  # scaled: the norm behind it is folded in
    alike = torch.nn.functional.cosine_similarity(own, weight[best].flatten(1))
    torch.testing.assert_close(alike, torch.ones(left))
    made = compress.run(plan, QUIET)
    found = facts(made.path)["compression"]
    assert found["parameters"][1] <= 0.7 * found["parameters"][0]
    assert [new for _, new in found["widths"].values()] == widths
    network = build(str(made.path))
    assert sum(p.numel() for p in network.parameters()) == found["parameters"][1]
    assert facts(made.path)["selection"].startswith("best on validation, step")
    with pytest.raises(UsageError, match="threshold is given, and method magnitude removes channels before"):
        make("other", threshold=0.1, **more)


@pytest.mark.parametrize("method", ["resrep", "cdd"])
def test_a_stopped_run_goes_on_bit_for_bit(make: Make, trained: Path, method: str) -> None:
    more = {**QUICK, "target": "flops=0.7"}
    if method == "cdd":
        more = {"method.name": "cdd", "teacher": [str(trained)], "student": "same", "method.queue": 32}
        more |= {"method.strength": 0.15, "method.ratio": 0.9, "threshold": 0.05, "optim.lr": 0.1}
    whole = compress.run(make("whole", **more), QUIET).path
    for stop in (1, 17):
        with pytest.raises(Preempted):
            compress.run(make("cut", **more), QUIET, stop=StopAfter(stop))
    cut = compress.run(make("cut", **more), QUIET).path
    for name in ("model.safetensors", "config.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert facts(cut)["compression"] == facts(whole)["compression"]


def killed_until_done(make: Make, out: str, length: float, rng: random.Random, **more: Any) -> int:
    """Run it in processes that are killed at random moments, until one ends; returns how many were killed."""
    kills, plan = 0, make(out, **more)
    while True:
        child = Child(lambda report: compress.run(plan, QUIET) and None)
        code = child.wait(rng.uniform(0, 0.8 * length) if kills < 20 else 600)
        child.steps()
        if plan.target.path.exists():
            manifests.verify(plan.target.path, manifests.read(plan.target.path))
        if code is not None:
            assert code == 0, "the rerun failed"
            return kills
        kills += 1


def kills(make: Make, least: int, **more: Any) -> None:
    """At least so many kills, over as many runs as that takes; each ends as the one that nobody disturbed."""
    torch.set_num_threads(1)  # of forked processes
    more = {**more, "save_steps": 1}
    began = time.monotonic()
    whole = compress.run(make("whole", **more), QUIET).path
    length, done, rng = time.monotonic() - began, 0, random.Random(0)
    wanted = {name: facts["sha256"] for name, facts in manifests.read(whole).files.items() if name != LOG}
    while done < least:
        out = f"killed-{done}"
        done += killed_until_done(make, out, length, rng, **more)
        files = manifests.read(whole.with_name(out)).files
        assert {name: files[name]["sha256"] for name in files if name != LOG} == wanted


def test_killed_runs_end_as_others_do(make: Make) -> None:
    kills(make, 3, **QUICK, target="flops=0.7")


@pytest.mark.long
@pytest.mark.parametrize("method", ["resrep", "cdd", "magnitude"])
def test_kills_of_every_method_and_of_exports(make: Make, trained: Path, method: str) -> None:
    if method == "resrep":
        pytest.importorskip("onnxruntime")
        forms = {"export": ["onnx"], "quantize": "int8-dynamic"}
        kills(make, 6, **QUICK, target="flops=0.7", **forms)
    elif method == "cdd":
        more = {"method.name": "cdd", "teacher": [str(trained)], "student": "same", "method.queue": 32}
        more |= {"method.strength": 0.15, "method.ratio": 0.9, "threshold": 0.05, "optim.lr": 0.1}
        kills(make, 30, **more)
    else:
        kills(make, 30, **{"method.name": "magnitude", "target": "flops=0.7"})


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_other_families(make: Make, name: str) -> None:
    plan = make(student=name, from_scratch=True, image_size=32, target="params=0.8", **QUICK)
    found = facts(compress.run(plan, QUIET).path)["compression"]
    assert found["parameters"][1] <= 0.8 * found["parameters"][0]
    assert found["fold_difference"] < 1e-4


def test_the_plan_says_what_can_go(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Console, "note", lambda self, text: told.append(text))
    plan = make(target="flops=0.7", **QUICK)
    plan.describe(QUIET)
    (line,) = [text for text in told if text.startswith("removes")]
    assert "where each site keeps one channel" in line
    assert any(text.startswith("keeps    conv1: ") for text in told)
    said = plan.to_json()
    assert set(said["sites"]["channels"]) == set(plan.compacted.of.sites)
    assert 0 < said["sites"]["least"]["flops"] < 0.7
    assert said["turns"][0]["groups"]["student:*.compactor.weight"] == {"momentum": 0.9, "weight_decay": 0.0}
    assert said["turns"][0]["edits"][0]["parameters"] == list(plan.compacted.of.parameters)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"target": "flops=0.7"},
            UsageError,
            r"the target takes about \d+ rows of \d+, and 4 more are chosen",
        ),
        (
            {**QUICK, "target": "flops=0.7", "method.strength": 1e-3},
            UsageError,
            r"no row would be removed: .* say --set method\.strength=",
        ),
        ({**QUICK, "target": "flops=0.1"}, InputError, r"flops=0\.1 cannot be met: .* stay\. Ask for 0\.\d+"),
        (
            {**QUICK, "target": "speed=0.5"},
            UsageError,
            "there are flops, params, latency",
        ),
        ({**QUICK, "target": "flops=2"}, UsageError, r"between 0 and 1"),
        ({**QUICK, "target": "flops=x"}, UsageError, r"'x' is no number"),
        ({**QUICK, "target": "flops=0.7", "method.target": 0.5}, UsageError, "say the same: give one"),
        ({"method.name": "cdd"}, UsageError, "method cdd needs --teacher"),
        (
            {"method.name": "kd"},
            UsageError,
            "method kd is one of kdcli distill; kdcli compress has resrep, cdd",
        ),
        (
            {
                **QUICK,
                "target": "flops=0.7",
                "data.validation_fraction": 0.8,
                "export": ["onnx"],
                "quantize": "int8",
            },
            InputError,
            r"--quantize int8: 1\d pictures to calibrate on, and at least 16 are needed",
        ),
        ({"method.name": "ressrep"}, UsageError, "unknown method 'ressrep'. Did you mean 'resrep'"),
        ({"student": "same"}, UsageError, "--student same is the teacher's network"),
        ({**QUICK, "target": "flops=0.7", "optim.opt": "adamw"}, UsageError, "--opt adamw: rows shrink by"),
        ({**QUICK, "target": "flops=0.7", "optim.opt": "nadam"}, UsageError, "--opt nadam: rows shrink by"),
        (
            {**QUICK, "target": "flops=0.7", "optim.ema": 0.9},
            UsageError,
            "optim.ema is given, and an average",
        ),
        (
            {**QUICK, "optim.stop_epoch": 0.1, "target": "flops=0.7"},
            UsageError,
            "Train longer|no row would be",
        ),
    ],
)
def test_what_is_refused(make: Make, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options)


def test_pictures_without_a_label_are_left_out_where_no_term_sees_them(make: Make, trained: Path) -> None:
    few = {**QUICK, "target": "flops=0.7", "data.labels_per_class": 2}
    plan = make(**few)
    assert len(plan.material.pool) == plan.compacted.of.pictures == 8
    taught = make("taught", teacher=[str(trained)], **few)
    assert len(taught.material.pool) == taught.compacted.of.pictures == 58


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method.kd": 3.0}, r"method\.kd=3\.0 is given, and changes nothing in method resrep"),
        ({"method.temperature": 9.0}, r"method\.temperature=9\.0 is given, and changes nothing"),
        ({"optim.clip_grad": 1.0}, r"optim\.clip_grad scales down what makes rows shrink"),
        ({"optim.hold": 0.1, "optim.warmup": 0.4}, r"optim\.hold=0\.1 ends before the warm-up does"),
    ],
)
def test_what_would_change_nothing_or_what_nobody_can_foretell(
    make: Make, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make(**{**QUICK, "target": "flops=0.7", **options})


def test_a_target_of_ones_own_stands_above_the_papers(make: Make) -> None:
    more = {**QUICK, "recipe": "paper", "target": "params=0.8", "threshold": 0.9}
    more |= {"optim.max_steps": None, "optim.batch_size": None, "method.strength": 1.5}
    plan = make(**more)
    assert (plan.arguments["target"], plan.goal.kind) == (0.8, "params")


def test_micro_batches_do_not_end_the_warm_up_early(make: Make, trained: Path) -> None:
    more = {"method.name": "cdd", "teacher": [str(trained)], "student": "same", "method.strength": 0.4}
    more |= {"threshold": 0.1, "optim.accumulate": 4, "method.warmup": 0.5, "optim.lr": 0.1}
    (turn,) = make(**more).method.turns
    (derive,) = (derive for derive in turn.derives if derive.state is not None)
    assert derive.keywords["warmup"] == 30 * 4


def test_the_plan_says_how_fast_rows_shrink(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Console, "note", lambda self, text: told.append(text))
    make(target="flops=0.7", **QUICK).describe(QUIET)
    (line,) = [text for text in told if text.startswith("shrinks")]
    assert "a row of norm 1 below 0.05 in" in line
    assert "steps of resetting; the last rows are chosen after step" in line


def test_several_labels_are_taught_by_their_own_divergence() -> None:
    """Softmax over logits that are questions of their own would be another objective."""
    from kdcli.compression.magnitude import magnitude
    from kdcli.compression.shrinking import Compaction
    from kdcli.tasks.multilabel import MultiLabel

    of = Compaction((), (), (), float, 1, 8, 1, 8, taught=True, alike=True, answers=False)
    terms = {term.name: term.loss.__name__ for term in magnitude(MultiLabel(("a", "b")), of).turns[0].terms}
    assert terms == {"bce": "binary_cross_entropy", "kl": "binary_kl_divergence"}


def test_cdd_refuses_another_architecture(make: Make, trained: Path) -> None:
    with pytest.raises(UsageError, match=r"compares layers .* channel by channel, and these differ"):
        make(
            **{"method.name": "cdd", "teacher": [str(trained)], "student": "test_vit"},
            **{"from_scratch": True, "image_size": 32},
        )


def test_distill_has_no_method_of_compress(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="method cdd is one of kdcli compress"):
        training_plan(pictures, tmp_path / "o", tmp_path / "c", **{"method.name": "cdd"})


@pytest.mark.parametrize("method", ["resrep", "cdd"])
def test_papers_trainings_apply(make: Make, trained: Path, method: str) -> None:
    more = {"method.name": method, "recipe": "paper", "optim.max_steps": None, "optim.batch_size": None}
    if method == "cdd":
        more |= {"teacher": [str(trained)], "student": "same", "method.strength": 1.5, "threshold": 0.1}
    else:
        more |= {"method.granularity": 100, "method.interval": 1, "method.strength": 1.5}
        more |= {"method.target": 0.6, "threshold": 0.9}
    plan = make(**more)
    assert plan.config.optim.opt == "momentum"
    assert plan.config.optim.epochs == {"resrep": 180, "cdd": 120}[method]
    assert plan.recipe.applied["optim.clip_grad"] is None


@pytest.mark.long
def test_two_processes_reset_the_rows_that_one_does(pictures: Path, tmp_path: Path) -> None:
    """Queues hold the rows of both; a network without batch norms differs by rounding alone."""
    more = {"method.name": "supervised", "student": "test_vit", "optim.max_steps": 20, "optim.batch_size": 16}
    teacher = distill.run(training_plan(pictures, tmp_path / "t", tmp_path / "c", **more), QUIET).path
    settings = {"method.strength": 0.8, "method.ratio": 0.9, "method.queue": 32, "threshold": 0.1}
    settings |= {"log_every": 1}
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    common = ["--method", "cdd", "--teacher", str(teacher), "--data", str(pictures), "--views", "live"]
    common += ["--max-steps", "24", "--batch-size", "16", "--lr", "0.1", "--device", "cpu", "--quiet", *flags]
    found = []
    for processes in ("1", "2"):
        out = tmp_path / f"out-{processes}"
        command = [sys.executable, "-m", "kdcli", "compress", "-n", processes, *common, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(out)
    one, two = ([row["reset rows"] for row in rows(out) if "reset rows" in row] for out in found)
    assert one == two
    assert one[-1] > 100
    assert facts(found[0])["compression"]["widths"] == facts(found[1])["compression"]["widths"]
    first, second = (load_file(out / "model.safetensors") for out in found)
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-3)
