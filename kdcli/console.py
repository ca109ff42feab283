"""What a person sees while a stage works: always on stderr, rich on a terminal, plain lines elsewhere.

Names of files, classes, columns and models come from others, and so do the texts of libraries' errors. All
that is shown, here and on the pages of reports, goes through :func:`legible`. What a program reads does not:
``--json``, manifests and ``report.json`` keep the exact text, in JSON of ASCII characters alone.
"""

from __future__ import annotations

import os
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from kdcli.errors import shortened

_PLAIN_EVERY_S = 10.0
_JOINERS = "\u200c\u200d"  # of letters, in Persian and Indian words, and of emoji
_SHOWN = ("Zs", "Co", "Cn")  # spaces, private letters, and what a newer Unicode may have


def legible(text: str) -> str:
    """Text that can be shown on a terminal or a page: one line, of characters that are seen.

    Control characters (an escape sequence could clear the screen or pass for news of ours), line breaks,
    marks that turn the direction of writing, invisible characters and bytes that are no text are written as
    Python writes them: ``\\x1b``, ``\\n``, ``\\u202e``. Letters of every script stay, and so do emoji.
    """
    return text if text.isprintable() else "".join(map(_legible, text))


def _legible(character: str) -> str:
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) in _SHOWN:
        return character
    return character.encode("unicode_escape").decode()


_LONGEST = 10_000  # characters of a message


class Progress:
    """Counts of one activity with rate, remaining time and current values."""

    def __init__(self, label: str, total: int, unit: str, start: int = 0) -> None:
        self.label, self.total, self.unit = legible(label), total, unit
        self.done = self._first = start
        self._started = time.monotonic()

    def update(self, done: int, **values: float) -> None:
        """Set how far the activity is; ``values`` are shown beside it (losses, accuracy)."""
        self.done = done
        self.show(self._line(values))

    def show(self, line: str) -> None:
        """Put the line where the person looks; overridden by kind of console."""

    def close(self) -> None:
        """End the activity."""

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _line(self, values: dict[str, float]) -> str:
        rate = self.rate
        left = (self.total - self.done) / rate if rate else float("inf")
        eta = f", {duration(left)} left" if self.done < self.total and left != float("inf") else ""
        shown = "".join(f"  {legible(name)} {value:.4g}" for name, value in values.items())
        return f"{self.label}: {self.done:,}/{self.total:,} {self.unit}, {rate:.1f}/s{eta}{shown}"


class _PlainProgress(Progress):
    def __init__(self, console: Console, *rest: Any) -> None:
        super().__init__(*rest)
        self._console, self._last = console, time.monotonic()

    def show(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= _PLAIN_EVERY_S or self.done == self.total:
            self._last = now
            self._console.note(line)


class _LiveProgress(Progress):
    def __init__(self, console: Console, *rest: Any) -> None:
        super().__init__(*rest)
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        text = TextColumn("{task.description}", markup=False)  # a name may hold [brackets]
        self._bar = Bar(text, BarColumn(), console=console.rich, transient=True)
        self._task = self._bar.add_task(self.label, total=self.total, completed=self.done)
        self._bar.start()

    def show(self, line: str) -> None:
        self._bar.update(self._task, completed=self.done, description=line)

    def close(self) -> None:
        self._bar.stop()


class Console:
    """Notes, warnings, tables and progress of one command.

    Args:
        quiet: only warnings and errors.
        stream: where to write, stderr by default.
        silent: nothing at all (workers other than the first).
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, silent: bool = False) -> None:
        self.quiet, self.silent = quiet or silent, silent
        self.stream = stream or sys.stderr
        self._rich: Any = None
        self._bars = 0

    @property
    def live(self) -> bool:
        """Whether a person watches a terminal that understands more than lines."""
        try:
            terminal = self.stream.isatty()
        except ValueError:  # closed
            return False
        return terminal and os.environ.get("TERM") != "dumb"

    @property
    def rich(self) -> Any:
        """The rich console (imported on first use; it honours ``NO_COLOR``)."""
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=self.stream, highlight=False, emoji=False)  # a class may be ":x:"
        return self._rich

    def _write(self, line: str) -> None:
        line = legible(line)
        try:
            if self._bars:  # above the live bar, which rich draws anew
                self.rich.print(line, markup=False, soft_wrap=True)
            else:
                print(line, file=self.stream, flush=True)
        except (OSError, ValueError):  # the reader of stderr has gone, or its disk is full: the work goes on
            self.silent = self.quiet = True

    def note(self, line: str) -> None:
        """One line of news."""
        if not self.quiet:
            self._write(line)

    def warn(self, line: str) -> None:
        """Something that the user should act on, shown even when quiet."""
        if not self.silent:
            self._write(f"warning: {line}")

    def error(self, line: str) -> None:
        """The one message of a command that failed; a very long value in it loses its middle."""
        self._write(f"error: {shortened(line, _LONGEST)}")

    def trace(self, text: str) -> None:
        """Where a bug is: lines of a traceback, indented, so that none of them passes for a message."""
        for line in text.splitlines():
            self._write(f"  {line}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
        """A small table; first column left, the others right aligned."""
        if self.quiet:
            return
        if title:
            self._write(title)
        shown = [[legible(str(cell)) for cell in row] for row in [header, *rows]]
        widths = [max(len(row[i]) for row in shown) for i in range(len(header))]
        for row in shown:
            cells = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))]
            self._write("  " + "  ".join(cells).rstrip())

    @contextmanager
    def progress(self, label: str, total: int, unit: str, start: int = 0) -> Iterator[Progress]:
        """Show an activity of ``total`` units until the block ends."""
        kind: Any = _LiveProgress if self.live else _PlainProgress
        bar = Progress(label, total, unit, start) if self.quiet else kind(self, label, total, unit, start)
        drawn = isinstance(bar, _LiveProgress)
        self._bars += drawn
        try:
            yield bar
        finally:
            self._bars -= drawn
            bar.close()


def duration(seconds: float) -> str:
    """``4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes for a person: ``1.4 GB``."""
    for unit in ("B", "KB", "MB", "GB"):
        if round(count, 1) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
