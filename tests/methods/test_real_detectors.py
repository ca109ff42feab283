"""Methods of detectors on small real ones: every tap is there, every parameter that is trained learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcli import methods
from kdcli.engine.assembly import assemble
from kdcli.engine.turn import TurnModule
from kdcli.models.build import Wanted, build
from kdcli.tasks import TASKS
from kdcli.tasks.detection import Detection
from kdcli.words.analysis import without_zero_terms
from kdcli.words.given import given
from kdcli.words.pacing import paced

TASK = Detection(("ant", "bee", "cat"))
HEADS = {
    "student": "light,num_queries=12",
    "teacher": "light,num_queries=20,d_model=32,encoder_hidden_dim=32",
}


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {
        name: build("test_resnet", Wanted(**TASK.wanted(head)), pretrained=False, size=64, seed=seed)
        for seed, (name, head) in enumerate(HEADS.items())
    }


@pytest.mark.parametrize("name", ["g2sd-detection", "detrdistill-logits", "cwd-features", "kd"])
def test_it_trains_all_of_the_student_and_none_of_the_teacher(name: str, networks: dict[str, Any]) -> None:
    columns = TASK.example(4, 64)
    draw = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=draw),
        **columns,
        "labelled": torch.tensor([True, True, False, True]),
        "objects": torch.tensor([float(len(boxes)) for boxes in columns["boxes"]]),
    }
    method = methods.function(name)(TASK, **methods.arguments(name, {}))
    method = paced(given(without_zero_terms(method), TASKS[TASK.name].given), 1000)
    found = assemble(method, networks, batch, 0)
    module = TurnModule(method.turns[0], found.parties).train()
    terms = module(batch, torch.ones(2), 0.9)
    terms["loss"].backward()
    assert all(float(value.detach()) > 0 for value in terms.values())
    assert all(p.grad is not None for p in module.trained.parameters())
    assert all(p.grad is None for p in networks["teacher"].parameters())
    module.zero_grad()
