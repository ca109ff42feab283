"""The deployed folder: its cut is the evaluation's pixel by pixel, and it answers without torch."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compacting import CLASSES, body_of
from PIL import Image
from toolbox import encode, sample_photographs

from kdcli.artifacts.model import InputSpec
from kdcli.compression.deployment import answer_of, deploy, label_lines, preprocessing
from kdcli.compression.onnx import check_onnx, export_onnx
from kdcli.data.images import decode
from kdcli.data.views import EvaluationCut, WholeCut
from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.protocol import Model
from kdcli.models.timm import TimmModel

ALONE = (
    "import runpy, sys\n"
    "for name in ('torch', 'torchvision', 'timm', 'kdcli', 'onnx', 'safetensors'): sys.modules[name] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)
TASKS = {
    "class": Wanted(["bag", "a\nshoe", "grün"]),
    "labels": Wanted(CLASSES, "multi-label"),
    "mask": Wanted(CLASSES, "segmentation", "grid4"),
    "embedding": Wanted(CLASSES, "retrieval", "bnneck24"),
}


def network_for(answer: str) -> Model:
    network = build("test_resnet", TASKS[answer], pretrained=False, size=64).eval()
    network.spec = replace(network.spec, crop=0.9)
    return network


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Model, Path, list[str]]]:
    """A folder by its answer and by whether the graph normalises."""
    made: dict[Any, tuple[Model, Path, list[str]]] = {}

    def folder(answer: str, inside: bool = False) -> tuple[Model, Path, list[str]]:
        if (answer, inside) not in made:
            path, network = tmp_path_factory.mktemp("deployed"), network_for(answer)
            facts = export_onnx(network, path, inside=inside)
            facts["check"] = check_onnx(path / "model.onnx", network, [view_of(network, photograph())[None]])
            names = deploy(network, path, facts, metrics={"top1": 0.75}, licence="Apache-2.0")
            made[answer, inside] = network, path, names
        return made[answer, inside]

    return folder


def photograph(width: int = 300, height: int = 200) -> Image.Image:
    return sample_photographs()["flower.jpg"].crop((100, 50, 100 + width, 50 + height))


def view_of(network: Model, picture: Image.Image) -> torch.Tensor:
    cut = WholeCut if answer_of(network) == "mask" else EvaluationCut
    return cut(network.spec)(picture, 0, 0)


def alone(folder: Path, *files: Path) -> str:
    """What ``predict.py`` prints where nothing but its three packages can be imported."""
    found = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder / "predict.py"), *map(str, files)],
        text=True,
        capture_output=True,
        timeout=120,
        cwd=folder.parent,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    return found.stdout


def expected(network: Model, view: torch.Tensor) -> list[str]:
    """The lines of ``predict.py``, by torch."""
    with torch.no_grad():
        out = network(view[None])[0].double()
    if answer_of(network) == "embedding":
        return [f"embedding of {len(out)} numbers, norm {float(out.norm()):.6f}"]
    kind = {"class": lambda x: x.softmax(0), "labels": lambda x: x.sigmoid(), "mask": areas}
    parts = kind[answer_of(network)](out)
    order = parts.argsort(descending=True, stable=True).tolist()[:5]
    return [f"{float(parts[i]):.6f}  {label_lines(network)[i]}" for i in order]


def areas(logits: torch.Tensor) -> torch.Tensor:
    counts = [0] * len(logits)
    for cell in logits.argmax(0).flatten().tolist():
        counts[cell] += 1
    return torch.tensor(counts).double() / sum(counts)


def same_lines(found: list[str], wanted: list[str]) -> None:
    """Equal words, and numbers that differ in the fifth digit at most."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert [w for w in one.split() if "." not in w] == [w for w in other.split() if "." not in w]
        numbers = [[float(w) for w in line.split() if "." in w] for line in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=2e-5, rel=2e-5)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("answer", TASKS)
def test_the_folder_answers_without_torch_what_the_network_does(
    deployed: Any, answer: str, inside: bool, tmp_path: Path
) -> None:
    network, folder, names = deployed(answer, inside)
    file = tmp_path / "a picture.png"
    photograph().save(file)
    lines = alone(folder, file).splitlines()
    assert lines[0] == str(file)
    same_lines(lines[1:], expected(network, view_of(network, photograph())))
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_several_pictures_and_none(deployed: Any, tmp_path: Path) -> None:
    _, folder, _ = deployed("class")
    for name in ("a.png", "b.png"):
        photograph().save(tmp_path / name)
    lines = alone(folder, tmp_path / "a.png", tmp_path / "b.png").splitlines()
    assert [lines[0], lines[4]] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert lines[1:4] == lines[5:8]
    assert "python predict.py PICTURE" in alone(folder)


