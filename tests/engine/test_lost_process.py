"""A process whose job loses another one says so in one message, without torch's trace and its joke."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from test_two_processes import on_two_ranks

from kdcli.engine.runtime import accompanied, open_runtime, shared_output
from kdcli.errors import EnvironmentFault
from kdcli.sections import RunSection

GLOO = (
    "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:9096: Connection "
    "reset by peer. This is typically caused by a remote worker hanging or bugs in the application. Check "
    "the logs of the remote worker before reporting an error. GLHF! 🏖️"
)


def test_what_gloo_says() -> None:
    wanted = "another process of this job has ended or hangs"
    with pytest.raises(EnvironmentFault, match=wanted) as caught, accompanied(2):
        raise RuntimeError(GLOO)
    assert "(Read error [127.0.0.1]:9096: Connection reset by peer)" in str(caught.value)
    assert "GLHF" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistNetworkError("the server socket has gone"),
        torch.distributed.DistBackendError("NCCL error: remote process exited"),
    ],
)
def test_what_has_a_type(error: RuntimeError) -> None:
    with pytest.raises(EnvironmentFault, match="another process"), accompanied(2):
        raise error


@pytest.mark.parametrize(("processes", "text"), [(1, GLOO), (2, "The size of tensor a (3) must match")])
def test_what_is_something_else_stays_it(processes: int, text: str) -> None:
    with pytest.raises(RuntimeError, match=r"GLHF|must match"), accompanied(processes):
        raise RuntimeError(text)


def lose_one(folder: Path) -> None:
    runtime = open_runtime(RunSection(device="cpu"))

    def work() -> None:
        with shared_output(folder / "out", {}, False, runtime):
            if runtime.rank == 1:
                os._exit(0)
            for _ in range(100):
                runtime.largest([0.0])

    with pytest.raises(EnvironmentFault, match="another process of this job has ended"):
        work()


def test_a_job_that_loses_a_process(tmp_path: Path) -> None:
    on_two_ranks(lose_one, tmp_path)
