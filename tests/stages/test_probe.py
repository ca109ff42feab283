"""probe in process on real pictures: grid, layouts, selection, live protocol, keeping a head."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from toolbox import QUIET, StopAfter, facts, rows

from kdcli.artifacts import manifest as manifests
from kdcli.config import resolve
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.models.build import build
from kdcli.models.timm import FEATURES
from kdcli.stages import probe


@pytest.fixture(scope="module")
def plan(weights, pictures, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def make(name: str, out: Path, **more):
        options = {
            "teacher": name,
            "weights": str(weights[name]),
            "image_size": 32,
            "data.source": str(pictures),
            "grid.epochs": 4,
            "out": str(out),
            "cache": str(cache),
            **more,
        }
        return probe.plan(resolve(probe.Config, options=options), QUIET)

    return make


def some_views(size: int = 32) -> torch.Tensor:
    return torch.randint(
        0, 256, (5, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timm_layout_loads_with_plain_timm(name, plan, tmp_path):
    made = probe.run(plan(name, tmp_path / "out", features="timm"), QUIET).path
    network = build(str(made)).eval()
    assert facts(made)["layout"] == "timm"
    x = network.prepare(some_views())
    plain = timm.create_model(f"local-dir:{made}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), network(x), rtol=0, atol=1e-5)
    assert timm.data.resolve_model_data_config(plain)["input_size"] == (3, 32, 32)


def test_other_features_go_to_head_file(plan, tmp_path):
    made = probe.run(plan("test_vit", tmp_path / "out", features="last4+avg"), QUIET).path
    manifest = facts(made)
    assert manifest["layout"] == "kdcli"
    assert "head.safetensors" in manifest["files"]
    assert not [name for name in load_file(made / "model.safetensors") if name.startswith("head.")]
    network = build(str(made)).eval()
    head = load_file(made / "head.safetensors")
    with torch.no_grad():
        parts = network.features(some_views(), ["last4+avg"])
        x = torch.cat([parts[name] for name in FEATURES["last4+avg"]], dim=1)
        expected = x @ head["linear.weight"].T + head["linear.bias"]
        torch.testing.assert_close(network(some_views()), expected)


def test_manifest_has_the_whole_grid_and_the_backbone_is_unchanged(plan, weights, tmp_path):
    made = probe.run(plan("test_vit", tmp_path / "out"), QUIET).path
    manifest = facts(made)
    grid = manifest["grid"]
    assert len(grid) == 4 * 13 + 4 * 4  # DINOv2's 52 heads, and the L-BFGS path on each feature
    best, chosen = max(g["top1"] for g in grid), manifest["metrics"]
    assert chosen["validation/nll"] <= min(g["nll"] for g in grid if g["top1"] == best)
    count = manifest["data"]["splits"]["validation"]["samples"]
    assert ((best - chosen["validation/top1"]) * count) ** 2 <= count  # no more is within the noise
    before, after = load_file(weights["test_vit"]), load_file(made / "model.safetensors")
    assert all(torch.equal(before[k], v) for k, v in after.items() if not k.startswith("head."))
    assert manifest["parents"][0]["hash"] == manifests.file_hash(weights["test_vit"])
    assert manifest["data"]["splits"]["validation"]["samples"] > 0
    assert "test" not in manifest["data"]["splits"]


def test_probed_classes_beat_chance(plan, tmp_path):
    made = probe.run(plan("test_vit", tmp_path / "out", **{"grid.epochs": 20}), QUIET).path
    assert facts(made)["metrics"]["validation/top1"] > 0.4  # four classes


def test_second_run_is_complete_at_once_and_other_settings_are_refused(plan, tmp_path):
    first = probe.run(plan("test_resnet", tmp_path / "out"), QUIET)
    stamp = (first.path / "kdcli.json").stat().st_mtime_ns
    again = probe.run(plan("test_resnet", tmp_path / "out"), QUIET)
    assert again.summary == first.summary
    assert (first.path / "kdcli.json").stat().st_mtime_ns == stamp
    config = plan("test_resnet", tmp_path / "out").config
    assert probe.plan(config, QUIET, unless_complete=True) == first
    with pytest.raises(InputError, match=r"other settings: config\.seed \(0 then, 1 now\)"):
        probe.run(plan("test_resnet", tmp_path / "out", seed=1), QUIET)


def test_live_protocol(plan, tmp_path):
    more = {"protocol": "dinov2", "features": "pooled", "grid.epochs": 2, "grid.lr": [1e-2, 1e-1]}
    made = probe.run(plan("test_vit", tmp_path / "out", **more), QUIET).path
    assert [g["lr"] for g in facts(made)["grid"]] == [1e-2, 1e-1]
    assert {g["epoch"] for g in facts(made)["grid"]} <= {1, 2}


def test_several_fixed_views(plan, tmp_path):
    made = probe.run(
        plan("test_vit", tmp_path / "out", **{"views.count": "3", "features": "timm"}), QUIET
    ).path
    samples = facts(made)["data"]["splits"]["train"]["samples"]
    assert facts(made)["cost"]["teacher_forwards"] == 3 * samples


def test_keep_a_trained_head(weights, tmp_path):
    options = {
        "teacher": "test_resnet",
        "weights": str(weights["test_resnet"]),
        "head": "keep",
        "out": str(tmp_path / "o"),
    }
    made = probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path
    assert len(facts(made)["classes"]) == 1000
    before, after = load_file(weights["test_resnet"]), load_file(made / "model.safetensors")
    assert all(torch.equal(before[k], v) for k, v in after.items())


def test_stopped_features_are_kept(plan, tmp_path):
    class Stop:
        requested = "SIGTERM"

    more = {"cache": str(tmp_path / "cache"), "grid.batch_size": 16}
    with pytest.raises(Preempted, match="run the same command again"):
        probe.run(plan("test_vit", tmp_path / "out", **more), QUIET, stop=Stop())
    assert len(list((tmp_path / "cache").glob("*/segment-*"))) == 1
    assert not (tmp_path / "out").exists()
    probe.run(plan("test_vit", tmp_path / "out", **more), QUIET)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"features": "last5"}, UsageError, "no 'last5'. Did you mean 'last4'"),
        ({"views.count": "live"}, UsageError, "a number of fixed views"),
        ({"protocol": "dinov2", "grid.solver": "lbfgs"}, UsageError, "--protocol dinov2 trains by SGD"),
        ({"teacher": None}, UsageError, "--teacher is required"),
        ({"data.source": None}, UsageError, "--data is required"),
    ],
)
def test_refusals(plan, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        plan("test_vit", tmp_path / "out", **more)


# A head that has hardly learned, so that there is something to be made better.
WEAK = {"grid.solver": "sgd", "grid.lr": [1e-12], "grid.epochs": 1}


def test_finetuning_trains_backbone_and_head(plan, weights, pictures, tmp_path):
    more = {"finetune": True, "optim.max_steps": 3, "optim.batch_size": 8, "optim.lr": 1e-4, **WEAK}
    made = probe.run(plan("test_resnet", tmp_path / "out", features="timm", **more), QUIET).path
    before, after = load_file(weights["test_resnet"]), load_file(made / "model.safetensors")
    assert not torch.equal(before["conv1.0.weight"], after["conv1.0.weight"])
    manifest = facts(made)
    assert manifest["selection"].startswith("finetuned, best on validation, step ")
    assert manifest["head"]["selection"].startswith("best of ")
    assert manifest["cost"]["finetune_steps"] == 3
    assert [row["step"] for row in rows(made) if "loss" in row] == [3]
    assert timm.create_model(f"local-dir:{made}", pretrained=True).num_classes == len(manifest["classes"])


def test_finetuning_goes_on_where_it_stopped(plan, tmp_path):
    class Stop:
        left = 2

        @property
        def requested(self):
            self.left -= 1
            return "SIGTERM" if self.left < 0 else None

    more = {"finetune": True, "optim.max_steps": 4, "optim.batch_size": 8, "features": "pooled"}
    whole = probe.run(plan("test_vit", tmp_path / "whole", **more), QUIET).path
    with pytest.raises(Preempted, match="stopped after step 2 of 4"):
        probe.run(plan("test_vit", tmp_path / "cut", **more), QUIET, stop=Stop())
    resumed = probe.run(plan("test_vit", tmp_path / "cut", **more), QUIET).path
    name = "model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_finetuning_needs_a_fitted_head(plan, tmp_path):
    with pytest.raises(UsageError, match="--finetune trains a fitted head further; leave out --head keep"):
        plan("test_vit", tmp_path / "out", finetune=True, head="keep")
    with pytest.raises(UsageError, match="a batch of 9 does not divide by 2"):
        plan("test_vit", tmp_path / "out", finetune=True, **{"optim.batch_size": 9, "optim.accumulate": 2})


# -- finetuning that makes nothing better --------------------------------------------------------------------


def test_the_fitted_head_is_written_where_finetuning_made_it_worse(plan, tmp_path, warnings):
    """A rate far too large: the head as it was fitted is the best step, in every tensor."""
    fitted = probe.run(plan("test_vit", tmp_path / "fitted"), QUIET).path
    more = {
        "finetune": True,
        "optim.max_steps": 4,
        "optim.batch_size": 8,
        "optim.lr": 0.5,
        "optim.warmup": 0.0,
    }
    made = plan("test_vit", tmp_path / "tuned", **more)
    with pytest.raises(Preempted):
        probe.run(made, QUIET, stop=StopAfter(3))
    tuned = probe.run(made, QUIET).path
    files = sorted(p.name for p in fitted.glob("*.safetensors"))
    assert files
    assert [(tuned / name).read_bytes() for name in files] == [(fitted / name).read_bytes() for name in files]
    manifest = facts(tuned)
    assert manifest["selection"] == "finetuned, best on validation, step 0 of 4, as it was before"
    evaluated = [row for row in rows(tuned) if "validation/top1" in row]
    assert evaluated[0]["step"] == 0
    assert all(row["validation/top1"] <= evaluated[0]["validation/top1"] for row in evaluated)
    assert manifest["metrics"]["validation/top1"] == evaluated[0]["validation/top1"]
    assert [text for text in warnings if "--finetune" in text] == [
        f"--finetune: no step was better on validation than the fitted head (top1 "
        f"{evaluated[0]['validation/top1']:.4f}), which is written as it was."
    ]


def test_a_step_that_is_better_than_the_head_is_still_chosen(plan, tmp_path):
    more = {
        "finetune": True,
        "optim.max_steps": 24,
        "optim.batch_size": 8,
        "optim.lr": 1e-3,
        **WEAK,
    }
    tuned = probe.run(plan("test_vit", tmp_path / "tuned", **more), QUIET).path
    evaluated = {row["step"]: row["validation/top1"] for row in rows(tuned) if "validation/top1" in row}
    assert max(evaluated.values()) > evaluated[0], "else the test proves nothing"
    assert facts(tuned)["metrics"]["validation/top1"] == max(evaluated.values())
    assert "step 0 of" not in facts(tuned)["selection"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optim.opt": "adamww"}, "timm has no optimiser 'adamww'"),
        ({"optim.opt": "kron"}, "optimiser kron: it draws"),
        ({"optim.opt": "sgd", "optim.betas": [0.9, 0.99]}, "--finetune: optimiser sgd has no betas"),
    ],
)
def test_an_optimizer_of_the_finetuning_is_refused_by_the_plan(plan, tmp_path, more, message):
    with pytest.raises(UsageError, match=message):
        plan("test_vit", tmp_path / "out", finetune=True, **more)
