"""Which classifier a network keeps, what it calls its classes, and what is said of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from toolbox import commit_model
from torch import Tensor

from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.timm import TimmModel

VIT, OURS = "test_vit", ["bag", "shoe", "shirt"]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """A user's own checkpoint of three classes without names."""
    torch.manual_seed(4)
    return dict(timm.create_model(VIT, img_size=32, num_classes=3).state_dict())


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_file(tensors, path)
    return str(path)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    network = build(VIT, Wanted(OURS), pretrained=False, size=32)
    return str(commit_model(network, tmp_path_factory.mktemp("a") / "vit"))


def rows(network: Any) -> Tensor:
    return network.tensor("classifier").detach().clone()


# -- files ---------------------------------------------------------------------------------------------------


def test_a_file_names_no_classes(file: str) -> None:
    network = build(VIT, weights=file, size=32)
    assert (network.classes, network.outputs, network.logit_shape) == (None, 3, (3,))
    network.take_names(OURS, "same")
    assert network.classes == OURS


def test_names_are_taken_only_where_the_user_says_so(file: str) -> None:
    network = build(VIT, weights=file, size=32)
    with pytest.raises(
        InputError, match=r"knows no names of its 3 classes\. .* \(bag, shoe, shirt\), say --set data"
    ):
        network.take_names(OURS, "names")
    with pytest.raises(
        InputError, match=r"test_vit knows 3 classes and no names of them, the data has 4 \(a, b, c, …\)"
    ):
        network.take_names(list("abcd"), "same")
    assert network.classes is None
    backbone = build(VIT, pretrained=False, size=32)
    backbone.take_names(OURS, "names")  # nothing to name: the data's matching says what is missing
    assert backbone.classes is None


def test_a_file_of_the_right_classifier_is_kept_where_the_order_is_said_to_be_the_same(
    file: str, tensors: dict[str, Tensor]
) -> None:
    kept = build(VIT, Wanted(OURS, order="same"), weights=file, size=32)
    assert torch.equal(rows(kept), tensors["head.weight"])
    assert kept.classes == OURS
    (note,) = kept.notes
    assert note == "the classifier of test_vit for 3 classes is kept: its order is said to be the data's"


def test_a_file_of_the_right_classifier_without_names_gives_way_and_it_is_said(
    file: str, tensors: dict[str, Tensor]
) -> None:
    fresh = build(VIT, Wanted(OURS), weights=file, size=32, seed=1)
    assert not torch.equal(rows(fresh), tensors["head.weight"])
    assert torch.equal(fresh.tensor("norm.weight"), tensors["norm.weight"])
    (note,) = fresh.notes
    assert note == (
        "the classifier of test_vit for 3 classes gives way to a fresh one for 3. It knows no names of them: "
        "--set data.class_order=same keeps it where the order is the data's"
    )


@pytest.mark.parametrize("order", ["names", "same"])
def test_a_file_of_another_number_of_classes_gives_way_and_it_is_said(order: Any, file: str) -> None:
    fresh = build(VIT, Wanted(list("abcd"), order=order), weights=file, size=32)
    assert fresh.classes == list("abcd")
    assert fresh.notes == ("the classifier of test_vit for 3 classes gives way to a fresh one for 4",)


def test_a_thousand_classes_of_a_file_are_taken_for_imagenet_s_and_it_is_said(tmp_path: Path) -> None:
    save_file(timm.create_model(VIT).state_dict(), tmp_path / "w.safetensors")
    network = build(VIT, weights=str(tmp_path / "w.safetensors"))
    assert network.classes is not None
    (note,) = network.notes
    assert (
        note
        == f"{tmp_path}/w.safetensors names no classes: its 1000 are taken to be those of timm's own weights"
    )


def test_a_network_of_random_weights_has_nothing_to_keep_or_to_say() -> None:
    network = build(VIT, Wanted(OURS, order="same"), pretrained=False, size=32, seed=5)
    again = build(VIT, Wanted(OURS), pretrained=False, size=32, seed=5)
    assert torch.equal(rows(network), rows(again))
    assert (network.notes, build(VIT, pretrained=False).outputs) == ((), 0)


# -- artifacts -----------------------------------------------------------------------------------------------


