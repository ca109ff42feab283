"""Panels: every text is escaped, and what is markup already stays as it is."""

from __future__ import annotations

import pytest
from markupsafe import Markup

from kdcli.report.panels import (
    Beside,
    Block,
    Drawing,
    Heading,
    Pictures,
    Points,
    Table,
    Text,
    code,
    spread,
    swatch,
)

EVIL = "<script>\"&'"
SAFE = "&lt;script&gt;&#34;&amp;&#39;"


@pytest.mark.parametrize(
    "block",
    [
        Heading(EVIL),
        Text(EVIL),
        Text(EVIL, faint=True),
        Table([EVIL], []),
        Table(["a"], [[EVIL]]),
        Table(["a"], [[code(EVIL)]]),
        Table(["a"], [[swatch("#123456", EVIL)]]),
        Pictures(EVIL, [(EVIL, "data:,")]),
        Pictures("row", [("picture", EVIL)]),
        Points([EVIL]),
        Beside([Text(EVIL)]),
    ],
)
def test_texts_are_escaped(block: Block) -> None:
    html = block.html()
    assert isinstance(html, Markup)
    assert "<script" not in html
    assert SAFE in html


def test_a_table_marks_columns_of_text() -> None:
    html = Table(["name", "path", "size"], [["a", "b", "1"]], text=(1,), wide=True).html()
    assert '<table class="wide">' in html
    assert '<th scope="col">name</th><th scope="col" class="text">path</th>' in html
    assert '<tr><td>a</td><td class="text">b</td><td>1</td></tr>' in html


def test_drawings_and_spreads() -> None:
    assert Drawing("<svg>&</svg>").html() == "<figure><svg>&</svg></figure>"
    assert Drawing("<svg/>", panels=True).html().startswith('<figure class="panels">')
    found = spread({"median": 2.0, "p10": 1.0, "p90": 3.0})
    assert found == '2.00 <span class="faint">(1.00 – 3.00)</span>'
