"""probe, distill and eval on pictures with exact masks, in process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, StopAfter, commit_model, facts, heads_plan, measured, rows, training_plan

from kdcli.errors import Diverged, InputError, NotFinite, Preempted, UsageError
from kdcli.models.build import build
from kdcli.models.heads.decoders import DECODERS
from kdcli.models.heads.dense import DenseHead
from kdcli.stages import distill, probe

STEPS = 8


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def train(masks_data: Path, cache: Path) -> Callable[..., distill.Plan]:
    def make(out: Path, **more: Any) -> distill.Plan:
        return training_plan(masks_data, out, cache, **more)

    return make


@pytest.fixture(scope="module")
def alone(train: Callable[..., distill.Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network trained on masks alone: a legal teacher."""
    out = tmp_path_factory.mktemp("alone") / "out"
    more = {"method.name": "supervised", "optim.max_steps": 60, "optim.lr": 3e-3}
    return distill.run(train(out, **more), QUIET).path


@pytest.fixture(scope="module")
def heads(masks_data: Path, weights: dict[str, Path], cache: Path) -> Callable[..., probe.Plan]:
    def make(out: Path, name: str = "test_resnet", **more: Any) -> probe.Plan:
        usual = {"teacher": name, "grid.batch_size": 16, "grid.lr": [1e-3, 1e-2]}
        return heads_plan(masks_data, weights[name], out, cache, **{**usual, **more})

    return make


