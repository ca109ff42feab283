"""A probed teacher's temperature: fitted, kept, heeded where it teaches, left out where that is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, StopAfter, commit_model, facts, rows, training_plan

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.errors import InputError, Preempted
from kdcli.models.build import build
from kdcli.stages import distill, evaluate, probe

Train = Callable[..., distill.Plan]


@pytest.fixture(scope="module")
def train(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    cache = tmp_path_factory.mktemp("cache")

    def make(out: Path, *teachers: Path, **more: Any) -> distill.Plan:
        usual = {"teacher": [str(teacher) for teacher in teachers], "optim.max_steps": 6}
        usual |= {"optim.batch_size": 16, "method.name": "kd", "views.count": "1", **more}
        if usual["views.count"] != "live":
            usual = {"views.store": "fp32", **usual}
        return training_plan(pictures, out, cache, **usual)

    return make


def calibrated(artifact: Path, temperature: object) -> Path:
    """The artifact with another temperature in its manifest; None for one of a version that had none."""
    file = artifact / "kdcli.json"
    manifest = json.loads(file.read_text())
    manifest.pop("calibration", None)
    if temperature is not None:
        manifest["calibration"] = {"temperature": temperature}
    file.write_text(json.dumps(manifest))
    return artifact


@pytest.fixture(scope="module")
def plain(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that has no temperature."""
    return commit_model(build(str(teacher)), tmp_path_factory.mktemp("plain") / "t")


