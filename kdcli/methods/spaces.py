"""What a search tries of a method where the user does not say: its space beside its recipes. No torch.

The ranges are round the values that the run would have; they are ours, papers name points.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from kdcli import methods
from kdcli.words.space import Choice, Dimension, Span

FACTOR = 5.0  # of a learning rate, or a weight, up and down

_PARAMETERS: dict[str, Dimension] = {
    "alpha": Span(0.1, 0.9),
    "temperature": Choice((1.0, 2.0, 4.0)),
}
_NOT = {("dkd", "alpha")}  # no balance of labels and teacher, as elsewhere
_WEIGHTS = ("weight", "beta", "gamma")  # around their own value


def around(value: float) -> Span:
    """From a fifth of a value to five times as much, by logarithm."""
    return Span(value / FACTOR, value * FACTOR, log=True)


def of_method(name: str, arguments: Mapping[str, Any]) -> dict[str, Dimension]:
    """Dimensions of a method's parameters, by key of the configuration.

    Args:
        name: of the method.
        arguments: its parameters as the run would have them.
    """
    found: dict[str, Dimension] = {}
    for key in methods.parameters(name):
        value = arguments.get(key)
        own = None if (name, key) in _NOT else _PARAMETERS.get(key)
        if own is None and key in _WEIGHTS and isinstance(value, float) and value > 0:
            own = around(value)
        if own is not None:
            found[f"method.{key}"] = own
    return found


def of_training(config: Any, taught: bool, provides: Collection[str]) -> dict[str, Dimension]:
    """Dimensions of how a student learns: learning rate, crops and colours, what its teacher sees.

    Args:
        config: of distill, as the run would have it.
        taught: whether it has a teacher whose answers teach.
        provides: what the task's answers are, see :class:`kdcli.tasks.table.Entry`.
    """
    found: dict[str, Dimension] = {"optim.lr": around(config.optim.lr)}
    if tuple(config.views.scale) != (1.0, 1.0):  # else whole pictures are what the task takes
        found["views.scale"] = Choice(([0.15, 1.0], [0.35, 1.0], [0.6, 1.0], [0.85, 1.0]))
        found["views.color_jitter"] = Choice((0.0, 0.4))
    if taught and "class" in provides and not (config.optim.mixup or config.optim.cutmix):
        found["teacher_view"] = Choice(("same", "plain"))
    return found
