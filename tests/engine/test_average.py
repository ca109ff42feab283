"""The moving average of weights is warmed up as timm's is: a run that is short is not judged by its start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils import ModelEmaV3
from toolbox import QUIET, StopAfter, method_options
from torch import nn

from kdcli.artifacts.model import read_tensors
from kdcli.config import resolve
from kdcli.console import Console
from kdcli.engine.average import average_of, decay_at, said_of
from kdcli.errors import Preempted
from kdcli.stages import distill


@pytest.mark.parametrize("decay", [0.5, 0.99, 0.9999])
def test_the_decay_is_timms(decay: float) -> None:
    average = ModelEmaV3(nn.Linear(1, 1), decay=decay, use_warmup=True)
    for update in (1, 2, 3, 10, 40, 1000, 31_624, 10**7):
        assert decay_at(decay, update) == pytest.approx(average.get_decay(update), abs=1e-12)
    assert decay_at(decay, 1) == 0
    assert decay_at(decay, 10**7) == decay


def test_nothing_is_left_of_the_start() -> None:
    """By hand: the first update is the weights themselves, the second has 2^(-2/3) of the new ones."""
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1000.0)
        average = average_of(layer, 0.9999)
        expected = 0.0
        for update in range(1, 6):
            layer.weight.fill_(float(update))
            average.update(layer, step=update)
            share = update ** (-2 / 3)
            expected += (update - expected) * share
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-6)
    assert 3 < expected < 5


def test_what_a_plan_says() -> None:
    assert said_of(0.9, 1000) == "weights with decay 0.9, warmed up"
    assert said_of(0.9999, 40) == (
        "weights with decay 0.9999, which 40 steps are too few for: warmed up it is 0.915 in the last step, "
        "a mean of about the last 12 steps"
    )


@pytest.fixture
def make(pictures: Path, probed: Any, tmp_path: Path) -> Any:
    def plan(out: str, **more: Any) -> distill.Plan:
        options = method_options("supervised", pictures, probed, tmp_path, **more)
        return distill.plan(
            resolve(distill.Config, options={**options, "out": str(tmp_path / out), "optim.lr": 1e-2}), QUIET
        )

    return plan


def test_a_short_run_with_a_long_decay_writes_what_it_learned(make: Any) -> None:
    plan = make("averaged", **{"optim.ema": 0.9999, "optim.max_steps": 8})
    start = plan.material.networks["student"].state_dict()
    last = read_tensors(
        distill.run(make("plain", **{"optim.max_steps": 8}), QUIET).path / "last" / "model.safetensors"
    )
    out = distill.run(plan, QUIET).path
    for folder in (out, out / "last"):
        found = read_tensors(folder / "model.safetensors")
        name = next(name for name in found if name.endswith("conv1.0.weight"))
        first = start.get(name, start.get(f"body.{name}"))
        assert first is not None
        moved = [float((tensor - first).norm()) for tensor in (found[name], last[name])]
        assert moved[0] > 0.3 * moved[1] > 0
        assert not torch.equal(found[name], last[name])


def test_it_is_resumed_bit_for_bit(make: Any) -> None:
    more = {"optim.ema": 0.9999, "optim.max_steps": 6}
    whole = distill.run(make("whole", **more), QUIET).path
    plan = make("stopped", **more)
    for _ in range(3):
        with pytest.raises(Preempted):
            distill.run(plan, QUIET, stop=StopAfter(2))
    resumed = distill.run(plan, QUIET).path
    for name in ("model.safetensors", "last/model.safetensors", "metrics.jsonl"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_the_plan_says_that_a_decay_is_long(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make("said", **{"optim.ema": 0.9999}).describe(Console())
    assert "averages weights with decay 0.9999, which 4 steps are too few for" in capsys.readouterr().err
    make("silent").describe(Console())
    assert "averages" not in capsys.readouterr().err
