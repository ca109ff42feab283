"""The converter of the published checkpoint, on one with the same key names and tiny tensors."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toolbox import Payload

from kdcli.errors import InputError
from kdcli.synthesis import pipeline
from kdcli.synthesis.weights import find

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import image_mixer_checkpoint as example

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
LAYERS, LEVELS = 1, 2


def swap(text, table):
    for new, old in table.items():
        text = re.sub(rf"(^|\.){re.escape(new)}\.", rf"\g<1>{old}.", text)
    return text


def unet_key(name):
    """Latent diffusion's name of a tensor of the UNet: blocks are counted through, not level by level."""
    step = LAYERS + 1
    if found := re.match(
        r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name
    ):
        way, level, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if kind == "downsamplers":
            return f"input_blocks.{level * step + step}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":  # behind the level's last resnet, and its attention if there is one
            return f"output_blocks.{level * step + LAYERS}.{1 if level == 0 else 2}.{rest}"
        block = (
            f"input_blocks.{1 + level * step + layer}"
            if way == "down"
            else f"output_blocks.{level * step + layer}"
        )
        return f"{block}.1.{rest}" if kind == "attentions" else f"{block}.0.{swap(rest, RESNET)}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        number = 1 if found[1] == "attentions" else 2 * int(found[2])
        rest = found[3] if found[1] == "attentions" else swap(found[3], RESNET)
        return f"middle_block.{number}.{rest}"
    return swap(name, UNET)


def vae_key(name):
    """Latent diffusion's name of a tensor of the VAE: the decoder's levels are counted from the bottom."""
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{LEVELS - 1 - int(m[1])}.block.", name)
    name = re.sub(
        r"up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f"up.{LEVELS - 1 - int(m[1])}.upsample.", name
    )
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
    if "mid_block.attentions.0." in name:
        name = swap(name.replace("mid_block.attentions.0.", "mid.attn_1."), ATTENTION)
    return swap(name, {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out"})


@pytest.fixture(scope="module")
def mixer(variations):
    """UNet and VAE of the variations, finetuned: every tensor is another."""
    model = pipeline.load(variations, "ddim", torch.float32, torch.device("cpu"))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (*model.unet.parameters(), *model.vae.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.05)
    return model


@pytest.fixture(scope="module")
def tensors(mixer):
    """The original format, with what else the published file holds."""
    found = {f"model.diffusion_model.{unet_key(k)}": v for k, v in mixer.unet.state_dict().items()}
    for name, tensor in mixer.vae.state_dict().items():
        key = vae_key(name)
        is_map = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key)  # 1 x 1 convolutions there
        found[f"first_stage_model.{key}"] = tensor[:, :, None, None] if is_map else tensor
    return {**found, "betas": torch.ones(3), "cond_stage_model.model.visual.proj": torch.ones(2, 2)}


@pytest.fixture
def checkpoint(tensors, tmp_path):
    torch.save({"state_dict": tensors, "global_step": 3}, tmp_path / "image-mixer-pruned.ckpt")
    return tmp_path / "image-mixer-pruned.ckpt"


def test_the_names_are_latent_diffusion_s(tensors):
    names = [  # of any Stable Diffusion 1 checkpoint
        *(
            "time_embed.2.bias",
            "input_blocks.0.0.weight",
            "input_blocks.1.0.in_layers.2.weight",
            "out.2.bias",
        ),
        *("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "input_blocks.1.1.proj_in.weight"),
        *("input_blocks.2.0.op.weight", "middle_block.0.emb_layers.1.weight", "middle_block.1.norm.weight"),
        *("output_blocks.0.0.skip_connection.weight", "output_blocks.3.1.proj_out.bias"),
    ]
    first = ["encoder.down.0.block.0.norm1.weight", "encoder.mid.attn_1.q.weight", "quant_conv.weight"]
    first += ["encoder.down.0.downsample.conv.weight", "decoder.up.1.upsample.conv.weight"]
    first += ["decoder.mid.block_2.conv2.bias", "decoder.norm_out.weight", "post_quant_conv.bias"]
    wanted = {f"model.diffusion_model.{n}" for n in names} | {f"first_stage_model.{n}" for n in first}
    assert wanted <= set(tensors)


def test_the_converted_model_gives_the_same_pictures(checkpoint, mixer, variations, tmp_path):
    out = tmp_path / "out"
    example.convert(checkpoint, variations, out)
    found = find(str(out), "imagemixer")
    assert found.image_mixer
    assert (found.resolution, found.licence) == (160, "openrail")  # 80 latents, here of 2 pixels
    converted = pipeline.load(out, "ddim", torch.float32, torch.device("cpu"))
    tokens = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))
    ours, theirs = (
        pipeline.sample(model, tokens, [1, 2], resolution=16, steps=4, guidance=3.0)
        for model in (converted, mixer)
    )
    assert np.array_equal(ours, theirs)
    for part in ("unet", "vae"):
        states = [getattr(model, part).state_dict() for model in (converted, mixer)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name in ("scheduler/scheduler_config.json", "image_encoder/model.safetensors"):
        assert (out / name).read_bytes() == (variations / name).read_bytes()
    assert list(out.rglob("*.bin")) == []


def test_a_payload_is_not_run(variations, tmp_path):
    torch.save({"state_dict": {"w": Payload(tmp_path / "ran")}}, tmp_path / "bad.ckpt")
    with pytest.raises(InputError, match="holds pickled code or objects"):
        example.convert(tmp_path / "bad.ckpt", variations, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("unet", "model.diffusion_model.middle_block.1.proj_in.weight"),
        ("vae", "first_stage_model.decoder.conv_in.weight"),
    ],
)
def test_a_tensor_is_missing(part, key, tensors, variations, tmp_path):
    torch.save({"state_dict": {k: v for k, v in tensors.items() if k != key}}, tmp_path / "cut.ckpt")
    with pytest.raises(InputError, match=f"the checkpoint's {part} lacks a tensor, or is not that of"):
        example.convert(tmp_path / "cut.ckpt", variations, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_network(tensors, variations, tmp_path):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    torch.save({"state_dict": {**tensors, key: torch.ones(8, 1024)}}, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="the checkpoint's unet lacks a tensor, or is not that of"):
        example.convert(tmp_path / "other.ckpt", variations, tmp_path / "out")


def test_variations_that_are_pickled_become_safetensors(variations, tmp_path):
    from safetensors.torch import load_file

    pickled = tmp_path / "pickled"
    shutil.copytree(variations, pickled)
    names = {"unet": "diffusion_pytorch_model.bin", "vae": "diffusion_pytorch_model.bin"}
    for part, name in {**names, "image_encoder": "pytorch_model.bin"}.items():
        (file,) = (pickled / part).glob("*.safetensors")
        torch.save(load_file(file), pickled / part / name)
        file.unlink()
    (pickled / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    with pytest.raises(InputError, match="pickled weights are not read"):
        find(str(pickled), "variation")
    example.convert(None, example.local(str(pickled)), tmp_path / "out")
    found = find(str(tmp_path / "out"), "variation")
    assert (found.image_mixer, found.resolution) == (False, 16)
    assert found.licence == "creativeml-openrail-m"
    for part in ("unet", "vae", "image_encoder"):
        (ours,), (theirs,) = ((root / part).glob("*.safetensors") for root in (tmp_path / "out", variations))
        ours, theirs = load_file(ours), load_file(theirs)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
