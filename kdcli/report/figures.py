"""The figures of a report as data: what each is called, where it stands, how it is written and explained.

Those of a task stand in its folder, ``tasks/NAME/figures.py``; those that any task can have stand here.
Gates, the main table, its explanations and the plots are made of them. Nothing here imports torch: gates are
parsed before it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdcli.report.forms import amount, gflops, milliseconds, number, percent


@dataclass(frozen=True)
class Figure:
    """One measured number of a model.

    Attributes:
        name: as a gate has it, ``top1`` or ``exits.early.flops``.
        label: heads its column.
        keys: where it stands in a model's part of a report.
        form: makes text of it.
        fraction: whether it lies between 0 and 1.
        column: whether the main table has a column of it.
        takes: what a run needs to measure it, for whoever asks for it in vain; empty if nothing.
        says: a sentence for the page that explains it.
        axis: its label on plots of quality against cost; empty for what is no measure of quality.
    """

    name: str
    label: str
    keys: tuple[str, ...]
    form: Callable[[Any], str]
    fraction: bool = False
    column: bool = True
    takes: str = ""
    says: str = ""
    axis: str = ""

    def of(self, model: Mapping[str, Any]) -> Any:
        """Its value in a model's part of a report, or None where it was not measured."""
        value: Any = model
        for key in self.keys:
            value = value.get(key) if value else None
        return value


TEACHER, COST = "it takes --teacher", "--no-cost leaves it out"

FOLLOWING = (  # how a model follows its teacher
    Figure(
        "agreement",
        "agreement",
        ("teacher", "agreement"),
        percent,
        fraction=True,
        takes=TEACHER,
        says="Agreement is the share of answers, one for each sample or each pixel, in which a model and its "
        "teacher name the same class.",
    ),
    Figure(
        "kl",
        "KL (nats)",
        ("teacher", "kl"),
        number,
        column=False,
        takes=TEACHER,
        says="KL is the mean Kullback–Leibler divergence from the teacher's to the student's probabilities "
        "at temperature 1.",
    ),
    *(
        Figure(name, label, ("teacher", name), percent, fraction=True, column=False, takes=TEACHER)
        for name, label in (
            ("both_right", "both right"),
            ("only_student", "only student"),
            ("only_teacher", "only teacher"),
            ("neither_right", "neither"),
        )
    ),
)

COSTS = (
    Figure("parameters", "parameters", ("cost", "parameters"), amount, takes=COST),
    Figure(
        "flops",
        "GFLOPs",
        ("cost", "flops"),
        gflops,
        takes=COST,
        says="FLOPs are 2 × MACs (multiply-accumulates) of one forward pass of one image.",
    ),
    Figure(
        "latency_ms",
        "latency",
        ("cost", "latency_ms", "median"),
        milliseconds,
        takes=COST,
        says="Latency is the median at batch size 1.",
    ),
    Figure("throughput", "images/s", ("cost", "throughput", "median"), number, takes=COST),
    Figure("peak_memory_mb", "memory (MB)", ("cost", "peak_memory_mb"), number, column=False, takes=COST),
)

GENERAL = (*FOLLOWING, *COSTS)
