"""What a task measures of networks over a split: figures for selection, rows for a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.data.samples import Samples
from kdcli.engine import inference
from kdcli.engine.runtime import Runtime
from kdcli.metrics.efficiency import flops, latency, parameters, peak_memory, throughput
from kdcli.metrics.segmentation import FOLLOWS, class_iou, segmentation_metrics
from kdcli.models.timm import Network
from kdcli.tasks import Task
from kdcli.tasks.classification import exits
from kdcli.tasks.classification.exits import Exits
from kdcli.tasks.segmentation import pixels


@dataclass(frozen=True)
class Setting:
    """On what, and how, networks are measured.

    Attributes:
        task: whose metrics.
        samples: labelled pictures.
        runtime: device and processes.
        batch_size: of one process.
        reading: how loaders read pictures.
        window: of segmentation, see :class:`kdcli.tasks.segmentation.pixels.Reading`.
        stride: of segmentation.
        exits: of networks that have some, by their names.
        effects_mix: λ of :func:`kdcli.metrics.effects.effects`.
        seed: of its permutations.
    """

    task: Task
    samples: Samples
    runtime: Runtime
    batch_size: int
    reading: dict[str, Any]
    window: int | None = None
    stride: int | None = None
    exits: Mapping[str, Exits] = field(default_factory=dict)
    effects_mix: float = 0.5
    seed: int = 0


def metrics(setting: Setting, network: Any) -> dict[str, float]:
    """Figures of one network, ``task.selection`` among them."""
    return _TABLE[setting.task.name][0](setting, network)


Rows = tuple[dict[str, dict[str, Any]], dict[str, Any]]


def rows(
    setting: Setting, networks: Mapping[str, Network], teacher: Network | None, console: Console
) -> Rows:
    """Parts of a report (see :mod:`kdcli.report.page`): by the networks' names, and of all; each runs once.

    Of segmentation also ``shown``: predictions [H, W] of some pictures by index, which are no JSON.
    """
    return _TABLE[setting.task.name][1](setting, networks, teacher, console)


def cost(network: Network, runtime: Runtime, batch_size: int, repeats: int) -> dict[str, Any]:
    """What a forward costs, on random pictures: the part ``cost`` of a report."""
    shape = (batch_size, 3, *network.spec.size)
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    with runtime.accelerator.autocast():
        return {
            "parameters": parameters(network),
            "flops": flops(network, batch[:1]),
            "latency_ms": latency(network, batch[:1], repeats, 5),
            "throughput": throughput(network, batch, max(3, repeats // 3), 2),
            "peak_memory_mb": peak_memory(network, batch),
            "device": runtime.describe()["device"],
            "threads": torch.get_num_threads(),
        }


# -- classification ------------------------------------------------------------------------------------------


def _class_options(setting: Setting) -> dict[str, Any]:
    return {"batch_size": setting.batch_size, **setting.reading}


def _class_logits(setting: Setting, network: Network, console: Console, name: str) -> Tensor:
    """Logits [N, E, C]: of the network's exits, if it has any, and last of the network."""
    options, own = _class_options(setting), setting.exits.get(name)
    with console.progress(name, len(setting.samples), "pictures") as bar:
        network = network.to(setting.runtime.device)
        options["progress"] = bar.update
        if own is not None:
            return exits.outputs(network, own, setting.samples, setting.runtime, **options)
        return inference.outputs(network, setting.samples, setting.runtime, **options)[:, None]


def _class_metrics(setting: Setting, network: Network) -> dict[str, float]:
    from kdcli.metrics.classification import classification_metrics

    logits = inference.outputs(network, setting.samples, setting.runtime, **_class_options(setting))
    return classification_metrics(logits, torch.from_numpy(setting.samples.labels))


