"""The tables of defaults and claims: every way is a command that parses, and rows become cells."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import claims
import defaults
import kinds
import pytest
from PIL import Image
from scipy import stats
from test_examples import parse


def as_line(options: list[str]) -> str:
    return " ".join(["distill", *(f"'{option}'" for option in options)])


@pytest.mark.parametrize("way", [*defaults.WAYS, *defaults.CHOOSERS])
def test_ways_are_commands(way: str) -> None:
    options = defaults.CHOOSERS[way] if way in defaults.CHOOSERS else defaults.WAYS[way][0]
    for student in defaults.STUDENTS.values():
        parse(as_line([*options, *student]))


@pytest.mark.parametrize("way", claims.WAYS)
def test_ways_of_claims_are_commands(way: str) -> None:
    parse(as_line([*claims.WAYS[way][1], *claims.STUDENT]))


def test_claims_compare_ways_that_there_are() -> None:
    assert {way for _, _, one, other in claims.CLAIMS for way in (one, other)} <= set(claims.WAYS)
    assert {way for ways in defaults.ROUNDS.values() for way in ways} <= set(defaults.WAYS)
    assert {way for ways in defaults.DRAWN.values() for way in ways} <= set(defaults.WAYS)


def test_every_cell_is_measured_once_in_every_way() -> None:
    found = list(defaults.cells())
    assert len(found) == len(set(found))
    assert {cell[1] for cell, _ in found} == set(defaults.KINDS)
    assert {way for (_, _, labels, _), way in found if labels == "few"} >= set(defaults.ROUNDS["few"])


def row(seed: int, way: str, top1: float, student: str = "scratch") -> dict[str, Any]:
    names = {"seed": seed, "kind": "digits", "labels": "all", "student": student, "way": way}
    return {
        **names,
        "test": {"top1": top1},
        "steps": 3,
        "seconds": 36.0,
        "date": "2026-01-01",
        "device": "cpu",
    }


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    made = [row(seed, "alone", 0.5 + 0.1 * seed) for seed in range(3)]
    made += [row(seed, "today", 0.6 + 0.1 * seed + 0.01 * seed) for seed in range(3)]
    made += [row(0, "kd", 0.4), row(0, "teacher", 0.9, "teacher")]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in made))
    return file


def test_differences_are_paired_by_seed(rows: Path) -> None:
    found = defaults.differences(defaults.known([rows, rows.with_name("none")]))
    own = found["digits", "all", "scratch"]
    assert own["today"] == pytest.approx([10, 11, 12])
    assert own["kd"] == pytest.approx([-10])
    low, high = stats.t.interval(0.9, 2, 11, stats.sem([10, 11, 12]))
    assert defaults.interval(own["today"]) == pytest.approx((high - low) / 2, rel=1e-3)
    assert defaults.cell(own["kd"]) == "-10.0"
    assert defaults.cell(None) == ""


def test_the_table_has_means_and_the_worst(rows: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "RESULTS", rows)
    defaults.page(argparse.Namespace())
    lines = capsys.readouterr().out.splitlines()
    (found,) = (line for line in lines if line.startswith("| digits"))
    cells = [cell.strip() for cell in found.strip("|").split("|")]
    assert cells[:4] == ["digits", "scratch", "60.0", "90.0"]
    assert cells[4] == "+11.0 ± 1.7"
    assert cells[4 + defaults.ROUNDS["all"].index("kd") - 1] == "-10.0"
    assert any(line.startswith("| worst | | | | +11.0 |") for line in lines)
    assert "* 8 rows, 24 steps, 0.1 hours; dates 2026-01-01 to 2026-01-01" in lines


def test_equal_pictures_are_on_one_side() -> None:
    pictures = [Image.new("RGB", (2, 2), (number % 40, 0, 0)) for number in range(80)]
    parts = kinds.divided({"a": pictures[:50], "b": pictures[50:]})
    seen = [picture.tobytes() for rows in parts.values() for picture, _ in rows]
    assert len(seen) == len(set(seen)) == 40
