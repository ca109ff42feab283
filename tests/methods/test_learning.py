"""Does it teach? Three seeds on the bundled pictures, last step, test split: minutes."""

from pathlib import Path

import pytest
from toolbox import QUIET

from kdcli.config import resolve
from kdcli.stages import distill, evaluate

SEEDS = 3


def train(out: Path, **more: object) -> Path:
    """A toy ResNet from random weights, on 32 px; 10 pictures per class keep their label unless told."""
    options = {
        "student": "test_resnet",
        "from_scratch": True,
        "image_size": 32,
        "views.size": 32,
        "data.source": "example:fashion-mnist",
        "data.labels_per_class": 10,
        "optim.max_steps": 150,
        "optim.batch_size": 64,
        "optim.lr": 3e-3,
        "evaluate_every": 1000,
        "out": str(out),
        "cache": str(out.parent / "cache"),
        **more,
    }
    return distill.run(distill.plan(resolve(distill.Config, options=options), QUIET), QUIET).path / "last"


def top1(models: list[Path], out: Path) -> list[float]:
    options = {
        "models": [str(model) for model in models],
        "data.source": "example:fashion-mnist",
        "split": "test",
        "cost": False,
        "out": str(out),
    }
    report = evaluate.run(evaluate.plan(resolve(evaluate.Config, options=options), QUIET), QUIET)
    return [model["metrics"]["top1"] for model in report.summary["models"]]


@pytest.mark.long
def test_a_teacher_that_knows_more_is_worth_having(tmp_path):
    """It saw all labels; the students see 100 of them, and all pictures through it."""
    everything = {"data.labels_per_class": None, "optim.max_steps": 300, "seed": 100}
    teacher = train(tmp_path / "teacher", **{"method.name": "supervised", **everything})
    models = [teacher]
    for seed in range(SEEDS):
        usual = {"seed": seed}
        models.append(train(tmp_path / f"alone-{seed}", **{"method.name": "supervised", **usual}))
        taught = {"method.name": "kd", "teacher": str(teacher), **usual}
        models.append(train(tmp_path / f"taught-{seed}", **taught))
    best, *found = top1(models, tmp_path / "report")
    alone, taught = found[::2], found[1::2]
    assert best > 0.7
    assert all(with_ > without + 0.02 for without, with_ in zip(alone, taught, strict=True)), found
