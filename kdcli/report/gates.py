"""Requirements on a report, such as ``top1>=0.8``: what turns an evaluation into a gate of a pipeline."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcli.errors import UsageError, nearest
from kdcli.report.figures import COST, TEACHER, Figure

_FORM = re.compile(r"\s*([A-Za-z0-9_.]+)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)\s*")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Gate:
    """One comparison of a figure with a bound."""

    figure: Figure
    compare: str
    bound: float

    @property
    def text(self) -> str:
        """As a user writes it."""
        return f"{self.figure.name}{self.compare}{self.bound:g}"


def parse(text: str, figures: Sequence[Figure]) -> Gate:
    """Parse ``METRIC>=NUMBER``.

    Args:
        text: as a user wrote it.
        figures: that a report may have.

    Raises:
        UsageError: another form, figure or range.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise UsageError(f"--require '{text}': write METRIC>=NUMBER, for example {figures[0].name}>=0.8.")
    name, compare, bound = match.groups()
    known = {figure.name: figure for figure in figures}
    if name not in known:
        raise UsageError(
            f"--require: no metric '{name}'.{nearest(name, known)} There are: {', '.join(known)}."
        )
    try:
        gate = Gate(known[name], compare, float(bound))
    except ValueError:
        raise UsageError(f"--require '{text}': '{bound}' is no number.") from None
    if gate.figure.fraction and not 0 <= gate.bound <= 1:
        raise UsageError(f"--require '{text}': {name} is a fraction, from 0 to 1.")
    return gate


def refuse_unmeasured(gates: Sequence[Gate], figures: Sequence[Figure], lacking: Collection[str]) -> None:
    """Raise UsageError for a gate on what a run will not measure; the message says what it takes.

    Args:
        gates: parsed.
        figures: of the run's task.
        lacking: parts of a report that the run leaves out.
    """
    own = {figure.name for figure in figures}
    for figure in (gate.figure for gate in gates):
        if figure.name not in own or figure.keys[0] in lacking:
            idle = figure.name not in own and figure.takes in (TEACHER, COST)
            why = ": it is no figure of this task" if idle else _why(figure)
            raise UsageError(f"--require: '{figure.name}' is not measured in this run{why}.")


def judge(gate: Gate, model: Mapping[str, Any]) -> tuple[str, bool, float]:
    """Whether a model of a report meets a gate: (model and gate as text, met, measured value).

    Raises:
        UsageError: the figure was not measured; the message says what it takes.
    """
    figure, value = gate.figure, gate.figure.of(model)
    if value is None:
        name = model["name"]
        raise UsageError(f"--require: '{figure.name}' was not measured of {name} in this run{_why(figure)}.")
    return f"{model['name']}: {gate.text}", bool(_COMPARE[gate.compare](value, gate.bound)), float(value)


def _why(figure: Figure) -> str:
    return f": {figure.takes}" if figure.takes else ""
