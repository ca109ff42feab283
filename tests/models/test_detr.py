"""Whole detectors of transformers: from folders, names and the user's weights, and back into transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_decoders import saved

from kdcli.errors import InputError, UsageError
from kdcli.models.build import Wanted, build
from kdcli.models.detr import Detr

CLASSES = ["tree", "car", "a roof"]
KINDS = ("rt_detr", "d_fine")


def plain(kind: str) -> Any:
    """A tiny detector of transformers itself, with names of its classes."""
    from transformers import (
        DFineConfig,
        DFineForObjectDetection,
        RTDetrConfig,
        RTDetrForObjectDetection,
        RTDetrResNetConfig,
    )

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_indices=[2, 3, 4],
    )
    config, network = {
        "rt_detr": (RTDetrConfig, RTDetrForObjectDetection),
        "d_fine": (DFineConfig, DFineForObjectDetection),
    }[kind]
    return network(
        config(
            backbone_config=backbone,
            encoder_in_channels=[16, 24, 32],
            decoder_in_channels=[32] * 3,
            d_model=32,
            encoder_hidden_dim=32,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            decoder_layers=2,
            num_queries=20,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: i for i, name in enumerate(CLASSES)},
        )
    ).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that transformers has written, by type."""
    found = {kind: tmp_path_factory.mktemp("detr") / kind for kind in KINDS}
    for kind, folder in found.items():
        plain(kind).save_pretrained(folder)
    return found


