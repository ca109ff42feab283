"""Speed of distillation against the same loop without a teacher, a hand-written loop and timm's own task.

    uv run examples/benchmarks/distill.py [--pairs 15] [--json examples/results/benchmark_distill.json]

All arms see the same pictures through the same loader, on one thread, in random order:

* supervised, cached, live: ``kdcli distill`` without a teacher, with cached and with live teacher outputs;
* hand: the loop a researcher writes (teacher under no_grad, loss, backward, clip, AdamW, cosine);
* timm: the same with ``timm.task.LogitDistillationTask``;
* features, bare: the cache's pass over a backbone, and its bare forward over the same loader.

The weights are random: speed does not depend on them. Filling the cache is timed and reported beside.
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from _paired import device_line, paired, ratio
from safetensors.torch import save_file
from timm.task import LogitDistillationTask
from torch import nn
from torch.nn import functional as F

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.data.batches import training_loader
from kdcli.data.cache import Store
from kdcli.data.order import Order, Pool
from kdcli.data.views import EvaluationCut
from kdcli.engine.cache import Filling, Request, fill
from kdcli.engine.runtime import open_runtime
from kdcli.stages import distill, probe

QUIET = Console(silent=True)
TEACHER, STUDENT, SIZE = "tf_efficientnet_lite0", "resnet10t", 48
BATCH, STEPS, TEMPERATURE = 32, 8, 4.0
FEATURE_PICTURES = 1024


def make_teacher(folder: Path) -> Path:
    """An artifact of random weights that knows the data's classes."""
    weights = folder / "weights.safetensors"
    save_file(timm.create_model(TEACHER).state_dict(), weights)
    options = {
        "teacher": TEACHER,
        "weights": str(weights),
        "image_size": SIZE,
        "data.source": "example:fashion-mnist",
    }
    options |= {"data.labels_per_class": 2, "features": "timm", "grid.epochs": 1, "grid.solver": "sgd"}
    options |= {"out": str(folder / "teacher"), "cache": str(folder / "cache")}
    return probe.run(probe.plan(resolve(probe.Config, options=options), QUIET), QUIET).path


