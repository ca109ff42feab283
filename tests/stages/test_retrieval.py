"""Retrieval from a frozen backbone to the report: probe, distill, eval, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toolbox import QUIET, StopAfter, encode, facts, rows

from kdcli.config import resolve
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.models.build import build
from kdcli.stages import distill, evaluate, probe

Plan = Callable[..., Any]


def drawn(identity: int, number: int) -> bytes:
    """A coarse pattern that belongs to an identity, brighter or darker, with noise."""
    own, rng = np.random.default_rng(identity), np.random.default_rng((identity, number))
    coarse = own.integers(0, 256, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
    picture = np.clip(coarse * rng.uniform(0.6, 1.2) + rng.normal(0, 40, coarse.shape), 0, 255)
    return encode(Image.fromarray(picture.astype(np.uint8)))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen identities of five pictures to train on, and eight others as query and gallery, two cameras."""
    import datasets

    def table(identities: range, numbers: range) -> datasets.Dataset:
        keys = [(i, n) for i in identities for n in numbers]
        columns = {
            "image": [{"bytes": drawn(*key), "path": None} for key in keys],
            "identity": [f"person {i}" for i, _ in keys],
            "camera": [n % 2 for _, n in keys],
        }
        return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())

    folder = tmp_path_factory.mktemp("people") / "saved"
    others = range(16, 24)
    parts = {"train": table(range(16), range(5)), "query": table(others, range(1))}
    parts["gallery"] = table(others, range(1, 5))
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("retrieval")


@pytest.fixture(scope="module")
def probed(people: Path, weights: dict[str, Path], folder: Path) -> Plan:
    def run(out: str, **more: Any) -> Any:
        options = {
            **{"teacher": "test_vit", "weights": str(weights["test_vit"]), "data.source": str(people)},
            **{"image_size": 32, "data.validation_fraction": 0.3, "out": str(folder / out)},
            **{"cache": str(folder / "cache"), **more},
        }
        return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET)

    return run


@pytest.fixture(scope="module")
def teacher(probed: Plan) -> Path:
    return probed("teacher").path


@pytest.fixture
def train(people: Path, folder: Path, tmp_path: Path) -> Plan:
    def plan(out: str = "s", **more: Any) -> distill.Plan:
        options = {
            **{"student": "test_resnet", "from_scratch": True, "image_size": 32, "data.source": str(people)},
            **{"data.validation_fraction": 0.3, "optim.max_steps": 12, "optim.batch_size": 16},
            **{"data.per_identity": 4, "log_every": 1, "out": str(tmp_path / out)},
            **{"cache": str(folder / "cache"), "head": "bnneck16", **more},
        }
        options = {key: value for key, value in options.items() if value is not None}
        return distill.plan(resolve(distill.Config, options=options), QUIET)  # type: ignore[return-value]

    return plan


def report_of(models: list[Path], people: Path, out: Path, **more: Any) -> dict[str, Any]:
    options = {"models": [str(model) for model in models], "data.source": str(people), "cost": False}
    plan = evaluate.plan(resolve(evaluate.Config, options={**options, "out": str(out), **more}), QUIET)
    return json.loads((evaluate.run(plan, QUIET).path / "report.json").read_text())


def test_a_frozen_backbone_is_a_network_of_retrieval(probed: Plan, people: Path, tmp_path: Path) -> None:
    made = probed("none", head="none")
    found = facts(made.path)
    assert (found["task"], found["layout"], found["classes"]) == ("retrieval", "timm", None)
    assert [row["solver"] for row in found["grid"]] == ["plain"]
    report = report_of([made.path], people, tmp_path / "r")
    (model,) = report["models"]
    network = build(str(made.path)).eval()
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        assert network(x).shape == (1, network.body.num_features)  # type: ignore[attr-defined]
    assert model["search"] == {"queries": 8, "skipped": 0, "gallery": 32, "width": network(x).shape[1]}
    assert set(model["metrics"]) == {"mAP", "cmc1", "cmc5", "cmc10", "recall1", "recall5", "recall10"}


