"""The table of methods. A method is a function, named after its paper, that returns data
(:mod:`kdcli.words`).

The table imports without torch. A method's typed keyword arguments are its parameters.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdcli.errors import UsageError, nearest

BOTH = ("classification", "segmentation")


@dataclass(frozen=True)
class Entry:
    """One row of the table.

    Attributes:
        target: ``module:function``.
        help: one line.
        paper: where it comes from.
        teacher: whether it needs one.
        tasks: that it fits.
        twin: whether teacher and student must be of one architecture.
    """

    target: str
    help: str
    paper: str
    teacher: bool = True
    tasks: tuple[str, ...] = ("classification",)
    twin: bool = False


def _at(module: str, function: str) -> str:
    return f"kdcli.methods.{module}:{function}"


_TF_KD = "Yuan et al. 2020, arXiv 1909.11723"
_TANG = "Tang et al. 2020, arXiv 2002.03532"
_CHO = "Cho & Hariharan 2019, ICCV"
_ALLEN_ZHU = "Allen-Zhu & Li 2020, arXiv 2012.09816"

METHODS: dict[str, Entry] = {
    "supervised": Entry(
        _at("supervised", "supervised"),
        "labels only: the baseline, and the way to train a first teacher",
        "none",
        teacher=False,
        tasks=BOTH,
    ),
    "kd": Entry(
        _at("kd", "kd"),
        "labels and softened teacher logits",
        "Hinton, Vinyals & Dean 2015, arXiv 1503.02531",
        tasks=BOTH,
    ),
    "task-specific": Entry(
        _at("task_specific", "task_specific"),
        "a probed teacher on all pictures, labels on labelled ones",
        "Marrie et al. 2024, arXiv 2402.11305",
        tasks=BOTH,
    ),
    "dkd": Entry(
        _at("dkd", "dkd"), "the true class and the others apart", "Zhao et al. 2022, arXiv 2203.08679"
    ),
    "eskd": Entry(_at("kd", "eskd"), "the teacher's term is dropped part-way", _CHO),
    "sequential": Entry(_at("kd", "sequential"), "each student teaches the next one", _CHO),
    "self": Entry(_at("kd", "self"), "an earlier run of the same network teaches", _ALLEN_ZHU, twin=True),
    "ensemble": Entry(_at("kd", "ensemble"), "the mean of several teachers", _ALLEN_ZHU),
    "kd-pt": Entry(_at("effects", "kd_pt"), "the teacher's confidence only", _TANG),
    "kd-sim": Entry(_at("effects", "kd_sim"), "the teacher's class relations only", _TANG),
    "kd-topk": Entry(_at("effects", "kd_topk"), "the teacher's largest probabilities", _TANG),
    "hint": Entry(
        _at("features", "hint"),
        "one regressed map, jointly with labels: the FitNet of tables",
        "Romero et al. 2015, arXiv 1412.6550, as RepDistiller has it",
    ),
    "fitnets": Entry(
        _at("fitnets", "fitnets"),
        "a hint first, then the whole student: the paper's two phases",
        "Romero et al. 2015, arXiv 1412.6550",
    ),
    "at": Entry(_at("features", "at"), "attention maps", "Zagoruyko & Komodakis 2017, arXiv 1612.03928"),
    "nst": Entry(_at("features", "nst"), "selectivity of channels", "Huang & Wang 2017, arXiv 1707.01219"),
    "rkd": Entry(
        _at("relations", "rkd"), "distances and angles between pictures", "Park et al. 2019, arXiv 1904.05068"
    ),
    "sp": Entry(
        _at("relations", "sp"), "similarities between pictures", "Tung & Mori 2019, arXiv 1907.09682"
    ),
    "cc": Entry(_at("relations", "cc"), "correlation of neighbours", "Peng et al. 2019, arXiv 1904.01802"),
    "pkt": Entry(
        _at("relations", "pkt"), "affinities as probabilities", "Passalis & Tefas 2018, arXiv 1803.10837"
    ),
    "byot": Entry(
        _at("byot", "byot"),
        "exits learn from the network's own end",
        "Zhang et al. 2019, arXiv 1905.08094",
        teacher=False,
    ),
    "dml": Entry(
        _at("mutual", "dml"),
        "networks that teach one another",
        "Zhang et al. 2018, arXiv 1706.00384",
        teacher=False,
    ),
    "one": Entry(
        _at("branches", "one"),
        "branches and their gated ensemble",
        "Lan et al. 2018, arXiv 1806.04606",
        teacher=False,
    ),
    "okddip": Entry(
        _at("branches", "okddip"),
        "diverse peers by attention, and a leader",
        "Chen et al. 2020, arXiv 1912.00350",
        teacher=False,
    ),
    "lsr": Entry(_at("label_smoothing", "lsr"), "label smoothing", _TF_KD, teacher=False),
    "tf-kd-self": Entry(
        _at("label_smoothing", "tf_kd_self"), "the student's own pretrained self teaches", _TF_KD, twin=True
    ),
    "tf-kd-reg": Entry(_at("label_smoothing", "tf_kd_reg"), "a teacher made by hand", _TF_KD, teacher=False),
    "reversed": Entry(_at("label_smoothing", "reversed_kd"), "a weaker teacher", _TF_KD),
    "defective": Entry(_at("label_smoothing", "defective"), "a badly trained teacher", _TF_KD),
    "sskd": Entry(
        _at("sskd", "sskd"),
        "self-supervision on turned views, transferred with selection",
        "Xu et al. 2020, arXiv 2006.07114",
    ),
    "dafl": Entry(
        _at("dafl", "dafl"),
        "without data: a generator and the student, both from the teacher",
        "Chen et al. 2019, arXiv 1904.01186",
    ),
}

ADDITIONS: dict[str, str] = {
    "kd": _at("kd", "part"),
    "dkd": _at("dkd", "part"),
    "hint": _at("features", "hint_part"),
    "at": _at("features", "at_part"),
    "nst": _at("features", "nst_part"),
    "rkd": _at("relations", "rkd_part"),
    "sp": _at("relations", "sp_part"),
    "cc": _at("relations", "cc_part"),
    "pkt": _at("relations", "pkt_part"),
}
"""Terms that ``--add`` puts beside any method's: name → function of the weight that returns a part."""

