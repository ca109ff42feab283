"""The page of all methods is what its script writes."""

import runpy
import sys
from pathlib import Path

import pytest

from kdcli import methods

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "methods.py"
PAGE = SCRIPT.with_suffix(".md")


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_the_committed_page_is_the_generated_one(script):
    assert PAGE.read_text(encoding="utf-8") == "\n".join(script["page"]()) + "\n"


def test_a_row_says_what_the_method_does(script):
    found = {name: script["row"](name, {}) for name in methods.METHODS}
    assert "| ce 0.1; kl 0.9 | student | 1 | yes | cifar-100, imagenet | - |" in found["kd"]
    assert "*hint*: hint 1" in found["fitnets"]
    assert "hint 25%, distill 75%" in found["fitnets"]
    assert "| student, peer2 | 1 | no |" in found["dml"]
    assert "the student's architecture" in found["self"]
    cost = {"kd": {"median": 1.066, "low": 1, "high": 2.5, "teacher": "cached"}}
    assert script["row"]("kd", cost).endswith("| 1.07 (1.00 to 2.50), cached |")


def test_check_tells_a_page_that_is_out_of_date(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["methods.py", "--check"])
    assert script["main"]() == 0
    old = tmp_path / "methods.md"
    old.write_text("# Methods\n", encoding="utf-8")
    monkeypatch.setitem(script["main"].__globals__, "PAGE", old)
    assert script["main"]() == 1
    assert capsys.readouterr() == (
        "",
        f"{old} differs from the code: run examples/methods.py > examples/methods.md\n",
    )
