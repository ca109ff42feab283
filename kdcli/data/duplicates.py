"""The same picture in several splits: what was trained on would be measured as if it were new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.data.samples import Data, Samples

ORDER = ("train", "validation", "test")
"""Of two splits that share a picture the earlier one gives way, so that test never changes."""
_DROP = "--set data.duplicates=drop"


def duplicates(splits: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
    """How many pictures of a split are also in a later one.

    Args:
        splits: [N] hashes of the pictures, by role or name.

    Returns:
        Counts above zero by (split, later split), in the order of :data:`ORDER`, then of any others.
    """
    known = [*(name for name in ORDER if name in splits), *(name for name in splits if name not in ORDER)]
    pairs = [(one, other) for i, one in enumerate(known) for other in known[i + 1 :]]
    counts = {(a, b): int(np.isin(splits[a], splits[b]).sum()) for a, b in pairs}
    return {pair: count for pair, count in counts.items() if count}


def settle_extra(extra: Data, data: Data, action: Literal["keep", "drop", "stop"]) -> Data:
    """Extra pictures without those that a training is measured by, or with a note of them.

    Args:
        extra: pictures of another source that are trained on too.
        data: whose held-out pictures count.
        action: keep them and say so, drop them, or stop.

    Raises:
        InputError: there are some and ``action`` is stop, or nothing else is left.
    """
    splits, said = dict(extra.splits), list(extra.notes)
    for name, samples in extra.splits.items():
        for other, pictures in data.held.items():
            shared = np.isin(splits[name].pictures, pictures)
            if not shared.any():
                continue
            what = f"{extra.source}: {shared.sum()} of {len(samples)} pictures are also in {other} of "
            what += data.source
            if action == "stop":
                raise InputError(f"{what} (data.duplicates=stop). Remove them, or {_DROP}.")
            if action == "keep":
                said.append(f"{what}. Leave them out: {_DROP}")
                continue
            splits[name] = splits[name].take(~shared)
            said.append(f"{what} and left out here (data.duplicates=drop)")
            if not len(splits[name]):
                raise InputError(f"{what}: nothing is left of them.")
    return replace(extra, splits=splits, notes=tuple(said))


def settle(
    used: Mapping[str, Samples],
    held: Mapping[str, np.ndarray],
    action: Literal["keep", "drop", "stop"],
    source: str,
) -> tuple[dict[str, Samples], list[str]]:
    """Do with shared pictures what ``data.duplicates`` says.

    Args:
        used: the splits of a run, by role.
        held: [N] hashes of the pictures of splits that the run does not use but others will, by name.
        action: keep them and say so, drop them from the earlier split, or stop.
        source: for messages.

    Returns:
        The splits in use, and what to say.

    Raises:
        InputError: there are some and ``action`` is stop, or a split consists of nothing else.
    """
    found, said = dict(used), []
    whole = {**held, **{role: samples.pictures for role, samples in used.items()}}
    for (one, other), count in duplicates(whole).items():
        if one not in used:
            continue
        what = f"{source}: {count} of {len(used[one])} pictures of {one} are also in {other}"
        if action == "stop":
            raise InputError(f"{what} (data.duplicates=stop). Remove them, or {_DROP}.")
        if action == "keep":
            said.append(f"{what}. Leave them out: {_DROP}")
            continue
        found[one] = found[one].take(~np.isin(found[one].pictures, whole[other]))
        said.append(f"{what} and left out there (data.duplicates=drop)")
        if not len(found[one]):
            raise InputError(f"{what}: nothing is left of it.")
    return found, said