_OF_A_ROW = ("loss", "step", "epoch", "lr", "grad_norm")  # what else a row of the log has


def entry(name: str) -> Entry:
    """Row of the table. Raises UsageError with the nearest name."""
    if name not in METHODS:
        raise UsageError(f"unknown method '{name}'.{nearest(name, METHODS)} Methods: {', '.join(METHODS)}.")
    return METHODS[name]


def function(name: str) -> Callable[..., Any]:
    """The method's function (imports torch)."""
    return _load(entry(name).target)


def _load(target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The method's keyword arguments."""
    return _parameters(function(name))


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(function, eval_str=True)
    return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


def arguments(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Check ``given`` against the method's parameters and fill in its defaults.

    Raises:
        UsageError: an unknown parameter (with the nearest name) or a value of the wrong type.
    """
    known = parameters(name)
    values = {key: p.default for key, p in known.items()}
    for key, value in given.items():
        if key not in known:
            flag = f"--{key}" if key in ("alpha", "temperature") else f"'method.{key}'"
            raise UsageError(f"method {name} has no {flag}.{nearest(key, known)} It has: {', '.join(known)}.")
        values[key] = _checked(f"method.{key}", known[key].annotation, value)
    return values


def _checked(name: str, annotation: Any, value: Any) -> Any:
    """``value`` as what the annotation says. Raises UsageError."""
    from pydantic import TypeAdapter, ValidationError

    if typing.get_origin(annotation) is tuple and isinstance(value, str):
        value = (value,)
    try:
        found = TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        raise UsageError(f"{name}: {error.errors()[0]['msg']}, got {value!r}.") from None
    if isinstance(found, float) and not math.isfinite(found):
        raise UsageError(f"{name} must be a finite number, got {value!r}.")
    return found


def as_option(term: dict[Any, Any]) -> str:
    """``NAME=WEIGHT,key=value,…`` of a mapping with the same keys, in any order."""
    keys = sorted(term, key=lambda key: key not in ADDITIONS)
    values = ["+".join(map(str, v)) if isinstance(v, list) else str(v) for v in (term[k] for k in keys)]
    return ",".join(f"{key}={value}" for key, value in zip(keys, values))


def addition(text: str) -> Any:
    """The part (:class:`kdcli.methods.parts.Part`) behind ``NAME=WEIGHT,key=value,…``; imports torch.

    The number multiplies the reference's inner weights (``rkd=1`` is 25 and 50); ``as=`` renames the term;
    several taps are joined by ``+``.

    Raises:
        UsageError: an unknown name or key, with the nearest one, a key given twice, or a value of the wrong
            type.
    """
    head, *rest = [item.strip() for item in text.split(",")]
    name, _, number = head.partition("=")
    if name not in ADDITIONS:
        raise UsageError(f"--add: no term '{name}'.{nearest(name, ADDITIONS)} Terms: {', '.join(ADDITIONS)}.")
    make = _load(ADDITIONS[name])
    known = _parameters(make)
    keywords: dict[str, Any] = {}
    for item in rest:
        key, equals, value = item.partition("=")
        key = {"as": "name"}.get(key, key)
        if key not in known or not equals:
            shown = ["as" if key == "name" else key for key in known]
            raise UsageError(f"--add {name}: no '{item}'.{nearest(key, shown)} It has: {', '.join(shown)}.")
        if key in keywords:
            raise UsageError(f"--add {name}: '{item}' is given a second time.")
        if key == "name" and (value in _OF_A_ROW or not re.fullmatch(r"[A-Za-z0-9_-]+", value)):
            raise UsageError(f"--add {name}: as={value} is no name for a term: letters, digits, - and _.")
        many = typing.get_origin(known[key].annotation) is tuple
        keywords[key] = _checked(
            f"--add {name}: {key}", known[key].annotation, value.split("+") if many else value
        )
    return make(_checked(f"--add {name}", float, number or 1.0), **keywords)


def describe(name: str) -> str:
    """Help text of one method: paper, what its docstring says, parameters and defaults."""
    row = entry(name)
    settings = [f"* {key} = {p.default}" for key, p in parameters(name).items()]
    heading = f"Method {name}: {row.help} ({row.paper})."
    body = inspect.getdoc(function(name)) or ""
    listed = ["", "Parameters (--set method.NAME=VALUE):", "", *settings] if settings else []
    return "\n".join([heading, "", body, *listed])
