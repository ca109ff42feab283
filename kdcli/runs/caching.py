"""Which outputs of frozen parties a training reads from caches, and of which views."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from kdcli.data.cache import Store
from kdcli.data.order import Order
from kdcli.data.other_views import PLAIN, plain_cut
from kdcli.data.views import TrainingView
from kdcli.engine.assembly import Assembly
from kdcli.engine.budget import bytes_per_view
from kdcli.engine.cache import Caching
from kdcli.models.protocol import Model
from kdcli.words import Method
from kdcli.words.analysis import cacheable_calls, taps_used


def only_plain(method: Method, *, features: bool = False) -> bool:
    """Whether a cache of un-augmented cuts answers all calls of frozen parties: fixed views add nothing."""
    frozen = {party.name for party in method.parties if party.role == "frozen"}
    calls = {call.name for turn in method.turns for call in turn.calls if call.party in frozen}
    served = cacheable_calls(method, features=features)
    return all(served.get(name) == PLAIN for name in calls)


def caching(
    method: Method, order: Order, view: TrainingView, steps: int, *, features: bool = False
) -> Caching:
    """The caches of a run.

    Args:
        method: whose calls.
        order: of the samples; whether their views are fixed.
        view: cuts them.
        steps: of the run.
        features: whether pooled features and maps are kept too.
    """
    run = {name for turn in method.turns for name, taps in taps_used(turn).items() if taps}
    columns = (PLAIN,) if order.views is None else ("x", PLAIN)
    served = cacheable_calls(method, features=features).items()
    calls = {name: read for name, read in served if read in columns and name in run}
    if not calls:
        return Caching()
    used = order.used(steps)
    drawn = np.asarray(used.any(axis=0))[None]
    return Caching(calls, {"x": view, PLAIN: plain_cut(view)}, {"x": used, PLAIN: drawn})


def row_size(
    method: Method, networks: Mapping[str, Model], assembly: Assembly, store: Store, *, features: bool = False
) -> int:
    """Bytes that a cache keeps of one view: all that frozen networks are read for, each call once."""
    served = cacheable_calls(method, features=features)
    taps = {
        f"{call}.{tap}"
        for turn in method.turns
        for call, names in taps_used(turn).items()
        if call in served
        for tap in names
    }
    more = {tap for tap in taps if tap.partition(".")[2] not in ("logits", "embedding")}
    own = assembly.shapes.get("t.embedding")
    count = (
        networks["teacher" if "teacher" in networks else "student"].logit_count if own is None else own[-1]
    )
    if more == taps and more:  # no answers are among them
        count = 0
    return bytes_per_view(count, store, sum(math.prod(assembly.seen[tap]) for tap in more))
