"""Requirements on a report, such as ``top1>=0.8``: what turns an evaluation into a gate of a pipeline."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcli.errors import UsageError, nearest

_FORM = re.compile(r"\s*([a-z0-9_.]+)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)\s*")
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
FRACTIONS = (
    *("top1", "top5", "mean_per_class", "ece", "miou", "pixel_accuracy", "mean_accuracy"),
    *("agreement", "both_right", "only_student", "only_teacher", "neither_right"),
    *("exits.ensemble.top1", "exits.early.top1"),
)
METRICS = (
    *FRACTIONS,
    *("nll", "kl", "parameters", "flops", "latency_ms", "throughput", "peak_memory_mb"),
    *("exits.early.flops", "exits.early.latency_ms"),
)
_VALIDATED = "it takes a model with exits, and validation pictures beside those measured"
_TAKES = {  # metrics that not every run has
    **dict.fromkeys(("agreement", "kl", "both_right", "only_student"), "it takes --teacher"),
    **dict.fromkeys(("only_teacher", "neither_right"), "it takes --teacher"),
    **dict.fromkeys(("parameters", "flops", "latency_ms"), "--no-cost leaves it out"),
    **dict.fromkeys(("throughput", "peak_memory_mb"), "--no-cost leaves it out"),
    **dict.fromkeys(("miou", "pixel_accuracy", "mean_accuracy"), "it takes masks"),
    **dict.fromkeys(("exits.early.top1", "exits.early.flops"), _VALIDATED),
    "exits.early.latency_ms": f"{_VALIDATED}, and no --no-cost",
    "exits.ensemble.top1": "it takes a model with exits",
    "top5": "it takes more than five classes",
}


@dataclass(frozen=True)
class Gate:
    """One comparison of a metric with a bound."""

    metric: str
    compare: str
    bound: float

    @property
    def text(self) -> str:
        """As a user writes it."""
        return f"{self.metric}{self.compare}{self.bound:g}"


def parse(text: str) -> Gate:
    """Parse ``METRIC>=NUMBER``. Raises UsageError for another form, metric or range."""
    match = _FORM.fullmatch(text)
    if not match:
        raise UsageError(f"--require '{text}': write METRIC>=NUMBER, for example top1>=0.8.")
    name, compare, bound = match.groups()
    if name not in METRICS:
        raise UsageError(
            f"--require: no metric '{name}'.{nearest(name, METRICS)} There are: {', '.join(METRICS)}."
        )
    try:
        gate = Gate(name, compare, float(bound))
    except ValueError:
        raise UsageError(f"--require '{text}': '{bound}' is no number.") from None
    if name in FRACTIONS and not 0 <= gate.bound <= 1:
        raise UsageError(f"--require '{text}': {name} is a fraction, from 0 to 1.")
    return gate


def judge(gate: Gate, model: Mapping[str, Any]) -> tuple[str, bool, float]:
    """Whether a model of a report meets a gate: (model and gate as text, met, measured value).

    Raises:
        UsageError: the metric was not measured; the message says what it takes.
    """
    value: Any = {**model, **model["metrics"], **model.get("teacher", {}), **model.get("cost", {})}
    for key in gate.metric.split("."):
        value = (value or {}).get(key)
    if isinstance(value, Mapping):
        value = value["median"]
    if value is None:
        why = f": {_TAKES[gate.metric]}" if gate.metric in _TAKES else ""
        raise UsageError(f"--require: '{gate.metric}' was not measured of {model['name']} in this run{why}.")
    return f"{model['name']}: {gate.text}", bool(_COMPARE[gate.compare](value, gate.bound)), float(value)
