"""An exported file as a model: it answers what the network does, in any order of classes, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compacting import CLASSES

from kdcli.artifacts.forms import Form
from kdcli.artifacts.manifest import Manifest, file_hash
from kdcli.errors import InputError
from kdcli.models.build import Wanted, build

pytest.importorskip("onnxruntime")

from kdcli.compression.onnx import export_onnx
from kdcli.models.onnx import OnnxModel


def exported(folder: Path, *, inside: bool) -> OnnxModel:
    network = build("test_resnet", Wanted(CLASSES), pretrained=False, size=64).eval()
    facts = export_onnx(network, folder, inside=inside)
    file = folder / facts["file"]
    return OnnxModel(network, Form(folder, Manifest("model", "compress", {}), file, file_hash(file), inside))


@pytest.mark.parametrize("inside", [False, True])
@torch.no_grad()
def test_it_answers_what_the_network_does(tmp_path: Path, inside: bool) -> None:
    model = exported(tmp_path, inside=inside)
    views = torch.randint(
        0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    wanted = model.network(views)
    assert torch.allclose(model(views), wanted, atol=1e-4)
    assert torch.allclose(model.call([views], ["logits"])["logits"], wanted, atol=1e-4)
    # prepared pictures too; a graph that normalises by itself gets the views that they were
    assert torch.allclose(model(model.prepare(views)), wanted, atol=1e-4)
    assert model.logit_shape == (len(CLASSES),)
    assert model.runs_in.startswith("cpu, onnxruntime ")
    assert model.counted is model.network


@torch.no_grad()
def test_answers_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    model = exported(tmp_path, inside=False)
    views = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    before = model(views)
    turned = list(range(len(CLASSES)))[::-1]
    model.reorder(turned, CLASSES[::-1])
    assert model.classes == CLASSES[::-1]
    assert torch.equal(model(views), before.flip(1))
    model.reorder(turned, CLASSES)
    assert torch.equal(model(views), before)


def test_it_gives_nothing_but_its_answer(tmp_path: Path) -> None:
    model = exported(tmp_path, inside=False)
    assert model.block_taps() == []
    with pytest.raises(InputError, match="has no tap 'layer1': an exported form gives its answer alone"):
        model.call([torch.zeros(1, 3, 64, 64, dtype=torch.uint8)], ["layer1"])
    with pytest.raises(InputError, match="has no parameters that a method could read"):
        model.tensor("conv1.weight")
    with pytest.raises(InputError, match="has no files of its own to write"):
        model.save(tmp_path)
