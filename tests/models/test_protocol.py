"""Models as a turn calls them: with one input, several, or none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.engine.graph import Graph
from kdcli.errors import InputError
from kdcli.models.build import build
from kdcli.models.protocol import Model
from kdcli.words import Call, Term, Turn


class Toy(Model):
    """Logits of the sum of its inputs, and of a learned picture where it gets none."""

    architecture, layout, outputs = "toy", "kdcli", 2

    def __init__(self) -> None:
        super().__init__(InputSpec((4, 4)), ["a", "b"], name="toy")
        self.head = None
        self.picture, self.classifier = nn.Parameter(torch.ones(1, 3, 4, 4)), nn.Linear(48, 2)

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def restore(self, x: Tensor) -> Tensor:
        return x

    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        pooled = (sum(inputs) if inputs else self.picture).flatten(1)
        found = {"pooled": pooled, "logits": self.classifier(pooled)}
        return {tap: found[tap] for tap in taps}

    def tappable(self) -> dict[str, nn.Module]:
        return {}

    def tensor(self, name: str) -> Tensor:
        return self.get_parameter(name)

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        return []


def total(*values: Tensor) -> Tensor:
    return torch.stack([value.sum() for value in values]).sum()


@pytest.mark.parametrize("inputs", [(), ("x",), ("x", "noise")])
def test_a_call_hands_a_model_its_inputs(inputs: tuple[str, ...]) -> None:
    toy = Toy()
    term = Term("all", total, ("s.logits", "s.pooled", "s:classifier.weight"), 1.0)
    graph = Graph(
        Turn("one", ("student",), (Call("s", "student", inputs),), (term,)), {"student": toy}.__getitem__
    )
    values: dict[str, Any] = {"x": torch.rand(5, 3, 4, 4), "noise": torch.rand(5, 3, 4, 4)}
    expected = sum(values[name] for name in inputs) if inputs else toy.picture
    assert torch.equal(graph.value("s.pooled", values), expected.flatten(1))
    assert torch.equal(graph.value("s.logits", values), toy.classifier(expected.flatten(1)))
    assert graph.value("s:classifier.weight", values) is toy.classifier.weight


@pytest.mark.parametrize(("count", "inputs"), [(0, ()), (2, ("x", "x2"))])
def test_a_network_of_one_input_refuses_another_number(count: int, inputs: tuple[str, ...]) -> None:
    network = build("test_resnet", pretrained=False, size=32, classes=["a", "b"]).eval()
    term = Term("all", total, ("s.logits",), 1.0)
    turn = Turn("one", ("student",), (Call("s", "student", inputs),), (term,))
    x = torch.zeros(2, 3, 32, 32)
    with pytest.raises(
        InputError, match=f"test_resnet takes one input, pictures, and a call gives it {count}"
    ):
        Graph(turn, {"student": network}.__getitem__).value("s.logits", {"x": x, "x2": x})


def test_what_a_kind_leaves_out_is_refused() -> None:
    toy = Toy()
    assert (toy.feature_names(), toy.undecayed(), toy.logit_shape, toy.logit_count) == ([], set(), (2,), 2)
    with pytest.raises(InputError, match=r"toy \(toy\) has no features for a linear classifier"):
        toy.features(torch.zeros(1, 3, 4, 4), ["pooled"])
    with pytest.raises(InputError, match=r"toy \(toy\) has no classifier"):
        _ = toy.linear
