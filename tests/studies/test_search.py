"""``distill --search``: trials are ordinary runs, the best one is handed over, and kills change nothing."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toolbox import QUIET, Child, StopAfter, facts, in_process

from kdcli.artifacts.manifest import read
from kdcli.config import resolve
from kdcli.errors import Diverged, InputError, Preempted, UsageError
from kdcli.runs import Result
from kdcli.stages import distill
from kdcli.studies.journal import Journal
from kdcli.studies.search import Search, relevant

Plan = Callable[..., Search]


@pytest.fixture(scope="module")
def plan(pictures: Path, teacher: Path) -> Plan:
    def make(folder: Path, /, trials: int = 5, **more: Any) -> Search:
        options = {
            **{"student": "test_resnet", "from_scratch": True, "image_size": 32, "teacher": [str(teacher)]},
            **{"data.source": str(pictures), "method.name": "kd", "optim.max_steps": 12, "log_every": 1},
            **{"optim.batch_size": 8, "evaluate_steps": 2, "views.count": "2", "threads": 1},
            **{"out": str(folder / "best"), "cache": str(folder / "cache"), "search.trials": trials},
            **{"search.study": str(folder / "study"), "save_steps": 3},
            **({"search.views.color_jitter": None, "search.teacher_view": None} if trials else {}),
            **more,
        }
        given = {key: value for key, value in options.items() if value is not ...}
        found = distill.plan(resolve(distill.Config, options=given), QUIET)
        assert isinstance(found, Search)
        return found

    return make


def searched(plan: Search) -> Path:
    return distill.run(plan, QUIET).path


def trials(plan: Search) -> list[Any]:
    journal = Journal(plan.folder, plan.identity, plan.config.seed, plan.space)
    return [(t.number, t.params, t.value, t.state.name, t.intermediate_values) for t in journal.trials()]


def hashes(plan: Search) -> list[str]:
    return [read(path).hash for path in sorted((plan.folder / "trials").iterdir())]


def cached_pairs(cache: Path) -> list[tuple[str, int, int]]:
    """All rows of all caches of teacher outputs."""
    found = []
    for segment in cache.glob("*/segment-*"):
        ids, views = (np.load(segment / f"{name}.npy") for name in ("ids", "views"))
        found += [(segment.parent.name, int(i), int(v)) for i, v in zip(ids, views)]
    return found


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A study that nothing disturbed."""
    torch.set_num_threads(1)
    found = plan(tmp_path_factory.mktemp("whole"))
    searched(found)
    return found


def test_the_best_trial_is_handed_over(whole: Search) -> None:
    found = trials(whole)
    assert [number for number, *_ in found] == list(range(5))
    done = [(value, -number) for number, _, value, state, _ in found if state == "COMPLETE"]
    best = -max(done)[1]
    trial, out = whole.folder / "trials" / f"{best:04d}", Path(whole.config.out)
    assert read(trial).hash == read(out).hash
    assert facts(out)["study"] == {"path": str(whole.folder), "trial": best, "trials": 5}
    assert facts(out)["config"]["out"] == str(out)
    for number, params, value, state, rungs in found:
        own = facts(whole.folder / "trials" / f"{number:04d}")
        assert own["metrics"]["validation/top1"] == value
        assert own["config"]["optim"]["lr"] == params["optim.lr"]
        assert own["config"]["seed"] == whole.config.seed
        assert ("ended" in own) == (state == "PRUNED") == (own["steps"] < 12)
        assert set(rungs) <= {1, 4}


def test_its_settings_repeat_it(whole: Search, tmp_path: Path) -> None:
    file = whole.folder / "best.yaml"
    options = {"out": str(tmp_path / "again"), "cache": str(tmp_path / "cache")}
    again = distill.plan(resolve(distill.Config, file=file, options=options), QUIET)
    assert read(distill.run(again, QUIET).path).hash == read(Path(whole.config.out)).hash


def test_the_same_command_prints_the_path_and_more_trials_go_on(whole: Search, plan: Plan) -> None:
    folder = whole.folder.parent
    before = hashes(whole)
    assert searched(plan(folder)) == Path(whole.config.out)
    assert hashes(whole) == before
    more = plan(folder, trials=7, out=str(folder / "more"))
    searched(more)
    assert hashes(more)[:5] == before
    assert len(hashes(more)) == 7


