"""Methods by name. A method is a function, named after its paper, that returns data (:mod:`kdcli.words`).

The table of them imports without torch. A method's typed keyword arguments, and those of its parts, are its
parameters.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, partial
from typing import Annotated, Any

from kdcli.errors import UsageError, nearest, shortened
from kdcli.methods.table import ADDITIONS, COMPRESSORS, METHODS, Entry, Needs
from kdcli.sections import LARGEST
from kdcli.words import Recipe
from kdcli.words.recipes import as_yaml

__all__ = [
    "ADDITIONS",
    "AUTO",
    "AUTO_HELP",
    "COMPRESSORS",
    "METHODS",
    "Entry",
    "addition",
    "arguments",
    "as_option",
    "bounded",
    "describe",
    "entry",
    "fits",
    "function",
    "parameters",
    "recipes",
]

AUTO = "auto"
AUTO_HELP = """Method auto: short runs choose between labels alone and ways to learn from the teacher.

Every way makes pilot.share of the steps (15 %), and pilot.most (500) at most, with pilot.seeds seeds (3),
each seed compared with labels alone at the same seed; the best goes on, labels alone where no teacher helps.
The manifest has the differences with their intervals (pilot).

Ways: --set 'pilot.ways=["task-specific", "kd,teacher_view=plain", "dkd,method.beta=4"]'."""

_LONGEST, _MOST = 64, 1_000_000  # names or numbers in one parameter; of what is counted
_OF_A_ROW = ("loss", "step", "epoch", "lr", "grad_norm")  # what else a row of the log has


def entry(name: str) -> Entry:
    """Row of the table of methods, or of those of ``kdcli compress``. Raises UsageError with the nearest."""
    if name in COMPRESSORS:
        return COMPRESSORS[name]
    if name not in METHODS:
        raise UsageError(f"unknown method '{name}'.{nearest(name, METHODS)} Methods: {', '.join(METHODS)}.")
    return METHODS[name]


def refuse_other_stage(name: str, table: Mapping[str, Entry]) -> None:
    """Raise UsageError for a method that belongs to another stage than the one of ``table``."""
    if name in table:
        return
    if table is COMPRESSORS:
        if name in METHODS:
            raise UsageError(f"method {name} is one of kdcli distill; kdcli compress has {', '.join(table)}.")
        raise UsageError(f"unknown method '{name}'.{nearest(name, table)} Methods: {', '.join(table)}.")
    if name in COMPRESSORS:
        raise UsageError(f"method {name} is one of kdcli compress.")
    entry(name)


def fits(needs: Needs, provides: Collection[str]) -> bool:
    """Whether a task that ``provides`` what is named in :class:`kdcli.tasks.Entry` has what is needed."""
    return needs in provides or (needs == "any" and "features" not in provides)


def term_needs(text: str) -> Needs:
    """What a term of ``--add`` needs of a task; that of a method which fits any task compares classes."""
    needs = entry(text.partition(",")[0].partition("=")[0].strip()).needs
    return "class" if needs == "any" else needs


def function(name: str) -> Callable[..., Any]:
    """A function of the task and of the method's parameters that returns the method (imports torch)."""
    row = entry(name)
    return partial(_put_together, _load(row.target), [_load(part) for part in row.parts])


def _put_together(
    method: Callable[..., Any], parts: Sequence[Callable[..., Any]], task: Any, *more: Any, **given: Any
) -> Any:
    made = [part(**{key: given.pop(key) for key in _of_part(part) if key in given}) for part in parts]
    return method(task, *made, *more, **given)


def _load(target: str) -> Callable[..., Any]:
    module, _, attribute = target.partition(":")
    return typing.cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The method's parameters: its function's keyword arguments, then those of its parts."""
    row = entry(name)
    found = dict(_keywords(_load(row.target)))
    for part in row.parts:
        found |= _of_part(_load(part))
    return found


@cache
def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(function, eval_str=True)
    return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


@cache
def _of_part(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a method can give a part by name: all but what the part's terms are called."""
    signature = inspect.signature(function, eval_str=True)
    return {
        p.name: p
        for p in signature.parameters.values()
        if p.kind is not p.POSITIONAL_ONLY and p.name != "name"
    }


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
    from pydantic import ValidationError

    if typing.get_origin(annotation) is tuple and isinstance(value, str):
        value = (value,)
    try:
        return _reader(annotation).validate_python(value)
    except ValidationError as error:
        raise UsageError(f"{name}: {error.errors()[0]['msg']}, got {shortened(repr(value))}.") from None


@cache
def _reader(annotation: Any) -> Any:
    """Pydantic's reader of one value; a plan asks for the same ones several times."""
    from pydantic import TypeAdapter

    return TypeAdapter(bounded(annotation))


def bounded(annotation: Any) -> Any:
    """The annotation of a parameter, numbers that have no bounds of their own kept finite and of use."""
    from pydantic import Field

    if annotation is float:
        return Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
    if annotation is int:
        return Annotated[int, Field(ge=-_MOST, le=_MOST)]
    if typing.get_origin(annotation) is Annotated:
        inner, *constraints = typing.get_args(annotation)
        return Annotated[(bounded(inner), *constraints)]
    if typing.get_origin(annotation) is tuple:
        parts = tuple(bounded(part) for part in typing.get_args(annotation))
        return Annotated[tuple[parts], Field(max_length=_LONGEST)]  # type: ignore[valid-type]
    return annotation


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
    known = _keywords(make)
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


def recipes(name: str) -> tuple[Recipe, ...]:
    """Published trainings of a method, as it has them for any classes (imports torch)."""
    if published := entry(name).published:
        return tuple(_load(published)())
    from kdcli.tasks.classification import Classification

    classes = tuple(f"class {number}" for number in range(10))
    return tuple(function(name)(Classification(classes)).recipes)


def describe(name: str) -> str:
    """Help text of one method: paper, what its docstring says, parameters and defaults, recipes."""
    if name == AUTO:
        return AUTO_HELP
    row = entry(name)
    heading = f"Method {name}: {row.help} ({row.paper})."
    found = [heading, "", inspect.getdoc(_load(row.target)) or ""]
    if settings := [f"* {key} = {p.default}" for key, p in parameters(name).items()]:
        found += ["", "Parameters (--set method.NAME=VALUE):", "", *settings]
    published = recipes(name)
    if not published:
        found += ["", "It has no recipe: no published training of it is known here."]
    for number, recipe in enumerate(published):
        called = recipe.name if number else "paper"
        found += ["", f"Recipe {recipe.name} (--recipe {called}), from {recipe.source}:", "", *_lines(recipe)]
    return "\n".join(found)


def _lines(recipe: Recipe) -> list[str]:
    """Items of a list: settings by section, each with what is to be said of it, and what is missing."""
    items: dict[str, list[str]] = {}
    for key, value in recipe.settings.items():
        section, _, name = key.partition(".")
        note = f" ({recipe.notes[key]})" if key in recipe.notes else ""
        items.setdefault(section, []).append(f"{name} {as_yaml(value)}{note}")
    items |= {"left out": list(recipe.left_out), "not published in what could be read": list(recipe.unknown)}
    return [
        textwrap.fill(f"* {name}: {', '.join(values)}", 76, subsequent_indent="  ", break_on_hyphens=False)
        for name, values in items.items()
        if values
    ]
