"""probe, distill and eval on pictures with several exact labels, in process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from sklearn import metrics as sk
from toolbox import QUIET, encode, facts, heads_plan, measured, rows, scenes, training_plan

from kdcli.errors import InputError, UsageError
from kdcli.models.build import build
from kdcli.stages import distill, probe

STEPS, NAMES = 8, ["bag", "T-shirt", "trouser"]
NUMBER_OF = {1: 1, 2: 2, 3: 0}  # label of a value in the scenes' masks


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training and 48 test pictures of 64 pixels with lists of what lies on each, as a saved dataset."""
    folder = tmp_path_factory.mktemp("several labels") / "saved"
    kinds = {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=NAMES))}
    splits = {}
    for seed, (name, count) in enumerate({"train": 96, "test": 48}.items()):
        made = scenes(count, seed=seed + 10)
        lists = [sorted(NUMBER_OF[v] for v in np.unique(mask) if v in NUMBER_OF) for _, mask in made]
        columns = {"image": [{"bytes": encode(image), "path": None} for image, _ in made], "labels": lists}
        splits[name] = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def heads(several: Path, weights: dict[str, Path], cache: Path) -> Callable[..., probe.Plan]:
    def make(out: Path, **more: Any) -> probe.Plan:
        usual = {"grid.lr": [0.01, 1.0], **more}
        return heads_plan(several, weights["test_resnet"], out, cache, **usual)

    return make


