"""Which published training a run takes (``--recipe``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kdcli.config import Section, beneath
from kdcli.errors import UsageError, nearest
from kdcli.words import Recipe

DEFAULT, PAPER = "default", "paper"

NO_RECIPE = Recipe(DEFAULT, {}, "")

C = TypeVar("C", bound=Section)


@dataclass(frozen=True)
class Choice:
    """The recipe of a run.

    Attributes:
        name: as it was asked for.
        recipe: that this names.
        applied: its values that hold, by dotted key: those of keys that the user did not write.
        of_task: the task's name, by keys whose value is its own default.
    """

    name: str = DEFAULT
    recipe: Recipe = NO_RECIPE
    applied: Mapping[str, Any] = field(default_factory=dict)
    of_task: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        return {"name": self.recipe.name, "applied": dict(self.applied)}


def take(config: C, name: str, method: str, recipes: Sequence[Recipe]) -> tuple[C, Choice]:
    """The configuration with a recipe beneath what the user wrote.

    Args:
        config: of a run.
        name: ``default`` for none, ``paper`` for the first, or a recipe's own name.
        method: its name, for messages.
        recipes: of the method.

    Raises:
        UsageError: the method has no recipe, or none of this name.
    """
    if name == DEFAULT:
        return config, Choice()
    if not recipes:
        raise UsageError(
            f"--recipe {name}: method {method} has no recipe, as no published training of it is known here. "
            "Leave --recipe out."
        )
    known = {PAPER: recipes[0], **{recipe.name: recipe for recipe in recipes}}
    if name not in known:
        names = f"{PAPER} ({recipes[0].name})", *(recipe.name for recipe in recipes[1:]), DEFAULT
        raise UsageError(
            f"--recipe: method {method} has no '{name}'.{nearest(name, known)} It has: {', '.join(names)}."
        )
    config, applied = beneath(config, known[name].settings)
    return config, Choice(name, known[name], applied)
