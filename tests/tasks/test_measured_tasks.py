"""What all tasks have to measure by: figures of one meaning and without torch, options heeded or refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from kdcli.errors import InputError, UsageError
from kdcli.tasks import TASKS, figures, task_named
from kdcli.tasks.settings import EvalOptions, Validation

ROOT = Path(__file__).parents[2]


def test_a_name_means_one_thing_in_all_tasks() -> None:
    union = {figure.name: figure for figure in figures()}
    assert len(union) == len(figures())
    for task in TASKS:
        own = figures(task)
        assert len({figure.name for figure in own}) == len(own)
        for figure in own:
            other = union[figure.name]
            assert (figure.keys, figure.fraction) == (other.keys, other.fraction), figure.name


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_a_figure_to_select_and_to_plot_by(task: str) -> None:
    known = {figure.name: figure for figure in figures(task)}
    chosen = task_named(task, ["a", "b"]).selection
    assert known[chosen].axis if chosen else any(figure.axis for figure in known.values())
    assert all(figure.takes for figure in known.values())


def test_gates_are_parsed_without_torch() -> None:
    code = (
        "import sys; from kdcli.tasks import figures; from kdcli.report.gates import parse;"
        "parse(figures()[0].name + '>0', figures()); sys.exit('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr


def options(**given: object) -> EvalOptions:
    """Of ``eval``, as its stage makes them."""
    usual: dict[str, object] = {
        **{"window": None, "stride": None, "exit_slack": 0.005, "effects_mix": 0.5},
        **{"teacher": None, "class_order": "names", "repeats": 0, "rerank": False, "seed": 0},
        **{"occlusion": False, "occlusion_grid": 14, "cka": False, "networks": {}, "pictures": 9},
    }
    return EvalOptions(given=frozenset(given), **{**usual, **given})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("classification", {"window": 64}, "window: only masks are judged by sliding windows"),
        ("classification", {"exit_slack": 0.1}, "exit_slack: no model has exits"),
        ("classification", {"effects_mix": 0.1}, "effects_mix: it weighs a teacher; give --teacher"),
        ("multi-label", {"stride": 64}, "stride: only masks are judged by sliding windows"),
        ("multi-label", {"exit_slack": 0.1}, "exit_slack: early exit stops at the largest probability"),
        ("multi-label", {"effects_mix": 0.1}, "effects_mix: the effects of a teacher are measured of"),
        ("classification", {"cka": True}, "cka: it compares blocks with those of a teacher; give --teacher"),
        ("multi-label", {"cka": True}, "cka: it compares blocks with those of a teacher; give --teacher"),
        ("retrieval", {"occlusion": True}, "occlusion: patches are hidden from networks that name classes"),
        ("segmentation", {"occlusion": True}, "occlusion: patches are hidden from networks that name"),
        ("segmentation", {"cka": True}, "cka: blocks are compared of networks that name classes"),
        ("segmentation", {"exit_slack": 0.1}, "exit_slack: networks for masks have no exits"),
        ("segmentation", {"effects_mix": 0.1}, "effects_mix: the effects of a teacher are measured of"),
    ],
)
def test_options_of_other_tasks_are_refused(task: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task_named(task, ["a", "b"]).evaluation(options(**given), {}, Validation(None))


def test_an_option_that_a_task_heeds_is_taken() -> None:
    found = task_named("segmentation", ["a", "b"]).evaluation(options(window=64), {}, Validation(None))
    assert found.window.step == 42  # type: ignore[attr-defined]
    mixed = replace(options(effects_mix=0.1), teacher=cast(Any, object()))
    task_named("classification", ["a"]).evaluation(mixed, {}, Validation(None))


def test_blocks_are_compared_on_enough_pictures() -> None:
    few = replace(options(cka=True), teacher=cast(Any, object()), pictures=3)
    with pytest.raises(InputError, match="cka: it takes 4 pictures or more, and 3 are measured"):
        task_named("classification", ["a", "b"]).evaluation(few, {}, Validation(None))


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_one_class_has_no_heads(task: str) -> None:
    from kdcli.stages.probe import Config

    with pytest.raises(InputError, match=r"one class only \('a'\)"):
        task_named(task, ["a"]).heads(Config(), ())
