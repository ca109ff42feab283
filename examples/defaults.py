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
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
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


def sets(*texts: str) -> list[str]:
    """``--set`` before each."""
    return [word for text in texts for word in ("--set", text)]


STUDENTS: dict[str, list[str]] = {
    "scratch": ["--student", "mobilenetv3_small_100", "--from-scratch", "--lr", "2e-3", *steps(300, 64)],
    "pretrained": ["--student", "tf_efficientnet_lite0", *steps(120, 32)],
}
SPECIFIC = ["--method", "task-specific"]
PLAIN, SWAP = ["--set", "teacher_view=plain"], ["--set", "teacher_errors=swap"]
MILD = ["--set", "views.scale=[0.7, 1]"]
HALF = ["--set", "data.labelled_fraction=0.5"]
ANNEAL, FADE = (["--alpha", alpha, "--set", "method.annealing=true"] for alpha in ("1", "0.5"))
WAYS: dict[str, tuple[list[str], str]] = {
    "alone": (["--method", "supervised"], "labels alone"),
    "today": (SPECIFIC, "task-specific: alpha 0.5, temperature 1, the teacher sees the student's crops"),
    "kd": (["--method", "kd"], "kd: 0.9 of the teacher at temperature 4, 0.1 of the labels"),
    "plain-swap": ([*SPECIFIC, *PLAIN, *SWAP], "it sees the whole picture, and the true class is swapped up"),
    "anneal": ([*SPECIFIC, *ANNEAL], "alpha falls from 1 to 0"),
    "half": ([*SPECIFIC, *HALF], "half of each batch has labels"),
    "half-anneal": ([*SPECIFIC, *HALF, *ANNEAL], "half of each batch has labels, alpha falls from 1 to 0"),
    "half-7": ([*SPECIFIC, *HALF, "--views", "7"], "half of each batch has labels, of seven fixed views"),
    "half-fade": ([*SPECIFIC, *HALF, *FADE], "half of each batch has labels, alpha falls from 0.5 to 0"),
    "half-anneal-plain": ([*SPECIFIC, *HALF, *ANNEAL, *PLAIN], "half, alpha from 1 to 0, whole pictures"),
    "half-fade-plain": ([*SPECIFIC, *HALF, *FADE, *PLAIN], "half, alpha from 0.5 to 0, whole pictures"),
    "fade": ([*SPECIFIC, *FADE], "alpha falls from 0.5 to 0"),
    "fade-plain": ([*SPECIFIC, *FADE, *PLAIN], "and the teacher sees the whole picture"),
    "half-kd": (["--method", "kd", *HALF], "kd, half of each batch has labels"),
    "swap": ([*SPECIFIC, *SWAP], "the true class is swapped to the top where the teacher is wrong"),
    "leave-out": ([*SPECIFIC, "--set", "teacher_errors=leave-out"], "its wrong answers are left out"),
    "alone-mild": (["--method", "supervised", *MILD], "labels alone, crops of 70 % or more"),
    "mild": ([*SPECIFIC, *MILD], "task-specific with these crops"),
}
BEFORE = ("today", "kd")  # where batches are drawn from all pictures alike
CHOOSERS: dict[str, list[str]] = {
    "auto": ["--method", "auto"],
    "search": [*SPECIFIC, "--search", "12"],
}
SEARCHED = ("digits", "emoji", "textile")  # from scratch, with all labels
ROUNDS: dict[str, tuple[str, ...]] = {  # ways by label budget
    "few": (
        *("alone", "today", "half", "half-anneal", "half-fade", "half-kd"),
        *("half-7", "half-anneal-plain", "half-fade-plain", "kd"),
    ),
    "all": (
        *("alone", "today", "plain-swap", "anneal", "fade", "fade-plain", "kd"),
        *("swap", "leave-out", "mild", "alone-mild"),
    ),
}
DRAWN = {
    "few": ("today", "half", "half-anneal", "half-fade", "half-kd"),
    "all": ("today", "fade", "fade-plain", "anneal", "kd"),
}
Rows = dict[tuple[Any, ...], dict[str, Any]]
Cell = tuple[int, str, str, str]


