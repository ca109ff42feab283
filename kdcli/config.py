"""Configuration: pydantic sections whose fields declare their option, their panel, whether they are runtime.

Precedence: stage default < recipe < YAML < ``--set`` < option, and a configuration knows which of them gave
each value. Unknown keys are refused with the nearest name. *Identity* fields make a run what it is; *runtime*
fields (workers, tracking, …) may differ on resume.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from kdcli.errors import InputError, UsageError, nearest, shortened
from kdcli.reading import TEXT_LIMIT, YamlError, parse_yaml, read_bytes, refuse_long_path, refuse_untextual


def option(
    default: Any,
    help: str,
    flag: str | None = None,
    *,
    panel: str = "Other",
    runtime: bool = False,
    positional: bool = False,
    listed: bool = True,
    **constraints: Any,
) -> Any:
    """Declare a field.

    Args:
        default: its default; ``...`` for required.
        help: one line for ``--help``.
        flag: the command-line option; without one the field is reached by ``--set`` and ``--config`` only.
        panel: heading in ``--help``.
        runtime: whether it may differ when a run is resumed.
        positional: whether it is the command's positional arguments.
        listed: whether ``--help``, which fits a screen, has its option.
        constraints: pydantic's (``ge``, ``gt``, ``le``, …).
    """
    extra: dict[str, Any] = {"flag": flag, "panel": panel, "runtime": runtime, "positional": positional}
    extra["listed"] = listed
    if isinstance(default, (list, dict)):
        copy = partial(type(default), default)
        return Field(default_factory=copy, description=help, json_schema_extra=extra, **constraints)
    return Field(default, description=help, json_schema_extra=extra, **constraints)


PANELS = ("Inputs", "Method", "Head", "Data", "Training", "Outputs", "Run")
inputs, method_option, head_option, reading, training, outputs, running = (
    partial(option, panel=panel) for panel in PANELS
)


class Written(dict[str, str]):
    """Where the user wrote each value, by dotted name; no part of what a configuration is."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Written)

    __hash__ = None


_PLACES = ("out", "cache")  # paths among the outputs


