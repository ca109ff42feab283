"""CLIP's encoder as a model: the published preprocessing, taps, files that plain transformers reads."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdcli.errors import InputError
from kdcli.models.protocol import Model
from kdcli.models.transformers import PictureTower
from kdcli.synthesis.clip import load_encoder


@pytest.fixture(scope="module")
def encoder(variations: Path) -> PictureTower:
    return load_encoder(variations, "tiny", "weights")


@pytest.fixture(scope="module")
def x() -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=draw)


@torch.no_grad()
def test_embeddings_are_those_of_the_published_pipelines(encoder: PictureTower, x: Tensor) -> None:
    mean, std = (torch.tensor(value)[:, None, None] for value in (encoder.spec.mean, encoder.spec.std))
    plain = encoder.body(pixel_values=(x.float().div(255) - mean) / std)
    assert torch.equal(encoder(x), plain.image_embeds)
    assert torch.equal(encoder(encoder.normalise(x / 255)), plain.image_embeds)
    found = encoder.call([x], ["tokens", "pooled"])
    assert torch.equal(found["tokens"], plain.last_hidden_state)
    assert torch.equal(encoder.body.visual_projection(found["pooled"]), plain.image_embeds)
    assert torch.equal(encoder.features(x, encoder.feature_names())["pooled"], found["pooled"])
    assert torch.equal(encoder.restore(encoder.prepare(x)), x)


def test_it_is_a_model_without_classes(encoder: PictureTower) -> None:
    assert isinstance(encoder, Model)
    assert (encoder.classes, encoder.outputs, encoder.layout) == (None, 0, "transformers")
    assert encoder.architecture == "CLIPVisionModelWithProjection"
    assert (encoder.source, encoder.trained) == ("weights", "pretrained")
    assert not any(p.requires_grad for p in encoder.parameters())
    name = "visual_projection.weight"
    assert encoder.tensor(name) is encoder.body.visual_projection.weight
    assert encoder.class_rows() is None


@torch.no_grad()
def test_plain_transformers_reads_its_files(encoder: PictureTower, x: Tensor, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    assert encoder.layout == "transformers"
    names = encoder.save(tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    plain = CLIPVisionModelWithProjection.from_pretrained(tmp_path).eval()
    assert torch.equal(plain(pixel_values=encoder.prepare(x)).image_embeds, encoder(x))
    (tmp_path / "doubled").mkdir()
    encoder.save(tmp_path / "doubled", {name: 2 * t for name, t in encoder.state_dict().items()})
    doubled = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "doubled")
    assert torch.equal(doubled.visual_projection.weight, 2 * encoder.tensor("visual_projection.weight"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda e, x: e.call([x], ["logits"]),
            "tiny has no tap 'logits': .* embedding, pooled, backbone",
        ),
        (lambda e, x: e.call([x, x], ["pooled"]), "tiny takes one input, pictures, and a call gives it 2"),
        (lambda e, x: e.call([], ["pooled"]), "and a call gives it 0"),
        (lambda e, x: e.tensor("visual_projection.weigth"), "Did you mean 'visual_projection.weight'"),
        (lambda e, x: e.attach(None, ["a"], "classification"), "has no place for a new head"),
        (lambda e, x: e.maps(x, "grid"), r"tiny \(CLIPVisionModelWithProjection\) has no feature maps"),
        (lambda e, x: e.reorder([1, 0], ["a", "b"]), "has no classifier"),
        (lambda e, x: e.layer_groups(0.1, 0.7), "has no layers that a layer decay could tell apart"),
    ],
)
def test_what_it_has_not_is_refused_by_name(encoder: PictureTower, x: Tensor, ask, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        ask(encoder, x)
