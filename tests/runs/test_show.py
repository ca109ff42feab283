"""What a plan shows to people: long lists by their ends, everything else whole."""

from __future__ import annotations

import io

from kdcli.console import Console
from kdcli.runs import show


def shown(text: str) -> str:
    stream = io.StringIO()
    show.table(Console(stream=stream), "objective", [{"term": "layers", "taps": text}])
    return stream.getvalue()


def test_long_lists_are_shown_by_their_ends() -> None:
    many = [f"s.layer{i}.in [{i}, 4, 4]" for i in range(1, 34)]
    assert "s.layer1.in [1, 4, 4], …, s.layer33.in [33, 4, 4] (33)" in shown(", ".join(many))
    assert ", ".join(many[:7]) in shown(", ".join(many[:7]))
    assert "s.layer2.in" not in shown(", ".join(many[:8]))


def test_lists_within_a_value_are_no_lists_of_members() -> None:
    value = "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]"
    assert value in shown(value)


def test_no_rows_make_no_table() -> None:
    stream = io.StringIO()
    show.table(Console(stream=stream), "settings", [])
    assert stream.getvalue() == ""