@pytest.fixture(scope="module")
def teacher(heads: Callable[..., probe.Plan], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return probe.run(heads(tmp_path_factory.mktemp("probed") / "out"), QUIET).path


@pytest.fixture(scope="module")
def train(several: Path, cache: Path) -> Callable[..., distill.Plan]:
    def make(out: Path, **more: Any) -> distill.Plan:
        return training_plan(several, out, cache, **more)

    return make


def test_heads_are_chosen_by_average_precision(teacher: Path, heads: Callable[..., probe.Plan]) -> None:
    manifest = facts(teacher)
    assert (manifest["task"], manifest["classes"]) == ("multi-label", NAMES)
    grid = manifest["grid"]
    assert {row["solver"] for row in grid} == {"sgd", "lbfgs"}
    assert manifest["metrics"]["validation/mean_ap"] == max(row["mean_ap"] for row in grid)
    assert manifest["metrics"]["validation/mean_ap"] > 0.5  # of chance about 0.45
    assert build(str(teacher)).classes == NAMES


@pytest.mark.parametrize(
    "options", [{"protocol": "dinov2", "grid.epochs": 2}, {"finetune": True, "optim.epochs": 1}]
)
def test_other_ways_to_a_teacher(
    options: dict[str, Any], heads: Callable[..., probe.Plan], tmp_path: Path
) -> None:
    out = probe.run(heads(tmp_path / "o", **options), QUIET).path
    assert 0 <= facts(out)["metrics"]["validation/mean_ap"] <= 1


@pytest.mark.parametrize("count", ["2", "live"])
def test_a_student_learns_answers_and_the_teachers(
    count: str, teacher: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    more = {"method.name": "kd", "views.count": count, "data.class_balance": "loss"}
    more |= {"optim.mixup": 0.2} if count == "live" else {}
    plan = train(tmp_path / "o", teacher=str(teacher), **more)
    shown = {row["term"]: row["taps"] for row in plan.to_json()["objective"]}
    assert shown["bce"].startswith("s.logits [3], target [3], label_weight [3]")
    out = distill.run(plan, QUIET).path
    logged = [row for row in rows(out) if "loss" in row]
    assert {"bce", "kl"} <= set(logged[0])
    assert facts(out)["task"] == "multi-label"
    assert "validation/mean_ap" in facts(out)["metrics"]


@pytest.mark.parametrize("method", ["rkd", "at", "supervised"])
def test_methods_that_compare_whole_pictures(
    method: str, teacher: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    more = {} if method == "supervised" else {"teacher": str(teacher)}
    out = distill.run(train(tmp_path / "o", **more, **{"method.name": method}), QUIET).path
    assert len([row for row in rows(out) if "loss" in row]) == STEPS


def test_eval_measures_every_label(
    teacher: Path, several: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    student = distill.run(train(tmp_path / "s", teacher=str(teacher)), QUIET).path
    gates = ["mean_ap>=0.3", "agreement>=0.1", "macro_f1>0"]
    out = measured([student, teacher], several, tmp_path / "r", teacher=str(teacher), require=gates).path
    report = json.loads((out / "report.json").read_text())
    page = (out / "report.html").read_text()
    assert "No thresholds" not in page
    truth = datasets.load_from_disk(str(several))["test"]["labels"]
    for model in report["models"]:
        labels = model["labels"]
        for number, row in enumerate(labels):
            assert row["positives"] == sum(number in one for one in truth)
            assert 0 < row["threshold"] < 1
        mean = np.mean([row["ap"] for row in labels])
        assert model["metrics"]["mean_ap"] == pytest.approx(mean)
        assert model["metrics"]["macro_f1"] == pytest.approx(np.mean([row["f1"] for row in labels]))
        assert f"{100 * labels[0]['ap']:.1f}%" in page
    itself = report["models"][1]["teacher"]
    assert (itself["agreement"], itself["kl"]) == (1, 0)
    assert report["models"][0]["teacher"]["kl"] > 0
    assert "mAP" in page
    for name in NAMES:
        assert f"<td>{name}</td>" in page


def test_figures_are_scikit_learns(teacher: Path, several: Path, tmp_path: Path) -> None:
    """From the written model and the pictures alone."""
    import torch

    from kdcli.data.views import EvaluationCut

    out = measured([teacher], several, tmp_path / "r").path
    model = json.loads((out / "report.json").read_text())["models"][0]
    network, test = build(str(teacher)).eval(), datasets.load_from_disk(str(several))["test"]
    cut = EvaluationCut(network.spec)
    with torch.no_grad():
        pictures = torch.stack([cut(image.convert("RGB"), 0, 0) for image in test["image"]])
        scores = network(pictures).sigmoid().numpy()
    truth = np.array([[float(i in one) for i in range(3)] for one in test["labels"]])
    assert model["metrics"]["mean_ap"] == pytest.approx(sk.average_precision_score(truth, scores), abs=1e-6)
    said = scores >= [row["threshold"] for row in model["labels"]]
    assert model["metrics"]["macro_f1"] == pytest.approx(sk.f1_score(truth, said, average="macro"), abs=1e-6)
    assert model["metrics"]["micro_f1"] == pytest.approx(sk.f1_score(truth, said, average="micro"), abs=1e-6)
    assert model["metrics"]["exact"] == pytest.approx(sk.accuracy_score(truth, said), abs=1e-6)


def test_occlusion_is_measured_by_mean_average_precision(
    teacher: Path, several: Path, tmp_path: Path
) -> None:
    out = measured([teacher], several, tmp_path / "r", occlusion=True, cka=True, teacher=str(teacher)).path
    report = json.loads((out / "report.json").read_text())
    (model,) = report["models"]
    curve = [row["mean_ap"] for row in model["occlusion"]]
    assert curve[0] == model["metrics"]["mean_ap"]
    assert len(set(curve)) == 10
    truth = datasets.load_from_disk(str(several))["test"]["labels"]
    shares = [np.mean([label in one for one in truth]) for label in range(3)]
    assert report["occlusion"]["chance"] == pytest.approx(np.mean(shares))
    assert model["cka"]["values"][-1][-1] == pytest.approx(1)
    page = (out / "report.html").read_text()
    assert "mean average precision (%)" in page
    assert "Shown is mAP while" in " ".join(page.split())


def test_without_validation_thresholds_are_one_half(teacher: Path, several: Path, tmp_path: Path) -> None:
    alone = datasets.DatasetDict({"test": datasets.load_from_disk(str(several))["test"]})
    alone.save_to_disk(str(tmp_path / "d"))
    out = measured([teacher], tmp_path / "d", tmp_path / "r").path
    report = json.loads((out / "report.json").read_text())
    assert {row["threshold"] for row in report["models"][0]["labels"]} == {0.5}
    assert "No thresholds were chosen, each is one half: " in report["notes"][0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method.name": "dkd"}, "method dkd is for classification, and these data are for multi-label"),
        ({"terms": ["kd=1"]}, "--add kd=1 is for classification, and these data are for multi-label"),
        ({"data.class_balance": "sampler"}, "sampler draws pictures by their class, and these have several"),
        ({"data.labels_per_class": 5}, "--labels-per-class keeps so many pictures of each class"),
        ({"views.store": "top2", "views.count": "2"}, r"multi-label has no views\.store=topK"),
    ],
)
def test_what_has_no_meaning_is_refused(
    given: dict[str, Any], message: str, teacher: Path, train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        train(tmp_path / "o", teacher=str(teacher), **given)


def test_statistics_are_of_classes(heads: Callable[..., probe.Plan], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--statistics records pictures of one class each; these data are for multi"
    ):
        heads(tmp_path / "o", **{"statistics.record": True})


def test_a_mean_of_probabilities_is_one_of_classes(
    teacher: Path, heads: Callable[..., probe.Plan], train: Callable[..., distill.Plan], tmp_path: Path
) -> None:
    second = probe.run(heads(tmp_path / "second", **{"grid.epochs": 1}), QUIET).path
    with pytest.raises(UsageError, match="teacher_mean=probabilities averages those of one class a picture"):
        train(tmp_path / "o", teacher=[str(teacher), str(second)], teacher_mean="probabilities")
    train(tmp_path / "o", teacher=[str(teacher), str(second)])


def test_a_model_of_one_class_a_picture_is_no_teacher_of_labels(
    several: Path, teacher: Path, tmp_path: Path
) -> None:
    """Its names differ from those of the data."""
    other = datasets.load_from_disk(str(several))
    kind = datasets.List(datasets.ClassLabel(names=["a", "b", "c"]))
    other.cast_column("labels", kind).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match="name their classes differently"):
        measured([teacher], tmp_path / "d", tmp_path / "r")