def test_an_artifact_of_the_same_names_keeps_its_classifier_in_any_order(artifact: str) -> None:
    own = build(artifact)
    assert build(artifact, Wanted(OURS)).notes == ()
    turned = build(artifact, Wanted(["shirt", "bag", "shoe"]))
    assert torch.equal(rows(turned), rows(own)[[2, 0, 1]])
    assert turned.notes == (f"the classifier of {artifact} for 3 classes is kept, in the order of the data",)


def test_an_artifact_of_other_names_gives_way_unless_only_the_names_differ(artifact: str) -> None:
    own, other = build(artifact), ["Tasche", "Schuh", "Hemd"]
    kept = build(artifact, Wanted(other, order="same"))
    assert torch.equal(rows(kept), rows(own))
    assert kept.classes == other
    fresh = build(artifact, Wanted(other), seed=2)
    assert not torch.equal(rows(fresh), rows(own))
    assert fresh.notes == (
        f"the classifier of {artifact} for 3 classes gives way to a fresh one for 3. It names them otherwise "
        "(bag, shoe, shirt, …): --set data.class_order=same keeps it where the order is the data's",
    )
    dense = build(artifact, Wanted(OURS, "segmentation", "grid"))
    (note,) = dense.notes
    assert note.endswith("for 3 classes gives way to a fresh one for 3. It answers classification")


def test_names_that_occur_twice_are_no_names(tmp_path: Path) -> None:
    network = build(VIT, Wanted(["a", "a", "b"]), pretrained=False, size=32)
    path = str(commit_model(network, tmp_path / "m"))
    fresh = build(path, Wanted(["a", "b", "a"]), seed=3)
    assert not torch.equal(rows(fresh)[0], rows(build(path))[0])


# -- directories of timm -------------------------------------------------------------------------------------


def directory(path: Path, classes: int, **more: Any) -> str:
    from timm.models import save_for_hf

    torch.manual_seed(0)
    body = timm.create_model("test_resnet", num_classes=classes)
    save_for_hf(body, path, safe_serialization=True, model_config=more)
    return f"local-dir:{path}"


def test_a_directory_names_its_classes_or_none(tmp_path: Path) -> None:
    named = build(directory(tmp_path / "a", 3, label_names=OURS))
    assert named.classes == OURS
    numbered = build(directory(tmp_path / "b", 3, label_names={"0": "bag", "1": "shoe", "2": "shirt"}))
    assert numbered.classes == OURS  # not its keys
    silent = build(directory(tmp_path / "c", 3))
    assert (silent.classes, silent.outputs) == (None, 3)
    (note,) = build(directory(tmp_path / "d", 1000)).notes
    assert "names no classes: its 1000 are taken to be those of timm's own weights" in note


def test_a_directory_is_read_without_a_question_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    name = directory(tmp_path / "m", 3, label_names=OURS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def asked() -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.utils.get_session", asked)
    assert build(name).classes == OURS


# -- plain transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [(VIT, 64), ("test_resnet", 64), ("test_efficientnet", None)])
@torch.no_grad()
def test_plain_transformers_loads_a_student_too(name: str, size: int | None, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForImageClassification

    network = build(name, Wanted(OURS), pretrained=False, size=size).eval()
    path = commit_model(network, tmp_path / "out")
    config = json.loads((path / "config.json").read_text())
    assert "num_classes" not in config["model_args"]
    assert config["num_classes"] == 3
    plain = AutoModelForImageClassification.from_pretrained(path).eval()
    assert plain.config.id2label == dict(enumerate(OURS))
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (2, 3, *network.spec.size), dtype=torch.uint8, generator=draw)
    torch.testing.assert_close(plain(network.prepare(x)).logits, network(x))
    timms = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    torch.testing.assert_close(timms(network.prepare(x)), network(x), rtol=0, atol=1e-5)
    backbone = AutoModel.from_pretrained(path).eval()
    torch.testing.assert_close(
        backbone(network.prepare(x)).pooler_output, network.call([x], ["pooled"])["pooled"]
    )


def test_layout_says_who_loads_it() -> None:
    network = build(VIT, Wanted(OURS), pretrained=False, size=32)
    assert isinstance(network, TimmModel)
    assert network.layout == "timm"
    network.operations = ({"op": "remove channels", "modules": {"blocks.0.mlp.fc1": {"out": 10}}},)
    assert network.layout == "kdcli"
