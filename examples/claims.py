"""What papers say of distillation, tried on two kinds of pictures: two ways side by side for each claim.

    OMP_NUM_THREADS=1 uv run examples/claims.py run runs/kinds runs/defaults
    uv run examples/claims.py table > examples/results/claims.md

As in ``examples/defaults.py``, whose cells and teachers these are (all labels, a student from random
weights, the same steps; what it has measured is not measured again), ``run`` goes on where it stopped, the
best step is chosen on a fifth of the training pictures, and every student is measured once on the test ones.
What was measured by other commands is linked from the table.
"""

import argparse
import itertools
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from defaults import (
    HERE,
    SEEDS,
    SPECIFIC,
    STUDENTS,
    Bench,
    Cell,
    cell,
    command,
    command_line,
    facts,
    keep,
    known,
    sets,
    write,
)
from defaults import RESULTS as DEFAULTS

RESULTS = HERE / "results" / "claims.jsonl"
KINDS = ("emoji", "digits")
KD, STUDENT = ["--method", "kd"], STUDENTS["scratch"]
WAYS: dict[str, tuple[str, list[str]]] = {  # the teacher, and options
    "alone": ("", ["--method", "supervised"]),
    "lite0": ("lite0", SPECIFIC),
    "lite1": ("lite1", SPECIFIC),
    "today": ("lite2", SPECIFIC),
    "finetuned": ("finetuned", SPECIFIC),
    "early": ("early", SPECIFIC),
    "assistant": ("lite2", [*SPECIFIC, "--via", "mobilenetv3_large_100"]),
    "kd": ("lite2", KD),
    "kd-rkd": ("lite2", [*KD, "--add", "rkd=1"]),
    "eskd": ("lite2", ["--method", "eskd"]),
    "dml": ("", ["--method", "dml"]),
    "self": ("alone", ["--method", "self"]),
    "lsr": ("", ["--method", "lsr"]),
    "tf-kd-reg": ("", ["--method", "tf-kd-reg"]),
}
CLAIMS: tuple[tuple[str, str, str, str], ...] = (
    ("a probed teacher serves better than a finetuned one", "Marrie et al. 2024", "today", "finetuned"),
    ("a larger teacher serves better", "Cho & Hariharan 2019 say not always", "today", "lite0"),
    (
        "an assistant bridges the gap",
        "Mirzadeh et al. 2020, not Marrie et al. 2024",
        "assistant",
        "today",
    ),
    ("a teacher that was stopped early serves better", "Cho & Hariharan 2019", "early", "finetuned"),
    ("distillation that stops early serves better", "Cho & Hariharan 2019", "eskd", "kd"),
    ("relations add to logits", "Park et al. 2019", "kd-rkd", "kd"),
    ("networks that teach one another learn more than alone", "Zhang et al. 2018", "dml", "alone"),
    ("an earlier self is a teacher", "Allen-Zhu & Li 2020", "self", "alone"),
    ("label smoothing does what a teacher does", "Yuan et al. 2020", "lsr", "kd"),
    ("a teacher made by hand does, too", "Yuan et al. 2020", "tf-kd-reg", "kd"),
)
TUNING = ["--finetune", *sets("optim.batch_size=32", "optim.lr=2e-4", "optim.max_steps=120")]


class Claims(Bench):
    """Where pictures, runs and results are; teachers of several kinds."""

    def of_kind(self, kind: str, at: Cell) -> Path:
        """A teacher by what WAYS calls it."""
        if kind == "lite2":
            return self.teacher(at)
        out = self.runs / "teachers" / f"{kind}-{at[1]}-{at[0]}"
        where = ["--cache", str(self.runs / "cache"), "--out", str(out), *self.source(at)]
        if kind == "alone":  # another seed of the student itself
            other = ["--image-size", "64", "--seed", str(at[0] + 100)]
            return command("distill", "--method", "supervised", *STUDENT, *where, *other)
        size = kind if kind.startswith("lite") else "lite2"
        backbone = ["--teacher", f"tf_efficientnet_{size}", "--weights", str(self.weights(size))]
        tuned = TUNING if kind in ("finetuned", "early") else []
        if kind == "early":
            tuned = [*TUNING, *sets("optim.stop_epoch=1")]
        return command("probe", *backbone, "--image-size", "96", *tuned, *where)

    def measured(self, at: Cell, way: str) -> dict[str, Any]:
        """Train a student, and measure it and its teacher."""
        kind, options = WAYS[way]
        began = time.monotonic()
        teacher = self.of_kind(kind, at) if kind else None
        out = self.runs / "students" / "-".join(map(str, (*at, way)))
        more = [] if teacher is None else ["--teacher", str(teacher)]
        where = ["--image-size", "64", "--cache", str(self.runs / "cache"), "--out", str(out)]
        made = command("distill", *options, *STUDENT, *more, *where, *self.source(at))
        manifest = facts(made)
        found: dict[str, Any] = {
            "validation": manifest["metrics"]["validation/top1"],
            "test": self.test(made, at),
            "steps": manifest["steps"],
            "seconds": round(time.monotonic() - began, 1),
        }
        if teacher is not None:
            found["teacher"] = self.test(teacher, at)
        for folder in (made, out.with_name(f"{out.name}-via-1")):
            shutil.rmtree(folder, ignore_errors=True)
        return found


def places(runs: Path) -> list[Path]:
    """Files of what is measured, here and by ``examples/defaults.py``."""
    return [DEFAULTS, RESULTS, *runs.glob("results-*.jsonl"), *runs.glob("claims-*.jsonl")]


def run(given: argparse.Namespace) -> None:
    """Measure what is missing."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    own, parts = map(int, given.part.split("/"))
    began, bench = time.monotonic(), Claims(given.kinds, given.runs)
    given.runs.mkdir(parents=True, exist_ok=True)
    done = known(places(given.runs))
    for number, (seed, kind) in enumerate(itertools.product(SEEDS, KINDS)):
        at = (seed, kind, "all", "scratch")
        for way in WAYS if number % parts == own else ():
            if (*at, way) in done:
                continue
            if time.monotonic() - began > 3600 * given.hours:
                return
            write(given.runs / f"claims-{own}.jsonl", at, way, bench.measured(at, way))


def collect(given: argparse.Namespace) -> None:
    """Put what was measured among the results that are kept."""
    keep(RESULTS, given.runs.glob("claims-*.jsonl"))


def page(given: argparse.Namespace) -> None:
    """The claims as Markdown."""
    rows = known([DEFAULTS, RESULTS])
    print((HERE / "results" / "claims_head.md").read_text(encoding="utf-8").rstrip() + "\n")
    print(
        f"| claim | paper | compared | {' | '.join(KINDS)} | here |\n|---|---|---{'|---' * len(KINDS)}|---|"
    )
    for claim, paper, one, other in CLAIMS:
        cells, means = [], []
        for kind in KINDS:
            pairs = [(rows.get((s, kind, "all", "scratch", w)) for w in (one, other)) for s in SEEDS]
            found = [[100 * row["test"]["top1"] for row in pair if row] for pair in pairs]
            values = [pair[0] - pair[1] for pair in found if len(pair) == 2]
            cells.append(cell(values))
            means += [statistics.mean(values)] if values else []
        verdict = "not measured" if len(means) < len(KINDS) else VERDICTS[sum(m > 0 for m in means)]
        print(f"| {claim} | {paper} | {one} − {other} | {' | '.join(cells)} | {verdict} |")


VERDICTS = {0: "not confirmed", 1: "on one kind", 2: "confirmed"}


if __name__ == "__main__":
    command_line(__doc__, run=run, collect=collect, table=page)
