"""Detectors as ONNX: boxes come out finished, whatever the batch, and ties of scores are no difference."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import commit_model
from torch import Tensor

from kdcli.artifacts import forms, manifest
from kdcli.artifacts.store import write_bytes
from kdcli.compression.deployment import deploy
from kdcli.compression.onnx import apart, check_onnx, compare, export_onnx
from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.onnx import OnnxModel

CLASSES = ["tree", "car"]
KIND = "light,num_queries=12"


def network() -> Any:
    """A detector of random weights, whose places differ in what they see."""
    wanted = Wanted(CLASSES, task="detection", head=KIND, kind=KIND)
    made: Any = build("test_resnet", wanted, pretrained=False, size=64, seed=3).eval()
    with torch.no_grad():
        for layer in (made.head.detector.model.enc_score_head, made.head.linear):
            layer.weight.mul_(20)
    return made


def views(count: int) -> Tensor:
    """Squares of one colour on another, of unlike sizes."""
    draw, found = torch.Generator().manual_seed(0), []
    for number in range(count):
        picture = torch.randint(0, 90, (3, 64, 64), generator=draw, dtype=torch.uint8)
        side, at = 8 + 5 * (number % 8), 3 * (number % 9)
        picture[number % 3, at : at + side, at : at + side] = 230
        found.append(picture)
    return torch.stack(found)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, Any]]:
    folder, made = tmp_path_factory.mktemp("onnx"), network()
    facts = export_onnx(made, folder)
    return made, folder, facts


def test_the_graph_answers_finished_boxes_of_any_batch(written: tuple[Any, Path, dict[str, Any]]) -> None:
    made, folder, facts = written
    assert facts["output"] == {"name": "detections", "dtype": "float32", "shape": ["batch", 24, 6]}
    found = check_onnx(folder / facts["file"], made, [views(8), views(5)])
    assert found["difference"] < 1e-4
    assert found["batches"] == [1, 3, 5, 8]
    assert found["chosen_otherwise"] <= 3


def test_another_network_is_told_from_it(written: tuple[Any, Path, dict[str, Any]]) -> None:
    made, folder, facts = written
    other = network()
    with torch.no_grad():
        other.head.detector.model.decoder.bbox_embed[-1].layers[-1].bias.add_(0.3)
    with pytest.raises(InputError, match=r"differ from those of .* places may score alike"):
        check_onnx(folder / facts["file"], other, [views(8)])
    assert compare(folder / facts["file"], other, [views(8)])["chosen_otherwise"] >= 6
    assert made is not other


def test_detections_are_apart_by_the_nearest_one_whatever_their_order() -> None:
    one = torch.tensor([[[0.1, 0.1, 0.4, 0.4, 0.9, 1], [0.2, 0.2, 0.3, 0.3, 0.8, 0], [0, 0, 1, 1, 0.1, 0]]])
    assert apart(one[:, [1, 0, 2]], one) == [0]
    moved = one.clone()
    moved[0, 0, 2] += 0.02
    assert apart(moved, one) == pytest.approx([0.02])
    other = one.clone()
    other[0, 0, 5] = 0
    assert apart(other, one) == [1]  # a class is a number too
    last = one.clone()
    last[0, 2] = torch.tensor([0.5, 0.5, 0.6, 0.6, 0.1, 1])
    assert apart(last, one) == [0]  # what was cut off may be another
    assert math.isnan(apart(one * torch.nan, one)[0])


def test_an_exported_detector_answers_in_the_order_of_the_data(
    written: tuple[Any, Path, dict[str, Any]], tmp_path: Path
) -> None:
    made, folder, facts = written
    root = commit_model(made, tmp_path / "model")
    (root / "onnx").mkdir()
    write_bytes(root / "onnx" / facts["file"], (folder / facts["file"]).read_bytes())
    form = forms.Form(root, manifest.read(root), root / "onnx" / facts["file"], "onnx", False)
    exported = OnnxModel(build(str(root)), form)
    before = exported(views(3))
    exported.reorder([1, 0], CLASSES[::-1])
    after = exported(views(3))
    assert torch.equal(after[..., :5], before[..., :5])
    assert torch.equal(after[..., 5], 1 - before[..., 5])
    made.reorder([1, 0], CLASSES[::-1])
    with torch.no_grad():
        assert max(apart(after, made(views(3)))) < 1e-4
    made.reorder([1, 0], CLASSES)


def test_the_folder_prints_boxes_in_pixels(written: tuple[Any, Path, dict[str, Any]], tmp_path: Path) -> None:
    from PIL import Image

    made, folder, facts = written
    files = deploy(made, folder, {**facts, "check": {"pictures": 3, "difference": 0.0, "largest": 1.0}})
    assert "detections" in (folder / "README.md").read_text()
    assert "predict.py" in files
    picture = Image.fromarray(views(2)[1].permute(1, 2, 0).numpy()).resize((128, 96))
    picture.save(tmp_path / "wide.png")
    loaded = importlib.util.spec_from_file_location("predict_boxes", folder / "predict.py")
    assert loaded is not None
    assert loaded.loader is not None
    predict = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(predict)
    found = predict.answer(tmp_path / "wide.png")
    fractions = predict.SESSION.run(None, {"pixels": _input(predict, tmp_path / "wide.png")})[0][0]
    assert found[:, [0, 2]] == pytest.approx(fractions[:, [0, 2]] * 128)
    assert found[:, [1, 3]] == pytest.approx(fractions[:, [1, 3]] * 96)
    lines = predict.describe(found)
    assert len(lines) == int((found[:, 4] >= 0.3).sum())
    assert all(line.split("  ")[1] in CLASSES for line in lines)


def _input(predict: Any, file: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(file) as picture:
        x = predict.cut(picture).transpose(2, 0, 1)[None].astype(np.float32)
    mean, std = (np.array(predict.HOW[name], np.float32)[:, None, None] * 255 for name in ("mean", "std"))
    return (x - mean) / std