@pytest.fixture(scope="module")
def sharp(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with logits three times as large, and a temperature of 3."""
    network = build(str(teacher))
    with torch.no_grad():
        for parameter in network.linear.parameters():
            parameter *= 3
    return calibrated(commit_model(network, tmp_path_factory.mktemp("sharp") / "t"), 3.0)


def weights_of(path: Path) -> torch.Tensor:
    found = load_file(path / "last" / "model.safetensors")
    return torch.cat([found[name].flatten().float() for name in sorted(found)])


def test_probe_fits_it_and_says_what_it_does(teacher: Path) -> None:
    found = facts(teacher)["calibration"]
    assert set(found) == {"temperature", "samples", "before", "after"}
    assert found["samples"] == facts(teacher)["data"]["splits"]["validation"]["samples"]
    assert found["after"]["nll"] <= found["before"]["nll"]
    assert found["before"]["nll"] == pytest.approx(facts(teacher)["metrics"]["validation/nll"], rel=1e-4)
    assert build(str(teacher)).temperature == found["temperature"]


def test_artifacts_without_one_have_one(plain: Path) -> None:
    assert build(str(plain)).temperature == 1.0


@pytest.mark.parametrize("value", [0, -1.0, "2", [2], 1e300])
def test_a_temperature_that_is_none_is_refused(teacher: Path, tmp_path: Path, value: object) -> None:
    made = calibrated(commit_model(build(str(teacher)), tmp_path / "t"), value)
    with pytest.raises(InputError, match="calibration is malformed"):
        build(str(made))


@pytest.mark.parametrize("views", ["1", "live"])
def test_logits_are_divided_where_they_teach(
    plain: Path, sharp: Path, train: Train, tmp_path: Path, views: str
) -> None:
    wanted = distill.run(train(tmp_path / "plain", plain, **{"views.count": views}), QUIET).path
    found = distill.run(train(tmp_path / "fit", sharp, **{"views.count": views}), QUIET).path
    raw = train(tmp_path / "raw", sharp, teacher_temperature="raw", **{"views.count": views})
    other = distill.run(raw, QUIET).path
    torch.testing.assert_close(weights_of(found), weights_of(wanted), rtol=1e-3, atol=1e-4)
    assert (weights_of(other) - weights_of(wanted)).abs().max() > 1e-2
    assert facts(found)["method"] == facts(wanted)["method"]


def test_caches_keep_raw_logits(sharp: Path, train: Train, tmp_path: Path) -> None:
    """One cache serves both uses, under the key that it had before there were temperatures."""
    own = {"cache": str(tmp_path / "cache")}
    distill.run(train(tmp_path / "fit", sharp, **own), QUIET)
    before = sorted(p.name for p in (tmp_path / "cache").rglob("segment-*"))
    distill.run(train(tmp_path / "raw", sharp, teacher_temperature="raw", **own), QUIET)
    assert sorted(p.name for p in (tmp_path / "cache").rglob("segment-*")) == before
    assert len(before) == 1


def test_several_teachers_have_theirs_each(plain: Path, sharp: Path, train: Train, tmp_path: Path) -> None:
    plan = train(tmp_path / "o", plain, sharp)
    assert plan.to_json()["teacher_temperature"] == {"use": "fit", "fitted": [3.0]}
    raw = train(tmp_path / "r", plain, sharp, teacher_temperature="raw")
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first = build(str(plain)).eval()
    with torch.no_grad():
        torch.testing.assert_close(plan.material.networks["teacher"](x), first(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(raw.material.networks["teacher"](x), 2 * first(x), rtol=1e-4, atol=1e-4)
    assert plan.material.networks["teacher"].source != raw.material.networks["teacher"].source


def test_the_plan_says_which(
    sharp: Path, plain: Path, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Console, "note", lambda self, text: told.append(text))
    plan = train(tmp_path / "fit", sharp)
    assert {row["taps"] for row in plan.to_json()["objective"] if row["term"] == "kl"} == {
        "s.logits [4], ~t_calibrated [4]"
    }
    plan.describe(QUIET)
    assert "teaches  logits over 3, as fitted by probe, before the method's own temperature" in told
    train(tmp_path / "raw", sharp, teacher_temperature="raw").describe(QUIET)
    assert "teaches  raw logits: teacher_temperature=raw leaves out the fitted 3" in told
    told.clear()
    train(tmp_path / "plain", plain).describe(QUIET)
    assert not [line for line in told if line.startswith("teaches")]


def test_another_temperature_is_another_run(sharp: Path, train: Train, tmp_path: Path) -> None:
    first = train(tmp_path / "o", sharp).target.identity
    calibrated(sharp, 2.0)
    try:
        assert train(tmp_path / "o", sharp).target.identity != first
    finally:
        calibrated(sharp, 3.0)


def test_a_kept_classifier_keeps_it(teacher: Path, tmp_path: Path) -> None:
    options = {"teacher": str(teacher), "head": "keep", "out": str(tmp_path / "o")}
    made = probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path
    assert facts(made)["calibration"] == facts(teacher)["calibration"]


def test_a_finetuned_network_is_calibrated_anew(
    pictures: Path, weights: dict[str, Path], tmp_path: Path, warnings: list[str]
) -> None:
    options = {
        "teacher": "test_resnet",
        "weights": str(weights["test_resnet"]),
        "image_size": 32,
        "data.source": str(pictures),
        "features": "timm",
        "grid.epochs": 2,
        "finetune": True,
        "optim.max_steps": 3,
        "optim.batch_size": 8,
        "optim.lr": 1e-3,
        "out": str(tmp_path / "o"),
        "cache": str(tmp_path / "cache"),
    }
    made = probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path
    found = facts(made)
    assert found["calibration"]["before"]["nll"] == pytest.approx(
        found["metrics"]["validation/nll"], rel=1e-4
    )
    assert found["head"]["metrics"]["validation/nll"] != found["metrics"]["validation/nll"]


def test_an_overconfident_head_is_said(
    pictures: Path, weights: dict[str, Path], tmp_path: Path, warnings: list[str]
) -> None:
    """A single learning rate far too large leaves no better choice."""
    options = {
        "teacher": "test_vit",
        "weights": str(weights["test_vit"]),
        "image_size": 32,
        "data.source": str(pictures),
        "features": "timm",
        "data.validation_fraction": 0.4,
        "grid.solver": "sgd",
        "grid.lr": [1.0],
        "out": str(tmp_path / "o"),
        "cache": str(tmp_path / "cache"),
    }
    made = probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET)
    temperature = facts(made.path)["calibration"]["temperature"]
    assert temperature >= 1.5
    (said,) = [text for text in warnings if "overconfident" in text]
    assert said.startswith(f"the classifier is overconfident: temperature {temperature:.3g} (fitted on ")
    assert "NLL" in said
    assert "ECE" in said
    assert made.summary["calibration"]["temperature"] == temperature


def test_eval_says_what_its_figures_are_of(sharp: Path, pictures: Path, tmp_path: Path) -> None:
    options = {
        "models": [str(sharp)],
        "data.source": str(pictures),
        "cost": False,
        "out": str(tmp_path / "o"),
    }
    plan = evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
    path = evaluate.run(plan, QUIET).path
    report = json.loads((path / "report.json").read_text())
    (model,) = report["models"]
    assert set(model["calibrated"]) == {"nll", "ece"}
    assert model["calibrated"]["nll"] != model["metrics"]["nll"]
    (note,) = [text for text in report["notes"] if "temperature" in text]
    assert f"NLL {model['metrics']['nll']:.3f}" in note
    assert "divided by the temperature 3 that probe fitted" in note
    assert "as they are, at temperature 1" in (path / "report.html").read_text()


# -- what the answers are worth ------------------------------------------------------------------------------


def test_a_teacher_worse_than_the_labels_is_said(
    plain: Path, train: Train, tmp_path: Path, warnings: list[str]
) -> None:
    """The figures are those of a naive pass over the views of the first epoch."""
    plan = train(tmp_path / "o", plain, **{"optim.max_steps": 8})
    made = distill.run(plan, QUIET)
    found = facts(made.path)["teacher_answers"]
    material = plan.material
    steps = next(k for k in range(1, 9) if k * 16 >= len(material.pool))
    network, right, losses = build(str(plain)).eval(), [], []
    plain_task = material.lesson.task
    plain_task.match(network, "names", "it")
    for step in range(steps):
        for index, view in material.order.keys(step):
            part, place = material.pool.locate(index)
            x = material.view(part.picture(place, 10**7), view, int(part.ids[place]))
            with torch.no_grad():
                logits = network(x[None])[0]
            y = int(part.labels[place])
            right.append(int(logits.argmax()) == y)
            losses.append(float(-logits.log_softmax(0)[y]))
    assert found["views"] == len(right) == steps * 16
    assert found["top1"] == pytest.approx(sum(right) / len(right))
    assert found["nll"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)
    assert found["top1"] < 0.9
    assert found["said"].startswith(f"the teacher is right on {found['top1']:.1%} of labelled views")
    (said,) = [text for text in warnings if "teach better" in text]
    assert said == found["warning"]
    assert f"wrong on {1 - found['top1']:.1%} of labelled views that it teaches, more than 10%" in said
    (row,) = [row for row in rows(made.path) if "teacher/top1" in row]
    assert (row["step"], row["teacher/views"]) == (steps, steps * 16)
    assert made.summary["teacher_answers"]["views"] == steps * 16


@pytest.mark.parametrize("softened", [False, True])
def test_a_plan_says_it_where_a_cache_knows(
    plain: Path, sharp: Path, train: Train, tmp_path: Path, warnings: list[str], softened: bool
) -> None:
    """In less than an epoch of one view each: the figures of the plan are those that the run found."""
    teacher, options = sharp if softened else plain, {"cache": str(tmp_path / "cache"), "optim.batch_size": 8}
    first = train(tmp_path / "o", teacher, **options)
    assert first.to_json()["teacher_answers"] == {}
    first.describe(QUIET)
    assert not [text for text in warnings if "teach better" in text]
    found = facts(distill.run(first, QUIET).path)["teacher_answers"]
    warnings.clear()
    plan = train(tmp_path / "next", teacher, **options)
    known = plan.to_json()["teacher_answers"]
    assert known["views"] == found["views"] == 6 * 8
    assert {name: known[name] for name in ("top1", "nll", "warning")} == pytest.approx(
        {name: found[name] for name in ("top1", "nll", "warning")}
    )
    assert known["said"] == found["said"].replace("first epoch", "from the cache")
    plan.describe(QUIET)
    assert known["warning"] in warnings
    assert (
        train(tmp_path / "more", teacher, **options, seed=1).to_json()["teacher_answers"] == {}
    )  # other views


def test_live_and_cached_answers_are_worth_the_same(plain: Path, train: Train, tmp_path: Path) -> None:
    found = [
        facts(distill.run(train(tmp_path / views, plain, **{"views.count": views}), QUIET).path)
        for views in ("1", "live")
    ]
    first, second = (manifest["teacher_answers"] for manifest in found)
    assert first["views"] == second["views"]
    assert first["top1"] == pytest.approx(second["top1"], abs=0.05)
    # the last batch runs on into the second epoch, which has other views where they are live
    assert first["nll"] == pytest.approx(second["nll"], rel=0.02)


def test_few_labels_and_methods_without_answers_are_not_warned_of(
    plain: Path, train: Train, tmp_path: Path, warnings: list[str]
) -> None:
    made = distill.run(train(tmp_path / "few", plain, **{"data.labels_per_class": 3}), QUIET).path
    assert "warning" not in facts(made)["teacher_answers"]
    more = {"method.name": "rkd", "views.count": "live"}
    made = distill.run(train(tmp_path / "rkd", plain, **more), QUIET).path
    assert "teacher_answers" not in facts(made)
    more = {"optim.mixup": 0.5, "views.count": "live"}  # no row has one label
    made = distill.run(train(tmp_path / "mixup", plain, **more), QUIET).path
    assert "teacher_answers" not in facts(made)
    assert not [text for text in warnings if "teach better" in text]


def test_a_report_repeats_it(plain: Path, train: Train, pictures: Path, tmp_path: Path) -> None:
    student = distill.run(train(tmp_path / "s", plain), QUIET).path
    options = {
        "models": [str(student)],
        "data.source": str(pictures),
        "cost": False,
        "out": str(tmp_path / "o"),
    }
    path = evaluate.run(evaluate.plan(resolve(evaluate.Config, options=options), QUIET), QUIET).path
    notes = json.loads((path / "report.json").read_text())["notes"]
    warning = facts(student)["teacher_answers"]["warning"].rstrip(".")
    assert f"s, in training: {warning}." in [note.replace(str(student), "s") for note in notes]


def test_a_stopped_run_counts_on(plain: Path, train: Train, tmp_path: Path) -> None:
    whole = facts(distill.run(train(tmp_path / "whole", plain), QUIET).path)
    with pytest.raises(Preempted):
        distill.run(train(tmp_path / "cut", plain), QUIET, stop=StopAfter(2))
    cut = facts(distill.run(train(tmp_path / "cut", plain), QUIET).path)
    assert cut["teacher_answers"] == whole["teacher_answers"]
    assert len([row for row in rows(tmp_path / "cut") if "teacher/top1" in row]) == 1
