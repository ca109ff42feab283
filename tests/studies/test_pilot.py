"""``--method auto``: ways are compared seed by seed, and what wins goes on, or labels alone."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats
from toolbox import QUIET, StopAfter, facts, in_process

from kdcli import cli
from kdcli.artifacts.manifest import read
from kdcli.config import resolve
from kdcli.errors import Preempted, UsageError
from kdcli.launch import StopSignal
from kdcli.stages import distill
from kdcli.studies.pilot import PLAIN, Pilot, said, verdicts, way, winner

Plan = Callable[..., Pilot]


@pytest.fixture(scope="module")
def plan(pictures: Path, teacher: Path) -> Plan:
    def make(folder: Path, /, **more: Any) -> Pilot:
        options = {
            **{"student": "test_resnet", "from_scratch": True, "image_size": 32, "teacher": [str(teacher)]},
            **{"data.source": str(pictures), "method.name": "auto", "optim.max_steps": 12, "log_every": 1},
            **{"optim.batch_size": 8, "views.count": "2", "threads": 1, "pilot.share": 0.5},
            **{"pilot.seeds": 2, "pilot.ways": ["kd", "task-specific,teacher_view=plain"]},
            **{"out": str(folder / "student"), "cache": str(folder / "cache"), **more},
        }
        found = distill.plan(resolve(distill.Config, options=options), QUIET)
        assert isinstance(found, Pilot)
        return found

    return make


def test_the_best_goes_on_as_if_it_had_been_named(plan: Plan, tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert (found.steps, found.cost) == (6, 36)
    path = distill.run(found, QUIET).path
    pilot = facts(path)["pilot"]
    assert set(pilot["ways"]) == {PLAIN, "kd", "task-specific,teacher_view=plain"}
    for text, own in pilot["ways"].items():
        folders = [tmp_path / "student-pilot" / f"{way(text).folder}-{n}" for n in range(2)]
        runs = [facts(folder) for folder in folders]
        assert own["values"] == [run["metrics"]["validation/top1"] for run in runs]
        assert [run["seed"] for run in runs] == [0, 1]
        assert {run["steps"] for run in runs} == {6}
        plain = pilot["ways"][PLAIN]["values"]
        assert own["difference"] == pytest.approx(fmean(a - b for a, b in zip(own["values"], plain)))
    hashes = [facts(folder)["data"]["splits"]["validation"]["hash"] for folder in folders]
    assert hashes[0] != hashes[1], "each seed holds out other pictures"
    chosen = way(pilot["chosen"])
    same = ("student", "from_scratch", "image_size", "threads", "cache", "data.source", "views.count")
    same += ("optim.max_steps", "optim.batch_size", "log_every")
    options = {key: reduce(getattr, key.split("."), found.config) for key in same}
    options |= {"out": str(tmp_path / "named"), **chosen.values}
    options |= {"teacher": found.config.teacher} if chosen.text != PLAIN else {}
    named = distill.plan(resolve(distill.Config, options=options), QUIET)
    assert isinstance(named, distill.Plan)
    assert read(distill.run(named, QUIET).path).hash == read(path).hash


def test_the_same_command_is_done_and_a_stopped_one_goes_on(plan: Plan, tmp_path: Path) -> None:
    whole = distill.run(plan(tmp_path / "whole"), QUIET).path
    for looks in (3, 9, 20):
        with pytest.raises(Preempted):
            distill.run(plan(tmp_path / "halves"), QUIET, stop=StopAfter(looks))
    halves = distill.run(plan(tmp_path / "halves"), QUIET).path
    assert read(whole).hash == read(halves).hash
    assert facts(whole)["pilot"]["ways"] == facts(halves)["pilot"]["ways"]
    before = read(whole)
    assert distill.run(plan(tmp_path / "whole"), QUIET).path == whole
    assert read(whole) == before


PLAINLY = {PLAIN: [0.5, 0.6, 0.7]}


def test_intervals_are_students() -> None:
    found = {one.way: one for one in verdicts({**PLAINLY, "kd": [0.6, 0.6, 0.9]})}
    differences = [0.1, 0.0, 0.2]
    low, high = stats.t.interval(0.9, 2, fmean(differences), stats.sem(differences))
    assert found["kd"].mean == pytest.approx(0.1)
    assert found["kd"].margin == pytest.approx((high - low) / 2, rel=1e-3)
    assert (found[PLAIN].mean, found[PLAIN].margin) == (0, 0)


@pytest.mark.parametrize("seeds", range(2, 12))
def test_quantiles(seeds: int) -> None:
    values = [0.1 * number**2 for number in range(seeds)]
    (plain, own) = verdicts({PLAIN: [0.0] * seeds, "kd": values})
    wanted = stats.t.ppf(0.95, seeds - 1) * stats.sem(values)
    assert own.margin == pytest.approx(wanted, rel=1e-3)
    assert plain.margin == 0


@pytest.mark.parametrize(
    ("ways", "chosen", "text"),
    [
        ({"kd": [0.6, 0.7, 0.8]}, "kd", "kd is surely better than labels alone, +0.1000 ± 0.0000 of top1"),
        ({"kd": [0.9, 0.4, 0.7]}, "kd", "kd is perhaps better than labels alone, +0.0667 ± 0.5"),
        (
            {"kd": [0.4, 0.5, 0.6]},
            PLAIN,
            "no teacher helps here: of 1 ways with one the best, kd, is -0.1000",
        ),
        ({"kd": [0.5, 0.6, 0.7]}, PLAIN, "no teacher helps here"),
        ({"kd": [0.6, 0.7, 0.8], "dkd": [0.7, 0.8, 0.9]}, "dkd", "dkd is surely better"),
    ],
)
def test_what_wins(ways: dict[str, list[float]], chosen: str, text: str) -> None:
    found = verdicts({**PLAINLY, **ways})
    best = winner(found)
    assert best.way == chosen
    assert said(best, found, "top1").startswith(text)


def test_one_seed_is_never_sure() -> None:
    (_, own) = verdicts({PLAIN: [0.5], "kd": [0.9]})
    assert math.isinf(own.margin)
    assert own.to_json()["margin"] is None
    assert "perhaps" in said(own, [own], "top1")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("kd", {"method.name": "kd"}),
        (
            "kd, views.scale=[0.5, 1],teacher_view=plain",
            {"method.name": "kd", "views.scale": [0.5, 1], "teacher_view": "plain"},
        ),
    ],
)
def test_ways_are_methods_with_keys(text: str, values: dict[str, Any]) -> None:
    assert way(text).values == values
    assert re.fullmatch(r"[A-Za-z0-9.-]+", way(text).folder)


def test_ways_that_do_not_fit_are_left_out_and_said(plan: Plan, tmp_path: Path) -> None:
    found = plan(tmp_path, **{"pilot.ways": ["kd", "cwd", "at,teacher_view=plain"]})
    assert [one.text for one in found.ways] == [PLAIN, "kd"]
    assert found.left_out["cwd"].startswith("method cwd is for segmentation")
    assert "compares t.stage1" in found.left_out["at,teacher_view=plain"]


def test_what_only_a_teacher_heeds_is_left_out_of_labels_alone(
    plan: Plan, pictures: Path, tmp_path: Path
) -> None:
    given = {"teacher_temperature": "raw", "data.extra": [str(pictures)], "data.extra_ratio": 1.0}
    found = plan(tmp_path, **given, **{"pilot.ways": ["kd"], "pilot.seeds": 1})
    assert found.base.config.data.extra == []
    distill.run(found, QUIET)
    own = {name: facts(tmp_path / "student-pilot" / f"{name}-0")["config"] for name in (PLAIN, "kd")}
    assert own[PLAIN]["teacher"] == own[PLAIN]["data"]["extra"] == []
    assert (own["kd"]["teacher_temperature"], own["kd"]["data"]["extra_ratio"]) == ("raw", 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": []}, "--method auto compares labels alone with a teacher: give one"),
        ({"method.alpha": 0.5}, "--alpha is for a method that is named"),
        ({"method.ce": 0.5}, "method.ce is for a method that is named"),
        ({"terms": ["rkd=1"]}, "--add is for a method that is named"),
        ({"search.trials": 3}, "--search is for a method that is named"),
        ({"recipe": "paper"}, "--recipe is for a method that is named"),
        ({"pilot.ways": ["kdd"]}, "unknown method 'kdd'. Did you mean 'kd'"),
        ({"pilot.ways": ["kd,alpha"]}, "'alpha' of 'kd,alpha' is no KEY=VALUE"),
        ({"pilot.ways": ["kd", "kd"]}, "a way is given twice"),
        ({"pilot.ways": ["cwd"]}, "no way is left to compare with labels alone. cwd: method cwd is for"),
        ({"method.name": "kd", "pilot.seeds": 2}, "--method auto alone makes short runs first"),
    ],
)
def test_what_means_nothing_is_refused(
    plan: Plan, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plan(tmp_path, **options)


def test_the_command_line(pictures: Path, teacher: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["distill", "--method", "auto", "--teacher", str(teacher), "--student", "test_resnet"]
    command += ["--from-scratch", "--image-size", "32", "--data", str(pictures), "--max-steps", "20"]
    command += ["--batch-size", "8", "--set", "pilot.seeds=1", "--set", "pilot.ways=[kd]"]
    command += ["--out", str(tmp_path / "auto"), "--cache", str(tmp_path / "cache")]
    code, answer, errors = in_process(capsys, *command, "--dry-run")
    assert (code, answer) == (0, "")
    assert re.search(r"pilot +2 ways x 1 seeds x 3 steps = 6 steps, 30% of the training, in ", errors)
    code, answer, errors = in_process(capsys, *command)
    assert (code, answer) == (0, f"{tmp_path}/auto\n"), errors
    assert "goes on" in errors or "go on" in errors
    assert cli.run(["distill", "--help", "--method", "auto"], io.StringIO(), StopSignal()) == 0
    assert "the best goes on" in capsys.readouterr().out