def test_a_probe_takes_the_best_embedding(teacher: Path, people: Path, tmp_path: Path) -> None:
    found = facts(teacher)
    grid = found["grid"]
    assert {row["solver"] for row in grid} == {"plain", "whitened"}
    assert found["metrics"]["validation/mAP"] == max(row["mAP"] for row in grid)
    best = max(grid, key=lambda row: row["mAP"])
    assert f"{best['feature']} {best['solver']}" in found["selection"]
    report = report_of(
        [teacher], people, tmp_path / "r", split="validation", **{"data.validation_fraction": 0.3}
    )
    assert report["models"][0]["metrics"]["mAP"] == pytest.approx(
        found["metrics"]["validation/mAP"], abs=1e-5
    )


def test_identities_of_validation_are_none_of_training(train: Plan) -> None:
    plan = train(**{"method.name": "supervised"})
    known, held = (set(plan.data.split(name).labels.tolist()) for name in ("train", "validation"))
    assert held
    assert not known & held
    assert len(plan.task.classes) == len(known)
    assert all(name in plan.data.classes for name in plan.task.classes)


def test_students_learn_from_labels_and_from_a_teacher(
    train: Plan, teacher: Path, people: Path, tmp_path: Path
) -> None:
    alone = distill.run(train("alone", **{"method.name": "supervised"}), QUIET).path
    plan = train("taught", **{"method.name": "kd", "teacher": [str(teacher)], "views.count": "2"})
    terms = {row["term"]: row["taps"] for row in plan.to_json()["objective"]}
    assert set(terms) == {"ce", "triplet", "kl"}
    assert terms["kl"].startswith("s.embedding [16], ~t.embedding [")
    assert plan.material.cached
    taught = distill.run(plan, QUIET).path
    for path in (alone, taught):
        log = [row for row in rows(path) if "triplet" in row]
        assert len(log) == 12
        assert log[-1]["ce"] < log[0]["ce"]
        assert facts(path)["task"] == "retrieval"
    report = report_of([alone, taught, teacher], people, tmp_path / "r", teacher=str(teacher))
    figures = {model["name"]: model for model in report["models"]}
    assert figures["teacher"]["teacher"]["agreement"] == 1.0
    assert figures["alone"]["search"]["width"] == 16
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("<h3>") >= 8 * 3  # a strip of every query and model
    assert "asks: AP" in page
    assert "data:image/png;base64," in page


def test_labels_weigh_more_than_answers_in_kd_unless_another_weight_is_given(
    train: Plan, teacher: Path
) -> None:
    more = {"method.name": "kd", "teacher": [str(teacher)], "views.count": "live"}

    def weights(**given: Any) -> dict[str, float]:
        made = train("o", **more, **given)
        return {term.name: term.weight for term in made.method.turns[0].terms}

    assert weights() == {"ce": 1.0, "triplet": 1.0, "kl": 0.1}
    assert weights(**{"method.kd": 0.5}) == {"ce": 1.0, "triplet": 1.0, "kl": 0.5}
    made = train("o", **more, **{"method.kd": 0.5})
    assert made.arguments["ce"] == 1.0
    shown = {row["key"]: row["from"] for row in made.to_json()["settings"]}
    assert shown["method.ce"] == "default of retrieval"
    assert "retrieval" not in shown["method.kd"]


def test_batches_hold_whole_groups(train: Plan) -> None:
    plan = train(**{"method.name": "supervised"})
    order, labels = plan.material.order, plan.material.pool.labels
    for step in range(12):
        groups = labels[[index for index, _ in order.keys(step)]].reshape(-1, 4)
        assert (groups == groups[:, :1]).all()