def test_trials_share_the_cache_and_say_what_that_saved(whole: Search) -> None:
    costs = [facts(path)["cost"] for path in sorted((whole.folder / "trials").iterdir())[:5]]
    made = sum(cost["teacher_forwards_made"] for cost in costs)
    asked = sum(cost["teacher_forwards"] for cost in costs)
    pairs = cached_pairs(Path(whole.config.cache))
    assert len(pairs) == len(set(pairs)) >= made > 0
    assert asked > made


def test_a_trial_that_was_stopped_goes_on(whole: Search, plan: Plan, tmp_path: Path) -> None:
    found = plan(tmp_path)
    for looks in (2, 30, 17):
        with pytest.raises(Preempted):
            distill.run(plan(tmp_path), QUIET, stop=StopAfter(looks))
    searched(found)
    assert trials(found) == trials(whole)[:5]
    assert hashes(found) == hashes(whole)[:5]


@pytest.mark.long
def test_killed_twenty_times_it_ends_as_if_undisturbed(whole: Search, plan: Plan, tmp_path: Path) -> None:
    began = time.perf_counter()
    searched(plan(tmp_path / "timed"))
    longest = (time.perf_counter() - began) / 10
    rng, kills = random.Random(0), 0
    found = plan(tmp_path / "killed")
    while True:
        child = Child(lambda report: searched(found) and None)
        code = child.wait(rng.uniform(0, longest) if kills < 20 else 120)
        child.steps()
        if code is not None:
            break
        kills += 1
    assert code == 0
    assert kills == 20, "all of them fell into the study"
    assert trials(found) == trials(whole)[:5]
    assert hashes(found) == hashes(whole)[:5]
    pairs = cached_pairs(tmp_path / "killed" / "cache")
    assert len(pairs) == len(set(pairs)) > 0, "no key is in the caches twice"


@pytest.mark.long
def test_two_that_are_killed_make_every_trial_once(plan: Plan, tmp_path: Path) -> None:
    rng, found, kills, codes = random.Random(1), plan(tmp_path, trials=8), 0, [None, None]
    children: list[Any] = [None, None]
    while None in codes:
        for own in (0, 1):
            if codes[own] is not None:
                continue
            children[own] = children[own] or Child(lambda report: searched(found) and None)
            codes[own] = children[own].wait(rng.uniform(0, 1.5) if kills < 10 else 120)
            children[own].steps()
            children[own], kills = None, kills + (codes[own] is None)
    assert codes == [0, 0]
    assert kills >= 5
    states = [state for *_, state, _ in trials(found)]
    assert len(states) == 8
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert len(hashes(found)) == 8
    pairs = cached_pairs(tmp_path / "cache")
    assert len(pairs) == len(set(pairs)) > 0


def test_methods_are_tried_with_what_each_has(plan: Plan, tmp_path: Path) -> None:
    found = plan(
        tmp_path,
        trials=4,
        **{
            "search.method": ["task-specific", "dkd", "supervised"],
            "search.halving": 1,
            "search.optim.lr": 1e-3,
        },
    )
    assert {"method.name", "method.alpha", "method.beta", "method.temperature"} <= set(found.space)
    searched(found)
    for number, params, *_ in trials(found):
        own = facts(found.folder / "trials" / f"{number:04d}")["config"]
        assert own["method"]["name"] in params["method.name"]
        assert own["optim"]["lr"] == 1e-3
    assert relevant({"method.name": "kd", "method.beta": 2.0, "optim.lr": 1}, "kd") == {
        "method.name": "kd",
        "optim.lr": 1,
    }


def test_one_method_that_is_named_has_its_own_space(plan: Plan, tmp_path: Path) -> None:
    found = plan(tmp_path, **{"search.method": "dkd"})
    assert "method.beta" in found.space
    assert found.space["method.name"].said() == "[dkd, choice]"


def test_all_who_worked_at_a_study_hand_over_the_same(whole: Search, plan: Plan, tmp_path: Path) -> None:
    found = plan(whole.folder.parent, out=str(tmp_path / "together"))
    children = [Child(lambda report: searched(found) and None) for _ in range(3)]
    codes = [child.wait(60) for child in children]
    assert [child.steps() for child in children] == [[], [], []]
    assert codes == [0, 0, 0]
    assert read(tmp_path / "together").hash == read(Path(whole.config.out)).hash


