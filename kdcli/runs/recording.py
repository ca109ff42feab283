"""Records of a finished model's activations, class by class, for pictures without data."""

from __future__ import annotations

from kdcli.engine.moments import Moments, Recording, record
from kdcli.sections import StatisticsSection
from kdcli.tasks.settings import Probing


def record_activations(probing: Probing, wanted: StatisticsSection) -> Moments:
    """Moments of the network's activations over the labelled training pictures, class by class.

    Warns of classes that are left out, while more pictures can still be had.
    """
    classes = len(probing.data.classes or [])
    found = record(
        probing.network,
        probing.labelled("train"),
        Recording(wanted.taps, classes, wanted.min_count, wanted.max_gigabytes * 1e9),
        probing.runtime,
        probing.console,
        batch_size=probing.options.grid.batch_size,
        **probing.reading,
    )
    if missing := classes - len(found.classes):
        probing.console.warn(
            f"--statistics recorded nothing of {missing} of {classes} classes, which have fewer than "
            f"{wanted.min_count} labelled pictures (statistics.min_count)."
        )
    return found
