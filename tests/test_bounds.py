"""Whatever is written for a field ends as a value within its bounds or as a usage error, and never otherwise.

The walk is over all fields of all stages and all parameters of all methods: a new one cannot leave its bounds
out.
"""

from __future__ import annotations

import importlib
import math
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import annotated_types
import pytest

from kdcli import methods
from kdcli.config import leaves, resolve
from kdcli.errors import UsageError
from kdcli.methods import METHODS
from kdcli.reading import YamlError, parse_yaml
from kdcli.stages import STAGES

CONFIGS = {name: importlib.import_module(module).Config for name, (module, _) in STAGES.items()}
FIELDS = [(stage, dotted) for stage, kind in CONFIGS.items() for dotted, _, _ in leaves(kind)]
LARGEST = 1e38  # of all numbers that any field takes

TEXTS = {
    **{
        text: text
        for text in ("0", "-1", "1", "0.5", "1e300", "-1e300", "1e-320", "1e999", "18446744073709551616")
    },
    **{
        text: text for text in (".nan", ".inf", "-.inf", "nan", "inf", "true", "null", "x", "''", "²", "0x10")
    },
    **{
        text: text
        for text in ("[]", "[5, 5]", "[.nan, .nan]", "[1e300]", "[x]", "[[1]]", "{}", "{a: 1}", "[null]")
    },
    "many digits": "9" * 30,
    "5,000 digits": "9" * 5000,
    "a list of 5,000 digits": f"[{'9' * 5000}]",
    "nested": "[" * 5000 + "]" * 5000,
    "open": "[" * 5000,
    "a tree without end": "&a [*a]",
    "a bomb": "[&a [1, 1, 1, 1, 1, 1, 1, 1], &b [*a, *a, *a, *a, *a, *a, *a, *a], "
    "&c [*b, *b, *b, *b, *b, *b, *b, *b], &d [*c, *c, *c, *c, *c, *c, *c, *c], "
    "&e [*d, *d, *d, *d, *d, *d, *d, *d], [*e, *e, *e, *e, *e, *e]]",
    "NUL": '"a\\0b"',
    "NUL in a list": '["a\\0b"]',
    "long": "a" * 100_000,
    "control": '"\\e[31m\\n\\u202e"',
}


def outcome(made: Callable[..., Any], *given: Any, **more: Any) -> tuple[Any, str]:
    """What comes of a call: a value, or the message of a usage error."""
    try:
        return made(*given, **more), ""
    except UsageError as error:
        return None, str(error)


def parsed(text: str) -> tuple[Any, str]:
    """A YAML text once for all fields, or what is wrong with it."""
    try:
        return parse_yaml(text), ""
    except YamlError:
        return text, ""
    except ValueError as error:
        return None, str(error)


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a value."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


@pytest.mark.parametrize("text", TEXTS)
def test_every_field_takes_a_value_within_bounds_or_refuses_it(text: str) -> None:
    value, fault = parsed(TEXTS[text])
    for stage, dotted in FIELDS[:1] if fault else FIELDS:
        given = {"sets": [f"{dotted}={TEXTS[text]}"]} if fault else {"options": {dotted: value}}
        config, message = outcome(resolve, CONFIGS[stage], **given)
        assert config is None or not fault
        found = {} if config is None else config.model_dump()
        assert len(message) < 1000, dotted
        assert all(math.isfinite(number) and abs(number) <= LARGEST for number in numbers(found)), dotted
        assert "\\x00" not in str(found), dotted


@pytest.mark.parametrize("text", ["0", "-1", "1e300", "nan", "inf", "", "x", "²", "9" * 5000, "\0", "true"])
def test_every_option_too(text: str) -> None:
    for kind in CONFIGS.values():
        for dotted, _, extra in leaves(kind):
            if extra["flag"]:
                config, message = outcome(resolve, kind, options={dotted: text})
                found = numbers({} if config is None else config.model_dump())
                assert all(math.isfinite(number) and abs(number) <= LARGEST for number in found), dotted
                assert message.startswith(extra["flag"].split(",")[-1]) or not message, dotted


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_a_method_takes_a_value_within_bounds_or_refuses_it(name: str) -> None:
    values = [0, -1, 2**64, 10**400, 1e300, -1e300, math.nan, math.inf, -math.inf, True, None, "x", "", "nan"]
    values += ["9" * 5000, [], {}, [[1]], [math.nan], ["x", 1], object(), "[" * 5000, b"\xff"]
    for key in methods.parameters(name):
        for value in values:
            found, message = outcome(methods.arguments, name, {key: value})
            assert len(message) < 1000
            assert message.startswith(f"method.{key}: ") or not message
            assert all(math.isfinite(n) and abs(n) <= LARGEST for n in numbers(found)), (key, value)


@pytest.mark.parametrize("name", methods.ADDITIONS)
@pytest.mark.parametrize("value", ["1e300", "nan", "-inf", "x", "9" * 5000])
def test_a_term_that_is_added_refuses_them(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"--add {name}"):
        methods.addition(f"{name}={value}")


