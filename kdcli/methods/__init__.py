"""The table of methods. A method is a function, named after its paper, that returns data
(:mod:`kdcli.words`).

The table imports without torch. A method's typed keyword arguments are its parameters.
"""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kdcli.errors import UsageError, nearest


@dataclass(frozen=True)
class Entry:
    """One row of the table: where the function is, one line of help, the paper, defaults for the stage."""

    target: str
    help: str
    paper: str
    teacher: bool = True
    defaults: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Entry] = {
    "supervised": Entry(
        "kdcli.methods.supervised:supervised",
        "labels only: the baseline, and the way to train a first teacher",
        "none",
        teacher=False,
    ),
    "kd": Entry(
        "kdcli.methods.kd:kd",
        "labels and softened teacher logits",
        "Hinton, Vinyals & Dean 2015, arXiv 1503.02531",
    ),
    "task-specific": Entry(
        "kdcli.methods.task_specific:task_specific",
        "a probed teacher on all pictures, labels on labelled ones",
        "Marrie et al. 2024, arXiv 2402.11305",
    ),
}


def entry(name: str) -> Entry:
    """Row of the table. Raises UsageError with the nearest name."""
    if name not in METHODS:
        raise UsageError(f"unknown method '{name}'.{nearest(name, METHODS)} Methods: {', '.join(METHODS)}.")
    return METHODS[name]


def function(name: str) -> Callable[..., Any]:
    """The method's function (imports torch)."""
    module, _, attribute = entry(name).target.partition(":")
    return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The method's keyword arguments."""
    signature = inspect.signature(function(name), eval_str=True)
    return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


def arguments(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check ``given`` against the method's parameters and fill in its defaults.

    Raises:
        UsageError: an unknown parameter (with the nearest name) or a value of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    known = parameters(name)
    values = {key: p.default for key, p in known.items()}
    for key, value in given.items():
        if key not in known:
            flag = f"--{key}" if key in ("alpha", "temperature") else f"'method.{key}'"
            raise UsageError(f"method {name} has no {flag}.{nearest(key, known)} It has: {', '.join(known)}.")
        try:
            values[key] = TypeAdapter(known[key].annotation).validate_python(value)
        except ValidationError as error:
            raise UsageError(f"method.{key}: {error.errors()[0]['msg']}, got {value!r}.") from None
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise UsageError(f"method.{key} must be a finite number, got {value!r}.")
    return values


def describe(name: str) -> str:
    """Help text of one method: paper, what its docstring says, parameters and defaults."""
    row = entry(name)
    settings = [f"* {key} = {p.default}" for key, p in parameters(name).items()]
    heading = f"Method {name}: {row.help} ({row.paper})."
    body = inspect.getdoc(function(name)) or ""
    return "\n".join([heading, "", body, "", "Parameters (--set method.NAME=VALUE):", "", *settings])
