"""Users' own checkpoints and structures in the stages: names, what is kept, what is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from toolbox import QUIET, commit_model, facts
from torch import nn

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.runs import Result
from kdcli.stages import distill, probe


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own checkpoint of four classes, which names none."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("own") / "w.safetensors"
    save_file(timm.create_model("test_vit", img_size=32, num_classes=4).state_dict(), path)
    return path


@pytest.fixture
def keep(own: Path, tmp_path: Path) -> Any:
    """Keeps a trained classifier."""

    def make(**more: Any) -> Any:
        options = {
            "teacher": "test_vit",
            "weights": str(own),
            "image_size": 32,
            "head": "keep",
            "out": str(tmp_path / "kept"),
            **more,
        }
        return probe.plan(resolve(probe.Config, options=options), QUIET)

    return make


@pytest.fixture
def learn(pictures: Path, tmp_path: Path) -> Any:
    def make(**more: Any) -> Any:
        options = {
            "method.name": "supervised",
            "data.source": str(pictures),
            "optim.max_steps": 1,
            "optim.batch_size": 8,
            "optim.lr": 1e-12,
            "out": str(tmp_path / "student"),
            "cache": str(tmp_path / "cache"),
            **more,
        }
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    return make


def test_a_kept_classifier_is_not_given_names_unasked(
    keep: Any, pictures: Path, own: Path, teacher: Path
) -> None:
    with pytest.raises(
        InputError, match=r"test_vit knows no names of its 4 classes\. Where .* --data DATA --set"
    ):
        keep()
    with pytest.raises(
        InputError, match=r"test_vit knows no names of its 4 classes\. If they stand in the order"
    ):
        keep(**{"data.source": str(pictures)})
    made = keep(**{"data.source": str(pictures), "data.class_order": "same"})
    assert not isinstance(made, Result)
    out = probe.run(made, QUIET).path
    assert facts(out)["classes"] == facts(teacher)["classes"]
    before, after = load_file(own), load_file(out / "model.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_kept_classifier_of_other_classes_than_the_data_is_refused(
    keep: Any, pictures: Path, weights: dict[str, Path]
) -> None:
    data = {"data.source": str(pictures), "data.class_order": "same"}
    with pytest.raises(InputError, match="test_vit knows 1000 classes, the data has 4"):
        keep(weights=str(weights["test_vit"]), **data)


def test_a_kept_classifier_is_brought_into_the_order_of_the_data(
    keep: Any, pictures: Path, teacher: Path, tmp_path: Path
) -> None:
    names = facts(teacher)["classes"]
    turned = build(str(teacher))
    turned.reorder([1, 0, 3, 2], [names[i] for i in (1, 0, 3, 2)])
    path = commit_model(turned, tmp_path / "turned")
    made = keep(teacher=str(path), weights=None, image_size=None, **{"data.source": str(pictures)})
    assert made.network.classes == names
    assert torch.equal(made.network.tensor("classifier"), build(str(teacher)).tensor("classifier"))


@pytest.mark.parametrize("order", ["same", "names"])
def test_a_student_keeps_the_classifier_of_its_file_where_the_order_is_said_to_be_the_same(
    order: str, learn: Any, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = learn(student="test_vit", image_size=32, weights=str(own), **{"data.class_order": order})
    made.describe(Console())
    told = " ".join(capsys.readouterr().err.split())
    if order == "names":
        assert (
            "4 classes gives way to a fresh one for 4. It knows no names of them: --set data.class_order="
            in told
        )
        return
    assert "the classifier of test_vit for 4 classes is kept: its order is said to be the data's" in told
    before, after = load_file(own), load_file(distill.run(made, QUIET).path / "model.safetensors")
    assert all((before[name] - tensor).abs().max() < 1e-6 for name, tensor in after.items())


def test_a_run_says_what_was_decided_about_its_networks_and_puts_it_down(
    learn: Any, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who runs a command without --dry-run reads no plan."""
    tensors = load_file(own)
    torch.save({"state_dict": tensors, "state_dict_ema": tensors}, tmp_path / "w.pth")
    made = learn(student="test_vit", image_size=32, weights=str(tmp_path / "w.pth"))
    path = distill.run(made, Console()).path
    told = " ".join(capsys.readouterr().err.split())
    decided = json.loads((path / "kdcli.json").read_text())["decisions"]["student"]
    assert any("state_dict_ema, an average over its training, is read" in note for note in decided)
    assert any("4 classes gives way to a fresh one for 4" in note for note in decided)
    assert all(f"student: {' '.join(note.split())}" in told for note in decided)


def test_the_chosen_entry_of_a_checkpoint_is_a_parent(learn: Any, own: Path, tmp_path: Path) -> None:
    tensors = load_file(own)
    torch.save({"state_dict": tensors, "state_dict_ema": tensors}, tmp_path / "w.pth")
    chosen = f"{tmp_path / 'w.pth'}:state_dict"
    made = learn(student="test_vit", image_size=32, weights=chosen)
    (parent,) = made.target.parents
    assert parent["weights"] == chosen
    assert len(parent["hash"]) == 64


def test_sizes_and_channels_are_refused_or_heeded_by_the_plan(learn: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"test_vit does not take pictures of 50 pixels .* Take 48 or 64\."):
        learn(student="test_vit", from_scratch=True, image_size=50)
    from timm.models import save_for_hf

    save_for_hf(timm.create_model("test_resnet", in_chans=1), tmp_path / "grey", safe_serialization=True)
    grey = learn(student=f"local-dir:{tmp_path / 'grey'}", image_size=32)
    out = distill.run(grey, QUIET).path
    assert build(str(out)).spec.channels == 1


def test_a_narrowed_network_teaches_and_is_taught(learn: Any, teacher: Path, tmp_path: Path) -> None:
    names = facts(teacher)["classes"]
    network = build("test_resnet", Wanted(names), pretrained=False, size=32)
    body = network.body
    conv, norm, following = (body.get_submodule(f"layer1.0.{name}") for name in ("conv1", "bn1", "conv2"))
    conv.out_channels = norm.num_features = following.in_channels = 20
    conv.weight, following.weight = nn.Parameter(conv.weight[:20]), nn.Parameter(following.weight[:, :20])
    norm.weight, norm.bias = nn.Parameter(norm.weight[:20]), nn.Parameter(norm.bias[:20])
    norm.running_mean, norm.running_var = norm.running_mean[:20], norm.running_var[:20]
    widths = {"layer1.0.conv1": {"out": 20}, "layer1.0.bn1": {"out": 20}, "layer1.0.conv2": {"in": 20}}
    network.operations = ({"op": "remove channels", "modules": widths},)
    narrow = str(commit_model(network, tmp_path / "narrow"))
    made = learn(student=narrow, teacher=narrow, **{"method.name": "kd", "optim.lr": 1e-2})
    out = distill.run(made, QUIET).path
    assert facts(out)["layout"] == "kdcli"
    assert build(str(out)).operations == network.operations
    assert load_file(out / "model.safetensors")["layer1.0.conv1.weight"].shape[0] == 20
