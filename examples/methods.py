"""Write the page of all methods from the code: `examples/methods.md`.

    uv run examples/methods.py > examples/methods.md
    uv run examples/methods.py --check    # exits 1 where the file differs

The costs are those that `examples/benchmarks/methods.py` measured.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdcli import methods
from kdcli.tasks.classification import Classification
from kdcli.words import Method
from kdcli.words.analysis import without_zero_terms

HERE = Path(__file__).resolve().parent
PAGE, COSTS = HERE / "methods.md", HERE / "results" / "benchmark_methods.json"
TASK = Classification(tuple(f"class {i}" for i in range(10)))
COLUMNS = (
    *("method", "paper", "terms and weights", "trained", "phases", "teacher", "recipe"),
    "cost of a step",
)


def terms(method: Method) -> str:
    """Names of losses with their weights, turn by turn: `ce 0.1, kl 0.9`."""
    found = {}
    for phase in method.phases:
        for turn in phase.turns:
            name = turn.name if len(phase.turns) > 1 else phase.name if len(method.phases) > 1 else ""
            shown = [f"{t.name} {t.weight if callable(t.weight) else f'{t.weight:g}'}" for t in turn.terms]
            found[name] = "; ".join(shown)
    return ". ".join(f"*{name}*: {text}" if name else text for name, text in found.items())


def trained(method: Method) -> str:
    """Parties that learn; the exported one first."""
    return ", ".join(party.name for party in method.parties if party.role == "trained")


def phases(method: Method) -> str:
    """Phases with their share of the steps, or their number of turns."""
    if len(method.phases) == 1:
        return "1"
    return ", ".join(f"{phase.name} {phase.share:.0%}" for phase in method.phases)


def cost(found: dict[str, Any] | None) -> str:
    """Median and 90 % interval, and where the teacher's outputs came from."""
    if found is None:
        return "-"
    source = "" if found["teacher"] == "none" else f", {found['teacher']}"
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f}){source}"


def row(name: str, costs: dict[str, Any]) -> str:
    """One line of the table."""
    entry = methods.entry(name)
    method = without_zero_terms(methods.function(name)(TASK))
    teacher = "the student's architecture" if entry.twin else "yes" if entry.teacher else "no"
    recipes = ", ".join(recipe.name for recipe in method.recipes) or "-"
    cells = (f"[{name}](#{name})", entry.paper, terms(method), trained(method), phases(method), teacher)
    return f"| {' | '.join((*cells, recipes, cost(costs.get(name))))} |"


def measured(report: dict[str, Any]) -> str:
    """What the last column says, and on what it was measured."""
    live = report["cost"]["kd, live"]["median"]
    return (
        f"**Cost** is the time of a training step over that of `supervised`, median and 90 % interval over "
        f"{report['pairs']} pairs, with `{report['student']}` at {report['size']} px as student, a teacher "
        f"of the same architecture and batches of {report['batch']}, decoding not counted. The teacher's "
        f"outputs are *cached* (computed before, not counted) or *live* (computed in the step; kd without "
        f"its cache: {live:.2f}). A larger teacher makes live methods as much slower as its forward is.\n\n"
        f"Measured by [benchmarks/methods.py](benchmarks/methods.py): {report['device']}."
    )


def page() -> Iterator[str]:
    """The lines of the page."""
    report = json.loads(COSTS.read_text(encoding="utf-8"))
    yield "# Methods"
    yield ""
    yield (
        "Written by `uv run examples/methods.py > examples/methods.md` from the code; a test keeps it so. "
        "`kdcli distill --method NAME --help` says the same of one method. Weights are defaults; terms that "
        "weigh 0 are left out. Recipes are published trainings: `--recipe paper` is the first, others go by "
        "name, and below stands where they are from. How to add a method: [new_method.md](new_method.md). "
        f"Terms that `--add` puts beside any method's: "
        f"{', '.join(f'`{name}`' for name in methods.ADDITIONS)}."
    )
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---" * len(COLUMNS) + "|"
    for name in methods.METHODS:
        yield row(name, report["cost"])
    yield ""
    yield measured(report)
    for name in methods.METHODS:
        yield ""
        yield f"## {name}"
        yield ""
        yield methods.describe(name)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare with the file instead of printing")
    arguments = parser.parse_args()
    text = "\n".join(page()) + "\n"
    if not arguments.check:
        sys.stdout.write(text)
        return 0
    if text == PAGE.read_text(encoding="utf-8"):
        return 0
    sys.stderr.write(f"{PAGE} differs from the code: run examples/methods.py > examples/methods.md\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
