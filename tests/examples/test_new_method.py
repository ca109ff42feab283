"""The worked example of a new method: its code blocks, put into the package, train."""

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toolbox import QUIET, facts, method_options, rows

from kdcli import losses, methods
from kdcli.config import resolve
from kdcli.methods import table
from kdcli.stages import distill

PAGE = Path(__file__).resolve().parents[2] / "examples" / "new_method.md"
BLOCKS = dict(re.findall(r"^`([\w/.]+)`:\n\n```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S))
TABLE = "kdcli/methods/table.py"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package with the page's files beside its own, and the row in the table."""
    for package, room in ((losses, "losses"), (methods, "methods")):
        (tmp_path / room).mkdir()
        (tmp_path / room / "dist.py").write_text(BLOCKS[f"kdcli/{room}/dist.py"], encoding="utf-8")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / room)])
    for name, row in eval("{" + BLOCKS[TABLE] + "}", vars(table)).items():
        monkeypatch.setitem(methods.METHODS, name, row)
    importlib.invalidate_caches()
    yield importlib.import_module("kdcli.losses.dist")
    for package in (losses, methods):
        sys.modules.pop(f"{package.__name__}.dist", None)
        vars(package).pop("dist", None)


def test_it_is_short():
    assert set(BLOCKS) == {"kdcli/losses/dist.py", "kdcli/methods/dist.py", TABLE}
    assert sum(len(code.splitlines()) for code in BLOCKS.values()) <= 60
    assert max(len(line) for code in BLOCKS.values() for line in code.splitlines()) <= 110
    assert "dist" not in methods.METHODS


def test_its_loss_is_the_papers(installed):
    draw = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = ((z / 2).softmax(1).numpy() for z in (logits, teacher))
    between = 4 * np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(6)])
    within = 4 * np.mean([1 - np.corrcoef(p[:, c], q[:, c])[0, 1] for c in range(5)])
    assert installed.between_classes(logits, teacher, temperature=2).item() == pytest.approx(
        between, rel=1e-5
    )
    assert installed.within_classes(logits, teacher, temperature=2).item() == pytest.approx(within, rel=1e-5)
    for loss in (installed.between_classes, installed.within_classes):
        assert loss(logits, logits + 1).item() == pytest.approx(0, abs=1e-6)


def test_it_trains(installed, pictures, probed, tmp_path):
    options = method_options("dist", pictures, probed, tmp_path, **{"method.beta": 2})
    plan = distill.plan(resolve(distill.Config, options=options), QUIET)
    assert plan.material.cached
    out = distill.run(plan, QUIET).path
    assert facts(out)["method"] == {"name": "dist", "ce": 1, "beta": 2, "gamma": 1, "temperature": 1}
    logged = [row for row in rows(out) if "loss" in row]
    assert len(logged) == 4
    for row in logged:
        total = row["ce"] + 2 * row["between"] + row["within"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert "correlations between and within classes" in methods.describe("dist")