def test_what_the_user_fixed_is_not_tried(plan: Plan, tmp_path: Path) -> None:
    found = plan(tmp_path, **{"optim.lr": 1e-3, "method.temperature": 2.0})
    assert "optim.lr" not in found.space
    assert "method.temperature" not in found.space
    named = plan(tmp_path, **{"optim.lr": 1e-3, "search.optim.lr": [1e-4, 1e-2, "log"]})
    assert named.space["optim.lr"].said() == "[0.0001, 0.01, log]"
    own = plan(tmp_path, **{"search.space": "own", "search.views.hflip": [0.0, 0.5, "choice"]})
    assert list(own.space) == ["views.hflip"]


def test_trials_that_fail_are_said_and_the_study_goes_on(
    plan: Plan, tmp_path: Path, warnings: list[str]
) -> None:
    run, calls = distill.run, []

    def often_diverges(plan: Any, *given: Any, **more: Any) -> Result:
        calls.append(plan)
        if len(calls) == 2:
            raise Diverged("the loss became nan in step 1")
        if len(calls) == 3:
            raise MemoryError
        return run(plan, *given, **more)

    found = plan(tmp_path)
    found.stage = type(found.stage)(found.stage.plan, often_diverges)
    searched(found)
    assert [state for *_, state, _ in trials(found)].count("FAIL") == 2
    assert "trial 2 failed: the loss became nan in step 1" in warnings
    assert "trial 3 failed: out of memory" in warnings


def test_a_study_in_which_all_fails_ends(plan: Plan, tmp_path: Path) -> None:
    def diverges(plan: Any, *given: Any, **more: Any) -> Result:
        raise Diverged("the loss became nan in step 1")

    found = plan(tmp_path)
    found.stage = type(found.stage)(found.stage.plan, diverges)
    with pytest.raises(InputError, match="all 3 trials so far failed, the last one so: the loss became nan"):
        searched(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search.optim.lr": [1, 1e-3]}, "search.optim.lr: from 1 to 0.001: the first has to be less"),
        ({"search.optim.lr": [-1.0, 1e-3]}, "search.optim.lr: optim.lr: input should be greater than 0"),
        ({"search.optim.learning": 1}, "unknown key 'optim.learning'"),
        ({"search.data.source": ["a", "b"]}, "trials are compared on the same pictures and networks"),
        ({"search.seed": [1, 9]}, "trials are compared on the same pictures and networks"),
        ({"processes": 2}, "--search tries settings in one process"),
        ({"via": ["test_resnet"]}, "--search tries single runs"),
        ({"search.space": "own"}, "--search: nothing is tried"),
        (
            {"trials": 0, "search.study": ..., "search.halving": 2},
            "search.halving is given, and nothing is searched",
        ),
        ({"trials": 0, "search.study": ..., "search.optim.lr": [1, 2]}, "search.optim.lr is given"),
        ({"search.study": "."}, "the working directory"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    plan: Plan, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((UsageError, InputError), match=re.escape(message)):
        plan(tmp_path, **options)


def test_tasks_of_slurm_share_a_study(
    pictures: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM is mocked by what srun sets."""
    for name, value in {"PROCID": 1, "LOCALID": 1, "STEP_ID": 0, "STEP_NUM_TASKS": 2, "JOB_ID": 7}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    command = ["distill", "--search", "1", "--method", "supervised", "--student", "test_resnet"]
    command += ["--from-scratch", "--image-size", "32", "--data", str(pictures), "--max-steps", "2"]
    command += ["--batch-size", "8", "--study", str(tmp_path / "study"), "--out", str(tmp_path / "best")]
    code, answer, errors = in_process(capsys, *command)
    assert (code, answer) == (0, f"{tmp_path}/best\n"), errors


def test_the_command_line(
    pictures: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["distill", "--search", "2", "--method", "supervised", "--student", "test_resnet"]
    command += ["--from-scratch", "--image-size", "32", "--data", str(pictures), "--max-steps", "4"]
    command += ["--batch-size", "8", "--set", "search.optim.lr=[1e-4,1e-2,log]"]
    code, answer, errors = in_process(capsys, *command, "--dry-run")
    assert (code, answer) == (0, "")
    assert re.search(r"searches 2 trials in runs/study-[0-9a-f]{10}, 8 steps at most", errors)
    assert re.search(r"optim.lr +\[0.0001, 0.01, log\]", errors)
    code, answer, errors = in_process(capsys, *command)
    assert code == 0, errors
    assert re.fullmatch(r"runs/distill-[0-9a-f]{10}\n", answer)
    assert re.search(r"trial 1 of 2: optim.lr=0.\d+, views", errors)
    again = in_process(capsys, *command)
    assert again[:2] == (0, answer)
