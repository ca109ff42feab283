"""What a training step of every method costs, relative to ``supervised``: same student, pictures and batch.

    uv run examples/benchmarks/methods.py [--pairs 15] [--json examples/results/benchmark_methods.json]
    uv run examples/benchmarks/methods.py --methods kd rkd --pairs 3    # seconds

Every arm is kdcli's training loop on one thread with the method's default parameters and the same real
pictures; its time is that of its steps, on pictures that lie decoded in memory (which makes the differences
larger than a run that decodes will see): forwards, backward, clipping, optimiser, log. The teacher is of the
student's own architecture, so that every method accepts it, and a forward of it costs what one of the student
costs. What a teacher's outputs cost depends on where they come from: ``cached`` was computed before and is
not counted, ``live`` is computed in the step; methods that read more of a teacher than its logits are live.
``kd, live`` is kd without the cache. Phases count with their share of the steps, schedules as they go.
"""

import argparse
import gc
import json
import shutil
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from _paired import device_line, paired, ratio

from kdcli.artifacts.store import open_output
from kdcli.config import resolve
from kdcli.console import Console
from kdcli.engine.job import Job
from kdcli.engine.loop import train
from kdcli.engine.runtime import open_runtime
from kdcli.methods import METHODS, fits
from kdcli.runs.training import training_job
from kdcli.stages import distill
from kdcli.tasks import TASKS

QUIET = Console(silent=True)
STUDENT, SIZE, BATCH, STEPS = "test_resnet", 32, 64, 8
BASE, LIVE = "supervised", "kd, live"
VITS = ("g2sd-specific",)  # whose students are ViTs, and the one here is none
FITTING = [
    name
    for name, row in METHODS.items()
    if fits(row.needs, TASKS["classification"].provides) and name not in VITS
]
PARAMETERS = {"sequential": {"method.generations": 1}}  # one link of the chain, which is a run of its own


class Arms:
    """A teacher of random weights, and for each method a plan and a job with its batches in memory."""

    def __init__(self, folder: Path, student: str, steps: int, names: list[str]) -> None:
        self.folder, self.student, self.steps = folder, student, steps
        self.teacher = distill.run(self.plan(BASE, [], {"optim.max_steps": 1}), QUIET).path
        self.plans = {name: self.of_method(name) for name in names}
        self.jobs = {name: self.job(plan) for name, plan in self.plans.items()}

    def of_method(self, name: str) -> distill.Plan:
        """The plan of an arm."""
        method = name.partition(",")[0]
        teachers = [str(self.teacher)] if METHODS[method].teacher else []
        if method == "ensemble":
            teachers.append(str(shutil.copytree(self.teacher, self.teacher.with_name("another"))))
        more = PARAMETERS.get(method, {}) | ({"views.count": "live"} if name == LIVE else {})
        return self.plan(name, teachers, more)

    def plan(self, name: str, teachers: list[str], more: dict[str, object]) -> distill.Plan:
        """A plan of the stage, at the size of this benchmark."""
        options = {"student": self.student, "from_scratch": True, "image_size": SIZE, "teacher": teachers}
        options |= {"data.source": "example:fashion-mnist", "threads": 1}
        options |= {"optim.max_steps": self.steps, "optim.batch_size": BATCH}
        options |= {"method.name": name.partition(",")[0], "out": str(self.folder / name)}
        options |= {"cache": str(self.folder / "cache"), **more}
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    def job(self, plan: distill.Plan) -> Job:
        """What the stage hands to the loop, with the batches read and nothing to evaluate."""
        material, runtime = plan.material, open_runtime(plan.config)
        parties = material.assembly.parties
        for party in parties.values():
            party.to(runtime.device)
        job = training_job(material, parties, runtime, QUIET, None)
        read = list(job.batches.read(0, self.steps, runtime))
        return replace(job, batches=replace(job.batches, loader=lambda keys: iter(read)), evaluate=None)

    def run(self, name: str) -> float:
        """Seconds of the steps of one run, as the loop has them."""
        runtime = open_runtime(self.plans[name].config)
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            open_output(Path(folder) / "out", {}) as output,
        ):
            return train(self.jobs[name], output, runtime, QUIET).progress.seconds

    def outputs(self, name: str) -> str:
        """Where the outputs of the teacher come from."""
        material = self.plans[name].material
        if "teacher" not in material.networks:
            return "none"
        return "cached" if material.cached else "live"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--student", default=STUDENT, help="any timm name with four stages")
    parser.add_argument("--methods", nargs="+", choices=FITTING, default=FITTING)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = dict.fromkeys([BASE, *arguments.methods, *([LIVE] if "kd" in arguments.methods else [])])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        arms = Arms(Path(folder), arguments.student, arguments.steps, [*wanted])
        gc.freeze()  # the loop collects garbage at its end, and the arms are none
        times = paired({name: partial(arms.run, name) for name in arms.plans}, arguments.pairs, seed=0)
        outputs = {name: arms.outputs(name) for name in arms.plans}
    report = {
        "device": device_line(),
        "student": arguments.student,
        "teacher": arguments.student,
        "size": SIZE,
        "batch": BATCH,
        "steps": arguments.steps,
        "pairs": arguments.pairs,
        "cost": {},
        "seconds": times,
    }
    print(report["device"])
    print(
        f"student and teacher {arguments.student}, {SIZE} px, {arguments.steps} steps of {BATCH}, "
        f"{arguments.pairs} pairs in {time.perf_counter() - start:.0f} s"
    )
    print(f"time of a step over that of {BASE}: median and 90 % interval; the teacher's outputs")
    for name in times:
        median, low, high = ratio(times, name, BASE)
        report["cost"][name] = {"median": median, "low": low, "high": high, "teacher": outputs[name]}
        print(f"  {name:>14}  {median:.2f}  ({low:.2f} to {high:.2f})   {outputs[name]}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
