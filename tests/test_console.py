"""Plain lines off a terminal, a live bar on one (a pseudo-terminal here), silence where asked for."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading

import pytest

from kdcli import console as module
from kdcli.console import Console, duration, legible, size

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*[349]\d(?:;\d+)*m")


def test_plain_lines_off_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    console.note("a [bold]name[/bold]")
    console.warn("w")
    console.error("e")
    assert not console.live
    assert stream.getvalue() == "a [bold]name[/bold]\nwarning: w\nerror: e\n"


def test_quiet_keeps_warnings_and_silent_keeps_errors() -> None:
    found = {}
    for name in ("quiet", "silent"):
        stream = io.StringIO()
        console = Console(stream=stream, **{name: True})
        console.note("n")
        console.table(["a"], [["b"]], title="t")
        with console.progress("p", 2, "steps") as bar:
            bar.update(2)
        console.warn("w")
        console.error("e")
        found[name] = stream.getvalue()
    assert found == {"quiet": "warning: w\nerror: e\n", "silent": "error: e\n"}


def test_progress_is_rate_limited_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with Console(stream=stream).progress("train", 100, "steps") as bar:
        for done in range(1, 101):
            clock[0] += 0.5
            bar.update(done, loss=1 / done)
    lines = stream.getvalue().splitlines()
    assert [re.search(r"(\d+)/100", line)[1] for line in lines] == ["20", "40", "60", "80", "100"]  # type: ignore[index]
    assert lines[0] == "train: 20/100 steps, 2.0/s, 40 s left  loss 0.05"
    assert lines[-1] == "train: 100/100 steps, 2.0/s  loss 0.01"


def test_progress_of_a_resumed_run_counts_its_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with Console(stream=io.StringIO()).progress("train", 100, "steps", start=90) as bar:
        clock[0] = 10.0
        bar.update(95)
        assert bar.rate == 0.5


def test_tables_align() -> None:
    stream = io.StringIO()
    Console(stream=stream).table(["model", "top1"], [["a", "0.5"], ["longer", "10.25"]], title="results")
    assert stream.getvalue().splitlines() == [
        "results",
        "  model    top1",
        "  a         0.5",
        "  longer  10.25",
    ]
    stream = io.StringIO()
    Console(stream=stream).table(["model", "top1"], [])
    assert stream.getvalue() == "  model  top1\n"


def test_a_closed_stream_does_not_raise() -> None:
    stream = io.StringIO()
    stream.close()
    console = Console(stream=stream)
    assert not console.live
    with console.progress("p", 1, "steps") as bar:
        bar.update(1)
    console.note("n")
    console.error("e")


@pytest.mark.parametrize("fault", [BrokenPipeError, OSError])
def test_a_reader_that_has_gone_or_a_full_disk_does_not_raise(fault: type[OSError]) -> None:
    class Gone(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            raise fault(28, "No space left on device")

    stream = Gone()
    console = Console(stream=stream)
    console.note("n")
    assert stream.writes == 1
    console.note("n")
    console.warn("w")
    assert stream.writes == 1  # nothing more is tried


LIVE = """
import sys, time
from kdcli.console import Console
console = Console()
assert console.live
with console.progress("train [red]cars[/red] [/]", 3, "steps") as bar:
    for i in range(3):
        bar.update(i + 1, loss=0.5)
        time.sleep(0.15)
    console.warn("the folder [blue]x[/blue] " + "y" * 200)