@pytest.mark.long
def test_the_three_packages_are_enough(deployed: Any, tmp_path: Path) -> None:
    """In an environment of its own, with nothing else in it."""
    if (uv := shutil.which("uv")) is None:
        pytest.skip("uv is not installed")
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(tmp_path / "own")], check=True)
    python = str(tmp_path / "own" / "bin" / "python")
    packages = ["onnxruntime", "numpy", "pillow"]
    installed = subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, *packages], text=True, capture_output=True
    )
    if installed.returncode:
        pytest.skip(f"packages cannot be installed: {installed.stderr[:200]}")
    network, folder, _ = deployed("class")
    photograph().save(tmp_path / "a.png")
    command = [python, "-I", str(folder / "predict.py"), str(tmp_path / "a.png")]
    lines = subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines()
    same_lines(lines[1:], expected(network, view_of(network, photograph())))


# -- the cut -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script(deployed: Any) -> Any:
    """``predict.py`` as a module."""
    _, folder, _ = deployed("class")
    spec = importlib.util.spec_from_file_location("predict", folder / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cut_for(script: Any, monkeypatch: pytest.MonkeyPatch, network: Model, spec: InputSpec) -> Any:
    network.spec = spec
    facts = {
        "file": "model.onnx",
        "input": {"name": "pixels", "dtype": "uint8"},
        "output": {"name": "logits"},
    }
    monkeypatch.setattr(script, "HOW", preprocessing(network, facts))
    return script.cut


SIDES = [
    (300, 200),
    (200, 300),
    (64, 64),
    (65, 63),
    (50, 31),
    (31, 50),
    (640, 427),
    (33, 400),
    (401, 37),
    (7, 9),
]


@pytest.mark.parametrize("crop", [1.0, 0.9, 0.875, 0.5, 1.25])
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (63, 63), (75, 32)])
def test_the_cut_is_that_of_the_evaluation(
    script: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], mode: str, crop: float
) -> None:
    spec = InputSpec(size, interpolation="bicubic", crop=crop, crop_mode=mode)
    cut = cut_for(script, monkeypatch, network_for("class"), spec)
    for width, height in SIDES:
        picture = photograph().resize((width, height))
        wanted = EvaluationCut(spec)(picture, 0, 0).permute(1, 2, 0).numpy()
        assert np.array_equal(cut(picture), wanted), (width, height)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"])
def test_every_interpolation(script: Any, monkeypatch: pytest.MonkeyPatch, interpolation: str) -> None:
    spec = InputSpec((64, 64), interpolation=interpolation, crop=0.9)
    cut, found = cut_for(script, monkeypatch, network_for("class"), spec), []
    for picture in (photograph(), photograph(31, 50)):
        found.append(cut(picture))
        assert np.array_equal(found[-1], EvaluationCut(spec)(picture, 0, 0).permute(1, 2, 0).numpy())
    bicubic = EvaluationCut(replace(spec, interpolation="bicubic"))(photograph(), 0, 0).permute(1, 2, 0)
    assert np.array_equal(found[0], bicubic.numpy()) == (interpolation == "bicubic")


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_every_mode_and_orientation(
    script: Any, monkeypatch: pytest.MonkeyPatch, mode: str, orientation: int
) -> None:
    picture = photograph(90, 70).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[274] = orientation
    kind = {"CMYK": "TIFF", "YCbCr": "JPEG"}.get(mode, "PNG")
    data = encode(picture, kind, exif=exif)
    network = network_for("class")
    cut = cut_for(script, monkeypatch, network, network.spec)
    wanted = EvaluationCut(network.spec)(decode(data), 0, 0).permute(1, 2, 0).numpy()
    with Image.open(BytesIO(data)) as opened:
        assert np.array_equal(cut(opened), wanted)


