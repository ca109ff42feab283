"""Speed of training a detector against a hand-written loop of transformers, of the same network and batches.

    python examples/boxes.py squares . runs/squares
    python examples/benchmarks/detection.py runs/squares [--pairs 15] [--json FILE]

Both arms see the same made-up pictures and boxes through the same loader, on one thread, in random order: the
steps of ``kdcli distill --method supervised`` with a whole RT-DETR of transformers, and the loop that its
documentation shows: the network called with labels, its loss, backward, clip, AdamW, cosine. Weights are
random: speed does not depend on them.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch
from _paired import device_line, paired, ratio
from torch import nn
from transformers import (
    AutoModelForObjectDetection,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
)

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.data.batches import training_loader
from kdcli.stages import distill

QUIET = Console(silent=True)
BATCH, STEPS, SIZE = 16, 8, 96


def network(folder: Path) -> Path:
    """A small RT-DETR of transformers, as a folder that it has written."""
    backbone = RTDetrResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 48, 64, 96],
        depths=[1] * 4,
        layer_type="basic",
        out_indices=[2, 3, 4],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[48, 64, 96],
        decoder_in_channels=[64] * 3,
        freeze_backbone_batch_norms=False,
        num_labels=2,
        d_model=64,
        encoder_hidden_dim=64,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_layers=2,
        num_queries=40,
        num_denoising=20,
    )
    RTDetrForObjectDetection(config).save_pretrained(folder)
    return folder


class Arms:
    """Everything the arms share, made once."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.detector = network(folder / "detector")
        options = {"student": f"local-dir:{self.detector}", "from_scratch": True, "image_size": SIZE}
        options |= {"data.source": str(data), "method.name": "supervised", "views.count": "live"}
        options |= {"optim.max_steps": STEPS, "optim.batch_size": BATCH, "evaluate_every": 1e6}
        options |= {"overwrite": True, "out": str(folder / "student"), "optim.warmup": 0.0}
        made = distill.plan(resolve(distill.Config, options=options), QUIET)
        assert isinstance(made, distill.Plan)
        self.plan = made

    def kdcli(self) -> float:
        """Seconds of the steps of one run, as its manifest has them (no set-up, no export)."""
        out = distill.run(self.plan, QUIET).path
        return float(json.loads((out / "kdcli.json").read_text())["seconds"])

    def hand(self) -> float:
        """A loop of torch and transformers: seconds of its steps."""
        model = AutoModelForObjectDetection.from_pretrained(self.detector).train()
        optimizer: Any = timm.optim.create_optimizer_v2(model, opt="adamw", lr=5e-4, weight_decay=0.05)
        material = self.plan.material
        loader = training_loader(material.pool, material.view, max_pixels=self.plan.config.data.max_pixels)
        start = time.perf_counter()
        for number, batch in enumerate(loader([material.order.keys(k) for k in range(STEPS)])):
            for group in optimizer.param_groups:
                group["lr"] = 5e-4 * (1 + math.cos(math.pi * number / STEPS)) / 2
            labels = [{"class_labels": c, "boxes": b} for c, b in zip(batch["classes"], batch["boxes"])]
            loss = model(batch["x"].float() / 255, labels=labels).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="python examples/boxes.py squares . runs/squares makes some")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(Path(folder), given.data)
        times = paired({"kdcli": arms.kdcli, "hand": arms.hand}, given.pairs, seed=0)
    speed, low, high = ratio(times, "hand", "kdcli")
    print(f"{device_line()}\n{given.pairs} pairs of {STEPS} steps of {BATCH} at {SIZE} px")
    print(f"steps a second over a loop by hand: {speed:.3f} ({low:.3f} to {high:.3f})")
    if given.json:
        found = {"device": device_line(), "pairs": given.pairs, "steps": STEPS, "batch": BATCH, "size": SIZE}
        found |= {"speed_over_hand": {"median": speed, "low": low, "high": high}, "seconds": times}
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
