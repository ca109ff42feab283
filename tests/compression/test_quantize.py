"""Int8 in ONNX: a quarter of the bytes, answers near the network's, and nothing else in the folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from compacting import CLASSES, body_of
from toolbox import sample_photographs
from torch import Tensor

from kdcli.artifacts.model import InputSpec
from kdcli.compression import onnx as writing
from kdcli.compression.deployment import deploy
from kdcli.compression.onnx import export_onnx
from kdcli.compression.quantize import quantise_onnx
from kdcli.data.views import EvaluationCut
from kdcli.errors import InputError
from kdcli.models.onnx import session
from kdcli.models.timm import TimmModel


def network(name: str = "test_resnet", **options: Any) -> TimmModel:
    body = body_of(name, **options)
    return TimmModel(body, InputSpec((64, 64)), CLASSES, name="toy").eval()


def views(count: int) -> Tensor:
    """Parts of real photographs: uint8 [N, 3, 64, 64]."""
    cut, found = EvaluationCut(InputSpec((64, 64))), list(sample_photographs().values())
    places = [(13 * i % 340, 7 * i % 220) for i in range(count)]
    return torch.stack(
        [cut(found[i % 2].crop((x, y, x + 200, y + 200)), 0, i) for i, (x, y) in enumerate(places)]
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What writes a network's ONNX file into a folder, once for each network, and gives its facts."""
    made: dict[tuple[str, bool], tuple[Path, dict[str, Any]]] = {}

    def write(own: TimmModel, folder: Path, inside: bool = False) -> dict[str, Any]:
        key = own.architecture, inside
        if key not in made:
            place = tmp_path_factory.mktemp("written")
            made[key] = place, export_onnx(own, place, inside=inside)
        shutil.copy(made[key][0] / "model.onnx", folder)
        return made[key][1]

    return write


def integer_weights(file: Path) -> dict[str, np.ndarray]:
    """Int8 initialisers of more than one dimension."""
    graph = onnx.load(file).graph
    return {
        t.name: onnx.numpy_helper.to_array(t)
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    }


