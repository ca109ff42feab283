"""Where distillation helps and where it does not: seven kinds of pictures, two label budgets, two students.

    python examples/kinds.py sources runs/kinds    # says where the pictures come from
    OMP_NUM_THREADS=1 uv run examples/defaults.py run runs/kinds runs/defaults
    uv run examples/defaults.py table > examples/results/defaults.md

``run`` goes on where it stopped, whatever stopped it: what is measured stands in ``RESULTS``, one line a
student, and is not measured again. ``--part 0/2`` and ``--part 1/2`` divide the work between two processes,
``--hours 2`` begins nothing new after two hours. All students of a cell (pictures, labels, student, seed)
make the same number of steps from the same weights; ways differ in what WAYS says. The best step is chosen on
a fifth of the training pictures, and each student is measured once on the test pictures.
"""

import argparse
import io
import itertools
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "defaults.jsonl"
KINDS = ("digits", "emoji", "textile", "pasted", "stamps", "fashion", "trees")
LABELS = ("few", "all")
SEEDS = (0, 1, 2)


def steps(count: int, batch: int) -> list[str]:
    """So many steps, with six evaluations."""
    every = f"evaluate_steps={count // 6}"
    return ["--max-steps", str(count), "--batch-size", str(batch), "--set", every]


STUDENTS: dict[str, list[str]] = {
    "scratch": ["--student", "mobilenetv3_small_100", "--from-scratch", "--lr", "2e-3", *steps(300, 64)],
    "pretrained": ["--student", "tf_efficientnet_lite0", *steps(120, 32)],
}
SPECIFIC = ["--method", "task-specific"]
PLAIN, SWAP = ["--set", "teacher_view=plain"], ["--set", "teacher_errors=swap"]
MILD = ["--set", "views.scale=[0.7, 1]"]
HALF, MOST = (["--set", f"data.labelled_fraction={part}"] for part in ("0.5", "0.75"))
ANNEAL, FADE = (["--alpha", alpha, "--set", "method.annealing=true"] for alpha in ("1", "0.5"))
WAYS: dict[str, tuple[list[str], str]] = {
    "alone": (["--method", "supervised"], "labels alone"),
    "today": (SPECIFIC, "task-specific: alpha 0.5, temperature 1, the teacher sees the student's crops"),
    "kd": (["--method", "kd"], "kd: 0.9 of the teacher at temperature 4, 0.1 of the labels"),
    "plain-swap": ([*SPECIFIC, *PLAIN, *SWAP], "it sees the whole picture, and the true class is swapped up"),
    "anneal": ([*SPECIFIC, *ANNEAL], "alpha falls from 1 to 0"),
    "anneal-plain-swap": ([*SPECIFIC, *ANNEAL, *PLAIN, *SWAP], "whole pictures, swapped, alpha from 1 to 0"),
    "half": ([*SPECIFIC, *HALF], "half of each batch has labels"),
    "half-plain-swap": ([*SPECIFIC, *HALF, *PLAIN, *SWAP], "and whole pictures, swapped"),
    "half-anneal": ([*SPECIFIC, *HALF, *ANNEAL], "half of each batch has labels, alpha falls from 1 to 0"),
    "half-anneal-plain-swap": ([*SPECIFIC, *HALF, *ANNEAL, *PLAIN, *SWAP], "and whole pictures, swapped"),
    "half-anneal-plain": ([*SPECIFIC, *HALF, *ANNEAL, *PLAIN], "half, alpha from 1 to 0, whole pictures"),
    "half-fade-plain": ([*SPECIFIC, *HALF, *FADE, *PLAIN], "half, alpha from 0.5 to 0, whole pictures"),
    "most-fade-plain": ([*SPECIFIC, *MOST, *FADE, *PLAIN], "three quarters have labels, alpha from 0.5 to 0"),
    "fade": ([*SPECIFIC, *FADE], "alpha falls from 0.5 to 0"),
    "fade-plain": ([*SPECIFIC, *FADE, *PLAIN], "and the teacher sees the whole picture"),
    "half-kd": (["--method", "kd", *HALF], "kd, half of each batch has labels"),
    "plain": ([*SPECIFIC, *PLAIN], "the teacher sees the whole picture"),
    "swap": ([*SPECIFIC, *SWAP], "the true class is swapped to the top where the teacher is wrong"),
    "leave-out": ([*SPECIFIC, "--set", "teacher_errors=leave-out"], "its wrong answers are left out"),
    "alone-mild": (["--method", "supervised", *MILD], "labels alone, crops of 70 % or more"),
    "mild": ([*SPECIFIC, *MILD], "task-specific with these crops"),
    "quarter": ([*SPECIFIC, "--set", "data.labelled_fraction=0.25"], "a quarter of each batch has labels"),
}
ROUNDS: dict[str, tuple[str, ...]] = {  # ways by label budget
    "few": (
        *("alone", "today", "half", "half-anneal-plain-swap"),
        *("half-fade-plain", "most-fade-plain", "half-anneal-plain", "kd"),
    ),
    "all": ("alone", "today", "plain-swap", "anneal", "fade", "fade-plain", "kd"),
}
Cell = tuple[int, str, str, str]


