"""Batches that come down to one picture, by any way, are refused where a batch norm would see one value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET, method_options
from torch import nn

from kdcli.config import resolve
from kdcli.engine.norms import lone_values, named_in
from kdcli.errors import UsageError
from kdcli.stages import distill, probe

ALONE = r"batches come down to one picture at a time, and the batch norm {} would see one value"


@pytest.fixture
def make(pictures: Path, probed: Any, tmp_path: Path) -> Any:
    def plan(name: str = "supervised", **more: Any) -> distill.Plan:
        options = method_options(name, pictures, probed, tmp_path, **more)
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    return plan


@pytest.mark.parametrize(
    "more",
    [
        {"optim.batch_size": 1},
        {"optim.batch_size": 8, "optim.accumulate": 8},
        {"optim.batch_size": 2, "processes": 2, "device": "cpu"},
        {"optim.batch_size": 8, "optim.accumulate": 4, "processes": 2, "device": "cpu"},
    ],
)
@pytest.mark.parametrize("name", ["supervised", "kd", "dml"])
def test_by_any_way_to_get_there(name: str, more: dict[str, Any], make: Any) -> None:
    with pytest.raises(UsageError, match=ALONE.format(r"student: .*")):
        make(name, **more)


def test_a_norm_that_a_method_brings(make: Any) -> None:
    """Exits have norms of their own, over maps of one position."""
    with pytest.raises(UsageError, match=ALONE.format(r"\w+: .*")):
        make("byot", student="test_resnet", **{"optim.batch_size": 1})


@pytest.mark.parametrize(
    "more",
    [
        {"student": "test_vit", "optim.batch_size": 1},  # layer norms
        {"optim.batch_size": 1, "image_size": 96},  # positions enough
        {"optim.batch_size": 8, "optim.accumulate": 4},
        {"teacher": "test_resnet", "student": "test_vit", "optim.batch_size": 1, "method.name": "kd"},
    ],
)
def test_what_has_values_enough_is_not_refused(more: dict[str, Any], make: Any, probed: Any) -> None:
    name = str(more.pop("method.name", "supervised"))
    if "teacher" in more:
        more["teacher"] = str(probed("test_resnet"))
    distill.run(make(name, **{"optim.max_steps": 1, **more}), QUIET)


@pytest.mark.parametrize("more", [{"optim.batch_size": 1}, {"optim.batch_size": 4, "optim.accumulate": 4}])
def test_finetuning_is_refused_before_the_heads_are_fitted(
    more: dict[str, Any], pictures: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    options = {
        "teacher": "test_resnet",
        "weights": str(weights["test_resnet"]),
        "image_size": 32,
        "data.source": str(pictures),
        "finetune": True,
        "out": str(tmp_path / "out"),
    }
    with pytest.raises(UsageError, match=ALONE.format(r"teacher: .*")):
        probe.plan(resolve(probe.Config, options={**options, **more}), QUIET)


def test_values_are_counted_by_channel() -> None:
    flat, maps = nn.BatchNorm1d(3).eval(), nn.BatchNorm2d(3).eval()
    with lone_values() as found:
        flat(torch.zeros(1, 3))
        flat(torch.zeros(2, 3))
        maps(torch.zeros(1, 3, 1, 2))
        maps(torch.zeros(1, 3, 1, 1))
    assert found == [flat, maps]
    flat(torch.zeros(1, 3))
    assert len(found) == 2
    party = nn.Sequential(nn.ReLU(), maps)
    assert named_in(found, {"head": nn.ReLU(), "student": party}) == "student: 1"
    assert named_in(found, {"head": nn.ReLU()}) == ""
