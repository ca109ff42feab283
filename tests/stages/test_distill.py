"""distill in process on real pictures: methods, exports, extra pictures, views, tracking, mixing, balance."""

import json
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from toolbox import QUIET, facts, flip, rows

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.models.build import build
from kdcli.stages import distill


@pytest.fixture
def plan(pictures, teacher, tmp_path):
    def make(**more):
        options = {
            "teacher": str(teacher),
            "student": "test_vit",
            "from_scratch": True,
            "image_size": 32,
            "data.source": str(pictures),
            "optim.max_steps": 6,
            "optim.batch_size": 8,
            "log_every": 1,
            "out": str(tmp_path / "out"),
            "cache": str(tmp_path / "cache"),
            **more,
        }
        return distill.plan(
            resolve(distill.Config, options={k: v for k, v in options.items() if v != "absent"}), QUIET
        )

    return make


@pytest.mark.parametrize("method", ["supervised", "kd", "task-specific"])
def test_methods_end_to_end(method, plan):
    made = plan(**{"method.name": method})
    out = distill.run(made, QUIET).path
    manifest = facts(out)
    assert manifest["method"]["name"] == method
    assert manifest["global_batch"] == 8
    assert manifest["cost"]["student_steps"] == 6
    assert (manifest["cost"]["teacher_forwards"] > 0) == (method != "supervised")
    logged = [r for r in rows(out) if "loss" in r]
    assert [r["step"] for r in logged] == list(range(1, 7))
    terms = {"ce"} if method == "supervised" else {"ce", "kl"}
    assert terms <= set(logged[0])


def test_student_loads_with_plain_timm_best_and_last(plan):
    out = distill.run(plan(), QUIET).path
    network = build(str(out)).eval()
    x = network.prepare(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    for folder in (out, out / "last"):
        plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        ours = build(str(folder)).eval()
        with torch.no_grad():
            torch.testing.assert_close(plain(x), ours(x), rtol=0, atol=1e-5)
        assert ours.classes == ["T-shirt/top", "Trouser", "Pullover", "Dress"]
    best = [r for r in rows(out) if "validation/top1" in r]
    top = max(r["validation/top1"] for r in best)
    assert facts(out)["metrics"]["validation/top1"] == top
    assert facts(out)["metrics_last"]["validation/top1"] == best[-1]["validation/top1"]


def test_a_student_is_a_legal_student_and_teacher(plan, tmp_path):
    first = distill.run(plan(), QUIET).path
    more = {
        "student": str(first),
        "from_scratch": False,
        "image_size": "absent",
        "teacher": str(first / "last"),
    }
    second = plan(out=str(tmp_path / "second"), **more)
    begins = second.material.networks["student"].body.state_dict()
    assert all(torch.equal(begins[k], v) for k, v in load_file(first / "model.safetensors").items())
    assert distill.run(second, QUIET).path.exists()


def test_extra_pictures_enter_the_teacher_term_only(plan, pictures, tmp_path):
    import datasets

    extra = tmp_path / "extra"
    datasets.load_from_disk(str(pictures))["test"].save_to_disk(str(extra))
    made = plan(**{"data.extra": [str(extra)], "optim.batch_size": 16})
    assert len(made.material.pool) == len(made.data.split("train")) + 24
    assert int((made.material.pool.labels >= 0).sum()) == len(
        made.data.split("train")
    )  # their labels are never read
    out = distill.run(made, QUIET).path
    assert facts(out)["method"]["alpha"] == 0.5
    with pytest.raises(UsageError, match="enter the teacher term only"):
        plan(**{"data.extra": [str(extra)], "method.name": "supervised"})


def test_two_runs_share_the_cache(plan, tmp_path):
    first = plan(**{"views.count": "2"})
    distill.run(first, QUIET)
    segments = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")}
    assert segments
    distill.run(
        plan(**{"views.count": "2", "student": "test_resnet", "seed": 0, "out": str(tmp_path / "b")}), QUIET
    )
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npy")} == segments
    assert first.material.teacher_forwards == 48  # 6 steps of 8: the other views are not made
    assert sum(len(np.load(p)) for p in segments if p.name == "ids.npy") == 48
    distill.run(plan(**{"views.count": "2", "views.hflip": 0.0, "out": str(tmp_path / "c")}), QUIET)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) > len(segments)  # another recipe, another cache


def test_damaged_cache_is_refused(plan, tmp_path):
    distill.run(plan(**{"views.count": "1"}), QUIET)
    flip(next((tmp_path / "cache").rglob("logits.npy")))
    with pytest.raises(InputError, match=r"is damaged.*Delete .* and run again"):
        distill.run(plan(**{"views.count": "1", "out": str(tmp_path / "b")}), QUIET)


