"""A report on ten thousand classes: small, without a matrix, and made of the same figures."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toolbox import QUIET

from kdcli.engine import inference
from kdcli.metrics.classification import classification_metrics
from kdcli.report.page import render, to_json
from kdcli.tasks import figures
from kdcli.tasks.analyses import Analyses
from kdcli.tasks.classification.evaluate import MATRIX, Evaluation

CLASSES, SAMPLES = 10_000, 60


class Network(torch.nn.Module):
    """Stands for one whose answers are given."""

    name = "runs/net"
    temperature = 1.0


class Labels:
    """Stands for samples whose pictures nobody reads."""

    def __init__(self, y: torch.Tensor) -> None:
        self.labels = y.numpy()

    def __len__(self) -> int:
        return len(self.labels)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Evaluation, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    y[:3] = 7
    logits = torch.randn(SAMPLES, CLASSES, generator=generator)
    logits[torch.arange(20), y[:20]] = 9.0
    logits[:2, 11] = 10.0  # class 7 is taken for class 11 twice
    monkeypatch.setattr(inference, "outputs", lambda *given: logits)
    measuring: Any = SimpleNamespace(samples=Labels(y), runtime=SimpleNamespace(device="cpu"))
    names = [f"class {i}" for i in range(CLASSES)]
    analyses = Analyses(grid=None, cka=False, seed=0, depths={}, pictures=SAMPLES)
    evaluation = Evaluation(names, {}, 0.5, 0, "", CLASSES, analyses)
    network: Any = Network()
    found = evaluation.measure(measuring, {"net": network}, None, QUIET)
    data = {"name": "d", "split": "test", "samples": SAMPLES, "classes": names, "fingerprint": ""}
    model = {"name": "net", "path": "runs/net", "curves": [], **found.models["net"]}
    made = {"title": "t", "created": "", "data": data, "models": [model], "notes": []}
    return made, evaluation, logits, y


def test_its_file_is_small_and_says_what_a_matrix_would(report: Any) -> None:
    made, _, logits, y = report
    assert MATRIX < CLASSES
    (model,) = made["models"]
    assert "confusion" not in model
    assert model["metrics"] == classification_metrics(logits, y)
    assert model["confused"][0] == (7, 11, 2)
    assert len(model["confused"]) <= 100
    per_class = model["per_class"]
    assert sum(per_class["samples"]) == SAMPLES
    assert sum(per_class["right"]) == round(model["metrics"]["top1"] * SAMPLES)
    text = to_json(made)
    assert len(text) < 500_000
    assert json.loads(text)["models"][0]["per_class"] == per_class


def test_its_page_shows_the_pairs(report: Any) -> None:
    made, evaluation, *_ = report
    page = render(made, figures("classification"), evaluation.panels(made, None))
    assert len(page) < 500_000
    assert '<td>class 7</td><td class="text">class 11</td><td>2</td><td>66.7%</td>' in page
    assert page.count("<svg") == 1  # calibration
    assert "Of 10,000 classes no matrix is kept or drawn" in page
