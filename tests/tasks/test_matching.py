"""Classes by name: which ones networks know beyond those of the data, and what is refused by name."""

from __future__ import annotations

from typing import Literal

import pytest

from kdcli.errors import InputError
from kdcli.tasks.matching import beyond, permutation, unseen


@pytest.mark.parametrize(
    ("known", "order", "further"),
    [
        (["a", "b"], "names", []),
        (["b", "a"], "names", []),
        (["a", "b", "c"], "names", ["c"]),
        (["d", "b", "c", "a"], "names", ["d", "c"]),
        (["c", "d"], "names", []),  # as many: that they may be the same is for the matching to say
        (["a", "a", "b"], "names", []),  # no matching by name
        (None, "names", []),
        (["a", "b", "c"], "same", []),
    ],
)
def test_classes_that_data_lack(
    known: list[str] | None, order: Literal["names", "same"], further: list[str]
) -> None:
    assert beyond(["a", "b"], {"net": known}, order) == further


def test_several_networks_know_the_same_classes() -> None:
    both = {"one": ["a", "b", "c", "d"], "two": ["d", "c", "b", "a"]}
    assert beyond(["a", "b"], both, "names") == ["c", "d"]
    both["two"] = ["a", "b", "c"]
    with pytest.raises(InputError, match=r"of one and two only one knows the class 'd', .* one at a time\."):
        beyond(["a", "b"], both, "names")
    with pytest.raises(InputError, match="only one knows the class 'c'"):
        beyond(["a", "b"], {"one": ["a", "b"], "two": ["c", "a", "b"]}, "names")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (["a"], r"net does not know 'b', 'c', 'd' and 1 more, .*; it knows 1 classes \(a\)\. Leave"),
        ([*"abcdfgh"], r"net does not know 'e', which the data has; it knows 7 classes \(a, b, c, d, …\)\."),
        ([*"uvwxyz"], r"net does not know 'a', 'b', 'c' and 2 more"),
    ],
)
def test_unknown_classes_are_named(known: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        beyond([*"abcde"], {"net": known}, "names")


def test_what_to_do_where_there_are_more_or_fewer() -> None:
    with pytest.raises(InputError, match=r"net knows 3 classes, the data has 2\. Probe the teacher"):
        permutation(["a", "b"], ["a", "b", "c"], "names", "net")
    with pytest.raises(InputError, match=r"has 2\. Leave data\.class_order=same out to have them matched by"):
        permutation(["a", "b"], ["a", "b", "c"], "same", "net")


def test_classes_that_a_split_lacks_are_said() -> None:
    assert unseen(["a", "b"], [1, 2], "picture") == []
    assert unseen(["a", "b", "c"], [0, 2, 0], "pixel") == [
        "The split has no pixel of 2 of the 3 classes (a, c)."
    ]
