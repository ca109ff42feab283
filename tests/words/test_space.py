"""What a written dimension of a search says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kdcli.words.space import Choice, Span, dimension


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ([1e-4, 1e-2, "log"], Span(1e-4, 1e-2, log=True)),
        ([0.1, 0.9], Span(0.1, 0.9)),
        ([1, 8], Span(1, 8, whole=True)),
        ([1, 8, "choice"], Choice((1, 8))),
        ([1, 2, 4], Choice((1, 2, 4))),
        (["kd", "dkd"], Choice(("kd", "dkd"))),
        ([True, False], Choice((True, False))),
        ([[0.2, 1.0], [0.5, 1.0]], Choice(([0.2, 1.0], [0.5, 1.0]))),
        ("kd", Choice(("kd",))),
        (0.5, Choice((0.5,))),
        (None, None),
    ],
)
def test_what_is_said(value: Any, wanted: Any) -> None:
    assert dimension(value) == wanted


@pytest.mark.parametrize("value", [[1e-4, 1e-2, "log"], [0.1, 0.9], ["kd", "dkd"], [1, 2, 4], [1, 8]])
def test_what_it_says_of_itself_says_the_same(value: Any) -> None:
    import yaml

    own = dimension(value)
    assert own is not None
    assert dimension(yaml.safe_load(re.sub(r"e-0?", "e-", own.said()))) == own or own.said()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no values"),
        (["log"], "no values"),
        ([2, 1], "from 2 to 1: the first has to be less"),
        ([1, 1], "the first has to be less"),
        ([0, 1, "log"], "log is for numbers above 0"),
        (["kd", "dkd", "log"], "log is for two numbers"),
        ([1, 2, 4, "log"], "log is for two numbers"),
        (["kd", "kd"], "a choice is given twice"),
    ],
)
def test_what_says_nothing(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dimension(value)
