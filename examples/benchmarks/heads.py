"""Is training a grid of linear heads together faster than one after another, with the same results?

    uv run examples/benchmarks/heads.py
    uv run examples/benchmarks/heads.py --pairs 31 --json heads.json
    uv run examples/benchmarks/heads.py --pairs 2 --scenes 384x10      # seconds

Three arms train the same heads on the same synthetic features and score them after each epoch:

* `together`: `train_heads` with the whole grid;
* `one call per head`: the same `train_heads`, called with one spec after another;
* `plain loop`: `torch.nn.Linear`, autograd and `torch.optim.SGD` per head, on the same tensors (no loader).

One thread, arms interleaved in random order. Ratios are taken inside a round: above 1, `together` is faster.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from _paired import device_line, paired, ratio
from torch import Tensor, nn

from kdcli.engine import heads
from kdcli.engine.grid import Features, HeadResult, HeadSpec, Training
from kdcli.tasks.classification.probe import rank, softmax

RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]  # DINOv2's 13


@dataclass(frozen=True)
class Scene:
    """A size to measure: DINOv2's 13 rates for each of `features` features and each weight decay."""

    width: int
    classes: int
    features: int
    epochs: int
    decays: tuple[float, ...] = (0.0,)
    samples: int = 2000
    val_samples: int = 400
    batch_size: int = 128


SCENES = {
    "384x10": Scene(384, 10, features=1, epochs=5, decays=(0.0, 1e-4, 1e-3, 1e-2)),  # 52 heads on one feature
    "4x384x10": Scene(384, 10, features=4, epochs=5),  # 13 heads on each of four, the shape of DINOv2's grid
    "3072x100": Scene(3072, 100, features=1, epochs=1),  # 13 heads, bound by the product itself
}
ARMS = ("together", "one call per head", "plain loop")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15, help="rounds per scene (default: 15)")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {"device": device_line(), "pairs": options.pairs, "seed": options.seed}
    print(report["device"])
    for name in options.scenes:
        report[name] = measure(name, SCENES[name], options.pairs, options.seed)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(name: str, scene: Scene, pairs: int, seed: int) -> dict[str, object]:
    """Time the arms of one scene, compare what they return, print and return the figures."""
    train, y, val, val_y = samples(scene, seed)
    specs = [HeadSpec(feature, lr, decay) for feature in train for decay in scene.decays for lr in RATES]
    outcome: dict[str, list[HeadResult]] = {}
    objective, training = softmax(scene.classes), Training(scene.epochs, scene.batch_size, seed=seed)
    parts = Features(train, y), Features(val, val_y, training=False)

    def together(grid: list[HeadSpec]) -> list[HeadResult]:
        return heads.train_heads(*parts, grid, objective, training, "cpu")

    def plain(spec: HeadSpec) -> HeadResult:
        return plain_loop(train[spec.feature], y, val[spec.feature], val_y, spec, scene, seed)

    arms: dict[str, Callable[[], list[HeadResult]]] = {
        "together": lambda: together(specs),
        "one call per head": lambda: [together([spec])[0] for spec in specs],
        "plain loop": lambda: [plain(spec) for spec in specs],
    }

    def run(arm: str) -> Callable[[], None]:
        return lambda: outcome.update({arm: arms[arm]()})

    times = paired({arm: run(arm) for arm in ARMS}, pairs, seed)
    print(f"\n{name}: {len(specs)} heads, {scene.samples} samples, {scene.epochs} epochs, {pairs} pairs")
    figures: dict[str, object] = {"heads": len(specs), "seconds": times, "ratios": {}, "differences": {}}
    print(f"  {'together':18s} {median(times['together']):7.3f} s")
    for arm in ARMS[1:]:
        middle, low, high = ratio(times, arm, "together")
        figures["ratios"] |= {arm: {"median": middle, "low": low, "high": high}}  # type: ignore[operator]
        gaps = difference(outcome["together"], outcome[arm])
        figures["differences"] |= {arm: gaps}  # type: ignore[operator]
        print(
            f"  {arm:18s} {median(times[arm]):7.3f} s   x {middle:.2f} (90 %: {low:.2f} to {high:.2f})   "
            f"difference: weights {gaps['weight']:.1e}, NLL {gaps['nll']:.1e}, top-1 {gaps['top1']:.1e}"
        )
    return figures


def samples(scene: Scene, seed: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]:
    """Gaussian classes that overlap, as features and labels of a training and a validation part."""
    g = torch.Generator().manual_seed(seed)
    total = scene.samples + scene.val_samples
    y = torch.randint(scene.classes, (total,), generator=g)
    parts = {}
    for i in range(scene.features):
        centres = torch.randn(scene.classes, scene.width, generator=g) * 0.15
        parts[f"feature{i}"] = centres[y] + torch.randn(total, scene.width, generator=g)
    train = {name: x[: scene.samples].clone() for name, x in parts.items()}
    val = {name: x[scene.samples :].clone() for name, x in parts.items()}
    return train, y[: scene.samples], val, y[scene.samples :]


def plain_loop(
    x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, spec: HeadSpec, scene: Scene, seed: int
) -> HeadResult:
    """One head as anyone would write it, from the same initial weights and in the same order of samples."""
    head = nn.Linear(scene.width, scene.classes)
    with torch.no_grad():
        head.weight.copy_(heads.initial_weight(seed, spec.feature, scene.classes, scene.width))
        head.bias.zero_()
    rate = spec.lr * scene.batch_size / 256
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9, weight_decay=spec.weight_decay)
    steps = scene.epochs * math.ceil(len(y) / scene.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    winner: HeadResult | None = None
    for epoch in range(1, scene.epochs + 1):
        for batch in heads.sample_order(seed, epoch, len(y)).split(scene.batch_size):
            loss = nn.functional.cross_entropy(head(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits = head(val_x)
            top1 = (logits.argmax(1) == val_y).float().mean().item()
            score = {"top1": top1, "nll": nn.functional.cross_entropy(logits, val_y).item()}
            if winner is None or rank(score) < winner.rank:
                tensors = {name: tensor.clone() for name, tensor in head.state_dict().items()}
                winner = HeadResult(spec, tensors, score, rank(score), epoch, scene.epochs)
    assert winner is not None
    return winner


def difference(ours: list[HeadResult], theirs: list[HeadResult]) -> dict[str, float]:
    """The largest difference over heads: of weights relative to a head's largest weight, of NLL, of top-1."""
    pairs = list(zip(ours, theirs))
    weights = [(a.tensors["weight"], b.tensors["weight"]) for a, b in pairs]
    scores = [(a.metrics, b.metrics) for a, b in pairs]
    return {
        "weight": max(((a - b).abs().max() / b.abs().max()).item() for a, b in weights),
        "nll": max(abs(a["nll"] - b["nll"]) / b["nll"] for a, b in scores),
        "top1": max(abs(a["top1"] - b["top1"]) for a, b in scores),
    }


if __name__ == "__main__":
    main()
