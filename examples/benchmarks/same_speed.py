"""Is one state of the code as quick as another? Plans and steps of both, in pairs of random order.

    python examples/benchmarks/same_speed.py OTHER_CHECKOUT [--pairs 15] [--json same_speed.json]

Each checkout is served by a process of its own, which has its libraries loaded and its files in memory.
Ratios are seconds of the other state over seconds of this one: above 1 means that this one is quicker.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

STEPS, BATCH = 24, 16
RUNS: dict[str, dict[str, Any]] = {
    "supervised": {},
    "kd": {"views.count": "live"},
    "kd, cached": {"method.name": "kd", "views.count": "2"},
    "rkd": {},
    "dml": {},
    "sskd": {"method.head_share": 0.5},
}
LARGE = "kd, resnet50 for resnet18"  # a plan at 224 px, where files and networks take the time


class Server:
    """Times plans and runs of the checkout that is on the path."""

    def __init__(self, folder: Path) -> None:
        import torch
        import toys

        from kdcli.console import Console
        from kdcli.stages import distill, probe, synthesize

        torch.set_num_threads(1)
        self.folder, self.count, self.console = folder, 0, Console(silent=True)
        self.distill, self.probe, self.synthesize = distill, probe, synthesize
        self.data = toys.pictures(folder / "pictures")
        self.teachers = {}
        for name, network in (("", "test_resnet"), (LARGE, "resnet50")):
            self.weights = toys.checkpoint(network, folder / f"{network}.safetensors")
            self.teachers[name] = folder / network
            self.time("probe", network, out=self.teachers[name])

    def time(self, kind: str, name: str = "", out: Path | None = None) -> float:
        """Seconds of a probe, of a plan, or of the steps of a method or of an inversion."""
        from kdcli.config import resolve
        from kdcli.methods import METHODS

        self.count += 1
        stage = {"probe": self.probe, "inversion": self.synthesize}.get(kind, self.distill)
        options: dict[str, Any] = {
            "out": str(out or self.folder / f"out-{self.count}"),
            "cache": str(self.folder / "cache"),
            "threads": 1,
            "device": "cpu",
        }
        if kind == "probe":
            options |= {"teacher": name, "weights": str(self.weights), "image_size": 32}
            options |= {"data.source": str(self.data), "grid.epochs": 2}
        elif kind == "inversion":
            options |= {"mixer": "deepinversion", "teacher": str(self.teachers[""]), "count": 16}
            options |= {"inversion.batch": 16, "inversion.steps": STEPS}
        else:
            options |= {"method.name": name, "student": "test_resnet", "from_scratch": True}
            options |= {"image_size": 32, "data.source": str(self.data), "optim.batch_size": BATCH}
            options |= {"optim.max_steps": STEPS, "evaluate_steps": STEPS, **RUNS.get(name, {})}
            if name == LARGE:
                options |= {"method.name": "kd", "student": "resnet18", "image_size": 224}
            if METHODS[options["method.name"]].teacher:
                options["teacher"] = str(self.teachers[name if name == LARGE else ""])
        self.forget()
        start = time.perf_counter()
        plan = stage.plan(resolve(stage.Config, options=options), self.console)
        planned = time.perf_counter()
        if kind != "plan":
            stage.run(plan, self.console)
        done = time.perf_counter()
        return planned - start if kind == "plan" else done - planned

    def forget(self) -> None:
        """Plan as a process of its own does, which has verified no artifact yet."""
        from kdcli.artifacts import manifest

        if known := getattr(manifest, "_settled_hash", None):
            known.cache_clear()

    def serve(self) -> None:
        """Answer one line of JSON with the seconds, until there are no more."""
        for line in sys.stdin:
            sys.stdout.write(f"{self.time(*json.loads(line))}\n")
            sys.stdout.flush()


class Checkout:
    """A process that serves one state of the code."""

    def __init__(self, root: Path, folder: Path) -> None:
        folder.mkdir()
        path = os.pathsep.join([str(root), str(root / "examples")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(HERE), "--serve", str(folder), str(root)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def seconds(self, kind: str, name: str) -> float:
        """What one call took there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([kind, name]) + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        Server(given.serve).serve()
        return 0
    from _paired import device_line, paired, ratio

    folder = Path(tempfile.mkdtemp())
    states = {
        "this": Checkout(HERE.parents[2], folder / "this"),
        "other": Checkout(given.other.resolve(), folder / "other"),
    }
    kinds = [
        ("plan", "kd"),
        ("plan", "sskd"),
        ("plan", LARGE),
        *(("steps", name) for name in RUNS),
        ("inversion", ""),
    ]
    found = {}
    for kind, name in kinds:
        arms = {
            state: lambda process=process, kind=kind, name=name: process.seconds(kind, name)
            for state, process in states.items()
        }
        times = paired(arms, given.pairs, seed=0)
        middle, low, high = ratio(times, "other", "this")
        label = f"{kind} {name}".strip()
        found[label] = {"median": middle, "low": low, "high": high}
        print(f"{label:18} {middle:.3f} ({low:.3f} to {high:.3f})")
    for process in states.values():
        process.process.stdin.close()
        process.process.wait()
    shutil.rmtree(folder)
    if given.json:
        report = {"ratio, other over this": found, "pairs": given.pairs, "device": device_line()}
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
