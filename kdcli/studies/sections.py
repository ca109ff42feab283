"""The groups of fields that say what a search tries and what a pilot compares; no torch, no Optuna."""

from __future__ import annotations

import typing
from typing import Literal

from pydantic import ConfigDict

from kdcli.config import Section, method_option, option, outputs
from kdcli.sections import MOST_STEPS

_MOST_TRIALS = 1_000_000


class SearchSection(Section):
    """What is tried on validation pictures; keys beside its own are keys of the run that are tried.

    ``[1e-4, 1e-2, log]`` is a span, ``[kd, dkd]`` and ``[1, 4, choice]`` are choices, one value is fixed, and
    null leaves a key of the default space out.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    principal: typing.ClassVar[str | None] = "trials"
    dotted: typing.ClassVar[bool] = True
    trials: int = method_option(
        0, "Try so many settings on validation; the best is written.", "--search", ge=0, le=_MOST_TRIALS
    )
    study: str | None = outputs(None, "Folder of a search (shared by its workers) or a pilot.", "--study")
    space: Literal["default", "own"] = option(
        "default", "What is tried beside the keys that are named: the method's own space, or nothing."
    )
    halving: int = option(
        3, "Of the trials that come to a rung one in so many goes on; 1 for all.", ge=1, le=1000
    )
    rungs: int = option(2, "Rungs before the last step, each so many times shorter.", ge=0, le=20)


class PilotSection(Section):
    """Short runs by which ``--method auto`` chooses."""

    principal: typing.ClassVar[str | None] = "share"
    share: float = option(0.15, "Steps of each short run, as a part of the training's.", gt=0, le=1)
    most: int = option(500, "Steps of each short run at most.", ge=1, le=MOST_STEPS)
    seeds: int = option(3, "Seeds of each way.", ge=1, le=11)
    ways: list[str] = option(
        ["task-specific", "kd", "task-specific,teacher_view=plain,teacher_errors=swap"],
        "What is compared with labels alone: METHOD, or METHOD,key=value,… with any keys.",
        max_length=64,
        min_length=1,
    )