@pytest.mark.parametrize("kind", ["static", "dynamic"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(("name", "options"), [("test_resnet", {}), ("test_vit", {"img_size": 64})])
def test_it_is_smaller_and_answers_nearly_the_same(
    name: str, options: dict[str, Any], inside: bool, kind: Any, written: Any, tmp_path: Path
) -> None:
    own, x = network(name, **options), views(20)
    facts = written(own, tmp_path, inside=inside)
    found = quantise_onnx(own, tmp_path, facts, [x[:10], x[10:]], kind)
    file = tmp_path / "model.int8.onnx"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.int8.onnx", "model.onnx"]
    assert (found["file"], found["files"], found["bytes"]) == (file.name, [file.name], file.stat().st_size)
    assert found["bytes"] < 0.4 * facts["bytes"] == 0.4 * found["quantised"]["fp32_bytes"]
    assert (found["input"], found["output"]) == (facts["input"], facts["output"])
    assert found["quantised"]["kind"] == kind
    assert found["quantised"]["pictures"] == (20 if kind == "static" else 0)
    with torch.no_grad():
        wanted = own(x[:10])
    given = x[:10] if inside else own.prepare(x[:10]).contiguous()
    answers = torch.from_numpy(session(file).run(None, {"pixels": given.numpy()})[0])
    gap = float((answers - wanted).abs().max())
    assert 0 < gap <= found["quantised"]["difference"] + 1e-6
    assert found["quantised"]["difference"] < 0.25 * found["quantised"]["largest"]


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_weights_are_integers_with_a_scale_for_each_channel(kind: Any, written: Any, tmp_path: Path) -> None:
    own = network()
    quantise_onnx(own, tmp_path, written(own, tmp_path), [views(16)], kind)
    model = onnx.load(tmp_path / "model.int8.onnx")
    weights = integer_weights(tmp_path / "model.int8.onnx")
    assert len(weights) >= 12
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for name, weight in weights.items():
        single = kind == "dynamic" and weight.ndim == 4  # of ConvInteger
        channels = len(weight) if weight.ndim == 4 or kind == "static" else weight.shape[1]
        assert scales[name.replace("_quantized", "_scale")].size == (1 if single else channels), name
    assert {entry.domain for entry in model.opset_import} <= {"", "com.microsoft"}
    kinds = {node.op_type for node in model.graph.node}
    assert ("QuantizeLinear" in kinds) == (kind == "static")
    assert ("DynamicQuantizeLinear" in kinds) == (kind == "dynamic")


def test_calibration_decides_what_a_static_one_answers(written: Any, tmp_path: Path) -> None:
    own, x, found = network(), views(16), []
    facts = written(own, tmp_path)
    given = {"pixels": own.prepare(x).contiguous().numpy()}
    for pictures in (x, x, torch.full_like(x, 128)):
        quantise_onnx(own, tmp_path, facts, [pictures], "static")
        found.append(session(tmp_path / "model.int8.onnx").run(None, given)[0])
    with torch.no_grad():
        wanted = own(x).numpy()
    assert np.array_equal(found[0], found[1])
    assert abs(found[2] - wanted).max() > 2 * abs(found[0] - wanted).max()


def test_the_same_pictures_give_the_same_bytes(written: Any, tmp_path: Path) -> None:
    own, x, found = network(), views(16), []
    facts = written(own, tmp_path)
    for _ in range(2):
        quantise_onnx(own, tmp_path, facts, [x], "static")
        found.append((tmp_path / "model.int8.onnx").read_bytes())
    assert found[0] == found[1]


def test_a_deployed_folder_of_integers(written: Any, tmp_path: Path) -> None:
    own = network()
    facts = quantise_onnx(own, tmp_path, written(own, tmp_path), [views(16)], "static")
    names = deploy(own, tmp_path, facts)
    assert names[0] == "model.int8.onnx"
    assert "model.onnx" not in names
    text = (tmp_path / "README.md").read_text()
    assert "* File: `model.int8.onnx`, " in text
    assert "* Static int8, calibrated on 16 pictures: answers differ by " in text


def test_nothing_is_printed_and_no_logger_is_left(
    written: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = network()
    handlers = list(logging.root.handlers)
    facts = written(own, tmp_path)
    for kind in ("static", "dynamic"):
        quantise_onnx(own, tmp_path, facts, [views(16)], kind)  # type: ignore[arg-type]
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert not logging.root.manager.disable


def test_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_SINGLE", 1000)
    own = network()
    facts = quantise_onnx(own, tmp_path, export_onnx(own, tmp_path), [views(16)], "static")
    assert facts["files"] == ["model.int8.onnx", "model.int8.onnx.data"]
    assert sorted(p.name for p in tmp_path.iterdir() if "int8" in p.name) == facts["files"]
    session(tmp_path / "model.int8.onnx")


@pytest.mark.parametrize("count", [0, 15])
def test_few_pictures_do_not_calibrate(count: int, written: Any, tmp_path: Path) -> None:
    own = network()
    facts = written(own, tmp_path)
    with pytest.raises(InputError) as caught:
        quantise_onnx(own, tmp_path, facts, [views(15)[:count]], "static")
    assert str(caught.value) == (
        f"--quantize int8: {count} pictures to calibrate on, and at least 16 are needed. Use a larger "
        "training split, or quantise dynamically."
    )
    assert not (tmp_path / "model.int8.onnx").exists()


def test_no_graph_is_not_quantised(written: Any, tmp_path: Path) -> None:
    own = network()
    facts = written(own, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"--quantize int8: onnxruntime cannot quantise model\.onnx \("):
        quantise_onnx(own, tmp_path, facts, [views(16)], "static")
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
