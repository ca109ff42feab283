"""The table of tasks: which one data are for, and what it refuses of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdcli.errors import UsageError
from kdcli.models.build import Wanted, build
from kdcli.sections import DataSection
from kdcli.tasks import TASKS, open_task_data, task_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("fixture", "named", "found"),
    [
        ("pictures", "auto", "classification"),
        ("pictures", "classification", "classification"),
        ("masks_data", "auto", "segmentation"),
        ("masks_data", "segmentation", "segmentation"),
        ("masks_data", "classification", "classification"),  # pictures without labels
    ],
)
def test_which_task_data_are_for(
    fixture: str, named: str, found: str, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(fixture)
    assert open_task_data(DataSection(source=str(source), task=named), "train").task == found


def test_a_task_that_is_none_is_named() -> None:
    message = (
        r"data\.task: no task 'segmantation'\. Did you mean 'segmentation'\? Tasks: segmentation \(a class "
        r"for every pixel\), .*classification \(one class for each picture\)\."
    )
    with pytest.raises(UsageError, match=message):
        open_task_data(DataSection(source="nowhere/at/all", task="segmantation"), "train")


def test_options_of_another_task_are_refused(pictures: Path) -> None:
    section = DataSection(source=str(pictures), task="classification", mask_column="mask")
    with pytest.raises(
        UsageError, match=r"data\.mask_column is for segmentation, and .* is opened for classif"
    ):
        open_task_data(section, "train")


def test_data_are_opened_without_torch(masks_data: Path) -> None:
    """A finished output is found before the heavy imports."""
    code = (
        "import sys\nfrom kdcli.sections import DataSection\nfrom kdcli.tasks import open_task_data\n"
        f"data = open_task_data(DataSection(source={str(masks_data)!r}), 'train', 'validation')\n"
        "data.fingerprint\nsys.exit('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("fixture", ["pictures", "masks_data"])
def test_a_network_and_a_made_up_batch_fit_the_terms(fixture: str, request: pytest.FixtureRequest) -> None:
    section = DataSection(source=str(request.getfixturevalue(fixture)))
    data = open_task_data(section, "train")
    task = task_of(data, section)
    network = build("test_resnet", Wanted(**task.wanted(None)), pretrained=False, size=32).eval()
    assert (network.classes, network.task) == (list(task.classes), task.name)
    example = task.example(3, 32)
    rows = len(example["y"])
    assert 1 <= rows <= 3
    columns = task.target_columns(data.split("train").labels).plain(example)
    assert columns["labelled"].all()
    values = {"x": torch.zeros(rows, 3, 32, 32, dtype=torch.uint8), **example, **columns}
    values["s.logits"] = network(values["x"])
    (term,) = task.supervised("s")
    loss = term.loss(*(values[name] for name in term.args), **term.keywords)
    loss.backward()
    assert torch.isfinite(loss)
    unused = [name for name, p in network.named_parameters() if p.grad is None]
    assert not unused or task.leaves_unused


def test_what_terms_may_read_is_what_a_task_gives() -> None:
    provided = {name: set(entry.provides) for name, entry in TASKS.items()}
    assert provided["classification"] == {"picture", "class"}
    assert provided["segmentation"] == {"pixel"}