def cells() -> Iterator[tuple[Cell, str]]:
    """All students in the order in which they are measured."""
    for seed, kind, labels, student in itertools.product(SEEDS, KINDS, LABELS, STUDENTS):
        for way in ROUNDS[labels]:
            yield (seed, kind, labels, student), way


def command(*arguments: str) -> Path:
    """Run a command of kdcli in this process; the path that it writes."""
    from kdcli import cli
    from kdcli.launch import StopSignal

    answer = io.StringIO()
    code = cli.run([*arguments, "--quiet"], answer, StopSignal())
    if code:
        raise SystemExit(f"exit code {code}: kdcli {' '.join(arguments)}")
    return Path(answer.getvalue().strip())


def facts(artifact: Path, name: str = "kdcli.json") -> dict[str, Any]:
    return json.loads((artifact / name).read_text(encoding="utf-8"))


class Bench:
    """Where pictures, runs and results are."""

    def __init__(self, kinds: Path, runs: Path) -> None:
        self.kinds, self.runs = kinds, runs

    def weights(self, name: str) -> Path:
        """ImageNet weights of an EfficientNet-Lite."""
        import imagenet_teacher

        file = self.runs / f"{name}.safetensors"
        if not file.exists():
            imagenet_teacher.write(name, file)
        return file

    def source(self, cell: Cell) -> list[str]:
        """Options of the pictures, of which a fifth of train is held out by the seed."""
        seed, kind, labels, _ = cell
        few = ["--labels-per-class", "10"] if labels == "few" else []
        sets = (f"data.split_seed={seed}", "data.validation_fraction=0.2")
        options = ["--data", str(self.kinds / kind), "--seed", str(seed), "--threads", "1", *few]
        return options + [word for text in sets for word in ("--set", text)]

    def teacher(self, cell: Cell) -> Path:
        """An EfficientNet-Lite2 with a head of the labels that the student has."""
        seed, kind, labels, _ = cell
        out = self.runs / "teachers" / f"{kind}-{labels}-{seed}"
        backbone = ["--teacher", "tf_efficientnet_lite2", "--weights", str(self.weights("lite2"))]
        where = ["--image-size", "96", "--cache", str(self.runs / "cache"), "--out", str(out)]
        return command("probe", *backbone, *where, *self.source(cell))

    def test(self, model: Path, cell: Cell) -> dict[str, float]:
        """Its figures on the test pictures."""
        out = self.runs / "reports" / model.name
        data = ["--data", str(self.kinds / cell[1]), "--split", "test", "--threads", "1"]
        report = facts(command("eval", str(model), "--no-cost", *data, "--out", str(out)), "report.json")
        shutil.rmtree(out)
        (found,) = report["models"]
        return {name: found["metrics"][name] for name in ("top1", "nll", "ece")}

    def student(self, cell: Cell, way: str, teacher: Path) -> dict[str, Any]:
        """Train one, measure it, and say what it took; its weights are not kept."""
        options, _ = WAYS[way]
        student, taught = cell[3], "supervised" not in options
        more = ["--teacher", str(teacher)] if taught else []
        if student == "pretrained":
            more += ["--weights", str(self.weights("lite0"))]
        out = self.runs / "students" / "-".join(map(str, (*cell, way)))
        where = ["--image-size", "64", "--cache", str(self.runs / "cache"), "--out", str(out)]
        began = time.monotonic()
        made = command("distill", *options, *STUDENTS[student], *more, *where, *self.source(cell))
        manifest = facts(made)
        found = {
            "validation": manifest["metrics"]["validation/top1"],
            "test": self.test(made, cell),
            "step": manifest["selection"],
            "forwards": manifest["cost"]["teacher_forwards"],
            "answers": (manifest.get("teacher_answers") or {}).get("top1"),
            "seconds": round(time.monotonic() - began, 1),
            "steps": manifest["steps"],
            "device": f"{platform.processor() or platform.machine()}, 1 thread",
            "date": date.today().isoformat(),
        }
        shutil.rmtree(made)
        return found