def views(count: int = 2, size: int = 96) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_gives_the_boxes_of_plain_transformers(kind: str, folders: dict[str, Path]) -> None:
    made = build(f"local-dir:{folders[kind]}", size=96).eval()
    assert isinstance(made, Detr)
    assert (made.classes, made.task, made.layout, made.trained) == (
        CLASSES,
        "detection",
        "transformers",
        "pretrained",
    )
    with torch.no_grad():
        wanted = plain(kind)(views().float() / 255)
        found = made.call(
            [views()], ("logits", "boxes", "objectness1", "neck2", "model.encoder_input_proj.1")
        )
    assert torch.equal(found["logits"], wanted.logits)
    assert torch.equal(found["boxes"], wanted.pred_boxes)
    assert found["neck2"].shape == found["model.encoder_input_proj.1"].shape == (2, 32, 6, 6)
    assert torch.equal(made.restore(made.prepare(views())), views())


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_transformers_loads(kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    made = build(f"local-dir:{folders[kind]}", size=96).eval()
    saved(made, tmp_path / "model")
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "model").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    picture = views(1)[0]
    with torch.no_grad():
        own = made.call([picture[None]], ("logits", "boxes"))
        theirs = loaded(**processor(picture, return_tensors="pt"))
        back = build(str(tmp_path / "model")).eval()
        again = back.call([picture[None]], ("logits",))
    assert [loaded.config.id2label[i] for i in range(3)] == CLASSES == back.classes
    torch.testing.assert_close(theirs.logits, own["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.pred_boxes, own["boxes"], atol=1e-5, rtol=1e-5)
    assert torch.equal(again["logits"], own["logits"])
    assert (back.trained, back.spec) == ("artifact", made.spec)


def test_its_classes_are_kept_by_name_or_give_way(folders: dict[str, Path]) -> None:
    name = f"local-dir:{folders['rt_detr']}"
    first = build(name, size=96).eval()
    moved = build(name, Wanted(["car", "tree", "a roof"], task="detection", head="rtdetr"), size=96).eval()
    assert "is kept, in the order of the data" in moved.notes[0]
    with torch.no_grad():
        before, after = (n.call([views()], ("logits",))["logits"] for n in (first, moved))
    assert torch.equal(after, before[..., [1, 0, 2]])
    other = build(name, Wanted(["cat", "dog"], task="detection", head="rtdetr"), size=96)
    assert "for 3 classes gives way to a fresh one for 2" in other.notes[0]
    assert other.logit_shape == (20, 2)
    kept = "model.encoder.aifi.0.layers.0.mlp.fc1.weight"
    assert torch.equal(other.tensor(kept), first.tensor(kept))


def test_a_checkpoint_goes_with_a_name(tmp_path: Path) -> None:
    made = build("rtdetr_r18vd", Wanted(CLASSES, task="detection", head="rtdetr"), pretrained=False, size=160)
    assert made.trained == "random"
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(
        20.1e6, rel=0.02
    )  # 20 M, says the paper
    save_file({n: t.clone() for n, t in made.body.state_dict().items()}, tmp_path / "own.safetensors")
    back = build("rtdetr_r18vd", weights=str(tmp_path / "own.safetensors"), size=160).eval()
    assert (back.classes, back.unnamed, back.trained) == (None, 3, "pretrained")
    with torch.no_grad():
        assert torch.equal(back(views(1, 160)), made.eval()(views(1, 160)))
    tensors = load_file(tmp_path / "own.safetensors")
    tensors.pop("model.enc_score_head.bias")
    save_file(tensors, tmp_path / "lacking.safetensors")
    lacking = tmp_path / "lacking.safetensors"
    with pytest.raises(InputError, match=r"missing keys for rt_detr, first model.enc_score_head.bias"):
        build("rtdetr_r18vd", weights=str(lacking))


def test_a_name_without_weights_says_the_ways_to_them() -> None:
    with pytest.raises(
        InputError, match=r"no weights for rtdetr_r50vd.*--weights FILE.*PekingU/rtdetr_r50vd"
    ):
        build("rtdetr_r50vd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "does not take pictures of 100 pixels. Take 96 or 128"),
        ({"wanted": Wanted(CLASSES, task="detection", kind="light")}, "head=light: .* is a whole detector"),
        ({"drop_path": 0.1}, "no stochastic depth"),
    ],
)
def test_what_it_has_not_is_refused(options: dict[str, Any], message: str, folders: dict[str, Path]) -> None:
    with pytest.raises((InputError, UsageError), match=message):
        build(f"local-dir:{folders['rt_detr']}", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 10**7}, "beyond what a network has|cannot build"),
        ({"d_model": "wide"}, "cannot build"),
        ({"num_queries": -1}, "-1 queries begin at"),
        ({"num_queries": 300}, "300 queries begin at 189 places of pictures of 96 pixels: there are too few"),
    ],
)
def test_a_configuration_that_nothing_is_built_of_is_refused(
    change: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["rt_detr"], tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        build(f"local-dir:{tmp_path / 'model'}", pretrained=False, size=96).eval()(views())


def test_spoilt_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["rt_detr"], tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.enc_score_head.bias"][0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match="NaN"):
        build(f"local-dir:{tmp_path / 'model'}")


def test_its_backbone_can_be_frozen(folders: dict[str, Path]) -> None:
    made: Any = build(f"local-dir:{folders['rt_detr']}", size=96)
    made.freeze_body()
    made.train()
    assert not any(part.training for part in made.body.model.backbone.modules())
    assert made.body.model.encoder.training
    assert not any(p.requires_grad for p in made.body.model.backbone.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2])
def test_it_learns_whole(kind: str, count: int, folders: dict[str, Path]) -> None:
    """Its own backbone adds in place to what its norms give."""
    made = build(f"local-dir:{folders[kind]}", size=96).train()
    boxes, classes = [torch.tensor([[0.5, 0.5, 0.3, 0.2]])] * count, [torch.tensor([1])] * count
    given: list[Any] = [views(count), boxes, classes, torch.ones(count).bool()]
    found = made.call(given, ("loss_class", "loss_box"))
    (found["loss_class"].mean() + found["loss_box"].mean()).backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("described", [True, False])
def test_the_hub_cache_serves_without_a_network(
    described: bool, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--some--detector", "0" * 40
    snapshot = repository / "snapshots" / commit
    shutil.copytree(folders["rt_detr"], snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    if described:
        (snapshot / "preprocessor_config.json").write_text('{"size": {"height": 96, "width": 96}}')
    else:  # what the hub's client leaves where it was told that there is none
        (repository / ".no_exist" / commit).mkdir(parents=True)
        (repository / ".no_exist" / commit / "preprocessor_config.json").touch()
    model = build("hf-hub:some/detector", None)
    assert isinstance(model, Detr)
    assert model.spec.size == ((96, 96) if described else (640, 640))
    assert model.classes == CLASSES
