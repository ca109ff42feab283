"""Weights are found and checked by their JSON files, and what is missing is said with the ways out."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toolbox import flip

from kdcli.errors import EnvironmentFault, InputError
from kdcli.synthesis import clip, pipeline
from kdcli.synthesis.weights import find

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(variations, tmp_path):
    shutil.copytree(variations, tmp_path / "copy")
    return tmp_path / "copy"


def test_what_is_read(variations, image_mixer):
    found = find(str(variations), "variation")
    assert (found.folder, found.name, found.image_mixer) == (variations, str(variations), False)
    assert (found.resolution, found.multiple, found.image_size) == (16, 8, 16)
    assert found.parent == {"role": "weights", "path": str(variations), "hash": found.hash}
    assert find(str(image_mixer), "imagemixer").image_mixer


def test_the_three_ways_out_exist():
    with pytest.raises(InputError) as caught:
        find(None, "imagemixer")
    text = str(caught.value)
    assert text.startswith("--mixer imagemixer needs --weights. Three ways out: ")
    assert "examples/image_mixer_checkpoint.py" in text
    assert "--weights lambdalabs/sd-image-variations-diffusers@v2.0" in text
    assert "--mixer mixup or cutmix" in text
    assert (ROOT / "examples" / "image_mixer_checkpoint.py").is_file()


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "a/b/c"])
def test_nothing_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"--weights {name} does not exist\. Three ways out"):
        find(name, "imagemixer")


def test_a_hub_id_without_a_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"no weights who/what@v2 \(.*the cache has no copy\)\. Three ways"):
        find("who/what@v2", "variation")


def test_pickled_weights_are_not_read(copy):
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({}, file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(
        InputError, match=r"no vae/\*\.safetensors, and pickled weights are not read.*: python"
    ):
        find(str(copy), "variation")


def test_no_diffusers_directory(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"empty has no model_index\.json: it is no diffusers directory\. Three"
    ):
        find(str(tmp_path / "empty"), "variation")
    shutil.rmtree(copy / "image_encoder")
    with pytest.raises(
        InputError, match=r"no image_encoder/config\.json: it is no diffusers directory of an"
    ):
        find(str(copy), "variation")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_damaged_json(copy, text):
    (copy / "unet" / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is not (readable|a JSON object)"):
        find(str(copy), "variation")


def test_a_text_to_image_model_is_refused(copy):
    file = copy / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "cross_attention_dim": 1024}))
    with pytest.raises(
        InputError, match="no image-variation model: its UNet attends to 1024 features, its image"
    ):
        find(str(copy), "variation")


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_the_hash_covers_all_that_is_read(copy, part):
    before = find(str(copy), "variation").hash
    (file,) = (copy / part).glob("*.safetensors")
    flip(file)
    assert find(str(copy), "variation").hash != before
    flip(file)
    (copy / "README.md").write_text("---\nlicense: openrail\ntags: [a]\n---\n# Card\n")
    found = find(str(copy), "variation")
    assert (found.hash, found.licence) == (before, "openrail")


def read(folder, part):
    if part == "image_encoder":
        return clip.load_encoder(folder, "tiny", "")
    return pipeline.load(folder, "ddim", torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_truncated_weights(copy, part):
    (file,) = (copy / part).glob("*.safetensors")
    data = file.read_bytes()
    for length in (0, 7, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(
            InputError, match=rf"{copy / part} cannot be loaded: .* Fetch or convert it again"
        ):
            read(copy, part)


@pytest.mark.parametrize("part", ["unet", "vae", "image_encoder"])
def test_a_tensor_is_missing_or_of_another_shape(copy, part):
    (file,) = (copy / part).glob("*.safetensors")
    tensors = load_file(file)
    name = sorted(tensors)[3]
    save_file({k: v for k, v in tensors.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{copy / part} lacks 1 tensors, first {name}"):
        read(copy, part)
    save_file({**tensors, name: torch.ones(7, 7)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"{copy / part} cannot be loaded"):
        read(copy, part)


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_library_that_is_not_installed(library, variations, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else real(name))
    with pytest.raises(
        EnvironmentFault, match=rf"--mixer variation needs {library}: pip install {library}\."
    ):
        find(str(variations), "variation")
