"""A report as one self-contained HTML page, and its main table for the console.

The report is a plain mapping, so that it can be read back from its JSON file::

    {"title": str, "created": str,
     "data": {"name", "split", "samples", "task"?, "classes": [names], "absent"?: [the last of them],
              "fingerprint"},
     "models": [{"name", "path", "selection"?: str,
                 "metrics": {the task's figures},
                 "teacher"?: {"name", "agreement", "kl", "both_right", "only_student", "only_teacher",
                              "neither_right"},
                 "cost"?: {"parameters", "flops", "latency_ms": {"median", "p10", "p90", "repeats"},
                           "throughput": {"median", "p10", "p90", "batch"}, "peak_memory_mb"?, "device",
                           "threads"},
                 "curves": [{"step", "loss", ...}],
                 "compression"?: see :mod:`kdcli.report.smaller`,
                 what else the task measures of one model}],
     "notes": [str],
     what the task measures of all models together}

What a task adds is described where it makes panels of it, in ``tasks/NAME/report.py``. A report of version
0.1 says no task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from kdcli.report.curves import drawn
from kdcli.report.figures import FOLLOWING, Figure
from kdcli.report.forms import MISSING, gflops, number
from kdcli.report.panels import Block, Drawing, Html, Panel, Points, Table, Text, code, spread

_NUMBERS = re.compile(r"\[\n\s*(?:(?:-?[0-9.eE+-]+|NaN|null),?\s+)+\]")


def to_json(report: Mapping[str, Any]) -> str:
    """A report as the text of its file; a list of numbers is one line, however long."""
    text = json.dumps(report, indent=1)  # a line break within brackets is never part of a name
    return _NUMBERS.sub(lambda found: re.sub(r"\s+", " ", found.group()), text) + "\n"


def table(report: Mapping[str, Any], figures: Sequence[Figure]) -> tuple[list[str], list[list[str]]]:
    """The main table as text: one row per model; a column that no model has a value for is left out.

    Args:
        report: see the module.
        figures: that it may have.

    Returns:
        The header and the rows.
    """
    shown = measured(report, [figure for figure in figures if figure.column])
    rows = [[str(m["name"]), *(f.form(f.of(m)) for f in shown)] for m in report["models"]]
    return ["model", *(figure.label for figure in shown)], rows


def measured(report: Mapping[str, Any], figures: Sequence[Figure]) -> list[Figure]:
    """Those of the figures that some model of a report has."""
    return [f for f in figures if any(f.of(model) is not None for model in report["models"])]


def render(report: Mapping[str, Any], figures: Sequence[Figure], panels: Sequence[Panel] = ()) -> str:
    """The report as one HTML page with inline figures: no scripts, no external resources; it prints well.

    Args:
        report: see the module. Names, paths and notes are made legible and escaped.
        figures: that it may have.
        panels: of its task.

    Raises:
        ValueError: the report has no models.
    """
    from kdcli.report import smaller

    if not report["models"]:
        raise ValueError("a report needs at least one model")
    data = report["data"]
    known = len(data["classes"]) - len(data.get("absent", ()))
    facts = (
        ("Data", f"{data['name']}, {data['split']} split"),
        ("Samples", f"{data['samples']:,} in {known} classes"),
        ("Fingerprint", code(data["fingerprint"])),
    )
    found = [
        _results(report, figures),
        _models(report),
        _cost(report),
        _following(report),
        smaller.panel(report, figures),
        *panels,
        _training(report),
        _notes(report),
    ]
    return assembled(report, facts, found)


def assembled(
    report: Mapping[str, Any], facts: Sequence[tuple[str, str]], panels: Sequence[Panel | None]
) -> str:
    """A page of some panels, with a title, a date and facts at its head.

    Args:
        report: its ``title`` and when it was ``created``.
        facts: terms and what they are.
        panels: those that there are.
    """
    import jinja2

    folder = resources.files("kdcli.report")
    environment = jinja2.Environment(
        autoescape=True, finalize=Html.escape, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    shown = [panel for panel in panels if panel is not None]
    return page.render(report=report, facts=facts, panels=shown)


def _results(report: Mapping[str, Any], figures: Sequence[Figure]) -> Panel:
    """The main table, what its figures are, and quality against cost."""
    from kdcli.report import plots

    header, rows = table(report, figures)
    shown = measured(report, [figure for figure in figures if figure.column])
    blocks: list[Block] = [Table(header, rows, wide=True), Text(_said(shown), faint=True)]
    costly = {**report, "models": [model for model in report["models"] if model.get("cost")]}
    quality = next((figure for figure in measured(costly, figures) if figure.axis), None)
    if quality is not None:
        blocks.append(Drawing(plots.quality_against_cost(report["models"], quality), panels=True))
    return Panel("Results", blocks)


def _said(figures: Sequence[Figure]) -> str:
    return " ".join(dict.fromkeys(figure.says for figure in figures if figure.says))


def _models(report: Mapping[str, Any]) -> Panel:
    rows = [
        [
            str(model["name"]),
            code(model["path"]),
            model.get("selection") or MISSING,
            model["teacher"]["name"] if model.get("teacher") else MISSING,
        ]
        for model in report["models"]
    ]
    header = ("model", "path", "selection", "compared with")
    return Panel("Models", [Table(header, rows, text=(1, 2, 3), wide=True)])


def _cost(report: Mapping[str, Any]) -> Panel | None:
    costs = {str(model["name"]): model["cost"] for model in report["models"] if model.get("cost")}
    if not costs:
        return None
    header = ["model", "parameters", "GFLOPs", "latency (ms)", "images/s", "batch", "memory (MB)", "device"]
    rows = [
        [
            name,
            f"{cost['parameters']:,}",
            gflops(cost["flops"]),
            spread(cost["latency_ms"]),
            spread(cost["throughput"]),
            str(cost["throughput"]["batch"]),
            number(cost["peak_memory_mb"]) if "peak_memory_mb" in cost else MISSING,
            f"{cost['device']}, {cost['threads']} threads",
        ]
        for name, cost in costs.items()
    ]
    text = (
        "Medians, with the 10th and 90th percentiles in brackets. Memory is the peak of one forward pass at "
        "the given batch size: weights, buffers, input and what the pass adds, in 10⁶ bytes."
    )
    return Panel("Cost", [Table(header, rows, text=(7,), wide=True), Text(text, faint=True)])


def _following(report: Mapping[str, Any]) -> Panel | None:
    """How the models follow their teachers."""
    models = [model for model in report["models"] if model.get("teacher")]
    shown = measured({"models": models}, FOLLOWING)
    if not shown:
        return None
    rows = [[str(m["name"]), m["teacher"]["name"], *(f.form(f.of(m)) for f in shown)] for m in models]
    header = ("model", "teacher", *(figure.label for figure in shown))
    said = _said([figure for figure in shown if not figure.column])
    return Panel("Student and teacher", [Table(header, rows, text=(1,), wide=True), Text(said, faint=True)])


def _training(report: Mapping[str, Any]) -> Panel | None:
    from kdcli.report import plots

    names, more = drawn(row for model in report["models"] for row in model.get("curves") or ())
    if not names:
        return None
    blocks: list[Block] = [Drawing(plots.training_curves(report["models"]), panels=True)]
    if more:
        blocks.append(Text(f"The logs have {more} more quantities, which are not drawn.", faint=True))
    return Panel("Training", blocks)


def _notes(report: Mapping[str, Any]) -> Panel | None:
    return Panel("Notes", [Points(report["notes"])]) if report["notes"] else None
