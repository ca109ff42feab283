"""A study on disk: trials are drawn alike, claimed by one process each, and survive what a kill leaves."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from toolbox import Child

from kdcli.errors import InputError
from kdcli.studies.journal import JOURNAL, LOCK, STUDY, Journal, mend
from kdcli.words.space import Choice, Span

SPACE = {"a": Span(1e-4, 1.0, log=True), "b": Choice(([0, 1], [1, 1], "x")), "c": Span(1, 9, whole=True)}


def opened(folder: Path, seed: int = 3, **identity: Any) -> Journal:
    return Journal(folder, {"of": "tests", **identity}, seed, SPACE)


def work(journal: Journal, most: int) -> list[int]:
    """Numbers of the trials that were made, each worth its setting ``a``."""
    made = []
    while journal.left(most):
        with journal.claim(most) as claim:
            if claim is None:
                time.sleep(0.01)
                continue
            journal.reached(claim.number, 5, claim.values["a"])
            journal.finish(claim.number, claim.values["a"], claim.values["c"] > 6, {"steps": 9})
            made.append(claim.number)
    return made


def told(journal: Journal) -> list[Any]:
    return [(t.number, t.params, t.value, t.state.name, t.intermediate_values) for t in journal.trials()]


def test_trials_are_a_function_of_the_seed_and_of_those_before(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "one"), opened(tmp_path / "two")
    assert work(one, 16) == work(other, 16) == list(range(16))
    assert told(one) == told(other)
    third = opened(tmp_path / "three", seed=4)
    work(third, 3)
    assert told(third) != told(one)[:3]
    values = [t.params["a"] for t in one.trials()]
    assert sum(values[10:]) / 6 > sum(values[:10]) / 10, "what is modelled is better than what is drawn"


def test_a_trial_that_was_left_goes_on_and_the_next_are_the_same(tmp_path: Path) -> None:
    whole, halves = opened(tmp_path / "whole"), opened(tmp_path / "halves")
    work(whole, 14)
    for number in range(14):
        with opened(tmp_path / "halves").claim(14) as claim:
            assert claim is not None
            assert claim.number == number
            if number % 2:
                halves.reached(number, 5, claim.values["a"])
        with opened(tmp_path / "halves").claim(14) as again:  # as after a kill
            assert again == claim
            halves.reached(number, 5, again.values["a"])
            halves.finish(number, again.values["a"], again.values["c"] > 6, {"steps": 9})
    assert told(whole) == told(halves)


def test_a_claim_is_for_one(tmp_path: Path) -> None:
    with opened(tmp_path / "s").claim(2) as first, opened(tmp_path / "s").claim(2) as second:
        assert first is not None
        assert second is not None
        assert (first.number, second.number) == (0, 1)
        with opened(tmp_path / "s").claim(2) as third:
            assert third is None
    with opened(tmp_path / "s").claim(2) as first:
        assert first is not None
        assert first.number == 0


def test_others_values_at_a_rung(tmp_path: Path) -> None:
    journal = opened(tmp_path / "s")
    for value in (0.3, 0.1, 0.2):
        with journal.claim(9) as claim:
            assert claim is not None
            found = journal.reached(claim.number, 7, value)
            journal.finish(claim.number, value, False, {})
    assert found == [0.3, 0.1]


@pytest.mark.parametrize("torn", [b'{"op_code":4,"wor', b"{", b"\x00\x00", b'{"op_code": 4}'])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    journal = opened(tmp_path / "s")
    work(journal, 3)
    before = told(journal)
    file = tmp_path / "s" / JOURNAL
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    again = opened(tmp_path / "s")
    assert told(again) == before
    assert work(again, 5) == [3, 4]
    assert file.read_bytes().startswith(whole)
    for line in file.read_bytes().splitlines():
        json.loads(line)
    assert told(journal) == told(again), "who had it open reads on"


def test_every_length_of_a_journal_can_be_mended(tmp_path: Path) -> None:
    work(opened(tmp_path / "s"), 1)
    text = (tmp_path / "s" / JOURNAL).read_bytes() * 8
    for end in range(0, len(text), 97):
        file = tmp_path / "cut"
        file.write_bytes(text[:end])
        mend(file)
        assert file.read_bytes() == text[: text.rfind(b"\n", 0, end) + 1]


def test_a_lock_that_a_killed_process_held_is_free(tmp_path: Path) -> None:
    journal = opened(tmp_path / "s")

    def holds_the_study(report: Callable[[int], None]) -> None:
        with opened(tmp_path / "s").alone():
            time.sleep(60)

    child = Child(holds_the_study)
    assert child.wait(0.5) is None
    began = time.monotonic()
    assert work(journal, 2) == [0, 1]
    assert time.monotonic() - began < 5
    assert (tmp_path / "s" / LOCK).exists()


def test_processes_share_the_trials(tmp_path: Path) -> None:
    opened(tmp_path / "s")

    def works(report: Callable[[int], None]) -> None:
        for number in work(opened(tmp_path / "s"), 24):
            report(number)

    children = [Child(works) for _ in range(3)]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    made = [child.steps() for child in children]
    assert sorted(number for own in made for number in own) == list(range(24))


def test_another_study_and_another_folder_are_refused(tmp_path: Path) -> None:
    opened(tmp_path / "s", lr=1)
    with pytest.raises(InputError, match=r"belongs to other settings: lr \(1 then, 2 now\)"):
        opened(tmp_path / "s", lr=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        opened(tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    (tmp_path / "s" / STUDY).write_text("{")
    with pytest.raises(InputError):
        opened(tmp_path / "s", lr=1)