def _class_rows(
    setting: Setting, networks: Mapping[str, Network], teacher: Network | None, console: Console
) -> Rows:
    from kdcli.metrics.agreement import agreement
    from kdcli.metrics.classification import classification_metrics, confusion, reliability
    from kdcli.metrics.effects import effects
    from kdcli.metrics.peers import peers

    targets = torch.from_numpy(setting.samples.labels)
    answers = {name: _class_logits(setting, net, console, name) for name, net in networks.items()}
    found = {name: logits[:, -1] for name, logits in answers.items()}
    taught = next((found[name] for name, net in networks.items() if net is teacher), None)
    if teacher is not None and taught is None:
        taught = _class_logits(setting, teacher, console, "teacher")[:, -1]
    parts: dict[str, dict[str, Any]] = {}
    for name, logits in found.items():
        parts[name] = {
            "metrics": classification_metrics(logits, targets),
            "reliability": reliability(logits, targets),
            "confusion": confusion(logits, targets, len(setting.task.classes)).tolist(),
        }
        if teacher is not None and taught is not None:
            parts[name]["teacher"] = {"name": teacher.name, **agreement(logits, taught, targets)}
            if networks[name] is not teacher:
                parts[name]["effects"] = effects(
                    logits,
                    taught,
                    targets,
                    weights=_classifiers(networks[name], teacher),
                    mix=setting.effects_mix,
                    seed=setting.seed,
                )
        if own := setting.exits.get(name):
            options = _class_options(setting)
            parts[name]["exits"] = exits.measure(
                networks[name], own, answers[name], targets, setting.runtime, **options
            )
    return parts, {"peers": peers(found, targets)} if len(found) > 1 else {}


def _classifiers(student: Network, teacher: Network) -> tuple[Tensor, Tensor] | None:
    """Rows of both linear classifiers, None where one of them ends otherwise."""
    rows = student.class_rows(), teacher.class_rows()
    return None if rows[0] is None or rows[1] is None else (rows[0].detach().cpu(), rows[1].detach().cpu())


# -- segmentation --------------------------------------------------------------------------------------------

SHOWN = 4  # pictures in a report


def _pixel_tallies(
    setting: Setting, networks: Mapping[str, Network], **options: Any
) -> dict[str, pixels.Tally]:
    reading = pixels.Reading(
        setting.batch_size, window=setting.window, stride=setting.stride, **setting.reading
    )
    teacher = options.pop("teacher", None)
    return pixels.tallies(
        networks, teacher, len(setting.task.classes), setting.samples, setting.runtime, reading, **options
    )


def _pixel_metrics(setting: Setting, network: Network) -> dict[str, float]:
    return segmentation_metrics(_pixel_tallies(setting, {"it": network})["it"].confusion)


def _pixel_rows(
    setting: Setting, networks: Mapping[str, Network], teacher: Network | None, console: Console
) -> Rows:
    names = {id(network): name for name, network in networks.items()}
    taught = None if teacher is None else names.get(id(teacher), "teacher (compared with)")
    together = {**networks, **({taught: teacher} if taught and teacher is not None else {})}
    for network in together.values():
        network.to(setting.runtime.device)
    with console.progress("pictures", len(setting.samples), "pictures") as bar:
        found = _pixel_tallies(setting, together, teacher=taught, shown=SHOWN, progress=bar.update)
    parts: dict[str, dict[str, Any]] = {}
    for name in networks:
        tally = found[name]
        iou = class_iou(tally.confusion).tolist()
        parts[name] = {
            "metrics": segmentation_metrics(tally.confusion),
            "iou": [None if math.isnan(value) else value for value in iou],
            "pixels": tally.confusion.sum(1).tolist(),
            "shown": tally.shown,
        }
        if teacher is not None:
            means = (tally.follows / tally.confusion.sum()).tolist()
            parts[name]["teacher"] = {"name": teacher.name, **dict(zip(FOLLOWS, means))}
    return parts, {}


_TABLE: dict[str, tuple[Callable[..., dict[str, float]], Callable[..., Rows]]] = {
    "classification": (_class_metrics, _class_rows),
    "segmentation": (_pixel_metrics, _pixel_rows),
}
