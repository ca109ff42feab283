"""eval on data that lack some of the classes that models know: what is there is measured, and it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from toolbox import QUIET, commit_model, encode

from kdcli.config import resolve
from kdcli.engine import inference
from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.stages import evaluate


def measured(models: list[str], source: Path, out: Path, **more: Any) -> dict[str, Any]:
    """The report of an evaluation."""
    options = {"models": models, "data.source": str(source), "out": str(out), "cost": False, **more}
    plan = evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
    assert isinstance(plan, evaluate.Plan)
    report: dict[str, Any] = json.loads((evaluate.run(plan, QUIET).path / "report.json").read_text())
    return report


def subset(source: Path, folder: Path, names: list[str]) -> Path:
    """The pictures of some classes, which are all that the data know, in this order."""
    kept = {}
    for split, table in datasets.load_from_disk(str(source)).items():
        known = table.features["label"].names
        rows = [i for i, label in enumerate(table["label"]) if known[label] in names]
        labels = [names.index(known[table["label"][i]]) for i in rows]
        table = table.select(rows).remove_columns("label").add_column("label", labels)
        kept[split] = table.cast_column("label", datasets.ClassLabel(names=names))
    datasets.DatasetDict(kept).save_to_disk(str(folder))
    return folder


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits that evaluations see."""
    seen: list[torch.Tensor] = []
    real: Callable[..., torch.Tensor] = inference.outputs

    def outputs(*args: Any, **options: Any) -> torch.Tensor:
        seen.append(real(*args, **options))
        return seen[-1]

    monkeypatch.setattr(inference, "outputs", outputs)
    return seen


def test_classes_that_the_data_lack(
    pictures: Path, teacher: Path, tmp_path: Path, logits: list[torch.Tensor], warnings: list[str]
) -> None:
    whole = measured([str(teacher)], pictures, tmp_path / "whole")
    names = whole["data"]["classes"]
    assert (len(names), "absent" in whole["data"], warnings) == (4, False, [])
    kept = [names[3], names[0]]
    data = subset(pictures, tmp_path / "data", kept)
    report = measured([str(teacher)], data, tmp_path / "part")
    absent = [names[1], names[2]]
    assert report["data"]["classes"] == [*kept, *absent]
    assert report["data"]["absent"] == absent
    said = (
        f"he data lack 2 of the 4 classes that are known here ({absent[0]}, {absent[1]}): measured are the 2"
    )
    assert said in warnings[0]
    assert said in " ".join(report["notes"])

    own = datasets.load_from_disk(str(data))["test"]
    y = torch.tensor(own["label"])
    order = [3, 0, 1, 2]
    labels = torch.tensor(datasets.load_from_disk(str(pictures))["test"]["label"])
    naive = logits[0][(labels == 3) | (labels == 0)][:, order]  # all four logits are kept
    torch.testing.assert_close(logits[1], naive, rtol=0, atol=1e-5)
    right = naive.argmax(1) == y
    metrics = report["models"][0]["metrics"]
    assert metrics["top1"] == pytest.approx(float(right.float().mean()))
    each = [float(right[y == c].float().mean()) for c in (0, 1)]
    assert metrics["mean_per_class"] == pytest.approx(sum(each) / 2)
    assert metrics["nll"] == pytest.approx(float(torch.nn.functional.cross_entropy(naive, y)), rel=1e-4)
    matrix = np.array(report["models"][0]["confusion"])
    assert matrix.shape == (4, 4)
    assert (matrix[2:].sum(), matrix.sum()) == (0, len(y))
    page = (tmp_path / "part" / "report.html").read_text()
    assert f"{len(y)} in 2 classes" in page


