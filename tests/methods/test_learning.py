"""Does it teach? Three seeds on the bundled pictures, last step, test split: minutes."""

import shutil
from pathlib import Path
from statistics import mean

import pyarrow.parquet
import pytest
from toolbox import EXAMPLE, QUIET

from kdcli.config import resolve
from kdcli.stages import distill, evaluate

SEEDS, SOURCE = 3, "example:fashion-mnist"


def train(out: Path, **more: object) -> Path:
    """A toy ResNet from random weights, on 32 px; 10 pictures per class keep their label unless told."""
    options = {
        "student": "test_resnet",
        "from_scratch": True,
        "image_size": 32,
        "views.size": 32,
        "data.source": SOURCE,
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


def measured(models: list[Path], out: Path, metric: str, source: str = SOURCE) -> list[float]:
    options = {
        "models": [str(model) for model in models],
        "data.source": source,
        "split": "test",
        "cost": False,
        "out": str(out),
    }
    report = evaluate.run(evaluate.plan(resolve(evaluate.Config, options=options), QUIET), QUIET)
    return [model["metrics"][metric] for model in report.summary["models"]]


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
    best, *found = measured(models, tmp_path / "report", "top1")
    alone, taught = found[::2], found[1::2]
    assert best > 0.7
    assert all(with_ > without + 0.02 for without, with_ in zip(alone, taught, strict=True)), found


@pytest.mark.long
def test_networks_that_teach_one_another_are_less_sure_of_what_is_wrong(tmp_path):
    """600 pictures of one view each, 37 epochs: a network alone learns them by heart.

    What mutual learning changes there on every seed is the likelihood of test labels: NLL from 1.15, 1.06,
    0.92 to 0.97, 0.89, 0.82 when this was written. Top-1 went from 74.8 to 75.6 in the mean of the seeds,
    which is less than its deviation, so only a loss of accuracy is refused.
    """
    small = tmp_path / "small"
    small.mkdir()
    table = pyarrow.parquet.read_table(EXAMPLE / "train.parquet").slice(0, 600)
    pyarrow.parquet.write_table(table, small / "train.parquet")
    shutil.copy(EXAMPLE / "test.parquet", small)
    usual = {
        "data.source": str(small),
        "data.labels_per_class": None,
        "optim.max_steps": 700,
        "optim.batch_size": 32,
        "views.count": "1",
    }
    models = []
    for seed in range(SEEDS):
        alone, mutual = tmp_path / f"alone-{seed}", tmp_path / f"mutual-{seed}"
        models.append(train(alone, **{**usual, "method.name": "supervised", "seed": seed}))
        models.append(train(mutual, **{**usual, "method.name": "dml", "seed": seed}))
        models.append(mutual / "peer2")
    found = measured(models, tmp_path / "nll", "nll", str(small))
    alone, mutual = found[::3], [mean(pair) for pair in zip(found[1::3], found[2::3], strict=True)]
    assert all(together < single - 0.03 for single, together in zip(alone, mutual, strict=True)), found
    found = measured(models, tmp_path / "top1", "top1", str(small))
    assert mean(found[1::3] + found[2::3]) > mean(found[::3]) - 0.02, found
