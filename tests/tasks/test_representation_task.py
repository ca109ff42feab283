"""Pictures without labels: how they are opened, what is measured of backbones, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from toolbox import QUIET, class_folders, facts, measured, rows, tiny_picture

from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.sections import DataSection
from kdcli.stages import distill
from kdcli.tasks import open_task_data
from kdcli.tasks.representation.evaluate import BANK, banked


def opened(source: Path, **more: Any) -> Any:
    section = DataSection(source=str(source), task="representation", **more)
    return open_task_data(section, "train", "validation")


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures in a folder, no classes."""
    folder = tmp_path_factory.mktemp("loose pictures")
    for i in range(24):
        (folder / f"{i}.png").write_bytes(tiny_picture(i))
    return folder


def backbone(source: Path, teacher: Path, out: Path, **more: Any) -> distill.Plan:
    options = {
        **{"student": "test_resnet", "from_scratch": True, "image_size": 32, "data.source": str(source)},
        **{"teacher": str(teacher), "method.name": "generic", "optim.max_steps": 4, "optim.batch_size": 8},
        **{"log_every": 1, "out": str(out), "cache": str(out.parent / "cache")},
        **more,
    }
    found = distill.plan(resolve(distill.Config, options=options), QUIET)
    assert isinstance(found, distill.Plan)
    return found


def test_pictures_without_labels_have_one_split_and_no_classes(loose: Path) -> None:
    data = opened(loose)
    assert data.classes is None
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24}


def test_labels_carve_a_validation_split_to_measure_by(pictures: Path) -> None:
    data = opened(pictures)
    assert len(data.classes) == 4
    assert set(data.splits) == {"train", "validation"}


def test_labels_too_few_to_carve_by_are_no_fault(tmp_path: Path) -> None:
    data = opened(class_folders(tmp_path, {"a": 1, "b": 1, "c": 1}))
    assert len(data.splits["train"]) == 3
    assert len(data.splits["validation"]) == 0


def test_labels_of_another_kind_are_left_unread_and_said(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": tiny_picture(i), "path": None} for i in range(4)],
            "label": [[0], [1, 2], [], [0]],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.Sequence(datasets.Value("int64"))}
        ),
    )
    table.save_to_disk(str(tmp_path / "data"))
    data = opened(tmp_path / "data")
    assert data.classes is None
    assert any("its labels are not read, not even to measure by" in note for note in data.notes)
    with pytest.raises(InputError, match="holds several labels per picture"):
        opened(tmp_path / "data", label_column="label")


def test_a_backbone_is_made_of_pictures_alone(loose: Path, probed: Any, tmp_path: Path) -> None:
    plan = backbone(loose, probed("test_vit"), tmp_path / "out")
    distill.run(plan, QUIET)
    found = facts(tmp_path / "out")
    assert found["task"] == "representation"
    assert found["classes"] is None
    assert found["selection"] == "last step (4)"
    assert not any("validation" in key for row in rows(tmp_path / "out") for key in row)
    assert plan.config.data.task == "representation"


def test_labels_measure_on_the_way_and_choose_nothing(pictures: Path, probed: Any, tmp_path: Path) -> None:
    plan = backbone(pictures, probed("test_vit"), tmp_path / "out", evaluate_steps=2)
    distill.run(plan, QUIET)
    seen = [row for row in rows(tmp_path / "out") if "validation/knn" in row]
    assert [row["step"] for row in seen] == [2, 4]
    assert all(0 <= row[f"validation/{name}"] <= 1 for row in seen for name in ("knn", "linear_probe"))
    assert facts(tmp_path / "out")["selection"] == "last step (4)"


def test_partly_labelled_pictures_all_teach_and_labelled_ones_measure(tmp_path: Path, probed: Any) -> None:
    kind = datasets.ClassLabel(names=["a", "b"])
    cells = [{"bytes": tiny_picture(i), "path": None} for i in range(40)]
    labels = [i % 2 if i < 30 else -1 for i in range(40)]
    table = datasets.Dataset.from_dict(
        {"image": cells, "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": kind}),
    )
    table.save_to_disk(str(tmp_path / "data"))
    plan = backbone(tmp_path / "data", probed("test_resnet"), tmp_path / "out")
    assert len(plan.material.pool) == 40 - len(plan.data.split("validation"))
    distill.run(plan, QUIET)
    assert any("validation/knn" in row for row in rows(tmp_path / "out"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"data.class_balance": "loss"},
            "--class-balance is given, and method generic learns from pictures alone",
        ),
        (
            {"data.labelled_fraction": 0.5},
            r"data\.labelled_fraction is given, and method generic learns from",
        ),
        ({"optim.label_smoothing": 0.1}, r"optim\.label_smoothing is given, and method generic learns from"),
        ({"teacher_temperature": "raw"}, "teacher_temperature is given, and method generic reads no answers"),
        ({"head": "linear"}, "head=linear: a backbone has no head"),
        (
            {"data.task": "classification"},
            "method generic is for representation, and these data are for class",
        ),
        (
            {"method.name": "kd", "data.task": "representation"},
            "method kd is for .*, and these data are for repr",
        ),
    ],
)
def test_what_is_about_labels_is_refused(
    given: dict[str, Any], message: str, pictures: Path, probed: Any, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        backbone(pictures, probed("test_resnet"), tmp_path / "out", **given)


def test_labels_that_are_not_there_cannot_be_hidden(loose: Path, probed: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--labels-per-class is given, and .* has no labels to hide"):
        backbone(loose, probed("test_resnet"), tmp_path / "out", **{"data.labels_per_class": 2})


def test_eval_measures_backbones_and_networks_of_any_task(
    pictures: Path, probed: Any, tmp_path: Path
) -> None:
    plan = backbone(pictures, probed("test_vit"), tmp_path / "out")
    distill.run(plan, QUIET)
    task = {"data.task": "representation", "cka": True, "teacher": str(probed("test_vit"))}
    made = measured([tmp_path / "out", probed("test_vit")], pictures, tmp_path / "report", **task)
    report = json.loads((made.path / "report.json").read_text())
    assert [set(model["metrics"]) for model in report["models"]] == [{"knn", "linear_probe"}] * 2
    assert any("Neighbours are looked for among" in note for note in report["notes"])
    assert [len(model["cka"]["teacher"]) for model in report["models"]] == [6, 6]
    assert "CKA" in (made.path / "report.html").read_text()


def test_a_probe_fits_no_head_to_it(pictures: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    from toolbox import heads_plan

    with pytest.raises(UsageError, match=r"data\.task=representation has no head to fit"):
        heads_plan(
            pictures,
            weights["test_resnet"],
            tmp_path / "out",
            tmp_path / "cache",
            **{"data.task": "representation"},
        )


def test_a_bank_is_of_labelled_pictures_at_even_steps(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = opened(pictures).split("train")
    assert len(banked(samples)) == len(samples) < BANK
    monkeypatch.setattr("kdcli.tasks.representation.evaluate.BANK", 5)
    few = banked(samples)
    assert few.ids.tolist() == samples.ids[np.linspace(0, len(samples) - 1, 5).round().astype(int)].tolist()