def test_a_split_without_pictures_of_a_class(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    table = datasets.load_from_disk(str(pictures))
    names = table["test"].features["label"].names
    table["test"] = table["test"].filter(lambda row: row["label"] != 2)
    table.save_to_disk(str(tmp_path / "data"))
    report = measured([str(teacher)], tmp_path / "data", tmp_path / "report")
    assert (report["data"]["classes"], "absent" in report["data"]) == (names, False)
    assert f"The split has no picture of 1 of the 4 classes ({names[2]})." in report["notes"]


def test_an_answer_that_names_an_absent_class_is_wrong(pictures: Path, tmp_path: Path) -> None:
    names = datasets.load_from_disk(str(pictures))["test"].features["label"].names
    network = build("test_resnet", Wanted(list(names)), pretrained=False, size=32)
    with torch.no_grad():
        network.linear.weight.zero_()
        network.linear.bias.copy_(
            torch.tensor([0.0, 9.0, 1.0, 0.0])
        )  # always the second class, else the third
    model = commit_model(network, tmp_path / "model")
    data = subset(pictures, tmp_path / "data", [names[0], names[2]])
    metrics = measured([str(model)], data, tmp_path / "a")["models"][0]["metrics"]
    assert metrics["top1"] == 0
    data = subset(pictures, tmp_path / "more", [names[1], names[2]])
    metrics = measured([str(model)], data, tmp_path / "b")["models"][0]["metrics"]
    assert 0 < metrics["top1"] < 1


def test_models_and_a_teacher_of_the_same_classes(
    pictures: Path, probed: Callable[[str], Path], tmp_path: Path
) -> None:
    names = datasets.load_from_disk(str(pictures))["test"].features["label"].names
    data = subset(pictures, tmp_path / "data", list(names[:3]))
    models = [str(probed(name)) for name in ("test_vit", "test_resnet")]
    report = measured(models, data, tmp_path / "report", teacher=models[0])
    assert [model["teacher"]["agreement"] == 1 for model in report["models"]] == [True, False]
    assert report["peers"]["pairs"]
    assert report["models"][1]["effects"]["teachers"]["teacher"]["relations"] is not None


def test_what_is_refused(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    table = datasets.load_from_disk(str(pictures))
    names = list(table["test"].features["label"].names)
    more = table.cast_column("label", datasets.ClassLabel(names=[*names, "lada"]))
    more.save_to_disk(str(tmp_path / "more"))
    with pytest.raises(InputError, match=r"does not know 'lada', which the data has; it knows 4 classes"):
        measured([str(teacher)], tmp_path / "more", tmp_path / "a")
    fewer = subset(pictures, tmp_path / "fewer", names[:3])
    with pytest.raises(
        InputError, match=r"knows 4 classes, the data has 3\. Leave data\.class_order=same out"
    ):
        measured([str(teacher)], fewer, tmp_path / "b", **{"data.class_order": "same"})
    small = commit_model(
        build("test_resnet", Wanted(names[:3]), pretrained=False, size=32), tmp_path / "small"
    )
    with pytest.raises(
        InputError, match=f"only one knows the class '{names[3]}'.*Measure them one at a time"
    ):
        measured([str(teacher), str(small)], fewer, tmp_path / "c")


def test_masks_that_lack_classes(masks_data: Path, tmp_path: Path, warnings: list[str]) -> None:
    """Predictions of an absent class are wrong pixels, and its IoU of 0 is not in the mean."""
    names = ["0", "1", "2", "3"]
    wanted = Wanted(names, task="segmentation", head="grid4")
    model = commit_model(build("test_resnet", wanted, pretrained=False, size=32), tmp_path / "model")
    cells: dict[str, list[Any]] = {"image": [], "mask": []}
    for row in datasets.load_from_disk(str(masks_data))["test"].select(range(6)):
        mask = np.array(row["mask"])
        mask[mask == 3] = 255
        cells["image"].append({"bytes": encode(row["image"]), "path": None})
        cells["mask"].append({"bytes": encode(mask), "path": None})
    table = datasets.Dataset.from_dict(cells)
    table = table.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "data"))
    report = measured([str(model)], tmp_path / "data", tmp_path / "report")
    assert (report["data"]["classes"], report["data"]["absent"]) == (names, ["3"])
    assert "(3): measured are the 3 that are there" in warnings[0]
    found = report["models"][0]
    assert found["iou"][3] is None
    present = [value for value in found["iou"] if value is not None]
    assert found["metrics"]["miou"] == pytest.approx(sum(present) / len(present))
    assert found["pixels"][3] == 0
    whole = measured([str(model)], tmp_path / "data", tmp_path / "w", **{"data.class_names": names})
    assert whole["models"][0]["metrics"]["pixel_accuracy"] == found["metrics"]["pixel_accuracy"]
