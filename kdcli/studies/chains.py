"""A student taught by way of assistants (``--via``), or by students of its own kind (``method.generations``).

Every link is a run, and an artifact, of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.config import as_default
from kdcli.console import Console
from kdcli.errors import UsageError
from kdcli.runs import Result, places
from kdcli.studies import Stage

if TYPE_CHECKING:
    from kdcli.engine.runtime import Stop


@dataclass
class Chain:
    """The links of a chain that are still to be made.

    Attributes:
        config: of the stage.
        stage: plans and makes runs.
        index: of the link that is next.
        first: its plan.
    """

    config: Any
    stage: Stage
    index: int
    first: Any

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {"chain": [*self.config.via, self.config.student], "next": self.first.to_json()}

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        names = [*self.config.teacher, *self.config.via, str(self.config.student)]
        console.note(f"chain    {' → '.join(names)}; next is {names[self.index - len(self.config.via) - 1]}")
        self.first.describe(console)

    def run(self, console: Console, *, stop: Stop | None, command: str) -> Result:
        """Make the links that are left."""
        result: Result = self.stage.run(self.first, console, stop=stop, command=command)
        for index in range(self.index + 1, len(self.config.via) + 1):
            following = self.stage.plan(_link(self.config, index, [str(result.path)]), console)
            result = self.stage.run(following, console, stop=stop, command=command)
        return result


def _link(config: Any, index: int, teacher: list[str]) -> Any:
    """The run that trains the assistant number ``index``, or the student behind the last one.

    Each has a seed of its own: students of one kind would else begin alike and see the same batches.
    """
    update: dict[str, Any] = {"via": [], "teacher": teacher}
    if index < len(config.via):
        out = f"{config.out}-via-{index + 1}" if config.out else None
        seed = config.seed + len(config.via) - index
        update |= {
            "student": config.via[index],
            "weights": None,
            "out": out,
            "seed": seed,
        }
    made = config.model_copy(update=update)
    return made if len(teacher) > 1 else as_default(made, "teacher_mean")  # it is of the first link


def generations(config: Any, count: int) -> Any:
    """The chain of ``count`` students of one kind, each a run of one generation."""
    if config.via:
        raise UsageError("--via and method.generations both name the students in between: give one.")
    method = config.method.model_copy(update={"generations": 1})
    return config.model_copy(update={"method": method, "via": [str(config.student)] * (count - 1)})


def plan(config: Any, stage: Stage, console: Console, unless_complete: bool) -> Chain | Result:
    """The first link that is still to be made; later students are built once, to be refused now if at all.

    Raises:
        UsageError: an objective without a teacher; what planning a link raises.
        InputError: what planning a link raises.
    """
    from kdcli.runs.material import build_student

    teacher = config.teacher
    for link in (_link(config, index, teacher) for index in range(len(config.via) + 1) if config.out):
        places.check(link, Path(str(link.out)))
    for index in range(len(config.via) + 1):
        made = stage.plan(_link(config, index, teacher), console, unless_complete=unless_complete)
        if isinstance(made, Result):
            teacher = [str(made.path)]
            continue
        if index < len(config.via) and "teacher" not in made.material.networks:
            raise UsageError("--via passes on what a teacher knows, and this objective has none.")
        for later in range(index + 1, len(config.via) + 1):
            build_student(_link(config, later, teacher), made.task)
        return Chain(config, stage, index, made)
    assert isinstance(made, Result)
    return made