def test_a_stopped_run_goes_on_bit_for_bit(train: Plan, teacher: Path) -> None:
    more = {"method.name": "rkd", "teacher": [str(teacher)], "views.count": "live"}
    whole = distill.run(train("whole", **more), QUIET).path
    with pytest.raises(Preempted):
        distill.run(train("cut", **more), QUIET, stop=StopAfter(5))
    cut = distill.run(train("cut", **more), QUIET).path
    for name in ("model.safetensors", "head.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_a_trained_network_is_a_teacher_and_a_student(train: Plan) -> None:
    first = distill.run(train("first", **{"method.name": "supervised"}), QUIET).path
    more = {"student": str(first), "from_scratch": False, "image_size": None, "head": None}
    plan = train("second", **{"method.name": "kd", "teacher": [str(first)], **more})
    student, teacher = (plan.material.networks[name] for name in ("student", "teacher"))
    assert student.classes == teacher.classes == list(plan.task.classes)
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(student.eval()(x), teacher(x))
    distill.run(plan, QUIET)


def test_answers_are_ranked_again(teacher: Path, people: Path, tmp_path: Path) -> None:
    plain = report_of([teacher], people, tmp_path / "plain")
    again = report_of([teacher], people, tmp_path / "again", rerank=True)
    maps = [report["models"][0]["metrics"]["mAP"] for report in (plain, again)]
    assert maps[0] != maps[1]
    assert any("ranked again by k-reciprocal neighbours" in note for note in again["notes"])


def test_gates_know_its_figures(teacher: Path, people: Path, tmp_path: Path) -> None:
    options = {
        "models": [str(teacher)],
        "data.source": str(people),
        "cost": False,
        "out": str(tmp_path / "o"),
    }
    options |= {"require": ["mAP>=0.01", "cmc1>=1.01"]}
    with pytest.raises(UsageError, match=r"cmc1"):
        evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
    options["require"] = ["mAP>=0.01", "recall10>=0.999999"]
    result = evaluate.run(evaluate.plan(resolve(evaluate.Config, options=options), QUIET), QUIET)
    assert all("mAP" not in failed for failed in result.failed)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"head": "none", "finetune": True}, "--finetune trains a fitted classifier further, and retrieval"),
        ({"head": "none", "features": "pooled"}, "--features is given, and --head none takes"),
        ({"grid.lr": [0.1]}, r"grid\.lr: retrieval fits its embeddings in closed form"),
        ({"protocol": "dinov2"}, "--protocol dinov2 trains classifiers"),
        ({"views.hflip": 1.0}, r"views\.hflip: a probe of retrieval sees pictures as they are"),
        ({"views.count": "3"}, r"views\.count: a probe of retrieval sees pictures as they are"),
        ({"data.per_identity": 2}, r"data\.per_identity is given, and a probe draws no batches"),
        ({"statistics.record": True}, "--statistics records pictures of one class each"),
    ],
)
def test_what_a_probe_refuses(probed: Plan, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        probed("refused", **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"optim.batch_size": 18}, r"a batch of 18 in 1 parts .* take a multiple of 4"),
        ({"optim.batch_size": 4}, r"a batch of 4 holds one identity \(data\.per_identity=4\)"),
        ({"optim.accumulate": 4}, r"a batch of 4 holds one identity"),
        ({"optim.accumulate": 8}, r"a batch of 16 in 8 parts .* take a multiple of 32"),
        ({"optim.auto_batch": True}, "--auto-batch may part pictures of one identity"),
        ({"optim.mixup": 0.2}, "a mixed picture is of no identity"),
        ({"data.class_balance": "sampler"}, "batches of retrieval hold as many pictures of each"),
        ({"data.labels_per_class": 2}, "--labels-per-class: retrieval learns from pictures that belong"),
        ({"views.store": "top5"}, r"retrieval has no views\.store=topK"),
        ({"head": "segformer"}, "head=segformer: retrieval has plain, bnneck, or bnneckN"),
        ({"method.name": "dkd"}, "method dkd is for classification, and these data are for retrieval"),
    ],
)
def test_what_a_training_refuses(train: Plan, teacher: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(**{"method.name": "kd", "teacher": [str(teacher)], "views.count": "live", **more})


def test_other_tasks_have_no_network_without_a_head(
    pictures: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    options = {"teacher": "test_vit", "weights": str(weights["test_vit"]), "data.source": str(pictures)}
    options |= {"head": "none", "out": str(tmp_path / "o"), "image_size": 32}
    with pytest.raises(UsageError, match="--head none: networks for classification answer by a head"):
        probe.plan(resolve(probe.Config, options=options), QUIET)


def test_a_classifier_is_no_network_of_retrieval(
    people: Path, trained_classifier: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="does classification, the data is for retrieval"):
        report_of([trained_classifier], people, tmp_path / "r")


@pytest.fixture
def trained_classifier(tmp_path: Path) -> Path:
    from toolbox import commit_model

    from kdcli.models.build import Wanted

    network = build("test_resnet", Wanted(["a", "b"]), pretrained=False, size=32)
    return commit_model(network, tmp_path / "classifier")
