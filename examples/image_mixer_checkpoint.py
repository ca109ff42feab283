"""Write the published Image Mixer checkpoint as a diffusers directory for ``kdcli synthesize --weights``.

    uv run examples/image_mixer_checkpoint.py image-mixer-pruned.ckpt --out image-mixer \\
        --variations lambdalabs/sd-image-variations-diffusers@v2.0
    kdcli synthesize --weights image-mixer --data cars/ --out runs/mixed

The checkpoint (lambdalabs/image-mixer, openrail licence) has latent diffusion's own format: a pickle, read as
tensors only, never run. It holds UNet and VAE; image encoder, scheduler and all configurations come from the
image-variation model that it was finetuned from: a local directory, or a hub id with ``@revision``.
Without a checkpoint the variations themselves are written, for those that have no safetensors.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub import snapshot_download
from transformers import CLIPVisionModelWithProjection

from kdcli.errors import InputError
from kdcli.models.legacy import read_weights
from kdcli.synthesis.weights import MARK, PARTS

LATENTS = 80  # Image Mixer was trained at 640 px, 80 latents of 8


def local(variations: str) -> Path:
    """The directory of the image-variation model, downloaded if it is a hub id."""
    if Path(variations).is_dir():
        return Path(variations)
    repository, _, revision = variations.partition("@")
    names = ["*.json", "*.safetensors", "*.bin"]
    patterns = [f"{part}/{name}" for part in (*PARTS, "scheduler") for name in names]
    return Path(
        snapshot_download(repository, revision=revision or None, allow_patterns=["*.json", "*.md", *patterns])
    )


def from_checkpoint(kind: Any, tensors: dict[str, Any], variations: Path, part: str) -> Any:
    """A part by diffusers' own conversion; refused unless the checkpoint has every tensor of it."""
    try:
        return kind.from_single_file(tensors, config=str(variations), subfolder=part, local_files_only=True)
    except Exception as error:  # of many kinds: each says that these are other networks
        what = f"the checkpoint's {part} lacks a tensor, or is not that of {variations}"
        raise InputError(f"{what}: {error}") from error


def convert(checkpoint: Path | None, variations: Path, out: Path) -> None:
    """Write the directory.

    Raises:
        InputError: a checkpoint that is damaged, holds code, or lacks a tensor.
    """
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    if checkpoint is None:
        parts = {name: kind.from_pretrained(variations, subfolder=name) for name, kind in kinds.items()}
    else:
        tensors = read_weights(checkpoint).tensors
        parts = {name: from_checkpoint(kind, tensors, variations, name) for name, kind in kinds.items()}
        parts["unet"].register_to_config(sample_size=LATENTS)
    parts["image_encoder"] = CLIPVisionModelWithProjection.from_pretrained(
        variations, subfolder="image_encoder"
    )
    index = json.loads((variations / "model_index.json").read_text())
    draft = out.with_name(f"{out.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    for name, network in parts.items():
        network.save_pretrained(draft / name)
    shutil.copytree(variations / "scheduler", draft / "scheduler")
    if checkpoint is not None:
        index["_class_name"] = MARK
        (draft / "README.md").write_text("---\nlicense: openrail\n---\nlambdalabs/image-mixer, converted.\n")
    elif (variations / "README.md").exists():
        shutil.copy(variations / "README.md", draft)
    (draft / "model_index.json").write_text(json.dumps(index, indent=1))
    draft.rename(out)  # a directory that is there is whole


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="Image Mixer's .ckpt")
    parser.add_argument("--variations", required=True, help="directory or hub id of the variations")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} exists")
    try:
        convert(arguments.checkpoint, local(arguments.variations), arguments.out)
    except InputError as error:
        raise SystemExit(str(error)) from error
    print(arguments.out)


if __name__ == "__main__":
    main()
