"""Embeddings of retrieval: what each kind computes, what networks answer and tap, files, other identities."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toolbox import commit_model
from torch.nn import functional as F

from kdcli.errors import InputError
from kdcli.models.build import Wanted, build
from kdcli.models.heads.embedding import EmbeddingHead, is_embedding, neck_width
from kdcli.models.timm import TimmModel

IDENTITIES = ["ann", "bob", "cy", "dee", "eve"]
BACKBONES = ["test_resnet", "test_vit", "mobilenetv3_small_050"]


def network(name: str = "test_resnet", kind: str | None = None, seed: int = 0) -> TimmModel:
    wanted = Wanted(IDENTITIES, "retrieval", "bnneck", kind)
    return build(name, wanted, pretrained=False, size=64, seed=seed).eval()  # type: ignore[return-value]


def views() -> torch.Tensor:
    return torch.randint(
        0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def test_names() -> None:
    assert [neck_width(kind) for kind in ("bnneck", "bnneck64", "plain", "linear", "bnneckx")] == [
        512,
        64,
        0,
        0,
        0,
    ]
    assert [kind for kind in ("plain", "linear", "bnneck8", "grid4", "None") if is_embedding(kind)] == [
        "plain",
        "linear",
        "bnneck8",
    ]


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("kind", ["plain", "bnneck24"])
def test_what_it_answers_is_the_embedding_and_its_logits_are_behind_it(name: str, kind: str) -> None:
    made, x = network(name, kind), views()
    taps = ("logits", "embedding", "pooled", "features")
    with torch.no_grad():
        found, answer = made.call([x], taps), made(x)
        alone = made.call([x], ("logits",))["logits"]
        prepared = made.prepare(x)
        pooled = made.body.forward_head(made.body.forward_features(prepared), pre_logits=True)
    assert torch.equal(found["embedding"], found["pooled"])
    assert torch.equal(answer, found["embedding"])
    assert torch.equal(alone, found["logits"])
    torch.testing.assert_close(found["features"], pooled)
    weight = made.linear.weight
    assert weight.shape == (5, pooled.shape[1] if kind == "plain" else 24)
    torch.testing.assert_close(found["logits"], found["embedding"] @ weight.T)
    if kind == "plain":
        assert torch.equal(found["embedding"], found["features"])
    else:
        first, _, linear, last = made.head.neck
        rows = F.batch_norm(pooled, first.running_mean, first.running_var, first.weight, first.bias)
        rows = rows.relu() @ linear.weight.T
        rows = F.batch_norm(rows, last.running_mean, last.running_var, last.weight, last.bias)
        torch.testing.assert_close(found["embedding"], rows)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("kind", ["plain", "bnneck24"])
def test_files_answer_alike(name: str, kind: str, tmp_path: Path) -> None:
    made, x = network(name, kind), views()
    path = commit_model(made, tmp_path / "m")
    read = build(str(path)).eval()
    assert (read.task, read.layout, read.classes) == ("retrieval", "kdcli", IDENTITIES)
    with torch.no_grad():
        assert torch.equal(read(x), made(x))
        assert torch.equal(read.call([x], ("logits",))["logits"], made.call([x], ("logits",))["logits"])
    made.forget_classes()
    path = commit_model(made, tmp_path / "without")
    read = build(str(path)).eval()
    assert read.classes is None
    with torch.no_grad():
        assert torch.equal(read(x), made(x))
        assert torch.equal(read.call([x], ("logits",))["logits"], made(x))


def test_a_pooled_feature_is_in_timms_own_layout(tmp_path: Path) -> None:
    import timm

    made, x = build("test_vit", pretrained=False, size=64), views()
    made.attach_embedding("pooled", {}, "retrieval")
    made.eval()
    assert (made.layout, made.classes, made.head) == ("timm", None, None)
    path = commit_model(made, tmp_path / "m")
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "kdcli.json", "model.safetensors"]
    plain = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(plain(made.prepare(x)), made(x))
        assert torch.equal(build(str(path)).eval()(x), made(x))


@pytest.mark.parametrize("feature", ["pooled", "last4+avg"])
def test_an_affine_map_and_a_feature_of_several_parts(feature: str, tmp_path: Path) -> None:
    made, x = build("test_vit", pretrained=False, size=64).eval(), views()
    with torch.no_grad():
        rows = torch.cat(list(made.features(x, [feature]).values()), dim=1)
    draw = torch.Generator().manual_seed(0)
    affine = {"weight": torch.randn(7, rows.shape[1], generator=draw), "bias": torch.randn(7, generator=draw)}
    made.attach_embedding(feature, affine, "retrieval")
    read = build(str(commit_model(made.eval(), tmp_path / "m"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(made(x), rows @ affine["weight"].T + affine["bias"])
        assert torch.equal(read(x), made(x))


def test_a_neck_is_kept_where_identities_are_others() -> None:
    made = network(kind="bnneck24", seed=1)
    neck = {name: tensor.clone() for name, tensor in made.head.neck.state_dict().items()}
    again = made.head.refitted(3)
    assert isinstance(again, EmbeddingHead)
    assert all(torch.equal(tensor, neck[name]) for name, tensor in again.neck.state_dict().items())
    assert again.linear.weight.shape == (3, 24)
    assert made.head.linear.weight.shape == (5, 24)


def test_a_student_from_an_artifact_keeps_its_neck(tmp_path: Path) -> None:
    made = network(kind="bnneck24", seed=1)
    path = commit_model(made, tmp_path / "m")
    others = Wanted(["x", "y"], "retrieval", "bnneck")
    again = build(str(path), others)
    assert again.classes == ["x", "y"]
    assert torch.equal(again.head.neck[2].weight, made.head.neck[2].weight)  # type: ignore[union-attr]
    fresh = build(str(path), Wanted(["x", "y"], "retrieval", "bnneck", "bnneck8"))
    assert fresh.head.neck[2].weight.shape[0] == 8  # type: ignore[union-attr]
    assert any("Another kind of head is asked for: bnneck8" in note for note in fresh.notes)


@pytest.mark.parametrize("change", ["kind", "feature", "shape", "more"])
def test_files_that_do_not_fit_are_refused(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    made = network(kind="bnneck24")
    made.save(folder)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "head.safetensors")
    if change in ("kind", "feature"):
        config["kdcli_operations"][-1][change] = "bnneck7" if change == "kind" else "middle"
    elif change == "shape":
        tensors["neck.2.weight"] = tensors["neck.2.weight"][:, 1:].contiguous()
    else:
        tensors["neck.4.weight"] = torch.zeros(2)
    from kdcli.models import heads

    assert heads.described(config["kdcli_operations"][-1], tensors, made.body) is None
    save_file(tensors, folder / "head.safetensors")


def test_a_network_without_an_embedding_has_no_classifier_to_leave_away() -> None:
    made = build("test_resnet", Wanted(["a", "b"]), pretrained=False, size=32)
    with pytest.raises(InputError, match="test_resnet has no embedding apart from its classifier"):
        made.forget_classes()


def test_a_plain_embedding_of_several_parts_knows_its_width(tmp_path: Path) -> None:
    """It has no tensors that say it, and gets a classifier where it becomes a student."""
    made = build("test_vit", pretrained=False, size=64).eval()
    made.attach_embedding("last4", {}, "retrieval")
    path = commit_model(made, tmp_path / "m")
    student = build(str(path), Wanted(["x", "y", "z"], "retrieval", "bnneck")).eval()
    assert student.head.feature == "last4"  # type: ignore[union-attr]
    assert student.linear.weight.shape == (3, 4 * made.body.num_features)  # type: ignore[attr-defined]
    with torch.no_grad():
        assert torch.equal(student(views()), made(views()))
