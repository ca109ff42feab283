"""A run stopped after any step and resumed makes the same weights, state and log, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from toolbox import QUIET, StopAfter

from kdcli.artifacts.model import read_tensors
from kdcli.config import resolve
from kdcli.engine import loop
from kdcli.errors import Diverged, Preempted
from kdcli.stages import distill

STEPS = 29


# Each has other state: BatchNorm buffers and EMA; drop path, accumulation, a cache; mixing and momentum.
SCENES = {
    "batchnorm": {"student": "test_resnet", "optim.ema": 0.9, "views.count": "live"},
    "cached": {"student": "test_vit", "drop_path": 0.2, "optim.accumulate": 2, "views.count": "2"},
    "mixed": {"student": "test_vit", "optim.opt": "sgd", "optim.mixup": 0.4, "optim.cutmix": 1.0},
}


def make_plan(scene: str, pictures: Path, teacher: Path, out: Path, **more: object) -> distill.Plan:
    options = {
        "teacher": str(teacher),
        "from_scratch": True,
        "image_size": 32,
        "data.source": str(pictures),
        "data.labels_per_class": 6,
        "optim.max_steps": STEPS,
        "optim.batch_size": 8,
        "optim.lr": 1e-3,
        "log_every": 1,
        "out": str(out),
        "cache": str(teacher.parent / "cache"),
        **SCENES[scene],
        **more,
    }
    return distill.plan(resolve(distill.Config, options=options), QUIET)


def finished(out: Path) -> tuple[dict[str, bytes], str]:
    """Bytes of every file but the manifest (it holds times), and the manifest's hash."""
    manifest = json.loads((out / "kdcli.json").read_text())
    return {name: (out / name).read_bytes() for name in manifest["files"]}, json.dumps(manifest["files"])


@pytest.fixture(scope="module")
def reference(pictures: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Uninterrupted runs."""
    made = {}
    for scene in SCENES:
        out = tmp_path_factory.mktemp(scene) / "whole"
        distill.run(make_plan(scene, pictures, teacher, out), QUIET)
        made[scene] = finished(out)
    return made


def resumed_equals(reference: dict, plan: distill.Plan, *stops: int) -> None:
    done = 0
    for stop in stops:
        with pytest.raises(Preempted, match="run the same command again"):
            distill.run(plan, QUIET, stop=StopAfter(stop - done))
        assert not plan.target.path.exists()
        done = stop
    distill.run(plan, QUIET)
    files, _ = finished(plan.target.path)
    assert files.keys() == reference[0].keys()
    different = [name for name in files if files[name] != reference[0][name]]
    assert not different
    steps = [row["step"] for row in map(json.loads, files["metrics.jsonl"].splitlines()) if "loss" in row]
    assert steps == list(range(1, STEPS + 1))


@pytest.mark.parametrize("scene", SCENES)
def test_resume(scene, pictures, teacher, reference, tmp_path):
    plan = make_plan(scene, pictures, teacher, tmp_path / "out")
    resumed_equals(reference[scene], plan, 0, 1, 8, 9, STEPS)  # two in one epoch, one with all steps done


@pytest.mark.long
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("stop", range(STEPS + 1))
def test_resume_at_every_step(scene, stop, pictures, teacher, reference, tmp_path):
    resumed_equals(reference[scene], make_plan(scene, pictures, teacher, tmp_path / "out"), stop)


@pytest.mark.long
@pytest.mark.parametrize("stop", [0, 1, 7, 8, STEPS - 1])
def test_resume_with_loader_processes(stop, pictures, teacher, reference, tmp_path):
    plan = make_plan("cached", pictures, teacher, tmp_path / "out", workers=2)
    resumed_equals(reference["cached"], plan, stop)


def test_evaluations_are_logged_once(reference):
    rows = [json.loads(line) for line in reference["cached"][0]["metrics.jsonl"].splitlines()]
    evaluated = [row["step"] for row in rows if "validation/top1" in row]
    assert evaluated == sorted(set(evaluated))
    assert evaluated[-1] == STEPS
    assert len(evaluated) == 4  # 29 steps of 8 over 58 pictures: four epochs


def test_divergence_keeps_the_last_good_state(pictures, teacher, tmp_path):
    more = {"optim.lr": 1e12, "optim.clip_grad": None, "optim.warmup": 0.0}
    plan = make_plan("mixed", pictures, teacher, tmp_path / "out", **more)
    with pytest.raises(Diverged, match=r"step \d+ \(samples .* The state after step \d+ is kept") as caught:
        distill.run(plan, QUIET)
    step = int(str(caught.value).split("in step ")[1].split()[0])
    partial = plan.target.path.with_name("out.partial")
    (state,) = partial.glob("state-*")
    assert int(state.name.removeprefix("state-")) == step - 1
    assert all(torch.isfinite(t).all() for t in read_tensors(state / "weights.safetensors").values())
    assert not plan.target.path.exists()


def test_teacher_is_untouched(pictures, teacher, tmp_path, monkeypatch):
    plan = make_plan("batchnorm", pictures, teacher, tmp_path / "out", **{"optim.max_steps": 4})
    before = {k: v.clone() for k, v in plan.material.networks["teacher"].state_dict().items()}
    seen, original = [], loop.train

    def spy(job, *rest):
        outcome = original(job, *rest)
        seen.append(job.parties["teacher"])
        return outcome

    monkeypatch.setattr(loop, "train", spy)
    distill.run(plan, QUIET)
    (party,) = seen
    assert all(torch.equal(v, before[k]) for k, v in party.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in party.parameters())
    assert not party.training


def test_alpha_zero_is_supervised(pictures, teacher, tmp_path):
    runs, usual = [], {"views.count": "live", "optim.max_steps": 10}
    for name, more in {"zero": {"method.alpha": 0.0}, "supervised": {"method.name": "supervised"}}.items():
        plan = make_plan("mixed", pictures, teacher, tmp_path / name, **usual, **more)
        distill.run(plan, QUIET)
        runs.append(finished(plan.target.path)[0])
    assert runs[0] == runs[1]


def test_cached_views_equal_live_ones(pictures, teacher, tmp_path):
    """As many views as epochs are the same views; in fp32 only the teacher's batching differs."""
    runs = []
    usual = {"optim.accumulate": 1, "drop_path": 0.0, "optim.max_steps": 14}
    for name, views in (("live", {"count": "live"}), ("cached", {"count": "2", "store": "fp32"})):
        more = usual | {f"views.{key}": value for key, value in views.items()}
        plan = make_plan("cached", pictures, teacher, tmp_path / name, **more)
        distill.run(plan, QUIET)
        runs.append(read_tensors(plan.target.path / "last" / "model.safetensors"))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][name], rtol=1e-3, atol=1e-4, msg=name)
