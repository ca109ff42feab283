"""CRD's memory bank: what it holds, which negatives are drawn, one bank for all steps, also after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET, StopAfter, method_options
from torch import Tensor

from kdcli.artifacts.model import read_tensors
from kdcli.config import resolve
from kdcli.errors import Preempted, UsageError
from kdcli.methods.crd import drawn, first_bank, normalised, remembered
from kdcli.stages import distill

STEPS = 4


@pytest.fixture
def plan(pictures, probed, tmp_path):
    def make(name="out", **more):
        options = method_options("crd", pictures, probed, tmp_path, out=str(tmp_path / name), **more)
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    return make


def running_state(plan: Any) -> dict[str, Any]:
    """What a run that was stopped after a step has committed."""
    (folder,) = plan.target.path.with_name(f"{plan.target.path.name}.partial").glob("state-*")
    found: dict[str, Any] = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    facts = json.loads((folder / "progress.json").read_text())
    return {**found, "facts": {name: value for name, value in facts.items() if name != "seconds"}}


def stopped(plan: Any, looks: int) -> dict[str, Any]:
    with pytest.raises(Preempted):
        distill.run(plan, QUIET, stop=StopAfter(looks))
    return running_state(plan)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_bank_goes_on_bit_for_bit(accumulate: int, plan: Any, tmp_path: Path) -> None:
    more = {"optim.accumulate": accumulate}
    whole = stopped(plan("whole", **more), STEPS)
    made = plan("stopped", **more)
    first = stopped(made, 1)
    assert stopped(made, STEPS - 1) == whole
    banks = []
    for number, state in enumerate((first, whole)):
        (tmp_path / str(number)).write_bytes(state["states.safetensors"])
        banks.append(read_tensors(tmp_path / str(number)))
    before = made.material.assembly.states["crd-bank"]
    assert torch.equal(banks[0]["crd-bank/z"], banks[1]["crd-bank/z"])  # of the first batch, then kept
    assert (banks[0]["crd-bank/z"] > 0).all()
    assert not before["z"].any()
    for step, steps in ((0, [0]), (1, range(STEPS))):
        seen = sorted({index for k in steps for index, _ in made.material.order.keys(k)})
        moved = (banks[step]["crd-bank/bank"] != before["bank"]).any(dim=2)
        assert [moved[side].nonzero().flatten().tolist() for side in (0, 1)] == [seen, seen]
        rows = banks[step]["crd-bank/bank"][:, seen]
        torch.testing.assert_close(rows.norm(dim=2), torch.ones(rows.shape[:2]))


def test_it_has_a_row_and_a_class_for_each_picture_that_is_learned_from(plan: Any) -> None:
    """Hidden labels leave the pool: there is no picture without one."""
    made = plan(**{"data.labels_per_class": 6})
    state, labels = made.material.assembly.states["crd-bank"], made.material.pool.labels
    assert state["bank"].shape == (2, len(labels), 128)
    assert state["classes"].tolist() == labels.tolist()
    assert min(labels) >= 0
    assert made.to_json()["states"]["crd-bank"]["bank"] == [2, len(labels), 128]


def test_mixed_pictures_are_of_no_class(plan: Any) -> None:
    with pytest.raises(UsageError, match="method crd"):
        plan(**{"optim.mixup": 0.2})


def test_the_first_rows_are_uniform() -> None:
    torch.manual_seed(0)
    state = first_bank(torch.arange(4000) % 7, width=12)
    rows = state["bank"]
    assert rows.shape == (2, 4000, 12)
    assert float(rows.abs().max()) == pytest.approx(0.5, abs=1e-3)  # 1 / sqrt(12 / 3)
    assert float(rows.std()) == pytest.approx(1 / 12**0.5, rel=1e-2)
    assert not torch.equal(rows[0], rows[1])


# -- negatives -----------------------------------------------------------------------------------------------


def test_negatives_are_other_classes_drawn_alike_and_once() -> None:
    torch.manual_seed(0)
    classes, y = torch.arange(30) % 3, torch.tensor([0, 1, 2, 2] * 200)
    found = drawn(y, classes, count=12)
    assert found.shape == (800, 12)
    assert (classes[found] != y[:, None]).all()
    assert all(len(set(row)) == 12 for row in found.tolist())
    counts = torch.bincount(found[y == 2].flatten(), minlength=30)[classes != 2].double()
    assert float(counts.sum()) == 400 * 12
    assert float((counts - 240).abs().max()) < 5 * (400 * 0.6 * 0.4) ** 0.5  # each with 12 / 20
    torch.manual_seed(0)
    assert torch.equal(found, drawn(y, classes, count=12))


def test_too_few_others_are_drawn_again_for_their_class_alone() -> None:
    classes = torch.tensor([0] * 10 + [1] * 3)  # 3 others of class 0, 10 of class 1
    found = drawn(torch.tensor([0, 1]), classes, count=8)
    assert set(found[0].tolist()) <= {10, 11, 12}
    assert len(set(found[1].tolist())) == 8
    assert max(found[1].tolist()) < 10


def test_one_class_leaves_no_negatives() -> None:
    with pytest.raises(ValueError, match="all samples are of one class, which leaves none to contrast with"):
        drawn(torch.zeros(2, dtype=torch.long), torch.zeros(5, dtype=torch.long), count=2)


# -- the bank ------------------------------------------------------------------------------------------------


def test_a_sample_that_is_there_twice_is_remembered_as_the_last() -> None:
    bank = {"bank": torch.nn.functional.normalize(torch.randn(2, 6, 3), dim=2)}
    own, other = torch.randn(2, 4, 3)
    index = torch.tensor([5, 1, 5, 0])
    _, changes = remembered(bank, own, other, index, momentum=0.5)
    _, once = remembered(bank, own[1:], other[1:], index[1:], momentum=0.5)
    assert torch.equal(changes["bank"], once["bank"])
    assert torch.equal(changes["bank"][:, [2, 3, 4]], bank["bank"][:, [2, 3, 4]])


def test_z_is_estimated_once() -> None:
    def state(z: Tensor) -> dict[str, Tensor]:
        return {"bank": torch.ones(2, 5, 3), "z": z}

    args = torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([[2], [3]])
    z, changes = normalised(state(torch.zeros(2)), *args, temperature=3.0)
    torch.testing.assert_close(z, torch.full((2,), 5 * torch.e))
    assert changes == {"z": z}
    kept = torch.tensor([2.0, 7.0])
    assert normalised(state(kept), *args, temperature=3.0) == (kept, {})