def cells() -> Iterator[tuple[Cell, str]]:
    """All students in the order in which they are measured."""
    for seed, kind, labels, student in itertools.product(SEEDS, KINDS, LABELS, STUDENTS):
        for way in ROUNDS[labels]:
            yield (seed, kind, labels, student), way
    for seed, kind, labels, student in itertools.product(SEEDS, KINDS, LABELS, STUDENTS):
        yield (seed, kind, labels, student), "auto"
        if kind in SEARCHED and (labels, student) == ("all", "scratch"):
            yield (seed, kind, labels, student), "search"


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
        options = ["--data", str(self.kinds / kind), "--seed", str(seed), "--threads", "1", *few]
        return options + sets(f"data.split_seed={seed}", "data.validation_fraction=0.2")

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
        options = CHOOSERS[way] if way in CHOOSERS else WAYS[way][0]
        if cell[2] == "few" and way in BEFORE:
            options = [*options, *sets("data.labelled_fraction=0")]
        student, taught = cell[3], "supervised" not in options
        more = ["--teacher", str(teacher)] if taught else []
        if student == "pretrained":
            more += ["--weights", str(self.weights("lite0"))]
        out = self.runs / "students" / "-".join(map(str, (*cell, way)))
        where = ["--image-size", "64", "--cache", str(self.runs / "cache"), "--out", str(out)]
        study = out.with_name(f"{out.name}-study")
        options = [*options, "--study", str(study)] if way == "search" else options
        began = time.monotonic()
        made = command("distill", *options, *STUDENTS[student], *more, *where, *self.source(cell))
        manifest = facts(made)
        found: dict[str, Any] = {
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
        chosen: dict[str, Any] = {"pilot": manifest["pilot"]} if way == "auto" else {}
        if way == "search":
            chosen = {"search": searched(study)}
            shutil.rmtree(study)
        for folder in (made, out.with_name(f"{out.name}-pilot")):
            shutil.rmtree(folder, ignore_errors=True)
        return found | chosen


def searched(study: Path) -> dict[str, Any]:
    """What a search took: steps of all trials, forwards of the teacher; what its best settings are."""
    report = facts(study, "report.json")
    best = next(trial for trial in report["trials"] if trial["number"] == report["best"])
    steps = sum(trial.get("steps", 0) for trial in report["trials"])
    return {"steps": steps, "forwards": report["forwards"], "best": best["settings"]}


def known(files: list[Path]) -> Rows:
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
    keep(RESULTS, given.runs.glob("results-*.jsonl"))


def keep(results: Path, files: Iterable[Path]) -> None:
    """Add rows to the results of a command."""
    rows = known([results, *files])
    results.write_text("".join(f"{json.dumps(rows[key])}\n" for key in sorted(rows, key=str)))
    print(results)


# -- the page ------------------------------------------------------------------------------------------------

T = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132}  # 95 % quantiles of Student's t, by seeds