def known(files: list[Path]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Rows by cell and way, of all files that there are."""
    rows = [json.loads(line) for file in files if file.exists() for line in file.read_text().splitlines()]
    return {(row["seed"], row["kind"], row["labels"], row["student"], row["way"]): row for row in rows}


def run(given: argparse.Namespace) -> None:
    """Measure what is missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    own, parts = map(int, given.part.split("/"))
    began, bench = time.monotonic(), Bench(given.kinds, given.runs)
    file = given.runs / f"results-{own}.jsonl"
    given.runs.mkdir(parents=True, exist_ok=True)
    done = known([RESULTS, *given.runs.glob("results-*.jsonl")])
    numbers = {taught: n for n, taught in enumerate(dict.fromkeys(cell[:3] for cell, _ in cells()))}
    for cell, way in cells():
        if (*cell, way) in done or numbers[cell[:3]] % parts != own:
            continue
        if time.monotonic() - began > 3600 * given.hours:
            return
        teacher = bench.teacher(cell)
        if (*cell[:3], "teacher", "teacher") not in done:
            done[(*cell[:3], "teacher", "teacher")] = {}
            row = {"test": bench.test(teacher, cell), "calibration": facts(teacher).get("calibration")}
            write(file, (*cell[:3], "teacher"), "teacher", row)
        write(file, cell, way, bench.student(cell, way, teacher))


def write(file: Path, cell: Cell, way: str, found: dict[str, Any]) -> None:
    """Add a row, whole or not at all, and say it."""
    names = dict(zip(("seed", "kind", "labels", "student"), cell))
    line = json.dumps({**names, "way": way, **found})
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"{line}\n")
    print(*cell, way, found["test"]["top1"], flush=True)


def collect(given: argparse.Namespace) -> None:
    """Put what was measured among the results that are kept."""
    rows = known([RESULTS, *given.runs.glob("results-*.jsonl")])
    RESULTS.write_text("".join(f"{json.dumps(rows[key])}\n" for key in sorted(rows, key=str)))
    print(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    forms = parser.add_subparsers(required=True)
    measure = forms.add_parser("run", help="measure what is missing")
    measure.add_argument("kinds", type=Path)
    measure.add_argument("runs", type=Path)
    measure.add_argument("--part", default="0/1", help="of the work, for several processes: 0/2 and 1/2")
    measure.add_argument("--hours", type=float, default=24.0)
    measure.set_defaults(work=run)
    gather = forms.add_parser("collect", help="add to the results that are kept")
    gather.add_argument("runs", type=Path)
    gather.set_defaults(work=collect)
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    main()
