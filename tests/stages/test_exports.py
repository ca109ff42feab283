"""``kdcli compress --export``: forms beside a model, of a network as it is and of a smaller one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET, facts, tiny_picture

from kdcli.artifacts import manifest as manifests
from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.models.build import build
from kdcli.runs import Result
from kdcli.stages import compress, evaluate

pytest.importorskip("onnxruntime")

Export = Callable[..., Path]


@pytest.fixture
def export(pictures: Path, teacher: Path, tmp_path: Path) -> Export:
    def run(out: str = "o", **more: Any) -> Path:
        options = {"method.name": "none", "student": str(teacher), "data.source": str(pictures)}
        options |= {"export": ["onnx"], "out": str(tmp_path / out), "cache": str(tmp_path / "cache"), **more}
        options = {key: value for key, value in options.items() if value is not None}
        plan = compress.plan(resolve(compress.Config, options=options), QUIET)
        assert not isinstance(plan, Result)
        plan.describe(QUIET)
        json.dumps(plan.to_json())
        return compress.run(plan, QUIET).path

    return run


def test_a_network_as_it_is_in_all_forms(export: Export, teacher: Path, tmp_path: Path) -> None:
    path = export(export=["onnx", "torch", "onnx"], quantize="int8")
    found = facts(path)
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
        "README.md",
        "config.json",
        "head.safetensors",
        "kdcli.json",
        "model.safetensors",
        "onnx/README.md",
        "onnx/labels.txt",
        "onnx/model.int8.onnx",
        "onnx/model.onnx",
        "onnx/predict.py",
        "onnx/preprocessing.json",
        "torch/model.pt2",
    ]
    manifest = manifests.read(path)
    manifests.verify(path, manifest)
    assert {"onnx/model.onnx", "torch/model.pt2"} <= set(manifest.files)
    assert (path / "model.safetensors").read_bytes() == (teacher / "model.safetensors").read_bytes()
    assert (
        found["classes"] == facts(teacher)["classes"] == (path / "onnx/labels.txt").read_text().splitlines()
    )
    assert found["calibration"] == facts(teacher)["calibration"]
    assert found["data"] == facts(teacher)["data"]  # so that eval knows what it was chosen on
    assert build(str(path)).temperature == build(str(teacher)).temperature
    check = found["forms"]["onnx"]["fp32"]["check"]
    assert check["difference"] < 1e-4
    assert check["pictures"] > 50
    assert found["forms"]["onnx"]["quantised"]["kind"] == "static"
    picture = tmp_path / "a picture.png"
    picture.write_bytes(tiny_picture(1))
    command = [sys.executable, "onnx/predict.py", str(picture)]
    done = subprocess.run(command, cwd=path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    named, *lines = done.stdout.splitlines()
    assert named == str(picture)
    assert {line.split("  ")[1] for line in lines} == set(found["classes"])


def test_a_smaller_network_is_exported_as_it_is_made(export: Export) -> None:
    path = export(
        **{"method.name": "magnitude", "target": "params=0.7", "optim.max_steps": 2},
        **{"optim.batch_size": 8, "views.count": "live"},
    )
    found = facts(path)
    assert found["compression"]["removed"] > 0
    assert found["forms"]["onnx"]["check"]["difference"] < 1e-4
    assert (path / "onnx" / "model.onnx").stat().st_size < 1.2 * (path / "model.safetensors").stat().st_size
    card = (path / "onnx" / "README.md").read_text()
    assert f"{found['metrics']['validation/top1']:.4f}" in card


def test_weights_are_kept_as_integers_and_read_back(export: Export, teacher: Path, pictures: Path) -> None:
    path = export(export=[], quantize="weights")
    found, own, whole = facts(path), build(str(path)).eval(), build(str(teacher)).eval()
    assert found["layout"] == "kdcli"
    assert "metrics" not in found
    size, before = ((p / "model.safetensors").stat().st_size for p in (path, teacher))
    assert size < 0.4 * before
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (own(x) - whole(x)).abs().max() / whole(x).abs().max()
    assert 0 < float(difference) < 0.1
    again = export(
        "again", student=str(path), export=[], quantize="weights"
    )  # rounding once more changes nothing
    assert (again / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()


def test_forms_are_measured_beside_the_network(
    export: Export, teacher: Path, pictures: Path, tmp_path: Path
) -> None:
    path = export(quantize="int8")
    names = [str(teacher), str(path), f"{path}/onnx", f"{path}/onnx/model.onnx"]
    report = measured(pictures, tmp_path / "report", names, teacher=str(teacher))
    found = {model["name"]: model for model in report["models"]}
    assert list(found) == [teacher.name, "o", "o/onnx", "o/onnx/model.onnx"]
    own, integers, same = found["o"], found["o/onnx"], found["o/onnx/model.onnx"]
    assert same["metrics"]["nll"] == pytest.approx(own["metrics"]["nll"], abs=1e-4)
    assert same["metrics"]["top1"] == own["metrics"]["top1"]
    assert integers["metrics"]["nll"] != same["metrics"]["nll"]
    assert integers["teacher"]["agreement"] > 0.5
    for model in (integers, same):
        assert {key: model["cost"][key] for key in ("parameters", "flops")} == {
            key: own["cost"][key] for key in ("parameters", "flops")
        }
        assert model["cost"]["device"].startswith("cpu, onnxruntime")
        assert "peak_memory_mb" not in model["cost"]
        assert model["cost"]["latency_ms"]["median"] > 0
    identity = facts(tmp_path / "report")["identity"]["parents"]
    assert len(set(identity.values())) == 3  # the teacher and its copy are one
    page = (tmp_path / "report" / "report.html").read_text()
    assert "o/onnx/model.onnx" in page


def test_forms_that_there_are_not(export: Export, pictures: Path, tmp_path: Path) -> None:
    path = export()
    with pytest.raises(InputError, match=r"names no such form of a model\. There are: model\.onnx\."):
        measured(pictures, tmp_path / "r", [f"{path}/onnx/model.int8.onnx"])
    with pytest.raises(
        InputError, match=r"o/onnx is an exported form, which eval alone takes: give its artifact"
    ):
        build(f"{path}/onnx")
    (path / "onnx" / "model.onnx").write_bytes(b"another graph")
    with pytest.raises(InputError, match=r"onnx/model\.onnx"):
        measured(pictures, tmp_path / "r", [f"{path}/onnx"])
    plain = export("plain", export=["torch"])
    (plain / "onnx").mkdir()
    with pytest.raises(InputError, match="names no such form of a model"):
        measured(pictures, tmp_path / "r", [f"{plain}/onnx"])


def measured(pictures: Path, out: Path, models: list[str], **more: Any) -> dict[str, Any]:
    """The report of ``kdcli eval``."""
    options = {"models": models, "data.source": str(pictures), "out": str(out), "repeats": 3, **more}
    plan = evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
    assert isinstance(plan, evaluate.Plan)
    plan.describe(QUIET)
    evaluate.run(plan, QUIET)
    return json.loads((out / "report.json").read_text())


def test_the_graph_may_normalise(export: Export) -> None:
    how = json.loads((export(inside=True) / "onnx" / "preprocessing.json").read_text())
    assert how["dtype"] == "uint8"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"export": []}, "--method none makes nothing smaller: it is for --export, or --quantize weights"),
        ({"export": ["tflite"]}, "--export tflite: there are onnx and torch"),
        ({"export": ["torch"], "quantize": "int8"}, "--quantize makes an ONNX file compute in integers"),
        ({"export": [], "inside": True}, "inside: it says what an exported graph takes"),
        ({"data.source": None}, "--data is required"),
        ({"student": None}, "--method none needs --student: the network that is exported"),
        ({"data.group_by": "who"}, r"data\.group_by is given, and --method none reads pictures alone"),
        ({"precision": "bf16"}, "--precision is given, and --method none reads pictures alone"),
        (
            {"quantize": "int4"},
            "--quantize int4: torchao's formats of 4 bits have kernels for CUDA, and none",
        ),
        (
            {"method.name": "magnitude", "export": [], "quantize": "weights"},
            "--quantize weights keeps a finished network in fewer bytes: take --method none",
        ),
        ({"optim.lr": 0.1}, "--lr is given, and --method none trains nothing"),
        ({"target": "flops=0.5"}, "--target is given, and --method none trains nothing"),
        ({"method.name": "nothing"}, "unknown method 'nothing'"),
    ],
)
def test_what_is_refused(export: Export, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export(**more)