def differences(rows: Rows) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """Points of test accuracy to plain training, seed by seed, by (kind, labels, student) and way."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for (seed, kind, labels, student, way), row in sorted(rows.items()):
        alone = rows.get((seed, kind, labels, student, "alone"))
        if alone is not None and way != "alone":
            own = found.setdefault((kind, labels, student), {}).setdefault(way, [])
            own.append(100 * (row["test"]["top1"] - alone["test"]["top1"]))
    return found


def interval(values: list[float]) -> float:
    """Half of the 90 % interval of the mean; 0 for one seed, of which nothing is said."""
    return T[len(values)] * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def cell(values: list[float] | None) -> str:
    """A difference with its interval."""
    if not values:
        return ""
    text = f"{statistics.mean(values):+.1f}"
    return f"{text} ± {interval(values):.1f}" if len(values) > 1 else text


def page(given: argparse.Namespace) -> None:
    """The results as Markdown."""
    rows = known([RESULTS])
    print((HERE / "results" / "defaults_head.md").read_text(encoding="utf-8").rstrip())
    for labels, ways in ROUNDS.items():
        print(f"\n## {'10 labels a class' if labels == 'few' else 'All labels'}\n")
        print(table(rows, labels, ways[1:]))
    dates = sorted(row["date"] for row in rows.values() if "date" in row)
    devices = sorted({row["device"] for row in rows.values() if "device" in row})
    steps = sum(row.get("steps", 0) for row in rows.values())
    hours = sum(row.get("seconds", 0) for row in rows.values()) / 3600
    print("\n* Commands: those at the head of `examples/kinds.py` and `examples/defaults.py`")
    print(f"* {len(rows)} rows, {steps:,} steps, {hours:.1f} hours; dates {dates[0]} to {dates[-1]}")
    print(f"* Device: {', '.join(devices)}")


def table(rows: Rows, labels: str, ways: tuple[str, ...]) -> str:
    """Ways of one label budget: points to plain training, then over all cells the mean and the worst."""
    found = differences(rows)
    lines = [f"| pictures | student | alone | teacher | {' | '.join(ways)} |", "|---" * (4 + len(ways)) + "|"]
    kept: dict[str, list[float]] = {way: [] for way in ways}
    for kind, student in itertools.product(KINDS, STUDENTS):
        own = found.get((kind, labels, student))
        if not own:
            continue
        alone, teacher = (
            statistics.mean(100 * row["test"]["top1"] for key, row in rows.items() if key[1:] == who)
            for who in ((kind, labels, student, "alone"), (kind, labels, "teacher", "teacher"))
        )
        cells = [cell(own.get(way)) for way in ways]
        lines.append(f"| {kind} | {student} | {alone:.1f} | {teacher:.1f} | {' | '.join(cells)} |")
        for way in ways:
            kept[way] += [statistics.mean(own[way])] if way in own else []
    means = [f"{statistics.mean(v):+.1f}" if v else "" for v in kept.values()]
    worst = [f"{min(v):+.1f}" if v else "" for v in kept.values()]
    lines += [f"| mean | | | | {' | '.join(means)} |", f"| worst | | | | {' | '.join(worst)} |"]
    return "\n".join(lines)


def draw(given: argparse.Namespace) -> None:
    """The differences as a picture."""
    from matplotlib.figure import Figure

    from kdcli.report.canvas import INK, PALETTE, style

    found = differences(known([RESULTS]))
    with style():
        figure = Figure(figsize=(11, 7.5), layout="constrained")
        for place, (labels, student) in enumerate(itertools.product(LABELS, STUDENTS)):
            axes = figure.add_subplot(2, 2, place + 1)
            ways = [way for way in DRAWN[labels] if any(way in own for own in found.values())]
            for number, way in enumerate(ways):
                for at, kind in enumerate(KINDS):
                    values = found.get((kind, labels, student), {}).get(way)
                    if values:
                        x = at + (number - (len(ways) - 1) / 2) * 0.16
                        mean, half = statistics.mean(values), interval(values)
                        axes.errorbar(x, mean, half, color=PALETTE[number], fmt="o", capsize=2, markersize=4)
                axes.plot([], [], "o", color=PALETTE[number], label=way)
            axes.axhline(0, color=INK, linewidth=1)
            axes.set_xticks(range(len(KINDS)), KINDS, fontsize=8)
            axes.set_title(f"{'10 labels a class' if labels == 'few' else 'all labels'}, {student}")
            axes.set_ylabel("points to labels alone")
            axes.legend(fontsize=7.5, ncols=2)
        figure.savefig(HERE / "results" / "defaults.svg", metadata={"Date": None})
    print(HERE / "results" / "defaults.svg")


def command_line(doc: str | None, **works: Callable[[argparse.Namespace], None]) -> None:
    """Do what the command line says: ``run``, ``collect`` and others that take nothing."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=form)
    forms = parser.add_subparsers(required=True)
    for name, work in works.items():
        own = forms.add_parser(name, help=work.__doc__)
        own.set_defaults(work=work)
        if name == "run":
            own.add_argument("kinds", type=Path)
        if name in ("run", "collect"):
            own.add_argument("runs", type=Path)
        if name == "run":
            own.add_argument("--part", default="0/1", help="for several processes: 0/2 and 1/2")
            own.add_argument("--hours", type=float, default=24.0)
    given = parser.parse_args()
    given.work(given)


if __name__ == "__main__":
    command_line(__doc__, run=run, collect=collect, table=page, draw=draw)