# -- what is declared ----------------------------------------------------------------------------------------


def bare(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    """Numeric types in an annotation that lack a bound on either side."""
    if typing.get_origin(annotation) is Annotated:
        inner, *more = typing.get_args(annotation)
        yield from bare(inner, [*metadata, *(c for one in more for c in getattr(one, "metadata", [one]))])
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from bare(part, metadata)
    elif typing.get_origin(annotation) in (list, tuple):
        for part in typing.get_args(annotation):
            yield from bare(part, [])
    elif annotation in (int, float):
        below = any(isinstance(one, annotated_types.Ge | annotated_types.Gt) for one in metadata)
        above = any(isinstance(one, annotated_types.Le | annotated_types.Lt) for one in metadata)
        if not (below and above):
            yield annotation.__name__


@pytest.mark.parametrize("stage", CONFIGS)
def test_every_number_of_a_stage_declares_its_bounds(stage: str) -> None:
    lacking = {
        dotted
        for dotted, field, _ in leaves(CONFIGS[stage])
        for _ in bare(field.annotation, list(field.metadata))
    }
    assert lacking == set()


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_a_method_has_bounds(name: str) -> None:
    lacking = {
        key for key, p in methods.parameters(name).items() for _ in bare(methods.bounded(p.annotation), [])
    }
    assert lacking == set()


def test_the_walk_sees_what_lacks_a_bound() -> None:
    assert list(bare(list[float] | None, [])) == ["float"]
    assert list(bare(Annotated[int, annotated_types.Ge(0)], [])) == ["int"]
    assert len(FIELDS) > 100


# -- messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.betas=[5,5]", "--set optim.betas: input should be less than 1, got 5."),
        ("seed=18446744073709551616", "--set seed: input should be less than 9223372036854775808, got 184"),
        (
            "optim.lr=1e300",
            "--set optim.lr: input should be less than or equal to 1e+38, got 1e+300.",
        ),
        ("optim.lr=.nan", "--set optim.lr: input should be a finite number, got nan."),
        (
            "views.size=1000000000",
            "--set views.size: input should be less than or equal to 4096, got 1000000000.",
        ),
        ("threads=100000000", "--set threads: input should be less than or equal to 1024, got 100000000."),
        ("device=gpu", "--set device: one of auto, cpu, cuda, cuda:0, cuda:1, …, mps is wanted, got 'gpu'."),
        ("device=cuda:-1", "--set device: one of auto, cpu"),
        (
            "views.auto_augment=rand-n99999999-m9",
            "--set views.auto_augment: a policy whose numbers are 1000 or less",
        ),
        (
            "views=0",
            "--set views: a number above 0, live or auto is wanted, and no more than 10,000, got 0.",
        ),
        ("views=²", "--set views: a number above 0, live or auto is wanted"),
        (f"optim.lr={'9' * 5000}", "--set optim.lr: it has a whole number of 39 digits or more."),
        (f"optim.lr={'[' * 5000}", "--set optim.lr: it is nested more than 32 deep."),
        ("optim.lr={a: 1, a: 2}", "--set optim.lr: input should be a valid number"),
        ('cache="a\\0b"', "--set cache: a text without the character NUL is wanted, got 'a\\x00b'."),
        ('cache="\\ud800"', "--set cache: a text of whole Unicode characters is wanted"),
        (f"out={'a' * 300}", "--set out: no file has a name of more than 255 bytes, got 'aaa"),
        (f"teacher={'a/' * 3000}", "--set teacher: no path has more than 4,096 bytes, got ['a/a"),
    ],
)
def test_a_message_names_field_value_and_bound(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(CONFIGS["distill"], sets=[text])
    assert str(caught.value).startswith(message)


def test_a_file_of_any_kind_or_size_is_no_configuration(tmp_path: Path) -> None:
    import os

    (tmp_path / "large.yaml").write_text("# " + "x" * 2_000_000)
    (tmp_path / "zeros").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nested.yaml").write_text("optim: " + "[" * 5000)
    (tmp_path / "twice.yaml").write_text("optim:\n  lr: 1\n  lr: 2\n")
    (tmp_path / "digits.yaml").write_text("optim.lr: " + "9" * 5000)
    (tmp_path / "endless.yaml").write_text("optim: &a\n  lr: *a\n")
    for name, message in {
        "large.yaml": "it has more than 1,048,576 bytes",
        "zeros": "it is no regular file",
        "pipe": "it is no regular file",
        "nested.yaml": "it is nested more than 32 deep",
        "twice.yaml": "the key 'lr' stands twice",
        "digits.yaml": "a whole number of 39 digits or more|Exceeds the limit",
        "endless.yaml": "it is nested more than 32 deep",
    }.items():
        with pytest.raises(UsageError, match=rf"--config {tmp_path / name}.*({message})"):
            resolve(CONFIGS["distill"], file=tmp_path / name)