class Arms:
    """Everything the arms share, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, itertools.count()
        self.teacher = make_teacher(folder)
        self.plans = {
            "supervised": self.plan("supervised", {"method.name": "supervised", "views.count": "2"}),
            "cached": self.plan("cached", {"method.name": "kd", "views.count": "2"}),
            "live": self.plan("live", {"method.name": "kd", "views.count": "live"}),
        }
        self.reading = {"max_pixels": self.plans["live"].config.data.max_pixels}
        self.fill_seconds = 0.0

    def plan(self, name: str, more: dict[str, object]) -> distill.Plan:
        """A plan of the stage, at the size of this benchmark."""
        options = {"teacher": str(self.teacher), "student": STUDENT, "from_scratch": True, "image_size": SIZE}
        options |= {
            "data.source": "example:fashion-mnist",
            "optim.max_steps": STEPS,
            "optim.batch_size": BATCH,
        }
        options |= {"evaluate_every": 1e6, "cache": str(self.folder / "cache"), "overwrite": True}
        options |= {"out": str(self.folder / name), "optim.warmup": 0.0, **more}
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    def kdcli(self, name: str) -> float:
        """Seconds of the steps of one run, as its manifest has them (no set-up, no export)."""
        out = distill.run(self.plans[name], QUIET).path
        return float(json.loads((out / "kdcli.json").read_text())["seconds"])

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches that the live arm sees."""
        plan = self.plans["live"]
        order = Order(plan.material.pool.labels, BATCH, 0, views=None)
        loader = training_loader(plan.material.pool, plan.material.view, **self.reading)
        return loader([order.keys(k) for k in range(STEPS)])

    def hand(self, task: bool) -> float:
        """A loop without kdcli's engine: seconds of its steps."""
        student = timm.create_model(STUDENT, num_classes=10)
        spec = self.plans["live"].material.networks["teacher"].spec
        teacher = timm.create_model(TEACHER, num_classes=10).eval()
        kept = self.plans["live"].material.networks["student"].spec
        means = [torch.tensor(s.mean).view(1, 3, 1, 1) * 255 for s in (kept, spec)]
        stds = [torch.tensor(s.std).view(1, 3, 1, 1) * 255 for s in (kept, spec)]
        optimizer = timm.optim.create_optimizer_v2(student, opt="adamw", lr=5e-4, weight_decay=0.05)
        distillation = LogitDistillationTask(
            student, teacher, criterion=nn.CrossEntropyLoss(), distill_loss_weight=0.9, task_loss_weight=0.1,
            temperature=TEMPERATURE, verbose=False,
        )  # fmt: skip
        student.train()
        start = time.perf_counter()
        for step, batch in enumerate(self.batches()):
            for group in optimizer.param_groups:
                group["lr"] = 5e-4 * (1 + math.cos(math.pi * step / STEPS)) / 2
            x, y = batch["x"].float(), batch["y"]
            if task:
                loss = distillation((x - means[0]) / stds[0], y)["loss"]
            else:
                with torch.no_grad():
                    target = F.log_softmax(teacher((x - means[1]) / stds[1]) / TEMPERATURE, dim=1)
                logits = student((x - means[0]) / stds[0])
                soft = F.kl_div(
                    F.log_softmax(logits / TEMPERATURE, 1), target, reduction="batchmean", log_target=True
                )
                loss = 0.1 * F.cross_entropy(logits, y) + 0.9 * TEMPERATURE**2 * soft
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - start

    def features(self, cached: bool) -> None:
        """One pass of the backbone over some pictures: into a new cache, or bare."""
        plan = self.plans["live"]
        network = plan.material.networks["teacher"].eval()
        samples = plan.data.split("train")
        pool = Pool((samples.take(np.arange(FEATURE_PICTURES)),))
        runtime = open_runtime(resolve(distill.Config, options={"device": "cpu"}))
        cut = EvaluationCut(network.spec)
        names = ["pooled", "last4"]
        if cached:
            parts, recipe = ("pooled", "back2", "back3", "back4"), cut.recipe()
            store = Store("fp32")
            request = Request(network, parts, lambda x: network.features(x, names), cut, recipe, 1, store)
            filling = Filling(runtime, QUIET, BATCH, **self.reading)
            fill(self.folder / f"new-{next(self.numbers)}", request, pool, filling, "features")
            return
        loader = training_loader(pool, cut, **self.reading)
        with torch.inference_mode():
            for batch in loader(
                [[(i, 0) for i in range(k, k + BATCH)] for k in range(0, FEATURE_PICTURES, BATCH)]
            ):
                network.features(batch["x"], names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(Path(folder))
        start = time.perf_counter()
        arms.kdcli("cached")
        arms.fill_seconds = time.perf_counter() - start
        views = arms.plans["cached"].material.teacher_forwards
        times = paired(
            {
                "supervised": lambda: arms.kdcli("supervised"),
                "cached": lambda: arms.kdcli("cached"),
                "live": lambda: arms.kdcli("live"),
                "hand": lambda: arms.hand(task=False),
                "timm": lambda: arms.hand(task=True),
                "features": lambda: arms.features(cached=True),
                "bare": lambda: arms.features(cached=False),
            },
            arguments.pairs,
            seed=0,
        )
    report = {"device": device_line(), "pairs": arguments.pairs, "steps": STEPS, "batch": BATCH, "ratios": {}}
    print(report["device"])
    print(
        f"teacher {TEACHER}, student {STUDENT}, {SIZE} px, {STEPS} steps of {BATCH}, {arguments.pairs} pairs"
    )
    print(f"cache of {views:,} views filled in {arms.fill_seconds:.1f} s ({STEPS} steps included)")
    print("throughput of the first over that of the second: median and 90 % interval")
    for a, b, bound in (
        ("cached", "supervised", 0.95),
        ("live", "hand", 0.95),
        ("live", "timm", 1.0),
        ("features", "bare", 0.95),
    ):
        median, low, high = ratio(times, b, a)
        report["ratios"][f"{a} / {b}"] = {"median": median, "low": low, "high": high, "wanted": bound}
        print(f"  {a:>10} / {b:<10}  {median:.3f}  ({low:.3f} to {high:.3f})   wanted {bound}")
    report["seconds"] = times
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
