"""SIGKILL at random moments: no committed step is lost, nothing visible is corrupt, the end is bit-equal."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_resume import finished, make_plan
from toolbox import QUIET, Child

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.store import Output
from kdcli.stages import distill


def reporting(plan: distill.Plan) -> Callable[[Callable[[int], None]], None]:
    """Run the plan in a child that reports each committed state."""

    def body(report: Callable[[int], None]) -> None:
        from contextlib import contextmanager

        original = Output.new_state

        @contextmanager
        def new_state(self, step):
            with original(self, step) as folder:
                yield folder
            report(step)

        Output.new_state = new_state
        distill.run(plan, QUIET)

    return body


def inside_a_commit(out: Path) -> bool:
    """Whether the process died between the first and the last call of a commit."""
    partial = out.with_name(f"{out.name}.partial")
    if not partial.exists():
        return False
    names = [p.name for p in partial.iterdir()]
    drafts = [n for n in names if n.endswith(".partial") or ".trash-" in n or n in ("kdcli.json", "last")]
    return bool(drafts) or len([n for n in names if n.startswith("state-")]) > 1


def sweep(kills: int, pictures: Path, teacher: Path, folder: Path) -> dict[str, int]:
    rng = random.Random(0)
    whole = make_plan("cached", pictures, teacher, folder / "whole", save_steps=1)
    started = time.monotonic()
    distill.run(whole, QUIET)
    length = time.monotonic() - started
    reference = finished(whole.target.path)[0]
    counts = {"kills": 0, "finished": 0, "in_commit": 0}
    while counts["kills"] < kills:
        out = folder / f"run-{counts['finished']}"
        plan = make_plan("cached", pictures, teacher, out, save_steps=1)
        while True:
            child = Child(reporting(plan))
            code = child.wait(rng.uniform(0, 0.8 * length))
            committed = child.steps()
            assert code in (None, 0), "the rerun failed"
            if out.exists():
                manifests.verify(out, manifests.read(out))
            if code == 0:
                break
            counts["kills"] += 1
            counts["in_commit"] += inside_a_commit(out)
            partial = out.with_name(f"{out.name}.partial")
            if (partial / manifests.NAME).exists():  # whole, but for its name
                manifests.verify(partial, manifests.read(partial))
            elif committed and not out.exists():
                last = Output(out, partial, replace=False).last_state()
                assert last is not None
                assert last[0] >= committed[-1]
        counts["finished"] += 1
        assert finished(out)[0] == reference
        assert len(json.loads((out / "kdcli.json").read_text())["files"]) == len(reference)
    return counts


def test_kills(pictures, teacher, tmp_path):
    counts = sweep(4, pictures, teacher, tmp_path)
    assert counts["kills"] >= 4
    assert counts["finished"] >= 1


@pytest.mark.long
def test_two_hundred_kills(pictures, teacher, tmp_path, capsys):
    counts = sweep(200, pictures, teacher, tmp_path)
    with capsys.disabled():
        print(f"\n{counts}")
    assert counts["kills"] >= 200
    assert counts["finished"] >= 25
    assert counts["in_commit"] >= 50
