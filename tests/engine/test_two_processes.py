"""Turns prepared by accelerate on two gloo processes equal one process; runs on two resume bit for bit."""

import json
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gloo_job
import pytest
from toolbox import QUIET, inversion_plan, method_options, synthesis_plan, synthetic

from kdcli import methods
from kdcli.launch import launch
from kdcli.stages import synthesize


def on_two_ranks(work: Callable[..., None], *arguments: Any) -> None:
    """Two ranks, forked: they have the libraries that this process has imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = []
    for rank in ("0", "1"):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            code = 1
            try:
                os.environ |= {**shared, "KDCLI_WORKER": "1", "RANK": rank, "LOCAL_RANK": rank}
                work(*arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
    assert [os.waitpid(process, 0)[1] for process in ranks] == [0, 0]


def job(folder: Path, pictures: Path, network: Path, stops: list[int]) -> Path:
    on_two_ranks(gloo_job.work, folder, pictures, network, stops)
    return folder


@pytest.fixture(scope="module")
def found(pictures, normed, tmp_path_factory):
    return job(tmp_path_factory.mktemp("job"), pictures, normed, [8])


@pytest.mark.parametrize("labels", ["all", "uneven", "none"])
@pytest.mark.parametrize("micro", [1, 2])
def test_gradients_equal_one_process(found, labels, micro):
    result = json.loads((found / "gradients.json").read_text())[f"{labels}/{micro}"]
    assert result["worst"] < 1e-6
    assert {n.split("/")[0] for n in result["names"]} == {"student", "generator"}
    assert not any("unused" in name for name in result["names"])
    assert len(result["names"]) == 8


def test_a_relation_sees_the_rows_of_both_processes(found):
    result = json.loads((found / "gradients.json").read_text())["relation"]
    assert result["worst"] < 1e-6
    assert len(result["names"]) == 4


@pytest.mark.parametrize("labels", ["all", "uneven", "spread", "none"])
def test_selected_rows_derived_ones_and_queues_are_those_of_both_processes(found, labels):
    result = json.loads((found / "gradients.json").read_text())[f"gathered/{labels}"]
    assert result["worst"] < 1e-6
    assert result["queue"] < 1e-6
    assert result["same"] > 0.1
    assert result["seen"] == [16, 16]
    assert len(result["names"]) == 4


def test_states_and_edits_on_two_processes(pictures, probed, tmp_path, monkeypatch):
    """Stopped after every step, on one of two processes, and continued."""
    entry = replace(methods.METHODS["kd"], target="toy_method:toy", parts=())
    monkeypatch.setitem(methods.METHODS, "toy", entry)
    options = method_options("toy", pictures, probed, tmp_path, **{"optim.max_steps": 3})
    on_two_ranks(gloo_job.toy_method, tmp_path, options, 3)
    assert json.loads((tmp_path / "toy.json").read_text()) == dict.fromkeys("0123", True)


@pytest.mark.long
def test_every_method_on_two_processes(options_of, tmp_path):
    options = {name: options_of(name, tmp_path) for name in methods.METHODS}
    on_two_ranks(gloo_job.methods_work, tmp_path, options)
    found = json.loads((tmp_path / "methods.json").read_text())
    assert found == dict.fromkeys(methods.METHODS, "equal")


def test_resume_on_two_processes(found):
    assert json.loads((found / "resume.json").read_text()) == {"8": "equal in 5 files"}


@pytest.mark.long
def test_resume_at_every_step_on_two_processes(pictures, normed, tmp_path):
    results = json.loads((job(tmp_path, pictures, normed, list(range(30))) / "resume.json").read_text())
    assert len(results) == 30
    assert set(results.values()) == {"equal in 5 files"}


def test_two_processes_make_the_same_pictures(found, pictures, tmp_path):
    whole = synthesize.run(synthesis_plan(pictures, tmp_path / "whole", mixer="cutmix"), QUIET).path
    assert len(list((found / "mixed").glob("data-*.arrow"))) > 2  # of two processes, before and after
    assert synthetic(found / "mixed") == synthetic(whole)


def test_two_processes_invert_the_same_pictures(found, normed, tmp_path):
    """A process was stopped within a block, the other between two."""
    whole = synthesize.run(inversion_plan(normed, tmp_path / "whole"), QUIET).path
    assert synthetic(found / "inverted") == synthetic(whole)
    assert (found / "inverted" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.long
def test_the_command_on_two_processes(pictures, variations, tmp_path):
    plan = synthesis_plan(pictures, tmp_path / "whole", weights=str(variations))
    whole, out = synthesize.run(plan, QUIET).path, tmp_path / "out"
    arguments = ["synthesize", "--weights", str(variations), "--data", str(pictures), "--count", "40"]
    arguments += [
        "--steps",
        "3",
        "--device",
        "cpu",
        "--out",
        str(out),
        "--cache",
        str(tmp_path / "its cache"),
    ]
    assert launch(arguments, 2) == 0
    assert synthetic(out) == synthetic(whole)
