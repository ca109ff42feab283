"""Is training segmentation heads together on cached maps faster than one by one, with the same results?

    uv run examples/benchmarks/dense_heads.py --json dense_heads.json
    uv run examples/benchmarks/dense_heads.py --pairs 1      # a minute

Three arms train the same eight heads (two features, four rates) on a frozen ViT-Ti/16 at 224 pixels:

* `together`: `train_dense_heads` with the whole grid, the backbone's maps in the cache;
* `one call per head`: the same, called with one spec after another on the same cache;
* `backbone in the loop`: one after another, the backbone run at every step, as a training loop would do it.

The cache is filled before the timing. CPU seconds of one thread, arms interleaved in random order; ratios are
taken inside a round: above 1, `together` is faster. Pictures are noise, since only time is measured.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _paired import device_line, paired, ratio
from PIL import Image
from torch import Tensor

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.data.batches import training_loader
from kdcli.data.cache import Store
from kdcli.data.order import Order, Pool, in_order
from kdcli.data.samples import Data
from kdcli.data.views import WholeCut
from kdcli.engine.cache import Filling
from kdcli.engine.grid import HeadResult, HeadSpec, Training
from kdcli.engine.runtime import open_runtime
from kdcli.losses.pixels import pixel_cross_entropy
from kdcli.models.build import build
from kdcli.models.heads import GRIDS, fresh
from kdcli.models.protocol import Model
from kdcli.runs import frame
from kdcli.sections import DataSection, RunSection
from kdcli.tasks.segmentation.probe import RATES
from kdcli.tasks.segmentation.solver import Part, Source, train_dense_heads

CLASSES, ARMS = 8, ("together", "one call per head", "backbone in the loop")
SPECS = [HeadSpec(feature, rate, 0.0, "adamw") for feature in GRIDS for rate in RATES]


def noise(folder: Path, count: int) -> Data:
    """Pictures of noise with masks of noise: ``count`` to train on, a quarter as many to choose by."""
    import datasets

    def png(array: np.ndarray) -> dict[str, object]:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG", compress_level=1)
        return {"bytes": buffer.getvalue(), "path": None}

    draw, splits = np.random.default_rng(0), {}
    for name, number in (("train", count), ("validation", max(2, count // 4))):
        columns = {
            "image": [png(draw.integers(0, 256, (224, 224, 3), np.uint8)) for _ in range(number)],
            "mask": [png(draw.integers(0, CLASSES, (224, 224), np.uint8)) for _ in range(number)],
        }
        made = datasets.Dataset.from_dict(columns)
        splits[name] = made.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return frame.labelled(DataSection(source=str(folder), validation="validation"), "train", "validation")


def in_the_loop(network: Model, parts: Sequence[Part], training: Training, reading: dict[str, int]) -> None:
    """Each head by itself, from pictures, by the steps of `train_dense_heads`, and scored as often."""
    train, held = parts
    order = Order(train.samples.labels, training.batch_size, training.seed, train.views)
    steps = math.ceil(training.epochs * order.steps_per_epoch)

    def loss(head: torch.nn.Module, batch: dict[str, Tensor], feature: str) -> Tensor:
        with torch.no_grad():
            grid = network.assembled(network.maps(batch["x"], feature))
        return pixel_cross_entropy(head(grid), batch["mask"])

    for spec in SPECS:
        head = fresh(spec.feature, network.body, CLASSES)
        optimizer = torch.optim.AdamW(head.parameters(), lr=spec.lr, weight_decay=0.0)
        for batch in training_loader(Pool((train.samples,)), train.cut, **reading)(
            [order.keys(k) for k in range(steps)]
        ):
            optimizer.zero_grad()
            loss(head.train(), batch, spec.feature).backward()
            optimizer.step()
        for _ in range(training.epochs):
            keys = in_order(len(held.samples), training.batch_size)
            for batch in training_loader(Pool((held.samples,)), held.cut, **reading)(keys):
                with torch.no_grad():
                    loss(head.eval(), batch, spec.feature)


def measure(count: int, epochs: int, pairs: int, seed: int, folder: Path) -> dict[str, object]:
    """Time the arms, compare what the first two return, print and return the figures."""
    network = build("vit_tiny_patch16_224", pretrained=False).requires_grad_(False).eval()
    runtime = open_runtime(resolve(RunSection, options={"device": "cpu", "threads": 1}))
    data, reading = noise(folder / "data", count), {"max_pixels": 10**6}
    source = Source(
        network, folder / "cache", Filling(runtime, Console(silent=True), 16, **reading), Store("fp16")
    )
    cut, training = WholeCut(network.spec), Training(epochs, 16, seed=seed)
    parts = [Part(data.split(name), cut, 1) for name in ("train", "validation")]

    def solve(specs: list[HeadSpec]) -> list[HeadResult]:
        return train_dense_heads(source, *parts, specs, CLASSES, training)

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            start = time.process_time()
            work()
            return time.process_time() - start

        return run

    arms = {
        "together": timed(lambda: solve(SPECS)),
        "one call per head": timed(lambda: [solve([spec])[0] for spec in SPECS]),
        "backbone in the loop": timed(lambda: in_the_loop(network, parts, training, reading)),
    }
    times = paired(arms, pairs, seed)
    same = all(a.metrics == solve([a.spec])[0].metrics for a in solve(SPECS))
    print(f"{len(SPECS)} heads, {count} pictures, {epochs} epochs, {pairs} pairs; results equal: {same}")
    figures: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        middle, low, high = ratio(times, arm, "together")
        figures[arm] = {"median": middle, "low": low, "high": high}
        print(f"  {arm:20s} {median(times[arm]):7.2f} s   x {middle:.2f} (90 %: {low:.2f} to {high:.2f})")
    return {
        "heads": len(SPECS), "pictures": count, "epochs": epochs, "equal": same, "seconds": times,
        "ratios": figures,
    }  # fmt: skip


def main() -> None:
    """Read the options, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=15, help="rounds of timing (default 15)")
    parser.add_argument("--count", type=int, default=16, help="training pictures (default 16)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {"device": device_line(), "pairs": options.pairs, "seed": options.seed}
    print(report["device"])
    with tempfile.TemporaryDirectory() as folder:
        report |= measure(options.count, options.epochs, options.pairs, options.seed, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