def test_masks_alone_teach(alone: Path) -> None:
    manifest = facts(alone)
    assert (manifest["task"], manifest["layout"]) == ("segmentation", "kdcli")
    assert manifest["classes"] == ["0", "1", "2", "3"]
    scores = [row["validation/miou"] for row in rows(alone) if "validation/miou" in row]
    assert manifest["metrics"]["validation/miou"] == max(scores)
    assert max(scores) > 0.3  # background alone is below .25
    made = build(str(alone)).eval()
    with torch.no_grad():
        logits = made(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert logits.shape == (1, 4, 4, 4)


@pytest.mark.parametrize("count", ["1", "live"])
@pytest.mark.parametrize("method", ["kd", "task-specific"])
def test_methods_with_a_teacher(
    method: str, count: str, alone: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    plan = train(
        tmp_path / "o",
        teacher=str(alone),
        student="test_vit",
        **{"method.name": method, "views.count": count},
    )
    assert plan.material.networks["student"].logit_count == 4 * 2 * 2
    assert plan.material.networks["teacher"].logit_count == 4 * 4 * 4  # grids of other sizes
    assert plan.material.row_bytes == 12 + 2 * 64
    found = {"mask": (32, 32), "s.logits": (4, 2, 2), "t.logits": (4, 4, 4)}
    assert plan.material.assembly.shapes == found  # of the dry step
    shown = {row["term"]: row["taps"] for row in plan.to_json()["objective"]}
    assert shown["ce"] == "s.logits [4, 2, 2], mask [32, 32]"
    out = distill.run(plan, QUIET).path
    logged = [row for row in rows(out) if "loss" in row]
    assert {"ce", "kl"} <= set(logged[0])
    answers = facts(out)["teacher_answers"]  # of the pixels of labelled views
    assert answers["views"] >= 43
    assert 0 < answers["pixel_accuracy"] < 1
    assert answers["said"].startswith("the teacher is right on ")
    assert [row["step"] for row in logged] == list(range(1, STEPS + 1))
    assert facts(out)["task"] == "segmentation"


def test_cached_views_equal_live_ones(
    alone: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    runs = []
    for count in ("live", "2"):
        more = {"teacher": str(alone), "views.count": count}
        more |= {"views.store": "fp32"} if count == "2" else {}
        plan = train(tmp_path / count, **more)
        runs.append(load_file(distill.run(plan, QUIET).path / "last" / "head.safetensors"))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_division_into_micro_batches_and_extra_pictures(
    alone: Path, pictures: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    more = {"data.extra": [str(pictures)], "data.labels_per_class": 20, "optim.accumulate": 2}
    plan = train(tmp_path / "o", teacher=str(alone), **more)
    assert int((plan.material.pool.labels == 0).sum()) == 20
    out = distill.run(plan, QUIET).path
    assert all(torch.isfinite(t).all() for t in load_file(out / "head.safetensors").values())


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_probe_keeps_the_best_head_of_its_grid(
    name: str, heads: Callable[..., probe.Plan], weights: dict[str, Path], masks_data: Path, tmp_path: Path
) -> None:
    plan = heads(tmp_path / "o", name)
    assert [(s.feature, s.lr) for s in plan.specs] == [
        (f, lr) for f in ("grid", "grid4") for lr in (1e-3, 1e-2)
    ]
    out = probe.run(plan, QUIET).path
    manifest = facts(out)
    assert (manifest["task"], manifest["classes"]) == ("segmentation", ["0", "1", "2", "3"])
    scores = [row["miou"] for row in manifest["grid"]]
    assert manifest["metrics"] == {"validation/miou": max(scores)}
    winner = manifest["grid"][scores.index(max(scores))]
    made = build(str(out)).eval()
    assert made.head.feature == winner["feature"]
    before, after = load_file(weights[name]), load_file(out / "model.safetensors")
    assert all(torch.equal(before[k], v) for k, v in after.items())  # frozen, batch norms too
    assert set(load_file(out / "head.safetensors")) >= {"norm.running_mean", "linear.weight"}
    found = measured([out], masks_data, tmp_path / "r", split="validation").summary["models"][0]["metrics"]
    assert found["miou"] == pytest.approx(max(scores), abs=0.1)  # at 64 pixels, where selection was at 32


def test_a_head_does_not_depend_on_the_others_of_its_grid(
    heads: Callable[..., probe.Plan], tmp_path: Path
) -> None:
    usual = {"views.count": "2", "grid.epochs": 2}
    whole = facts(probe.run(heads(tmp_path / "a", **usual), QUIET).path)["grid"]
    alone = facts(
        probe.run(heads(tmp_path / "b", features="grid4", **usual, **{"grid.lr": [1e-2]}), QUIET).path
    )
    assert alone["grid"] == [row for row in whole if (row["feature"], row["lr"]) == ("grid4", 1e-2)]


def test_a_head_that_diverges_does_not_win(heads: Callable[..., probe.Plan], tmp_path: Path) -> None:
    more = {"features": "grid", "grid.epochs": 3, "grid.weight_decay": [0.01]}
    out = probe.run(heads(tmp_path / "a", **more, **{"grid.lr": [1e12, 1e-3]}), QUIET).path
    assert facts(out)["selection"].endswith("lr=0.001 wd=0.01")
    with pytest.raises(Diverged, match="all 1 heads diverged"):
        probe.run(heads(tmp_path / "b", **more, **{"grid.lr": [1e12]}), QUIET)


def test_a_probed_teacher_teaches_beside_another(
    alone: Path, heads: Callable[..., probe.Plan], train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    teacher = probe.run(heads(tmp_path / "t", "test_vit"), QUIET).path
    out = distill.run(train(tmp_path / "s", teacher=[str(teacher), str(alone)]), QUIET).path
    assert facts(out)["cost"]["teacher_forwards"] > 0


def test_a_probed_head_is_finetuned_with_its_backbone(
    heads: Callable[..., probe.Plan], weights: dict[str, Path], tmp_path: Path
) -> None:
    more = {"finetune": True, "optim.max_steps": 60, "optim.lr": 1e-3, "optim.batch_size": 8}
    more |= {"grid.epochs": 1, "grid.lr": [1e-6]}  # a head that is to be bettered
    out = probe.run(heads(tmp_path / "o", **more), QUIET).path
    assert facts(out)["selection"].startswith("finetuned, best on validation")
    before, after = load_file(weights["test_resnet"]), load_file(out / "model.safetensors")
    assert not any(torch.equal(before[name], t) for name, t in after.items() if name.endswith("conv1.weight"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"protocol": "dinov2"}, "segmentation has no --protocol dinov2"),
        ({"grid.solver": "lbfgs"}, "and no L-BFGS"),
        ({"features": "pooled"}, r"no 'pooled'\..* has: grid, grid4"),
        ({"data.class_balance": "loss"}, "--class-balance evens out pictures"),
    ],
)
def test_what_probe_refuses(
    more: dict[str, Any], message: str, heads: Callable[..., probe.Plan], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        heads(tmp_path / "o", **more)


def test_a_stopped_run_continues_bit_for_bit(
    alone: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    made = {}
    for name in ("whole", "parts"):
        plan = train(tmp_path / name, teacher=str(alone), **{"views.count": "2", "optim.ema": 0.9})
        if name == "parts":
            with pytest.raises(Preempted, match="run the same command again"):
                distill.run(plan, QUIET, stop=StopAfter(3))
        made[name] = distill.run(plan, QUIET).path
    for file in ("model.safetensors", "head.safetensors", "last/head.safetensors", "metrics.jsonl"):
        assert (made["whole"] / file).read_bytes() == (made["parts"] / file).read_bytes(), file


def test_eval_figures_and_agreement(
    alone: Path, train: Callable[..., distill.Plan], masks_data: Path, tmp_path: Path
) -> None:
    student = distill.run(train(tmp_path / "s", teacher=str(alone)), QUIET).path
    result = measured([student, alone], masks_data, tmp_path / "r", teacher=str(alone), cost=True, repeats=3)
    report = json.loads((result.path / "report.json").read_text())
    first, own = report["models"]
    assert set(first["metrics"]) == {"miou", "pixel_accuracy", "mean_accuracy"}
    assert len(first["iou"]) == 4
    present = [value for value in own["iou"] if value is not None]
    assert own["metrics"]["miou"] == pytest.approx(sum(present) / len(present))
    assert (own["teacher"]["agreement"], own["teacher"]["kl"]) == (1.0, pytest.approx(0, abs=1e-6))
    parts = ("both_right", "only_student", "only_teacher", "neither_right")
    assert sum(first["teacher"][k] for k in parts) == pytest.approx(1)
    assert own["metrics"]["miou"] > 0.25
    page = (result.path / "report.html").read_text()
    assert ("shown" in first, "overlays" in report) == (False, False)  # pictures are in the page only
    for expected in ("mIoU", "pixel accuracy", "IoU of", "mean IoU (%)"):
        assert expected in page
    assert page.count("data:image/png;base64,") == 4 * 4  # picture, truth and two models, of four pictures
    assert "Calibration" not in page
    failed = measured([alone], masks_data, tmp_path / "gate", require=["miou>=0.99"]).failed
    assert "miou>=0.99 does not hold" in failed[0]


def test_sliding_windows(
    alone: Path, teacher: Path, masks_data: Path, pictures: Path, tmp_path: Path
) -> None:
    found = {}
    for name, more in {"whole": {}, "slid": {"window": 48, "stride": 16}}.items():
        found[name] = measured([alone], masks_data, tmp_path / name, **more).summary["models"][0]["metrics"]
    assert found["whole"] != found["slid"]
    assert found["slid"]["pixel_accuracy"] > 0.5
    with pytest.raises(UsageError, match="no pixel may fall between windows"):
        measured([alone], masks_data, tmp_path / "a", window=16, stride=17)
    with pytest.raises(UsageError, match="only masks are judged by sliding windows"):
        measured([teacher], pictures, tmp_path / "b", window=16)


def test_refusals(
    alone: Path,
    teacher: Path,
    masks_data: Path,
    pictures: Path,
    train: Callable[..., distill.Plan],
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="does classification, the data is for segmentation"):
        train(tmp_path / "a", teacher=str(teacher))
    with pytest.raises(InputError, match="does segmentation, the data is for classification"):
        measured([alone], pictures, tmp_path / "b")
    with pytest.raises(UsageError, match="pixels would part from their classes"):
        train(tmp_path / "c", **{"method.name": "supervised", "optim.mixup": 0.2})


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Decode heads of 16 channels, a hundredth of the weights; artifacts keep their own width."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in DECODERS:
            patch.setitem(DECODERS, kind, 16)
        yield


@pytest.fixture(scope="module")
def decoded(
    narrow: None, alone: Path, train: Callable[..., distill.Plan], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A student with UPerNet's head, taught by a network with a linear one."""
    more = {"teacher": str(alone), "head": "upernet", "optim.max_steps": 3, "optim.batch_size": 4}
    plan = train(tmp_path_factory.mktemp("decoded") / "out", **more)
    student, teacher = plan.material.networks["student"], plan.material.networks["teacher"]
    assert (student.logit_count, teacher.logit_count) == (4 * 8 * 8, 4 * 4 * 4)
    return distill.run(plan, QUIET).path


def test_a_decode_head_is_distilled_and_judged(
    decoded: Path, alone: Path, train: Callable[..., distill.Plan], masks_data: Path, tmp_path: Path
) -> None:
    logged = [row for row in rows(decoded) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    assert {"ce", "kl"} <= set(logged[0])
    manifest = facts(decoded)
    assert (manifest["task"], manifest["layout"]) == ("segmentation", "kdcli")
    assert json.loads((decoded / "config.json").read_text())["kdcli_operations"] == [
        {"op": "replace head", "kind": "upernet"}
    ]
    fresh = train(tmp_path / "o", **{"method.name": "supervised", "head": "upernet"})
    before, after = (n.head for n in (fresh.material.networks["student"], build(str(decoded))))
    assert before is not None
    assert after is not None
    moved = {name: not torch.equal(t, before.get_parameter(name)) for name, t in after.named_parameters()}
    assert all(moved.values()), moved
    reports = []
    for name, more in {"whole": {"cost": True, "repeats": 3}, "slid": {"window": 48, "stride": 32}}.items():
        out = measured([decoded], masks_data, tmp_path / name, teacher=str(alone), **more).path
        reports.append(json.loads((out / "report.json").read_text())["models"][0])
    assert all(0 < report["metrics"]["pixel_accuracy"] <= 1 for report in reports)
    assert reports[0]["cost"]["flops"] > 0
    assert reports[0]["teacher"]["kl"] != reports[1]["teacher"]["kl"]


@pytest.mark.parametrize("count", ["1", "live"])
def test_a_decode_head_teaches_and_is_trained_on(
    count: str, decoded: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    more = {"teacher": str(decoded), "student": "test_vit", "head": "segformer", "optim.max_steps": 2}
    plan = train(tmp_path / "s", **more, **{"views.count": count})
    assert plan.material.row_bytes == 12 + 2 * 256
    assert build(str(distill.run(plan, QUIET).path)).head.kind == "segformer"  # type: ignore[union-attr]


def test_a_student_with_a_decode_head_goes_on_with_it(
    decoded: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    usual = {"method.name": "supervised", "student": str(decoded), "from_scratch": False, "image_size": None}
    head = train(tmp_path / "a", **usual).material.networks["student"].head
    assert head is not None
    kept = load_file(decoded / "head.safetensors")
    assert all(torch.equal(kept[name], t) for name, t in head.state_dict().items())
    other = train(tmp_path / "b", **usual, head="linear").material.networks["student"].head
    assert isinstance(other, DenseHead)
    with pytest.raises(UsageError, match="an upernet head learns from two pictures or more"):
        train(tmp_path / "c", **usual, **{"optim.batch_size": 1})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optim.auto_batch": True}, "--auto-batch: test_resnet has batch norms"),
        ({"optim.batch_size": 1}, "an upernet head learns from two pictures or more in a micro-batch"),
        ({"optim.accumulate": 8}, "raise optim.batch_size or lower optim.accumulate"),
        ({"processes": 8, "device": "cpu"}, "two pictures or more in a micro-batch of each process"),
    ],
)
def test_what_an_upernet_head_refuses(
    more: dict[str, Any], message: str, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    alone = {"method.name": "supervised", "head": "upernet"}
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "o", **alone, **more)


@pytest.mark.parametrize("term", ["kd=1", "rkd=1,student=stage4", "dkd"])
def test_terms_of_whole_pictures_are_refused_by_what_they_need(
    term: str, probed: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    message = f"--add {term} is for .*classification, and these data are for segmentation"
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "o", **{"method.name": "kd", "teacher": [str(probed)], "terms": [term]})
    with pytest.raises(UsageError, match="method dkd is for classification, and these data are for"):
        train(tmp_path / "o", **{"method.name": "dkd", "teacher": [str(probed)]})


def test_classification_has_no_choice_of_heads(
    pictures: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    for head in ("linear", "segformer", "upernet"):
        more = {"method.name": "supervised", "data.source": str(pictures), "head": head}
        with pytest.raises(UsageError, match=f"head={head}: classification has one head only"):
            train(tmp_path / "o", **more)
    with pytest.raises(UsageError, match="head"):
        train(tmp_path / "o", **{"method.name": "supervised", "head": "fcn"})


def test_a_network_that_answers_with_nan_is_named(alone: Path, masks_data: Path, tmp_path: Path) -> None:
    """Its argmax would be a class like any other."""
    network = build(str(alone))
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1e30)
    spoilt = commit_model(network, tmp_path / "spoilt")
    with pytest.raises(NotFinite, match="spoilt answers pictures with NaN or Inf: some of its weights"):
        measured([spoilt], masks_data, tmp_path / "r")