class Section(BaseModel):
    """A group of fields; a bare value (``data: cars/`` in YAML) stands for its ``principal`` field.

    Attributes:
        principal: name of that field.
        flags: whether its fields' options are offered (a stage may use a section in a second role).
        dotted: whether its further keys are names of keys of the whole configuration (``search.optim.lr``).
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_default=True,
        protected_namespaces=(),
        coerce_numbers_to_str=True,
        allow_inf_nan=False,
    )
    principal: typing.ClassVar[str | None] = None
    flags: typing.ClassVar[bool] = True
    dotted: typing.ClassVar[bool] = False
    _written: Written = PrivateAttr(default_factory=Written)

    @field_validator("*")
    @classmethod
    def _is_plain_text(cls, value: Any, info: ValidationInfo) -> Any:
        """Texts that the system can take, and, of files, names that it can have."""
        texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        extra: Any = cls.model_fields[str(info.field_name)].json_schema_extra or {}
        is_path = extra.get("panel") == "Inputs" or extra.get("positional") or info.field_name in _PLACES
        for text in texts:
            refuse_untextual(text)
            if is_path:
                refuse_long_path(text)
        return value


C = TypeVar("C", bound=Section)


Leaf = tuple[str, Any, dict[str, Any]]


def leaves(section: type[Section]) -> tuple[Leaf, ...]:
    """All fields below a section as (dotted name, pydantic field, its extras)."""
    return _kept_leaves(section)


@cache
def _kept_leaves(section: type[Section]) -> tuple[Leaf, ...]:
    return tuple(_leaves(section, ""))


def _leaves(section: type[Section], prefix: str) -> Iterator[Leaf]:
    for name, field in section.model_fields.items():
        kind = field.annotation
        if inspect.isclass(kind) and issubclass(kind, Section):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            extra = typing.cast(dict[str, Any], field.json_schema_extra or {})
            yield f"{prefix}{name}", field, extra if section.flags else {**extra, "flag": None}


def resolve(
    kind: type[C],
    *,
    file: Path | str | None = None,
    sets: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> C:
    """Build a validated configuration.

    Args:
        kind: the stage's configuration class.
        file: a YAML file (a manifest's resolved ``config`` is one too).
        sets: ``a.b=value`` strings of ``--set``.
        options: values of options by dotted name.

    Raises:
        UsageError: an unknown key (with the nearest name), a value of the wrong type or out of range.
    """
    flags = {dotted: extra.get("flag") for dotted, _, extra in leaves(kind)}
    # a stage's own default of a section (ViewSection(count="1")) holds beside keys that the user sets in it
    merged: dict[str, Any] = {
        name: field.default.model_dump(exclude_unset=True)
        for name, field in kind.model_fields.items()
        if isinstance(field.default, Section)
    }
    origins = Written()
    shown: dict[str, str] = {}  # dotted name -> how the user wrote it, for messages

    def put(name: str, value: Any, origin: str, where: str) -> None:
        dotted = _put(merged, kind, name, value)
        origins[dotted], shown[dotted] = origin, where

    if file is not None:
        for name, value in _flatten(kind, _load_yaml(Path(file)), str(file)):
            put(name, value, str(file), f"{file}: {name}")
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, got '{text}'.")
        put(name.strip(), _yaml_value(name.strip(), value), "--set", f"--set {name.strip()}")
    for name, value in (options or {}).items():
        flag = (flags.get(name) or name).split(",")[-1]
        put(name, value, flag, flag)
    try:
        config = kind.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_explain(kind, error, shown)) from None
    config._written = origins
    return config


def origins(config: Section) -> Mapping[str, str]:
    """Where the user wrote each value, by dotted name: a file, ``--set``, an option; others are defaults."""
    return dict(config._written)


def as_default(config: C, *names: str) -> C:
    """A copy in which the values of these keys do not count as written by the user."""
    found = config.model_copy()
    found._written = Written((name, place) for name, place in config._written.items() if name not in names)
    return found


def beneath(config: C, values: Mapping[str, Any]) -> tuple[C, dict[str, Any]]:
    """Put ``values`` (by dotted name) in the place of defaults, beneath all that the user wrote.

    Returns the new configuration, which knows what the user wrote of the old one, and the values that hold.

    Raises:
        UsageError: an unknown key, a value of the wrong type or out of range.
    """
    kind, merged = type(config), config.model_dump()
    held = {name: value for name, value in values.items() if name not in config._written}
    for name, value in held.items():
        _put(merged, kind, name, value)
    try:
        found = kind.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_explain(kind, error, {})) from None
    found._written = Written(config._written)
    return found, held


def above(config: C, values: Mapping[str, Any], place: str) -> C:
    """Put ``values`` (by dotted name) in the place of all that stands there, as if written at ``place``.

    Raises:
        UsageError: an unknown key, a value of the wrong type or out of range.
    """
    kind, merged, written = type(config), config.model_dump(), Written(config._written)
    for name, value in values.items():
        written[_put(merged, kind, name, value)] = place
    try:
        found = kind.model_validate(merged)
    except ValidationError as error:
        raise UsageError(_explain(kind, error, {name: f"{place} {name}" for name in values})) from None
    found._written = written
    return found


def full_name(kind: type[Section], name: str) -> str:
    """The dotted name of a key, of a section the one of its principal field. Raises UsageError for none."""
    return _put({}, kind, name, None)


def asked(config: Section, dotted: str) -> bool:
    """Whether the user asked for the value of ``dotted``: by an option, by ``--set``, or in a file.

    A manifest's resolved configuration is a file too, and has every key; so one in a file counts only if its
    value is not the default.
    """
    origin = config._written.get(dotted)
    if origin is None:
        return False
    first, _, rest = dotted.partition(".")
    if getattr(type(config).model_fields[first].annotation, "dotted", False) and "." in rest:
        return True
    default: Any = type(config)()
    value: Any = config
    for part in dotted.split("."):
        value, default = getattr(value, part), getattr(default, part, None)
    return origin.startswith("-") or value != default


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        data = parse_yaml(read_bytes(path, TEXT_LIMIT).decode("utf-8"))
    except (OSError, UnicodeDecodeError, InputError) as error:
        raise UsageError(f"cannot read --config {path}: {error}") from error
    except ValueError as error:
        raise UsageError(f"--config {path} is not valid YAML: {error}") from error
    if not isinstance(data or {}, dict):
        raise UsageError(f"--config {path} must hold keys and values, not {type(data).__name__}.")
    return data or {}


def _yaml_value(name: str, text: str) -> Any:
    """The value of ``--set NAME=TEXT``; what is no YAML is text."""
    try:
        return parse_yaml(text)
    except YamlError:
        return text
    except ValueError as error:
        raise UsageError(f"--set {name}: {error}.") from error


def _flatten(
    kind: type[Section], data: Mapping[str, Any], where: str, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested YAML, following the sections of ``kind``."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        section = _annotation(kind, name)
        if section is Any and isinstance(value, Mapping):  # search: {optim: {lr: …}}
            yield from _flatten(kind, value, where, f"{name}.")
        elif inspect.isclass(section) and issubclass(section, Section):
            if value is None:  # a heading whose keys are all commented out
                continue
            if isinstance(value, Mapping):
                yield from _flatten(kind, value, where, f"{name}.")
            elif section.principal:
                yield f"{name}.{section.principal}", value
            else:
                raise UsageError(f"{where}: '{name}' is a group of keys, not a value.")
        else:
            yield name, value


def _annotation(kind: type[Section], dotted: str) -> Any:
    """Type of the field ``dotted``; raises UsageError with the nearest name if there is none."""
    current: Any = kind
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        is_section = inspect.isclass(current) and issubclass(current, Section)
        if is_section and part in current.model_fields:
            current = current.model_fields[part].annotation
        elif is_section and current.dotted:
            _annotation(kind, ".".join(parts[depth:]))  # the key that it names
            return Any
        elif is_section and current.model_config.get("extra") == "allow" and depth == len(parts) - 1:
            return Any
        else:
            known = [name for name, _, _ in leaves(kind)]
            if is_section:
                known += list(current.model_fields)
            raise UsageError(f"unknown key '{'.'.join(parts[: depth + 1])}'.{nearest(dotted, known)}")
    return current


def _put(merged: dict[str, Any], kind: type[Section], dotted: str, value: Any) -> str:
    """Set ``dotted``, or the principal field of the section it names; returns the field's dotted name."""
    section = _annotation(kind, dotted)
    if inspect.isclass(section) and issubclass(section, Section):
        if not section.principal:
            raise UsageError(f"'{dotted}' is a group of keys, not a value.")
        dotted = f"{dotted}.{section.principal}"
    first, _, rest = dotted.partition(".")
    field = kind.model_fields.get(first)
    if field is not None and inspect.isclass(field.annotation) and getattr(field.annotation, "dotted", False):
        merged.setdefault(first, {})[rest] = value
        return dotted
    *groups, last = dotted.split(".")
    for group in groups:
        merged = merged.setdefault(group, {})
    merged[last] = value
    return dotted


def _explain(kind: type[Section], error: ValidationError, written: Mapping[str, str]) -> str:
    """The first fault of a validation error in a user's words."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    shown = written.get(name, name)
    if first["type"] == "missing":
        return f"{shown} is required."
    value = first.get("input")
    text, hint = first["msg"].removeprefix("Value error, "), ""
    for bound in (first.get("ctx") or {}).values():
        text = re.sub(r"\d{9,}", f"{bound:g}", text) if isinstance(bound, float) else text
    if first["type"] == "literal_error" and isinstance(value, str):
        hint = nearest(value, typing.get_args(_literal(_annotation(kind, name))))
    return f"{shown}: {text[0].lower()}{text[1:]}, got {shortened(repr(value))}.{hint}"


def _literal(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next((a for a in typing.get_args(annotation) if typing.get_origin(a) is Literal), annotation)
    return annotation


def identity(config: Section) -> dict[str, Any]:
    """The fields of ``config`` that make the run what it is: all but runtime ones, nested as they are."""
    kept: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            kept[name] = identity(value)
        elif not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("runtime")):
            kept[name] = value
    kept.update(config.model_extra or {})
    return kept
