"""What a probe asks of its backbone: names of a classifier that is kept, taps that are there, features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdcli.config import beneath
from kdcli.errors import InputError, UsageError, nearest
from kdcli.runs import frame

if TYPE_CHECKING:
    from kdcli.data.samples import Data
    from kdcli.models.build import Wanted
    from kdcli.models.protocol import Model
    from kdcli.tasks import Task


KEPT = ("keep", "decoder", "texts")
"""What ``--head`` says where nothing is fitted."""


def with_head(config: Any) -> Any:
    """The configuration with the head of a task that fits none, where that task is named.

    Raises:
        UsageError: another head for it, or its head for another task.
    """
    from kdcli.tasks import TASKS

    row = TASKS.get(config.data.task)
    if row is not None and row.head:
        config = beneath(config, {"head": row.head})[0]
    for name, own in TASKS.items():
        if own.head and (config.head == own.head) != (config.data.task == name):
            raise UsageError(
                f"--head {config.head}: --task {name} has the head {own.head}, and no other task."
            )
    return config


def by_steps(task: Task) -> bool:
    """Whether a task's heads learn step by step, as students do."""
    from kdcli.tasks import TASKS

    row = TASKS.get(task.name)
    return row is not None and row.by_steps


def wanted(config: Any, task: Task | None) -> Wanted | None:
    """What the network of a probe is to answer while it is built; None for a head that comes later."""
    from kdcli.models.build import Wanted
    from kdcli.tasks import of_features

    if config.head == "decoder":
        return Wanted([], task=of_features(), decoder=True)
    if task is None or not by_steps(task):
        return None
    return Wanted(**task.wanted(config.kind), order=config.data.class_order)


def refuse_pictures(network: Model) -> None:
    """Raise InputError for a head that cannot take what its network makes of a picture, by trying one."""
    import torch

    black = torch.zeros((1, 3, *network.spec.size), dtype=torch.uint8)
    with torch.inference_mode():
        network.eval().call([black], ("logits",))


def kept(network: Model) -> str:
    """What is kept of a network that no head is fitted to, for the plan."""
    if (decoder := network.decoder) is not None:
        return f"an encoder and its decoder of {decoder.depth} blocks, {decoder.facts['width']} wide"
    if network.bank is not None:
        return f"what embeds pictures, and a bank of texts about {len(network.classes or [])} classes"
    return f"the trained classifier of {len(network.classes or [])} classes"


def settle_names(config: Any, network: Model, kept: Data | None) -> None:
    """Names for a classifier that is kept: its own, in the order of the data if there are any, or theirs.

    Raises:
        InputError: there is no classifier, or nobody says what its classes are called.
    """
    from kdcli.tasks import task_of

    if kept is not None:
        task = task_of(kept, config.data)
        frame.match(network, str(config.teacher), task, config.data.class_order)
    elif network.outputs and network.classes is None:
        raise InputError(
            f"{config.teacher} knows no names of its {network.outputs} classes. Where they stand in the "
            "order of some data (folders: sorted by name), say --data DATA --set data.class_order=same."
        )
    elif network.classes is None:
        raise InputError(f"{config.teacher} has no trained classifier to keep; fit one with --data.")


def refuse_taps(config: Any, network: Model) -> None:
    """Refuse taps that the network has not, found by a call of it, and those of several layers."""
    import torch

    from kdcli.models.taps import Layers

    black = torch.zeros((1, 3, *network.spec.size), dtype=torch.uint8)
    with torch.inference_mode():
        found = network.eval().call([black], config.statistics.taps)
    if several := [tap for tap, value in found.items() if isinstance(value, Layers)]:
        raise UsageError(
            f"statistics.taps: {several[0]} names several layers; name each, as in layer4.1.act2.in."
        )


def features(config: Any, network: Model, known: list[str]) -> list[str]:
    """The features that are tried. Raises UsageError for one that is not known."""
    if config.features == "all" and config.head != "none":
        return known
    wanted = ["pooled"] if config.features == "timm" or config.head == "none" else config.features.split(",")
    for name in wanted:
        if name not in known:
            raise UsageError(
                f"--features: no '{name}'.{nearest(name, known)} {network.name} has: {', '.join(known)}."
            )
    return wanted
