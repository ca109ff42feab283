"""Every optimiser that a run takes goes on from its saved state as if it had never stopped, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers
from torch import Tensor, nn

from kdcli.artifacts.store import open_output
from kdcli.engine import state
from kdcli.engine.optim import REFUSED, build_optimizer, build_schedule, known_optimizer
from kdcli.errors import UsageError
from kdcli.sections import OptimSection

TAKEN = [name for name in list_optimizers() if not name.startswith(tuple(REFUSED))]
STEPS, STOP = 5, 2


class Student:
    """A CNN in channels-last layout with its optimiser; convolutions are plain, by channel, and 1 x 1."""

    def __init__(self, opt: str) -> None:
        torch.manual_seed(1)
        layers = [
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 6, 1)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        ]
        self.module = nn.ModuleDict({"student": nn.Sequential(*layers)}).to(memory_format=torch.channels_last)
        section = OptimSection(opt=opt, lr=1e-3)
        self.optimizer = build_optimizer(self.module, section)
        self.schedule = build_schedule(self.optimizer, section, STEPS, STEPS)

    def train(self, first: int, end: int) -> None:
        for step in range(first, end):
            draw = torch.Generator().manual_seed(step)
            x = torch.randn(4, 3, 10, 10, generator=draw).contiguous(memory_format=torch.channels_last)
            y = torch.randint(0, 3, (4,), generator=draw)
            torch.manual_seed(step)
            self.schedule.step(step)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.module["student"](x), y).backward()
            self.optimizer.step()

    def save(self, folder: Path) -> Path:
        with open_output(folder / "out", {}) as output:
            assert output is not None
            progress = state.Progress(step=STOP)
            state.save(output, progress, dict(self.module.items()), {"turn": self.optimizer}, None, None)
            found = output.last_state()
        assert found is not None
        return found[1]

    def load(self, folder: Path) -> None:
        state.load(folder, dict(self.module.items()), {"turn": self.optimizer}, None, None)

    def facts(self) -> dict[str, Any]:
        """Everything that the next step reads: values, types and strides."""
        groups = {i: dict(group) for i, group in enumerate(self.optimizer.param_groups)}
        parameters = [p for group in groups.values() for p in group.pop("params")]
        found: dict[str, Any] = {f"weight {k}": v for k, v in self.module.state_dict().items()}
        for i, parameter in enumerate(parameters):
            found |= {f"{i}/{k}": v for k, v in self.optimizer.state.get(parameter, {}).items()}
        found |= {f"group {i}/{k}": v for i, group in groups.items() for k, v in group.items()}
        return {k: exact(v) if isinstance(v, Tensor) else v for k, v in found.items()}


def exact(tensor: Tensor) -> tuple[object, ...]:
    return tensor.flatten().view(torch.uint8).tolist(), tensor.dtype, tensor.stride(), str(tensor.device)


@pytest.mark.parametrize("opt", TAKEN)
def test_every_optimizer_goes_on_bit_for_bit(opt: str, tmp_path: Path) -> None:
    whole, resumed = Student(opt), Student(opt)
    before = whole.facts()
    whole.train(0, STOP)
    saved = whole.save(tmp_path)
    resumed.load(saved)
    assert resumed.facts() == whole.facts()
    whole.train(STOP, STEPS)
    resumed.train(STOP, STEPS)
    after = whole.facts()
    assert resumed.facts() == after
    assert before != after
    assert all(weight.isfinite().all() for weight in whole.module.state_dict().values())


def test_channels_last_tensors_are_among_them(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    student = Student("lamb")
    student.train(0, STOP)
    moments = [entry["exp_avg"] for entry in student.optimizer.state.values()]
    assert any(moment.ndim == 4 and not moment.is_contiguous() for moment in moments)


def test_a_state_that_shares_memory_with_itself_comes_back_as_numbers() -> None:
    tensors = {"wide": torch.arange(3.0).expand(2, 3), "turned": torch.arange(6.0).view(2, 3).t()}
    back = state.strided({k: t.contiguous() for k, t in tensors.items()}, state.strides(tensors))
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert back["turned"].stride() == (1, 3)


@pytest.mark.parametrize(
    ("opt", "reason"),
    [
        ("adahessian", "optimiser adahessian: it needs second derivatives"),
        ("bnbadam8bit", "optimiser bnbadam8bit: it needs bitsandbytes on CUDA"),
        ("FusedLAMB", "optimiser FusedLAMB: it needs NVIDIA's apex"),
        ("kronw", "optimiser kronw: it draws from a generator of its own"),
        ("lookahead_adamw", "optimiser lookahead_adamw: its slow weights stand in no state"),
        ("adamww", "timm has no optimiser 'adamww'. Did you mean 'adamw'"),
    ],
)
def test_optimizers_that_a_run_cannot_take_are_refused_by_name(opt: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        known_optimizer(opt)


def test_refused_are_few() -> None:
    assert len(TAKEN) == 82
