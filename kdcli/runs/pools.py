"""Which pictures a method learns from, and what fills its batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdcli.data.order import Pool, Share
from kdcli.data.samples import Data
from kdcli.engine.budget import Stream
from kdcli.errors import InputError, UsageError
from kdcli.sections import StudentSection
from kdcli.tasks import Task
from kdcli.words import Method
from kdcli.words.analysis import needs_labels

_EVEN = 0.5  # part of a batch


def pool_of(data: Data, extra: Sequence[Data], method: Method) -> Pool:
    """The pictures that a method learns from: all of them, or those with a label where no term sees others.

    Raises:
        UsageError: ``extra`` pictures, for a method that has no use for them.
    """
    train = data.split("train")
    if needs_labels(method):
        if extra:
            raise UsageError(f"method {method.name} reads the labels of all pictures: it has no --extra.")
        return _labelled_pool(data, method)
    weighing = (t for turn in method.turns for t in turn.terms if callable(t.weight) or t.weight)
    if any(term.rows != "labelled" for term in weighing):
        more = (samples for data in extra for samples in data.splits.values())
        return Pool((train, *(samples.unlabelled(train.targets) for samples in more)))
    if extra:
        raise UsageError("--extra pictures enter the teacher term only, and this objective has none.")
    return _labelled_pool(data, method)  # no term would see the others


def _labelled_pool(data: Data, method: Method) -> Pool:
    """The training pictures with a label. Raises InputError where there are none."""
    train = data.split("train")
    found = train.take(train.labelled())
    if len(found) == 0:
        raise InputError(
            f"method {method.name} learns from labelled pictures alone, and {data.source} has none. Give "
            "labels, or a method whose teacher teaches without."
        )
    return Pool((found,))


def share_of(method: Method, task: Task, config: StudentSection, data: Data, pool: Pool) -> Share | None:
    """What fills a fixed part of every batch: pictures with labels, those not extra, or few-shot ones.

    Of few-shot pictures half a batch, or all where they are fewer (arXiv 2307.03135, the authors' code).
    Where fewer than half of the pictures have labels, and a method learns from labels and from the others,
    half of a batch has labels too: drawn all alike, labels would teach by a few rows in a step.
    """
    section, shots = config.data, data.shots
    if len(shots):
        batch = config.optim.batch_size
        return Share(np.isin(pool.ids, shots), min(batch // 2, len(shots)) / batch)
    if section.extra_ratio is not None:
        return Share(np.arange(len(pool)) < len(pool.parts[0]), 1 / (1 + section.extra_ratio))
    labelled = pool.labels >= 0
    part = section.labelled_fraction
    if part is None:
        part = _EVEN if labelled.mean() < _EVEN and _learns_from_both(method, task) else 0
    return Share(labelled, part) if part else None


def _learns_from_both(method: Method, task: Task) -> bool:
    """Whether some terms learn from labels, and others from pictures without."""
    terms = [term for turn in method.turns for term in turn.terms]
    weighing = {term.rows for term in terms if callable(term.weight) or term.weight}
    return task.group == 1 and {"labelled", None} <= weighing


def streams_of(pool: Pool, share: Share | None, drawn: int) -> list[Stream]:
    """How often pictures are drawn: those of the share and the others, as :class:`Order` divides them.

    Args:
        pool: of N pictures.
        share: of batches, if there is one.
        drawn: pictures of all batches.
    """
    first = 0 if share is None else int(share.first.sum())
    if share is None or first in (0, len(pool)):
        return [Stream(len(pool), drawn)]
    both = [Stream(first, drawn * share.part), Stream(len(pool) - first, drawn * (1 - share.part))]
    return both if share.part < 1 else both[:1]
