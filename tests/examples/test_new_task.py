"""The worked example of a new task: its code blocks, put into the package, from probe to report."""

import importlib
import json
import re
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, mean_absolute_error
from toolbox import QUIET, facts, rows

from kdcli import tasks
from kdcli.config import resolve
from kdcli.errors import InputError, UsageError
from kdcli.models.build import build
from kdcli.stages import distill, evaluate, probe

PAGE = Path(__file__).resolve().parents[2] / "examples" / "new_task.md"
BLOCKS = dict(re.findall(r"^`([\w/.]+)`:\n\n```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S))
TABLE, ROOM = "kdcli/tasks/table.py", "kdcli/tasks/ordinal/"
ORDER = ["bad", "fair", "good", "very good"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package with the page's folder beside its own, and the row in the table before the last one."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "ordinal").mkdir()
    for name, code in BLOCKS.items():
        if name.startswith(ROOM):
            (folder / "ordinal" / name.removeprefix(ROOM)).write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
        row = eval("{" + BLOCKS[TABLE] + "}", vars(tasks))
        for name, entry in {**row, "classification": tasks.TASKS["classification"]}.items():
            patch.delitem(tasks.TASKS, name, raising=False)
            patch.setitem(tasks.TASKS, name, entry)
        importlib.invalidate_caches()
        yield importlib.import_module("kdcli.tasks.ordinal.measures")
    for name in [name for name in sys.modules if name.startswith("kdcli.tasks.ordinal")]:
        sys.modules.pop(name)
    vars(tasks).pop("ordinal", None)
    assert list(tasks.TASKS)[-1] == "classification"


@pytest.fixture(scope="module")
def graded(pictures, tmp_path_factory):
    """The toy pictures, whose classes are given grades; the alphabet orders them otherwise."""
    data = datasets.load_from_disk(str(pictures))
    names = ["good", "bad", "very good", "fair"]
    kind = datasets.ClassLabel(names=names)
    folder = tmp_path_factory.mktemp("graded") / "saved"
    data.cast_column("label", kind).save_to_disk(str(folder))
    return folder


def common(graded, tmp_path, **more):
    return {
        "data.source": str(graded),
        "data.task": "ordinal",
        "data.class_names": ORDER,
        "image_size": 32,
        "cache": str(tmp_path / "cache"),
        **more,
    }


def test_it_is_short():
    sources = {f"{ROOM}{name}" for name in ("data.py", "measures.py", "__init__.py")}
    assert set(BLOCKS) == {*sources, TABLE}
    assert sum(len(code.splitlines()) for code in BLOCKS.values()) <= 250
    assert max(len(line) for code in BLOCKS.values() for line in code.splitlines()) <= 110
    assert "ordinal" not in tasks.TASKS


def test_its_figures_are_scikit_learns(installed):
    draw = torch.Generator().manual_seed(0)
    logits, y = torch.randn(40, 3, generator=draw), torch.randint(4, (40,), generator=draw)
    found, places = installed.figures(logits, y), (logits > 0).sum(1)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(y, places, weights="quadratic"))
    assert found["mae"] == pytest.approx(mean_absolute_error(y, places))
    assert installed.figures(torch.ones(3, 3), torch.full((3,), 3))["kappa"] == 0  # all are alike


def test_gates_import_no_torch(installed):
    """What is imported before a run is known."""
    code = BLOCKS[f"{ROOM}data.py"]
    assert not re.search(r"^(import|from) torch", code, re.M)
    assert {figure.name for figure in tasks.figures("ordinal")} >= {"kappa", "mae", "flops"}


def test_from_pictures_to_report(installed, graded, weights, tmp_path):
    options = common(graded, tmp_path, teacher="test_resnet", weights=str(weights["test_resnet"]))
    options |= {"grid.epochs": 4, "grid.lr": [0.1, 1.0], "out": str(tmp_path / "teacher")}
    teacher = probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path
    manifest = facts(teacher)
    assert (manifest["task"], manifest["classes"]) == ("ordinal", [f"above {name}" for name in ORDER[:-1]])
    assert manifest["metrics"]["validation/kappa"] == max(row["kappa"] for row in manifest["grid"]) > 0

    options = common(graded, tmp_path, teacher=str(teacher), student="test_resnet", from_scratch=True)
    options |= {"method.name": "kd", "optim.max_steps": 4, "optim.batch_size": 8, "log_every": 1}
    options |= {"out": str(tmp_path / "student"), "optim.cutmix": 1.0, "views.count": "live"}
    student = distill.run(distill.plan(resolve(distill.Config, options=options), QUIET), QUIET).path
    logged = [row for row in rows(student) if "loss" in row]
    assert len(logged) == 4
    for row in logged:
        assert row["loss"] == pytest.approx(0.1 * row["bce"] + 0.9 * row["kl"], rel=1e-4)
    assert build(str(student)).classes == [f"above {name}" for name in ORDER[:-1]]

    options = common(graded, tmp_path, models=[str(student)], teacher=str(teacher), cost=False)
    options |= {"out": str(tmp_path / "report"), "require": ["mae<3", "agreement>0"]}
    del options["image_size"]
    result = evaluate.run(evaluate.plan(resolve(evaluate.Config, options=options), QUIET), QUIET)
    assert result.failed == []
    report = json.loads((result.path / "report.json").read_text())
    counts = np.array(report["models"][0]["confusion"])
    labels = datasets.load_from_disk(str(graded))["test"]["label"]
    names = datasets.load_from_disk(str(graded))["test"].features["label"].names
    assert counts.sum(1).tolist() == [sum(names[y] == name for y in labels) for name in ORDER]
    page = (result.path / "report.html").read_text()
    assert "kappa" in page
    assert "Confusions" in page


def test_an_order_is_never_guessed(installed, graded, tmp_path):
    options = common(graded, tmp_path, student="test_resnet", from_scratch=True)
    del options["data.class_names"]
    options |= {"method.name": "supervised", "out": str(tmp_path / "o")}
    with pytest.raises(
        InputError, match=r"the order of good, bad, very good, fair: --set 'data\.class_names="
    ):
        distill.plan(resolve(distill.Config, options=options), QUIET)
    options |= {"data.class_names": ORDER, "method.name": "dkd", "teacher": str(graded)}
    with pytest.raises(UsageError, match="method dkd is for classification, and these data are for ordinal"):
        distill.plan(resolve(distill.Config, options=options), QUIET)
