"""Edits: which tensors they are given, and what becomes of what they return."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdcli.engine.edits import Edits
from kdcli.words import Edit, State, Turn


def bound(edit: Edit, module: nn.Module, states: Any = None) -> Edits:
    turn = Turn("turn", (edit.party,), (), (), edits=(edit,))
    return Edits(turn, {edit.party: module}, {} if states is None else states)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    made[2].bias.requires_grad_(False)
    return made


def test_a_gradient_edit_sees_gradients_and_weights_of_what_it_names() -> None:
    module, seen = layers(), []

    def lasso(gradients: dict[str, Tensor], weights: dict[str, Tensor], *, lam: float) -> dict[str, Tensor]:
        seen.append((sorted(gradients), sorted(weights)))
        assert not any(t.requires_grad for t in weights.values())
        return {name: g + lam * weights[name] / weights[name].norm() for name, g in gradients.items()}

    edits = bound(Edit("lasso", "gradient", "student", ("*.weight",), lasso, {"lam": 0.5}), module)
    edits.of_gradients()
    assert seen == [([], [])]  # nothing has a gradient yet
    module[0](torch.ones(1, 2)).sum().backward()
    before, place = module[0].weight.grad.clone(), module[0].weight.grad.data_ptr()
    edits.of_gradients()
    edits.of_weights()  # there are none
    assert seen[1] == (["0.weight"], ["0.weight"])
    weight = module[0].weight.detach()
    torch.testing.assert_close(module[0].weight.grad, before + 0.5 * weight / weight.norm())
    assert module[0].weight.grad.data_ptr() == place  # in place: DDP keeps views of it
    assert torch.equal(module[0].bias.grad, torch.ones(3))


def test_a_weight_edit_may_return_some_and_exchange_them() -> None:
    module = nn.ParameterDict({"a": torch.ones(2), "b": torch.zeros(2), "c": torch.full((2,), 5.0)})
    swap = Edit("swap", "weights", "student", ("[ab]",), lambda w: {"a": w["b"], "b": w["a"]})
    edits = bound(swap, module)
    edits.of_weights()
    edits.of_gradients()
    assert {name: p.tolist() for name, p in module.items()} == {"a": [0, 0], "b": [1, 1], "c": [5, 5]}
    assert all(p.requires_grad for p in module.values())


def test_what_is_not_trained_is_not_edited() -> None:
    names: list[list[str]] = []

    def look(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        names.append(sorted(weights))
        return {}

    bound(Edit("look", "weights", "student", ("*",), look), layers()).of_weights()
    assert names == [["0.bias", "0.weight", "2.weight"]]


def test_the_state_of_an_edit_is_replaced_and_no_alias_of_a_weight() -> None:
    def remember(
        state: dict[str, Tensor], weights: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        (weight,) = weights.values()
        return {}, {"last": weight, "steps": state["steps"] + 1}

    module = nn.Linear(2, 2, bias=False)
    first = {"last": torch.zeros(2, 2), "steps": torch.zeros((), dtype=torch.long)}
    states = {"memory": dict(first)}
    memory = State("memory", dict)
    edits = bound(Edit("remember", "weights", "student", ("weight",), remember, state=memory), module, states)
    edits.of_weights()
    kept = module.weight.detach().clone()
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(states["memory"]["last"], kept)
    assert int(states["memory"]["steps"]) == 1
    assert int(first["steps"]) == 0