def test_a_mask_is_of_the_whole_picture(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_for("mask")
    cut = cut_for(script, monkeypatch, network, network.spec)
    wanted = WholeCut(network.spec)(photograph(), 0, 0).permute(1, 2, 0).numpy()
    assert np.array_equal(cut(photograph()), wanted)
    assert not np.array_equal(
        wanted, EvaluationCut(network.spec)(photograph(), 0, 0).permute(1, 2, 0).numpy()
    )


def test_more_than_eight_bits_are_refused(script: Any) -> None:
    with pytest.raises(SystemExit, match="I;16: more than 8 bits a sample"):
        script.cut(Image.new("I;16", (70, 70)))


def test_the_input_is_bit_for_bit_what_the_network_prepares(script: Any, tmp_path: Path) -> None:
    given: list[np.ndarray] = []

    class Listening:
        def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            given.append(inputs["pixels"])
            return [np.zeros((1, 3))]

    network = network_for("class")
    photograph().save(tmp_path / "a.png")
    own, script.SESSION = script.SESSION, Listening()
    try:
        script.answer(tmp_path / "a.png")
    finally:
        script.SESSION = own
    assert np.array_equal(given[0], network.prepare(view_of(network, photograph())[None]).numpy())


def test_a_grey_network_without_torch(tmp_path: Path) -> None:
    network = TimmModel(
        body_of("test_resnet", in_chans=1), InputSpec((64, 64), (0.4,), (0.2,)), CLASSES, name="grey"
    ).eval()
    deploy(network, tmp_path, export_onnx(network, tmp_path))
    photograph().save(tmp_path / "a.png")
    same_lines(
        alone(tmp_path, tmp_path / "a.png").splitlines()[1:],
        expected(network, view_of(network, photograph())),
    )


# -- the files -----------------------------------------------------------------------------------------------


def test_preprocessing_says_all_that_decides_the_input(deployed: Any) -> None:
    network, folder, _ = deployed("class")
    assert json.loads((folder / "preprocessing.json").read_text()) == {
        **network.spec.to_json(),
        "crop": 0.9,
        "resize": [71, 71],
        "fill": [0, 0, 0],
        "grey": None,
        "file": "model.onnx",
        "input": "pixels",
        "dtype": "float32",
        "output": "logits",
        "answer": "class",
        "labels": "labels.txt",
    }


def test_labels_are_one_a_line_whatever_their_names(deployed: Any) -> None:
    _, folder, names = deployed("class")
    assert (folder / "labels.txt").read_bytes() == "bag\na\\nshoe\ngrün\n".encode()
    assert names == ["model.onnx", "README.md", "labels.txt", "predict.py", "preprocessing.json"]
    network = network_for("class")
    network.classes = ["a\r\nb", "c\u2028d", "", "back\\slash"]
    assert label_lines(network) == ["a\\r\\nb", "c\\u2028d", "", "back\\slash"]


def test_an_embedding_has_no_labels(deployed: Any) -> None:
    network, folder, names = deployed("embedding")
    assert label_lines(network) == []
    assert "labels.txt" not in names
    assert not (folder / "labels.txt").exists()
    assert json.loads((folder / "preprocessing.json").read_text())["labels"] is None


def test_a_classifier_that_knows_no_names_numbers_its_classes() -> None:
    network = TimmModel(body_of("test_resnet"), InputSpec((64, 64)), None, name="nameless", unnamed=3)
    assert label_lines(network) == ["0", "1", "2"]


def test_the_card(deployed: Any) -> None:
    _, folder, _ = deployed("class")
    text = (folder / "README.md").read_text()
    assert text.startswith("# test_resnet: classification\n")
    assert "* Input: `pixels`, float32 [batch, 3, 64, 64]; 64x64 pixels, normalised by `predict.py`\n" in text
    assert "* Output: `logits`, float32 [batch, 3]: logits of one class a picture" in text
    assert "* Classes: 3, one a line of `labels.txt`" in text
    assert "* Checked on 1 pictures: answers differ by " in text
    assert "* Licence: Apache-2.0\n" in text
    assert "| top1 | 0.7500 |\n" in text
    assert str(folder) not in text


def test_a_random_interpolation_is_refused(tmp_path: Path) -> None:
    network = network_for("class")
    network.spec = replace(network.spec, interpolation="random")
    facts = export_onnx(network, tmp_path)
    with pytest.raises(InputError, match="resized by a random interpolation, which no deployment repeats"):
        deploy(network, tmp_path, facts)
