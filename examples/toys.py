"""Networks and data of toy size, random but fixed: they show that commands work, and nothing else.

python examples/toys.py runs/toys    # pictures/, teacher.safetensors, image-mixer/ for the tiny recipe
"""

import argparse
import json
from pathlib import Path

EXAMPLE = Path(__file__).parent / "data" / "fashion-mnist"


def pictures(folder: Path) -> Path:
    """66 training and 24 test pictures of four classes of Fashion-MNIST, as a saved dataset."""
    import datasets

    splits = {}
    for name, count in (("train", 66), ("test", 24)):
        table = datasets.Dataset.from_parquet(str(EXAMPLE / f"{name}.parquet"), cache_dir=str(folder.parent))
        rows = [i for i, label in enumerate(table["label"][:1000]) if label < 4][:count]
        names = table.features["label"].names[:4]
        splits[name] = table.select(rows).cast_column("label", datasets.ClassLabel(names=names))
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def checkpoint(name: str, file: Path) -> Path:
    """Weights of timm's toy network ``name`` with 1000 classes; a ViT for 32 pixels."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model(name, **({"img_size": 32} if "vit" in name else {})).state_dict(), file)
    return file


def variation_model(folder: Path) -> Path:
    """Write a tiny image-variation model, made from configurations, as diffusers writes one."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = diffusers.AutoencoderKL(
        sample_size=16,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            projection_dim=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
    )
    for part in (unet, encoder):  # so that a token, and a picture, make a difference that one can see
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                if "attn2" in name or "visual_projection" in name:
                    parameter.mul_(8)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    diffusers.StableDiffusionImageVariationPipeline(
        vae=vae,
        image_encoder=encoder,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def image_mixer(folder: Path) -> Path:
    """:func:`variation_model`, marked as Image Mixer's weights."""
    index = variation_model(folder) / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "ImageMixerPipeline"}))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    pictures(folder / "pictures")
    checkpoint("test_vit", folder / "teacher.safetensors")
    image_mixer(folder / "image-mixer")


if __name__ == "__main__":
    main()
