"""Activation boundaries: what the first phase reads and trains, and what it cannot be made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toolbox import QUIET, method_options
from torch.nn import functional as F

from kdcli.config import resolve
from kdcli.engine.turn import TurnModule
from kdcli.errors import InputError, UsageError
from kdcli.losses.features import ab
from kdcli.stages import distill


@pytest.fixture
def plan(pictures, probed, tmp_path):
    def make(**more):
        options = method_options("ab", pictures, probed, tmp_path, **more)
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    return make


def batch() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (8, 3, 32, 32), generator=draw, dtype=torch.uint8)
    y = torch.arange(8) % 4
    return {"x": x, "y": y, "target": y, "labelled": torch.ones(8, dtype=torch.bool)}


def test_the_first_phase_is_the_sum_over_levels_before_their_activations(plan: Any) -> None:
    """Each level has half the weight of the next; connectors stand where shapes differ."""
    made = plan(student="resnet10t")
    first, second = (phase.turns[0] for phase in made.method.phases)
    assert [t.weight for t in first.terms] == pytest.approx([3e-3 * w for w in (1 / 8, 1 / 4, 1 / 2, 1)])
    assert [t.name for t in second.terms] == ["ce"]
    assert second.trains == ("student",)
    parties = made.material.assembly.parties
    module = TurnModule(first, parties).eval()
    found = module(batch(), torch.ones(2), 0.0)
    total, its_party = 0.0, parties["teacher"]
    for i, term in enumerate(first.terms, 1):
        tap = f"stage{i}.pre"
        mine, its = (parties[p].call([batch()["x"]], [tap, tap[:-4]]) for p in ("student", "teacher"))
        assert torch.equal(F.relu(its[tap]), its[tap[:-4]])
        value = ab(parties[f"connector{i}"](mine[tap]), its[tap])
        torch.testing.assert_close(found[term.name], value.detach())
        total += float(term.weight) * float(value.detach())
    assert float(found["loss"].detach()) == pytest.approx(total, rel=1e-5)
    kinds = {type(m).__name__ for i in range(1, 5) for m in parties[f"connector{i}"].modules()}
    assert {"Conv2d", "BatchNorm2d"} <= kinds
    assert "ReLU" not in kinds
    found["loss"].backward()
    student = parties["student"].body
    assert student.fc.weight.grad is None  # the classifier rests
    assert float(student.conv1[0].weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in its_party.parameters())


def test_the_second_phase_may_learn_from_the_teacher_too(plan: Any) -> None:
    made = plan(**{"method.kd": 0.9})
    assert [t.name for t in made.method.phases[1].turns[0].terms] == ["ce", "kl"]


def test_blocks_without_an_activation_at_their_end_have_no_boundary(plan: Any) -> None:
    with pytest.raises(InputError, match=r"no 'stage1.pre': what it names of test_efficientnet does not end"):
        plan(student="test_efficientnet")


def test_levels_are_pairs(plan: Any) -> None:
    with pytest.raises(UsageError, match="ab: 4 maps of the student and 1 of the teacher"):
        plan(**{"method.teacher": ["stage4"]})
