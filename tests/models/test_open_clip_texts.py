"""Text towers of open_clip: embeddings as open_clip has them, and weights that are not read."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdcli.errors import InputError
from kdcli.models.texts import open_text_tower

TEXTS = ["a photo of a cat", "a photo of " + "very " * 20 + "old dog", "boot"]
LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of open_clip of some ten thousand weights, but for its words."""
    place = tmp_path_factory.mktemp("open clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{place}", load_weights=False)
    save_file(
        {n: t.contiguous() for n, t in model.state_dict().items()}, place / "open_clip_model.safetensors"
    )
    return place


def test_embeddings_are_those_of_open_clip(folder: Path) -> None:
    tower = open_text_tower(f"local-dir:{folder}")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        wanted = model.encode_text(tokens)
    found = tower.encode(TEXTS)
    torch.testing.assert_close(found.embeddings, wanted, atol=1e-5, rtol=1e-5)
    assert found.truncated == (1,)
    assert tower.length == LENGTH
    assert not any(name.startswith("visual") for name in tower.body.state_dict())
    assert tower.hash == open_text_tower(str(folder)).hash


def test_other_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"code")
    with pytest.raises(InputError, match="others may hold code, and are not read"):
        open_text_tower(str(tmp_path))
    tensors = load_file(folder / "open_clip_model.safetensors")
    del tensors["ln_final.weight"]
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(InputError, match=r"lacks weights of the text tower, first ln_final\.weight"):
        open_text_tower(str(tmp_path))


def test_no_contexts_are_learned_through_it(folder: Path) -> None:
    with pytest.raises(InputError, match="through which no contexts are learned"):
        _ = open_text_tower(str(folder)).words
