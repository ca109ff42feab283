"""Do operations that are saved show as time that is saved, and what do ONNX and int8 add to that?

    uv run examples/benchmarks/compress.py
    uv run examples/benchmarks/compress.py --pairs 31 --json compress.json
    uv run examples/benchmarks/compress.py --pairs 2 --networks test_resnet      # seconds

Networks of real size with random weights lose channels by magnitude until a part of their FLOPs is left
(`--target`). At each batch size the arms are the dense network and the pruned one, each in torch, in ONNX by
onnxruntime (fp32) and in ONNX in integers (static, per channel), of one number of threads, in random order.

* `time` is the pruned network's over the dense one's, in the same form, as a median over rounds;
* `saved` is the part of the time that is saved over that of the FLOPs: 1 where both are equal;
* `against torch` is the time of a form over that of torch, for the same network.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _paired import device_line, paired, ratio
from torch import Tensor

from kdcli.compression import budget
from kdcli.compression.magnitude import importance
from kdcli.compression.onnx import export_onnx
from kdcli.compression.quantize import quantise_onnx
from kdcli.models.build import build
from kdcli.models.compactors import filters, insert
from kdcli.models.costs import cost_of
from kdcli.models.folding import fold
from kdcli.models.onnx import session
from kdcli.models.sites import sites_of
from kdcli.models.timm import TimmModel

NETWORKS = ("resnet50", "resnet18", "mobilenetv3_large_100", "convnext_tiny", "vit_small_patch16_224")
FORMS = ("torch", "onnx", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated names of timm")
    parser.add_argument("--target", type=float, default=0.45, help="part of the FLOPs that is left")
    parser.add_argument("--batches", default="1,64", help="comma-separated batch sizes")
    parser.add_argument("--pairs", type=int, default=15, help="of every arm")
    parser.add_argument("--json", help="write the report here too")
    args = parser.parse_args()
    print(device_line())
    print(
        "network                 batch  form     dense ms  pruned ms  time              saved  against torch"
    )
    rows = []
    for name in args.networks.split(","):
        dense, pruned, left = both(name, args.target)
        with tempfile.TemporaryDirectory() as folder:
            runs = {
                f"{who} {form}": run
                for who, network in (("dense", dense), ("pruned", pruned))
                for form, run in forms(network, Path(folder, who)).items()
            }
            for batch in map(int, args.batches.split(",")):
                shape = (batch, dense.spec.channels, *dense.spec.size)
                pictures = torch.randn(shape, generator=torch.Generator().manual_seed(0))
                rows += measured(name, runs, left, pictures, args.pairs)
    if args.json:
        report = {"device": device_line(), "target": args.target, "pairs": args.pairs, "rows": rows}
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def both(name: str, target: float) -> tuple[TimmModel, TimmModel, float]:
    """A network, what is left of it, and which part of its FLOPs that has.

    Where the target lies below what can be reached, a twentieth above that is taken.
    """
    dense = build(name, pretrained=False).eval()
    assert isinstance(dense, TimmModel)
    sites = sites_of(dense, "resrep").sites
    cost, widths = cost_of(dense, sites), [site.width for site in sites]
    target = max(target, 1.05 * budget.reachable(widths, cost))
    masks = budget.at_once(importance(filters(dense, sites)), cost, target)
    pruned = fold(insert(dense, sites), {site.name: mask for site, mask in zip(sites, masks)})
    return dense, pruned.eval(), cost([int(mask.sum()) for mask in masks]) / cost(widths)


def forms(network: TimmModel, folder: Path) -> dict[str, Callable[[Tensor], Any]]:
    """What answers for a network, by form; each takes prepared pictures."""
    folder.mkdir()
    facts = export_onnx(network, folder)
    draw = torch.Generator().manual_seed(0)
    shape = (16, network.spec.channels, *network.spec.size)
    views = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)]
    integers = quantise_onnx(network, folder, facts, views, "static")
    found: dict[str, Callable[[Tensor], Any]] = {"torch": network}
    for form, own in (("onnx", facts), ("int8", integers)):
        run = session(folder / own["file"])
        found[form] = partial(answer, run, run.get_inputs()[0].name)
    return found


def answer(run: Any, name: str, pictures: Tensor) -> Any:
    return run.run(None, {name: pictures.numpy()})


def measured(
    name: str, runs: dict[str, Callable[[Tensor], Any]], left: float, pictures: Tensor, rounds: int
) -> list[dict[str, Any]]:
    """Rows of one network at one batch size; printed as they are found."""
    batch = len(pictures)
    with torch.inference_mode():
        times = paired({arm: partial(run, pictures) for arm, run in runs.items()}, rounds, seed=0)
    rows = []
    for form in FORMS:
        part, low, high = ratio(times, f"pruned {form}", f"dense {form}")
        against = [ratio(times, f"{who} {form}", f"{who} torch")[0] for who in ("dense", "pruned")]
        row = {
            "network": name, "batch": batch, "form": form, "flops_left": left,
            **{f"{who}_ms": 1e3 * median(times[f"{who} {form}"]) for who in ("dense", "pruned")},
            "time": [part, low, high], "saved": (1 - part) / (1 - left), "against_torch": against,
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:23s} {batch:5d}  {form:6s} {row['dense_ms']:9.1f} {row['pruned_ms']:10.1f}  "
            f"{part:.2f} [{low:.2f} {high:.2f}] {row['saved']:6.2f}  {against[0]:.2f} dense, "
            f"{against[1]:.2f} pruned",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    main()