console.note("after [bold]")
"""


def on_terminal(code: str, **environment: str) -> str:
    """Standard error of a Python program that runs on a pseudo-terminal."""
    master, slave = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    env |= {"TERM": "xterm-256color", **environment}
    chunks: list[bytes] = []

    def drain() -> None:
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:
                return
            if not chunk:
                return
            chunks.append(chunk)

    process = subprocess.Popen([sys.executable, "-c", code], stderr=slave, stdout=subprocess.DEVNULL, env=env)
    os.close(slave)
    reader = threading.Thread(target=drain)
    reader.start()
    code_ = process.wait(60)
    reader.join(60)
    os.close(master)
    text = b"".join(chunks).decode()
    assert code_ == 0, text
    return text


def test_a_live_terminal_shows_names_as_they_are() -> None:
    raw = on_terminal(LIVE)
    text = CONTROL.sub("", raw)
    assert COLOUR.search(raw)
    assert "train [red]cars[/red] [/]: 3/3 steps" in text
    assert "warning: the folder [blue]x[/blue] " + "y" * 200 in text.replace("\r\n", "\n")
    assert "after [bold]" in text


def test_no_color_is_honoured_on_a_live_terminal() -> None:
    raw = on_terminal(LIVE, NO_COLOR="1")
    assert not COLOUR.search(raw)
    assert "3/3 steps" in raw


def test_a_dumb_terminal_gets_plain_lines() -> None:
    raw = on_terminal(LIVE.replace("assert console.live", "assert not console.live"), TERM="dumb")
    assert "\x1b" not in raw
    assert "train [red]cars[/red] [/]: 3/3 steps" in raw


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (90000, "25 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.99, "1.0 KB"),
        (1400, "1.4 KB"),
        (999_960, "1.0 MB"),
        (1.4e9, "1.4 GB"),
        (2.5e12, "2.5 TB"),
        (3.1e15, "3100.0 TB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


# -- names of others -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\x00\x07\x7f\x85\x9b", r"\x00\x07\x7f\x85\x9b"),
        ("\u2028\u2029", r"\u2028\u2029"),
        (
            "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e",
            r"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e",
        ),
        ("\u2066\u2067\u2068\u2069", r"\u2066\u2067\u2068\u2069"),
        ("\ufeff\u200b\u00ad\u2060\U000e0041", r"\ufeff\u200b\xad\u2060\U000e0041"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_is_not_seen_is_written_out(text: str, shown: str) -> None:
    assert legible(text) == shown
    assert legible(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "a b",
            "größe",
            "日本語\u3000名",
            "\u05d0\u05d1",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        *("👩\u200d🔬", "❤\ufe0f", "e\u0301", "1\u202f000 €\u00a0", "C:\\new\\x1b", "\ue0b0"),
    ],
)
def test_letters_of_every_script_stay(text: str) -> None:
    assert legible(text) == text


def test_everything_is_shown_legibly() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    console.note("a\x1b[2J")
    console.warn("w\nerror: x")
    console.error("e\u202e")
    console.table(["m\r", "n"], [["long\x1b name", "1"], ["b", "22"]], title="t\x07")
    with console.progress("p\x1b]0;x\x07", 1, "steps") as bar:
        bar.update(1, **{"l\x9b": 1.0})
    lines = stream.getvalue().splitlines()
    assert lines[:4] == [r"a\x1b[2J", r"warning: w\nerror: x", r"error: e\u202e", r"t\x07"]
    assert lines[4:7] == [
        r"  m\r" + " " * 13 + "n",
        r"  long\x1b name" + "   1",
        "  b" + " " * 12 + "  22",
    ]
    assert lines[7].startswith(r"p\x1b]0;x\x07: 1/1 steps")
    assert lines[7].endswith(r"  l\x9b 1")


def test_a_traceback_is_indented_line_by_line() -> None:
    stream = io.StringIO()
    Console(stream=stream, quiet=True).trace('Traceback:\n  File "a\x1b.py"\nValueError: x\nerror: no\n')
    assert stream.getvalue() == '  Traceback:\n    File "a\\x1b.py"\n  ValueError: x\n  error: no\n'


EVIL = r"""
import time
from kdcli.console import Console
console = Console()
with console.progress("\x1b]0;evil\x07 \u202e a\nb :warning:", 2, "steps") as bar:
    for i in range(2):
        bar.update(i + 1)
        time.sleep(0.15)
    console.warn("\x1b]0;evil\x07 \u202e a\nb :warning:")
"""


def test_a_live_bar_shows_names_legibly() -> None:
    raw = on_terminal(EVIL, COLUMNS="200")
    assert "\x1b]" not in raw
    assert "\x07" not in raw
    assert "\u202e" not in raw
    shown = r"\x1b]0;evil\x07 \u202e a\nb :warning:"
    assert f"{shown}: 2/2 steps" in CONTROL.sub("", raw)
    assert f"warning: {shown}\r\n" in raw
