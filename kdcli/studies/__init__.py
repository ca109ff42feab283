"""Several runs that make one student: chains of assistants, searches over settings, pilots of methods.

Each run is an ordinary one, with its own artifact; a study says which comes next, and which was the best. The
stage hands it what plans and makes a run (:class:`Stage`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kdcli.console import Console
    from kdcli.engine.runtime import Stop
    from kdcli.runs import Result


@dataclass(frozen=True)
class Stage:
    """A stage as studies see it.

    Attributes:
        plan: of (config, console, unless_complete=…), a plan, or a :class:`kdcli.runs.Result` where the run
            is complete.
        run: of (plan, console, stop=…, command=…, ends=…).
    """

    plan: Callable[..., Any]
    run: Callable[..., Any]


class Study(Protocol):
    """A plan of several runs."""

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""

    def run(self, console: Console, *, stop: Stop | None, command: str) -> Result:
        """Make the runs; raises what they raise."""
