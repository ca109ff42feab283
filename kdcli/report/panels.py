"""What a page is made of: panels, each a title and parts that write themselves as HTML.

Text is made legible and escaped, but for what is ``Markup`` already: drawings, which matplotlib escaped, and
cells made by the functions below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from markupsafe import Markup

from kdcli.console import legible
from kdcli.report.forms import number


class Html(Markup):
    """Markup that makes whatever text is put into it legible, and escapes it."""

    @classmethod
    def escape(cls, s: Any, /) -> Self:
        """A text as markup; what is markup already stays as it is."""
        return super().escape(s if hasattr(s, "__html__") else legible(str(s)))


class Block(Protocol):
    """A part of a panel."""

    def html(self) -> Markup:
        """As HTML."""


@dataclass(frozen=True)
class Panel:
    """A section of the page.

    Attributes:
        title: its heading.
        parts: in reading order.
    """

    title: str
    parts: Sequence[Block]


@dataclass(frozen=True)
class Heading:
    """A heading within a panel."""

    text: str

    def html(self) -> Markup:
        """As HTML."""
        return Html("<h3>{}</h3>").format(self.text)


@dataclass(frozen=True)
class Text:
    """A paragraph; a faint one explains."""

    text: str
    faint: bool = False

    def html(self) -> Markup:
        """As HTML."""
        return Html('<p class="faint">{}</p>' if self.faint else "<p>{}</p>").format(self.text)


@dataclass(frozen=True)
class Table:
    """Rows under a header; it scrolls sideways where the page is narrow.

    Attributes:
        header: names of the columns.
        rows: cells.
        text: numbers of the columns, beside the first, that hold text and stand to the left.
        wide: whether it fills the page.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[int] = ()
    wide: bool = False

    def html(self) -> Markup:
        """As HTML."""
        kinds = [Html(' class="text"') if i in self.text else "" for i in range(len(self.header))]
        head = [Html('<th scope="col"{}>{}</th>').format(*cell) for cell in zip(kinds, self.header)]
        rows = [[Html("<td{}>{}</td>").format(*cell) for cell in zip(kinds, row)] for row in self.rows]
        body = [Html("<tr>{}</tr>\n").format(_joined(row)) for row in rows]
        return Html(
            '<div class="scroll"><table{}>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table></div>'
        ).format(Html(' class="wide"') if self.wide else "", _joined(head), _joined(body))


@dataclass(frozen=True)
class Drawing:
    """A figure, made by :mod:`kdcli.report.canvas`.

    Attributes:
        svg: its element.
        panels: whether it has several panels, for which it may be wider than the page.
    """

    svg: str
    panels: bool = False

    def html(self) -> Markup:
        """As HTML."""
        kind = Html(' class="panels"') if self.panels else ""
        return Html("<figure{}>{}</figure>").format(kind, Html(self.svg))


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side with their captions.

    Attributes:
        name: of the row, for readers who do not see it.
        images: captions and addresses (``data:…``).
    """

    name: str
    images: Sequence[tuple[str, str]]

    def html(self) -> Markup:
        """As HTML."""
        shape = Html(
            '<figure><img src="{}" alt="{}: {}"><figcaption class="faint">{}</figcaption></figure>\n'
        )
        shown = [shape.format(address, self.name, caption, caption) for caption, address in self.images]
        return Html('<div class="overlays">\n{}</div>').format(_joined(shown))


@dataclass(frozen=True)
class Beside:
    """Parts side by side where the page is wide enough."""

    parts: Sequence[Block]

    def html(self) -> Markup:
        """As HTML."""
        return Html('<div class="beside">{}</div>').format(_joined([b.html() for b in self.parts]))


@dataclass(frozen=True)
class Points:
    """A list."""

    texts: Sequence[str]

    def html(self) -> Markup:
        """As HTML."""
        points = [Html("<li>{}</li>\n").format(text) for text in self.texts]
        return Html("<ul>\n{}</ul>").format(_joined(points))


def code(text: str) -> Markup:
    """A cell in the letters of code."""
    return Html("<code>{}</code>").format(text)


def spread(values: Mapping[str, float] | None) -> str:
    """A cell of a median and, in brackets, the 10th and 90th percentiles."""
    if values is None:
        return ""
    ends = Html('{} <span class="faint">({} – {})</span>')
    return ends.format(*(number(values[key]) for key in ("median", "p10", "p90")))


def swatch(colour: str, text: str) -> Markup:
    """A cell whose text follows a patch of a colour."""
    return Html('<span class="swatch" style="background: {}"></span>{}').format(colour, text)


def _joined(parts: Sequence[str]) -> Markup:
    return Html("").join(parts)