@pytest.mark.parametrize(
    ("more", "views"),
    [
        ({}, 1),  # 6 steps of 8 are less than an epoch
        ({"optim.max_steps": 40}, 6),
        ({"optim.max_steps": 400}, 8),
        ({"views.count": "live"}, None),
        ({"optim.mixup": 0.2}, None),
        ({"method.name": "supervised"}, None),
        ({"method.name": "supervised", "views.count": "3"}, 3),
    ],
)
def test_how_many_views(plan, more, views):
    assert plan(**more).material.order.views == views


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"evaluate_steps": 4}, [4, 6]),
        ({"evaluate_steps": 100}, [6]),
        ({"evaluate_every": 0.25}, [2, 4, 6]),  # a quarter of 58 pictures is 1.8 steps
        ({"evaluate_every": 0.25, "evaluate_steps": 5}, [5, 6]),
    ],
)
def test_evaluations(plan, more, steps):
    out = distill.run(plan(**more), QUIET).path
    assert [r["step"] for r in rows(out) if "validation/top1" in r] == steps


def test_a_complete_output_is_known_before_networks_are_built(plan, monkeypatch, tmp_path):
    made = plan()
    done = distill.run(made, QUIET)

    def refuses(*args, **more):
        raise AssertionError("built")

    monkeypatch.setattr("kdcli.runs.material.build", refuses)
    assert distill.plan(made.config, QUIET, unless_complete=True) == done
    other = made.config.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match=r"other settings: config\.seed \(0 then, 1 now\)"):
        distill.plan(other, QUIET, unless_complete=True)
    for update in ({"out": str(tmp_path / "b")}, {"overwrite": True}):
        with pytest.raises(AssertionError, match="built"):
            distill.plan(made.config.model_copy(update=update), QUIET, unless_complete=True)


def test_fp16_and_fp32_stores_agree(plan, tmp_path):
    runs = []
    for store in ("fp32", "fp16"):
        made = plan(**{"views.count": "1", "views.store": store, "out": str(tmp_path / store)})
        runs.append(load_file(distill.run(made, QUIET).path / "last" / "model.safetensors"))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        {"optim.mixup": 0.4, "optim.cutmix": 1.0},
        {"data.class_balance": "loss"},
        {"data.class_balance": "sampler"},
        {"optim.ema": 0.9, "optim.label_smoothing": 0.1},
        {"optim.accumulate": 4},
        {"precision": "bf16"},
        {"optim.opt": "sgd", "optim.schedule": "multistep", "optim.milestones": [0.3]},
        {"data.labels_per_class": 2, "data.labelled_fraction": 0.5},
        {"optim.layer_decay": 0.8, "drop_path": 0.1},
    ],
    ids=lambda m: ",".join(m),
)
def test_options_run(plan, more):
    out = distill.run(plan(**more), QUIET).path
    assert all(torch.isfinite(t).all() for t in load_file(out / "model.safetensors").values())


def test_tracking(plan, tmp_path):
    out = distill.run(plan(track=["tensorboard"]), QUIET).path
    assert list(out.with_name("out.track").rglob("*tfevents*"))
    with pytest.raises(UsageError, match=r"no tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        distill.run(plan(track=["tensorbord"], out=str(tmp_path / "b")), QUIET)


def test_teacher_chosen_on_other_samples_is_a_warning(plan, capsys):
    config = plan(**{"data.split_seed": 5}).config
    distill.plan(config, Console(stream=sys.stderr))
    assert "was chosen on other validation samples" in capsys.readouterr().err


def test_dry_run_description(plan, capsys):
    made = plan(**{"views.count": "2"})
    made.describe(Console(stream=sys.stderr))
    text = capsys.readouterr().err
    for expected in (
        "objective",
        "cross_entropy",
        "s.logits [4], ~t_calibrated [4]",
        "labelled",
        "forwards",
        "writes",
    ):
        assert expected in text
    json.dumps(made.to_json(), default=str)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"teacher": "absent"}, UsageError, "needs --teacher"),
        ({"student": "absent"}, UsageError, "--student is required"),
        ({"method.name": "kdd"}, UsageError, "Did you mean 'kd'"),
        ({"method.name": "kd", "method.alpha": 0.5}, UsageError, "method kd has no --alpha"),
        ({"views.count": "2", "optim.mixup": 0.1}, UsageError, "need --views live"),
        ({"views.count": "-1"}, UsageError, "a number above 0, live or auto"),
        ({"optim.accumulate": 3}, UsageError, "does not divide by 3"),
        ({"optim.opt": "adamww"}, UsageError, "no optimiser 'adamww'"),
        ({"views.store": "top"}, InputError, "none of fp16, fp32, topK"),
    ],
)
def test_refusals(plan, more, error, message):
    with pytest.raises(error, match=message):
        distill.run(plan(**more), QUIET)
