"""The page of a search: its trials side by side, what mattered, how each learned.

It is a plain mapping, as its JSON file has it::

    {"title", "created", "data": str, "selection": str, "study": str, "best": number of a trial,
     "trials": [{"number", "state": "COMPLETE" | "PRUNED" | "FAIL", "value"?, "settings": {key: value},
                 "steps"?, "seconds"?, "why"?, "curve": [[step, value], ...]}],
     "importance": {key: share}, "forwards": {"asked", "made", "live"}, "notes": [str]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from kdcli.report.canvas import BLUES, FAINT, PALETTE, refuse_none, short, style, svg
from kdcli.report.forms import MISSING, number
from kdcli.report.page import assembled
from kdcli.report.panels import Block, Drawing, Panel, Points, Table, Text, code

Trial = Mapping[str, Any]
_PAPER = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
_STATES = {"COMPLETE": "to the end", "PRUNED": "halved", "FAIL": "failed"}


def render(report: Mapping[str, Any]) -> str:
    """The page as HTML, self-contained."""
    trials, done = report["trials"], [t for t in report["trials"] if t.get("value") is not None]
    facts = (
        ("Data", report["data"]),
        ("Study", code(report["study"])),
        ("Chosen by", f"{report['selection']} on validation"),
        ("Trials", _counted(trials)),
        ("Teacher", _saved(report["forwards"])),
    )
    panels = [_best(report), _together(done, report), _curves(done, report), _table(report), _notes(report)]
    return assembled(report, facts, panels)


def _counted(trials: Sequence[Trial]) -> str:
    counts = {said: sum(t["state"] == state for t in trials) for state, said in _STATES.items()}
    return ", ".join([f"{len(trials):,}", *(f"{count} {said}" for said, count in counts.items() if count)])


def _saved(forwards: Mapping[str, int]) -> str:
    asked, made, live = (forwards[key] for key in ("asked", "made", "live"))
    if not asked and not live:
        return "none"
    text = f"{asked:,} answers read from the cache, {made:,} forwards made for it"
    return f"{text}; {live:,} forwards of trials that learn live" if live else text


def _best(report: Mapping[str, Any]) -> Panel:
    """The best settings, and what mattered."""
    best = next(t for t in report["trials"] if t["number"] == report["best"])
    rows = [[key, _cell(value)] for key, value in best["settings"].items()]
    said = f"Trial {best['number'] + 1}: {report['selection']} {best['value']:.4f} on validation pictures."
    blocks: list[Block] = [Text(said), Table(("setting", "best"), rows, text=(1,))]
    if report["importance"]:
        blocks += [
            Drawing(importance(report["importance"])),
            Text("PED-ANOVA (Watanabe et al. 2023) of the trials: few trials tell little.", faint=True),
        ]
    return Panel("Best settings", blocks)


def _together(trials: Sequence[Trial], report: Mapping[str, Any]) -> Panel | None:
    keys = list(dict.fromkeys(key for trial in trials for key in trial["settings"]))
    if len(trials) < 2 or not keys:
        return None
    drawing = parallel_coordinates(trials, keys, report["selection"], report["best"])
    return Panel("Settings side by side", [Drawing(drawing, panels=True)])


def _curves(trials: Sequence[Trial], report: Mapping[str, Any]) -> Panel | None:
    if not any(len(trial["curve"]) > 1 for trial in trials):
        return None
    return Panel("Learning", [Drawing(curves(trials, report["selection"], report["best"]))])


def _table(report: Mapping[str, Any]) -> Panel:
    keys = list(dict.fromkeys(key for trial in report["trials"] for key in trial["settings"]))
    rows = [
        [
            str(trial["number"] + 1),
            number(trial["value"]) if trial.get("value") is not None else MISSING,
            trial.get("why") or _STATES[trial["state"]],
            f"{trial['steps']:,}" if trial.get("steps") else MISSING,
            *(_cell(trial["settings"].get(key)) for key in keys),
        ]
        for trial in sorted(report["trials"], key=lambda t: -(t.get("value") or -math.inf))
    ]
    header = ("trial", report["selection"], "trained", "steps", *keys)
    return Panel("Trials", [Table(header, rows, text=(2,), wide=True)])


def _notes(report: Mapping[str, Any]) -> Panel | None:
    return Panel("Notes", [Points(report["notes"])]) if report["notes"] else None


def _cell(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- drawings ------------------------------------------------------------------------------------------------


def importance(shares: Mapping[str, float]) -> str:
    """Bars of what each setting mattered, the largest first."""
    refuse_none(list(shares), "an importance")
    order = sorted(shares, key=lambda key: shares[key])
    with style():
        figure = Figure(figsize=(5.2, 0.6 + 0.32 * len(order)), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(order)), [100 * shares[key] for key in order], color=PALETTE[0], height=0.6)
        axes.set_yticks(range(len(order)), [short(key) for key in order])
        axes.set(xlabel="importance (%)", xlim=(0, None))
        axes.grid(visible=False, axis="y")
        return svg(figure, "Importance of settings")


def parallel_coordinates(trials: Sequence[Trial], keys: Sequence[str], quality: str, best: int) -> str:
    """A line for each trial through its settings, an upright axis each, and through what it came to.

    Args:
        trials: with a value.
        keys: of settings; a trial without one is drawn without that part of its line.
        quality: what trials are judged by.
        best: number of the trial that stands out.
    """
    refuse_none(trials, "settings")
    axes_of = [_Axis(key, [t["settings"].get(key) for t in trials]) for key in keys]
    axes_of.append(_Axis(quality, [t["value"] for t in trials]))
    values = np.array([t["value"] for t in trials], float)
    span = max(values.max() - values.min(), 1e-12)
    with style():
        figure = Figure(figsize=(1.5 * len(axes_of) + 1, 3.8), layout="constrained")
        axes = figure.subplots()
        for trial in sorted(trials, key=lambda t: (t["number"] == best, t["value"])):
            at = trials.index(trial)
            heights = [axis.heights[at] for axis in axes_of]
            chosen = trial["number"] == best
            colour = PALETTE[1] if chosen else BLUES(0.25 + 0.6 * (trial["value"] - values.min()) / span)
            whole = trial["state"] == "COMPLETE"
            axes.plot(
                range(len(axes_of)),
                [math.nan if h is None else h for h in heights],
                color=colour,
                linewidth=2.6 if chosen else 1.1,
                linestyle="-" if whole else ":",
            )
        for place, axis in enumerate(axes_of):
            axes.axvline(place, color=FAINT, linewidth=1, zorder=0)
            for height, text in axis.ticks:
                axes.text(place + 0.04, height, text, fontsize=8, va="center", bbox=_PAPER)
        axes.set_xticks(range(len(axes_of)), [short(axis.name, 20) for axis in axes_of])
        axes.set(xlim=(-0.2, len(axes_of) - 0.5), ylim=(-0.06, 1.06))
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return svg(figure, "Settings of all trials; dotted ones were halved")


class _Axis:
    """Places between 0 and 1 of a setting's values, and what is written along them.

    Numbers go by their size, or by its logarithm where all are above 0 and the largest is ten times the
    least; all else by the order in which it comes.
    """

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        given = [v for v in values if v is not None]
        self.heights: list[float | None]
        if given and all(isinstance(v, int | float) and not isinstance(v, bool) for v in given):
            log = min(given) > 0 and max(given) >= 10 * min(given)
            scale = math.log if log else float
            low, high = scale(min(given)), scale(max(given))
            self.heights = [
                None if v is None else (scale(v) - low) / (high - low) if high > low else 0.5 for v in values
            ]
            ends = ((0.0, min(given)), (1.0, max(given))) if high > low else ((0.5, given[0]),)
            self.ticks = [(height, f"{value:.3g}") for height, value in ends]
            return
        known = sorted({str(v) for v in given})
        place = {text: i / max(len(known) - 1, 1) for i, text in enumerate(known)}
        self.heights = [None if v is None else place[str(v)] for v in values]
        self.ticks = [(height, short(text, 14)) for text, height in place.items()]


def curves(trials: Sequence[Trial], quality: str, best: int) -> str:
    """What each trial had on validation pictures, evaluation by evaluation."""
    refuse_none(trials, "a curve")
    with style():
        figure = Figure(figsize=(6.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for trial in sorted(trials, key=lambda t: t["number"] == best):
            if len(trial["curve"]) == 0:
                continue
            steps, values = zip(*trial["curve"])
            chosen = trial["number"] == best
            colour, width = (PALETTE[1], 2.4) if chosen else ("#8fb4cf", 1.0)
            marker = "o" if len(steps) < 2 else ""
            axes.plot(steps, values, marker=marker, markersize=3, color=colour, linewidth=width)
        axes.set(xlabel="step", ylabel=f"{quality} on validation")
        return svg(figure, "Learning curves of the trials")
