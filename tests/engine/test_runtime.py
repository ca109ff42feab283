"""Which device a run gets, and what is said where there is none of that kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdcli.engine.runtime import device_of
from kdcli.errors import EnvironmentFault, UsageError
from kdcli.sections import RunSection


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch tell of so many GPUs and of Metal."""

    def make(gpus: int, metal: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: metal)

    return make


@pytest.mark.parametrize(
    ("gpus", "metal", "given", "expected"),
    [
        (0, False, {}, "cpu"),
        (0, True, {}, "cpu"),
        (2, False, {}, "cuda"),
        (2, False, {"device": "cpu"}, "cpu"),
        (2, False, {"device": "cuda:1"}, "cuda:1"),
        (2, False, {"device": "cuda", "processes": 2, "precision": "fp16"}, "cuda"),
        (0, True, {"device": "mps"}, "mps"),
        (0, False, {"device": "cpu", "processes": 8}, "cpu"),
    ],
)
def test_the_device_that_is_asked_for(
    machine: Any, gpus: int, metal: bool, given: dict[str, Any], expected: str
) -> None:
    machine(gpus, metal)
    assert device_of(RunSection(**given)) == torch.device(expected)


@pytest.mark.parametrize(
    ("gpus", "metal", "given", "kind", "message"),
    [
        (
            0,
            False,
            {"device": "cuda"},
            EnvironmentFault,
            r"--device cuda: no such device here. There is: cpu\.",
        ),
        (
            0,
            False,
            {"device": "cuda:7"},
            EnvironmentFault,
            r"--device cuda:7: no such device here. There is: cpu",
        ),
        (
            *(2, False, {"device": "cuda:2"}, EnvironmentFault),
            r"--device cuda:2: no such device here. There is: cpu, cuda:0 \(GPU 0\), cuda:1 \(GPU 1\)\.",
        ),
        (
            0,
            False,
            {"device": "mps"},
            EnvironmentFault,
            r"--device mps: no such device here. There is: cpu\.",
        ),
        (0, True, {"device": "cuda"}, EnvironmentFault, r"There is: cpu, mps\."),
        (
            2,
            False,
            {"processes": 3},
            EnvironmentFault,
            r"3 processes need as many GPUs. There is: cpu, cuda:0",
        ),
        (2, False, {"device": "cuda:1", "processes": 2}, UsageError, "--device cuda:1 is one device, and 2"),
        (
            0,
            True,
            {"device": "mps", "processes": 2},
            UsageError,
            "--device mps is one device, and 2 processes",
        ),
        (0, False, {"precision": "fp16"}, EnvironmentFault, "--precision fp16 needs a CUDA device"),
    ],
)
def test_a_device_that_is_not_there(
    machine: Any, gpus: int, metal: bool, given: dict[str, Any], kind: type[Exception], message: str
) -> None:
    machine(gpus, metal)
    with pytest.raises(kind, match=message):
        device_of(RunSection(**given))
