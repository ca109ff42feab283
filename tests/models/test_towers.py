"""Picture towers of vision-language models: against plain transformers, as artifacts; what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from vision_language import SHARED, SIDE, WIDTH, tiny_clip, tiny_siglip

from kdcli.errors import InputError, UsageError
from kdcli.models.banks import TextBank, mean_of_texts
from kdcli.models.build import build
from kdcli.models.families import logit_scale
from kdcli.models.transformers import PictureTower

MAKERS = {"clip": tiny_clip, "siglip": tiny_siglip}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vlm")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def bank(width: int, count: int = 4) -> TextBank:
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(1))
    names = tuple(f"class {i}" for i in range(count))
    return TextBank(names, mean_of_texts(rows, [1] * count), tuple((n,) for n in names), "here", "ab", 20.0)


def whole(folder: Path) -> object:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()


def pictures_of(model: object, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        found = model.get_image_features(pixel_values=pixels)  # type: ignore[attr-defined]
    return found if isinstance(found, Tensor) else found.pooler_output


@pytest.mark.parametrize("family", MAKERS)
def test_embeddings_are_those_of_plain_transformers(
    family: str, folders: dict[str, Path], x: Tensor, tmp_path: Path
) -> None:
    """From pixels on, by the processor of transformers on its side, by the tower's own ``prepare`` here."""
    from transformers import AutoImageProcessor

    folder = folders[family]
    tower = build(f"local-dir:{folder}").eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=list(x), return_tensors="pt", input_data_format="channels_first")[
        "pixel_values"
    ]
    wanted = pictures_of(whole(folder), pixels)
    with torch.inference_mode():
        found = tower(x)
    assert wanted.std() > 1e-3
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(found, dim=1), unit(wanted, dim=1), atol=1e-5, rtol=0)
    assert tower.text_width == found.shape[1] == {"clip": SHARED, "siglip": WIDTH}[family]


@pytest.mark.parametrize("family", MAKERS)
def test_an_artifact_comes_back_with_its_bank(
    family: str, folders: dict[str, Path], x: Tensor, tmp_path: Path
) -> None:
    from kdcli.artifacts.manifest import Manifest
    from kdcli.artifacts.store import open_output

    tower = build(f"local-dir:{folders[family]}").eval()
    own = bank(tower.text_width)
    tower.attach_bank(own, projected=True)
    with torch.inference_mode():
        embedding = tower.call([x], ["embedding"])["embedding"]
        logits = tower(x)
    wanted = 20.0 * torch.nn.functional.normalize(embedding, dim=1) @ own.embeddings.t()
    torch.testing.assert_close(logits, wanted)
    with open_output(tmp_path / "out", {"a": 1}) as output:
        assert output is not None
        names = tower.save(output.partial)
        manifest = Manifest("model", "probe", {"a": 1})
        manifest.facts = {"task": tower.task, "classes": tower.classes, "layout": tower.layout}
        output.commit(manifest, names)
    again = build(str(tmp_path / "out")).eval()
    assert isinstance(again, PictureTower)
    assert again.classes == list(own.classes)
    assert again.spec == tower.spec
    with torch.inference_mode():
        assert torch.equal(again(x), logits)
    described = json.loads((tmp_path / "out" / "texts.json").read_text())
    assert described["tower"] == {"name": "here", "hash": "ab", "width": own.width}
    assert described["texts"]["class 2"] == ["class 2"]


def test_candidates_are_those_that_are_asked_for(folders: dict[str, Path], x: Tensor) -> None:
    tower = build(f"local-dir:{folders['clip']}").eval()
    tower.attach_bank(bank(SHARED), projected=True)
    with torch.inference_mode():
        before = tower(x)
        tower.select(["class 3", "class 1"])
        torch.testing.assert_close(tower(x), before[:, [3, 1]])
    assert tower.classes == ["class 3", "class 1"]
    with pytest.raises(InputError, match=r"has no text for 'clas 1'\. Did you mean 'class 1'\?"):
        tower.select(["clas 1"])


def test_the_scale_of_its_logits_is_its_own(folders: dict[str, Path]) -> None:
    stored = whole(folders["clip"]).logit_scale.exp().item()  # type: ignore[attr-defined]
    assert logit_scale(f"local-dir:{folders['clip']}") == pytest.approx(stored)
    assert logit_scale("resnet18") is None


def test_views_of_another_size_are_resized(folders: dict[str, Path]) -> None:
    tower = build(f"local-dir:{folders['clip']}").eval()
    large = torch.zeros(2, 3, 50, 40, dtype=torch.uint8)
    assert tower.prepare(large).shape == (2, 3, SIDE, SIDE)


def test_grid_and_tokens(folders: dict[str, Path], x: Tensor) -> None:
    for family, prefix in (("clip", 1), ("siglip", 0)):
        tower = build(f"local-dir:{folders[family]}").eval()
        with torch.inference_mode():
            found = tower.call([x], ["tokens", "grid", "backbone"])
        assert found["tokens"].shape == (3, 16 + prefix, WIDTH)
        assert torch.equal(found["grid"].flatten(2).transpose(1, 2), found["tokens"][:, prefix:])
        assert found["backbone"].shape == (3, WIDTH)


def test_what_a_tower_has_not_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    name = f"local-dir:{folders['clip']}"
    with pytest.raises(UsageError, match="takes pictures of its own size only"):
        build(name, size=64)
    with pytest.raises(
        InputError, match=r"embeds pictures in 16 numbers, and the texts are embedded in 7 \(here\)"
    ):
        build(name).attach_bank(bank(7), projected=True)
    lacking = tmp_path / "no pictures"
    shutil.copytree(folders["clip"], lacking)
    from safetensors.torch import load_file, save_file

    tensors = load_file(lacking / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not n.startswith("vision_model.encoder.layers.1")},
              lacking / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match="has no picture tower of clip: missing keys, first vision_model"):
        build(f"local-dir:{lacking}")


def test_a_damaged_bank_is_refused(folders: dict[str, Path]) -> None:
    from kdcli.models.banks import read_bank

    described, rows = bank(SHARED).to_json(), bank(SHARED).embeddings
    assert read_bank(described, rows, "here").classes == bank(SHARED).classes
    with pytest.raises(InputError, match="describes 4 classes, and the bank has 3 rows"):
        read_bank(described, rows[:3], "here")
    with pytest.raises(InputError, match="describes no bank of texts: 'tower'"):
        read_bank({"texts": {}}, rows, "here")
    with pytest.raises(InputError, match="a bank whose numbers are none"):
        read_bank(described, rows * float("nan"), "here")
