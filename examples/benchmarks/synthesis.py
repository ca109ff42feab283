"""Throughput of ``kdcli synthesize`` against diffusers' stock image-variation pipeline on the same model.

    uv run examples/benchmarks/synthesis.py [--pairs 7] [--json examples/results/benchmark_synthesis.json]

Every arm starts from weights on disk and ends with PNG files on disk: variations of a few sources, several of
each, from a small model of random weights (speed does not depend on them).

* kdcli: ``kdcli synthesize --mixer variation``, sources encoded once, dataset artifact committed, in batches
  over several sources;
* same batch: the same in batches of one source, as large as the stock pipeline's;
* stock: ``StableDiffusionImageVariationPipeline`` called once per source with ``num_images_per_prompt``;
* one by one: the same called once per picture.

On a GPU: ``--size full --precision fp16`` takes the UNet, VAE and encoder of Stable Diffusion 1 at 512 px.
"""

import argparse
import itertools
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import diffusers
import torch
import transformers
from _paired import device_line, paired, ratio
from diffusers import StableDiffusionImageVariationPipeline as Stock

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.stages import synthesize
from kdcli.synthesis.pipeline import DTYPES

QUIET = Console(silent=True)
# widths of UNet, of VAE, of embedding; encoder (hidden, layers, heads, px, patch); latents; pictures made
SIZES: dict[str, tuple[Any, ...]] = {
    "small": ((32, 64), (16, 32), 64, (64, 2, 4, 32, 8), 8, (16, 4)),
    "full": ((320, 640, 1280, 1280), (128, 256, 512, 512), 768, (1024, 24, 16, 224, 14), 64, (8, 8)),
}


def write_model(folder: Path, size: str) -> None:
    """An image-variation model of random weights."""
    unet, vae, embedding, (hidden, layers, heads, side, patch), latents, _ = SIZES[size]
    torch.manual_seed(0)
    levels = len(unet)
    small = levels == 2
    vision = transformers.CLIPVisionConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, projection_dim=embedding, num_hidden_layers=layers,
        num_attention_heads=heads, image_size=side, patch_size=patch,
    )  # fmt: skip
    Stock(
        unet=diffusers.UNet2DConditionModel(
            sample_size=latents, block_out_channels=unet, layers_per_block=1 if small else 2,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            cross_attention_dim=embedding,
        ),
        vae=diffusers.AutoencoderKL(
            block_out_channels=vae, layers_per_block=1 if small else 2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
            norm_num_groups=16 if small else 32,
        ),
        image_encoder=transformers.CLIPVisionModelWithProjection(vision),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        feature_extractor=transformers.CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        ),
        safety_checker=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


class Arms:
    """What the arms share, made once."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options, self.numbers = folder, options, itertools.count()
        write_model(folder / "weights", options.size)
        self.sources, self.each = SIZES[options.size][-1]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.pictures = self.save_sources()

    @property
    def count(self) -> int:
        """Pictures that an arm makes."""
        return self.sources * self.each

    def save_sources(self) -> list[Any]:
        """The first bundled pictures, as data for kdcli and as PIL pictures."""
        file = Path(__file__).parents[1] / "data" / "fashion-mnist" / "train.parquet"
        table = datasets.Dataset.from_parquet(str(file), cache_dir=str(self.folder)).select(
            range(self.sources)
        )
        table.save_to_disk(str(self.folder / "data"))
        return [picture.convert("RGB") for picture in table["image"]]

    def kdcli(self, batch_size: int) -> None:
        """The whole stage, with a new cache."""
        out = self.folder / f"kdcli-{next(self.numbers)}"
        given = {"mixer": "variation", "weights": str(self.folder / "weights"), "per_image": self.each}
        given |= {"data.source": str(self.folder / "data"), "sampling.steps": self.options.steps}
        given |= {"batch_size": batch_size, "precision": self.options.precision}
        given |= {"out": str(out), "cache": f"{out}-cache"}
        synthesize.run(synthesize.plan(resolve(synthesize.Config, options=given), QUIET), QUIET)

    def stock(self, at_a_time: int) -> None:
        """The stock pipeline, ``at_a_time`` pictures of a source per call."""
        dtype = DTYPES[self.options.precision]
        pipeline = Stock.from_pretrained(
            self.folder / "weights", safety_checker=None, requires_safety_checker=False, dtype=dtype
        ).to(self.device)
        pipeline.set_progress_bar_config(disable=True)
        out = self.folder / f"stock-{next(self.numbers)}"
        out.mkdir()
        call = partial(
            pipeline,
            guidance_scale=3.0,
            num_inference_steps=self.options.steps,
            num_images_per_prompt=at_a_time,
        )
        for i, picture in enumerate(self.pictures):
            for j in range(0, self.each, at_a_time):
                for k, made in enumerate(call(picture).images):
                    made.save(out / f"{i}-{j + k}.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="pictures at a time of the arm kdcli")
    parser.add_argument("--precision", choices=DTYPES, default="no")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(Path(folder), options)
        functions = {
            "kdcli": partial(arms.kdcli, options.batch),
            "same batch": partial(arms.kdcli, arms.each),
            "stock": partial(arms.stock, arms.each),
            "one by one": partial(arms.stock, 1),
        }
        started = time.perf_counter()
        times = paired(functions, options.pairs, seed=0)
        seconds = time.perf_counter() - started
    report: dict[str, Any] = {"device": device_line(), **vars(options), "images": arms.count, "ratios": {}}
    report |= {"seconds": times}
    del report["json"]
    print(report["device"])
    print(
        f"{options.size} model, precision {options.precision}, {arms.sources} sources x {arms.each}, "
        f"{options.steps} steps, batches of {options.batch} (kdcli) and {arms.each}, "
        f"{options.pairs} pairs in {seconds:.0f} s"
    )
    for name, found in times.items():
        rates = sorted(arms.count / s for s in found)
        print(f"  {name:10}  {median(rates):8.2f} images/s  ({rates[0]:.2f} to {rates[-1]:.2f})")
    print("throughput of one over that of the other: median and 90 % interval")
    for ours, other in (("kdcli", "stock"), ("same batch", "stock"), ("kdcli", "one by one")):
        middle, low, high = ratio(times, other, ours)
        report["ratios"][f"{ours} / {other}"] = {"median": middle, "low": low, "high": high, "wanted": 1.0}
        print(f"  {ours:10} / {other:10}  {middle:.3f}  ({low:.3f} to {high:.3f})   wanted 1.0")
    if torch.cuda.is_available():
        report["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        print(f"largest memory of any arm: {report['peak_memory_gb']:.1f} GB")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
