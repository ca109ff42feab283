"""Which outputs of frozen parties a training reads from caches, and of which views."""

from __future__ import annotations

import numpy as np

from kdcli.data.order import Order
from kdcli.data.other_views import PLAIN, plain_cut
from kdcli.data.views import TrainingView
from kdcli.engine.cache import Caching
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
