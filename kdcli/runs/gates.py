"""Derivatives of the loss on labels by the gates of a network's channels, before any training."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.data.batches import training_loader
from kdcli.engine.turn import TurnModule
from kdcli.methods.parts import STUDENT, S
from kdcli.models.compactors import compactors
from kdcli.models.timm import TimmModel
from kdcli.runs import frame
from kdcli.runs.material import Lesson, gather
from kdcli.words import Method, Phase, Turn


def gates(student: TimmModel, sites: Sequence[str], lesson: Lesson, pictures: int) -> list[list[Tensor]]:
    """Gradients of the compactors' weights, of each of the first batches that a training would take.

    On the CPU and in eval mode, so that all processes of a run find the same.

    Args:
        student: with compactors, left as it is.
        sites: names of the compactors.
        lesson: of which the labels count.
        pictures: at least so many are looked at, or one epoch.
    """
    turn = Turn("labels", ("student",), (S,), lesson.task.supervised("s"))
    alone = replace(lesson, method=Method("labels", (STUDENT,), (Phase((turn,)),)))
    network = copy.deepcopy(student)
    material = gather(alone, Console(silent=True), {"student": network})
    reading = {**frame.reading(lesson.config, lesson.config.data), "workers": 0}
    loader = training_loader(material.pool, material.view, columns=None, pin=False, others={}, **reading)
    wanted = math.ceil(min(pictures, len(material.pool)) / material.order.batch_size)
    own = compactors(network)
    weights = [own[site].weight for site in sites]
    module = TurnModule(material.method.turns[0], {"student": network}, shared=False).eval()
    found = []
    for batch in loader([material.order.keys(step) for step in range(wanted)]):
        loss = module({**batch, **material.targets.plain(batch)}, torch.ones(2), 0.0)["loss"]
        found.append(list(torch.autograd.grad(loss, weights)))
    return found
