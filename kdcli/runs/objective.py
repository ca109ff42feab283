"""What a distillation minimises: the method with its parameters, its recipe and added terms, for a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from kdcli import methods
from kdcli.artifacts import model as artifacts
from kdcli.config import asked, beneath
from kdcli.console import Console
from kdcli.errors import UsageError
from kdcli.runs import banks, idle, recipes

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.methods.parts import Part
    from kdcli.methods.table import Needs
    from kdcli.models.banks import TextBank
    from kdcli.models.protocol import Model
    from kdcli.tasks import Task
    from kdcli.words import Method


def arguments(config: Any) -> dict[str, Any]:
    """Parameters of the method, defaults filled in. Raises UsageError for one that it does not have."""
    methods.refuse_other_stage(config.method.name, methods.METHODS)
    given = config.method.model_dump(exclude={"name"}, exclude_none=True)
    return methods.arguments(config.method.name, given)


def taught(config: Any, added: bool, console: Console) -> bool:
    """Whether there is a teacher to be read; warns of one that is not. Raises UsageError if none is given."""
    name = config.method.name
    needed = methods.entry(name).teacher
    if needed and not config.teacher:
        raise UsageError(f"method {name} needs --teacher; --method supervised does without.")
    if config.teacher and not (needed or added):
        console.warn(f"method {name} has no teacher: --teacher is not read.")
    if added and not config.teacher:
        raise UsageError("--add needs --teacher: its terms compare the student with one.")
    return needed or added


def of_its_task(config: Any) -> Any:
    """The configuration with the task that the method is for, where that is no other's and no table tells.

    Raises:
        UsageError: an option about labels that nobody learns from.
    """
    from kdcli.tasks import providing

    needs = methods.entry(config.method.name).needs
    if needs == "features":
        idle.refuse_idle(config, idle.of_pictures_alone(config))
    if needs not in ("features", "text"):
        return config
    return beneath(config, {"data.task": providing(needs)})[0]


def from_scratch(config: Any) -> Any:
    """The configuration with random weights for the student, where the method's students begin with them.

    Weights of the user's own, an artifact, a folder or a repository are what they are.
    """
    named = artifacts.find(str(config.student)) is None and ":" not in str(config.student)
    if not methods.entry(config.method.name).scratch or config.weights or not named:
        return config
    return beneath(config, {"from_scratch": True})[0]


def label_weights(config: Any, student: Model) -> None:
    """Put down what a student begins with, where the method's students have random weights."""
    if not methods.entry(config.method.name).scratch:
        return
    if student.trained == "random" and not asked(config, "from_scratch"):
        student.notes += (
            f"{student.name} begins with random weights, as students of {config.method.name} do: --set "
            "from_scratch=false takes trained ones",
        )
    if student.trained == "pretrained":
        student.notes += (
            f"{student.name} begins with trained weights, and the students of {config.method.name} with "
            "random ones: what it was trained on may hold classes that are held back here (--from-scratch)",
        )


def objective(
    config: Any, data: Data, parts: Sequence[Part], console: Console
) -> tuple[Any, Task, Method, recipes.Choice]:
    """Task and method, and the configuration with the method's recipe beneath what the user wrote.

    Raises:
        UsageError: a method or a recipe that there is not, or an objective that does not fit the task.
    """
    from kdcli.methods.parts import added
    from kdcli.runs.refusals import refuse_weights
    from kdcli.words.analysis import without_zero_terms

    bank = banks.chosen(config.texts, data, [*config.teacher, str(config.student)], console)
    task, method = _method(config, data, bank)
    config, choice = recipes.take(config, config.recipe, method.name, method.recipes)
    own = _of_task(config, task, choice)
    if own:
        config, held = beneath(config, own)
        choice = replace(choice, of_task=dict.fromkeys(held, task.name))
    if choice.applied or own:
        task, method = _method(config, data, bank)
    make = partial(methods.function(method.name), task, **_several(config))
    idle.refuse_idle_parameters(config, make, method, arguments(config))
    for text in config.terms:
        _refuse_unfit(f"--add {text}", methods.term_needs(text), task)
    method = without_zero_terms(added(method, parts))
    refuse_weights(method)
    return config, task, method, choice


def _of_task(config: Any, task: Task, choice: recipes.Choice) -> dict[str, Any]:
    """What the task has other defaults of, but for those of a recipe, by key."""
    from kdcli.tasks import TASKS

    row = TASKS.get(task.name)
    if row is None:
        return {}
    own = row.settings.get(config.method.name, {})
    found = defaults_of(config, task.name) | {f"method.{key}": value for key, value in own.items()}
    return {key: value for key, value in found.items() if key not in choice.applied}


def defaults_of(config: Any, task: str) -> dict[str, Any]:
    """Keys of a stage's configuration that have other defaults for a task; none for ``auto``."""
    from kdcli.tasks import TASKS

    row = TASKS.get(task)
    own = {} if row is None else row.defaults
    return {key: value for key, value in own.items() if key.partition(".")[0] in type(config).model_fields}


def _method(config: Any, data: Data, bank: TextBank | None) -> tuple[Task, Method]:
    """The task of the data, with its texts, and the method. Raises UsageError where they do not fit."""
    from kdcli.tasks import task_of

    name = config.method.name
    task = task_of(data, config.data, config.optim, config.views)
    if bank is not None:
        task = cast("Task", replace(cast(Any, task), bank=bank))
    _refuse_unfit(f"method {name}", methods.entry(name).needs, task)
    return task, methods.function(name)(task, **_several(config), **arguments(config))


def _several(config: Any) -> dict[str, int]:
    """How many teachers there are, for a method that matches each by itself."""
    several = methods.entry(config.method.name).several
    return {"teachers": max(len(config.teacher), 1)} if several else {}


def _refuse_unfit(what: str, needs: Needs, task: Task) -> None:
    """Raise UsageError where a method, or a term, needs what the answers of a task are not."""
    from kdcli.tasks import TASKS

    if not methods.fits(needs, TASKS[task.name].provides):
        able = [name for name, row in TASKS.items() if methods.fits(needs, row.provides)]
        able = [name for name in able if not set(TASKS[name].serves) & set(able)]
        raise UsageError(f"{what} is for {' and '.join(able)}, and these data are for {task.name}.")
