"""What plain transformers makes of an artifact: the same logits, or a refusal, never another head."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import commit_model
from transformers import AutoModelForImageClassification

from kdcli.models.build import Wanted, build
from kdcli.models.protocol import Model

NAMES = ["bag", "shoe", "shirt", "coat"]


def views(network: Model) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    shape = (3, network.spec.channels, *network.spec.size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)


@torch.no_grad()
def compared(path: Path, names: list[str]) -> None:
    """Plain transformers answers as kdcli does, and knows the classes."""
    own = build(str(path)).eval()
    plain: Any = AutoModelForImageClassification.from_pretrained(path).eval()
    assert plain.config.id2label == dict(enumerate(names))
    assert plain.config.label2id == {name: i for i, name in enumerate(names)}
    x = views(own)
    logits = own(x)
    assert logits.std() > 0
    torch.testing.assert_close(plain(own.prepare(x)).logits, logits, rtol=0, atol=1e-5)


def fresh(name: str = "test_vit", classes: list[str] = NAMES, size: int | None = 32, **more: Any) -> Any:
    network = build(name, Wanted(list(classes)), pretrained=False, size=size, **more)
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return network


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_a_student(name: str, tmp_path: Path) -> None:
    path = commit_model(fresh(name, size=64 if name == "test_convnext" else 32), tmp_path / "out")
    compared(path, NAMES)


def test_a_probed_teacher(probed: Callable[[str], Path], tmp_path: Path) -> None:
    """Its head is in the library's place where it reads the pooled features; else there is none to load."""
    network = fresh()
    weight = torch.randn(3, network.linear.in_features, generator=torch.Generator().manual_seed(7))
    network.attach_linear("pooled", weight, torch.arange(3.0), NAMES[:3])
    compared(commit_model(network, tmp_path / "pooled"), NAMES[:3])
    for name in ("test_vit", "test_resnet"):
        path = probed(name)
        if json.loads((path / "kdcli.json").read_text())["layout"] == "timm":
            compared(path, build(str(path)).classes or [])
        else:
            with pytest.raises(ValueError, match="checkpoint with no classifier head"):
                AutoModelForImageClassification.from_pretrained(path)


def test_a_head_over_several_blocks_is_not_replaced_in_silence(tmp_path: Path) -> None:
    network = fresh()
    width = sum(part.shape[1] for part in network.features(views(network), ["last4"]).values())
    network.attach_linear("last4", torch.randn(4, width), torch.zeros(4), NAMES)
    path = commit_model(network, tmp_path / "out")
    with pytest.raises(ValueError, match="checkpoint with no classifier head"):
        AutoModelForImageClassification.from_pretrained(path)


def test_logits_that_were_brought_into_another_order(tmp_path: Path) -> None:
    network = fresh("test_resnet")
    before = network.eval()(views(network))
    order = [2, 0, 3, 1]
    names = [NAMES[i] for i in order]
    network.reorder(order, names)
    path = commit_model(network, tmp_path / "out")
    compared(path, names)
    torch.testing.assert_close(build(str(path)).eval()(views(network)), before[:, order])


@pytest.mark.parametrize("classes", [["a", "b"], [f"c{i}" for i in range(1000)], ["a::b", "c\n\x1bd", "é"]])
def test_another_head_in_the_place_of_the_first(classes: list[str], tmp_path: Path) -> None:
    first = commit_model(fresh(), tmp_path / "first")
    network = build(str(first), Wanted(list(classes)))
    assert network.classes == classes
    with torch.no_grad():
        network.linear.bias.add_(torch.arange(float(len(classes))))
    compared(commit_model(network, tmp_path / "second"), classes)
