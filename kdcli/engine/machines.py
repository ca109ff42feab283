"""What a run was made on: device, threads, processes. A resumed run says where they are others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcli.artifacts.lock import MACHINES
from kdcli.artifacts.reading import read_object
from kdcli.artifacts.store import write_bytes

Machine = Mapping[str, Any]
"""Device, threads and number of processes, by name."""


def goes_on(known: list[dict[str, Any]], machine: Machine, place: Mapping[str, int]) -> str:
    """Add what a run goes on with to what it was made on; returns what is to be said where that is another.

    Args:
        known: is added to where it grows.
        machine: of what follows.
        place: where in the run it begins, by name.
    """
    before = known[-1] if known else machine
    changed = [
        f"{name.replace('_', ' ')} {before[name]} before, {value} now"
        for name, value in machine.items()
        if before[name] != value and (name != "threads" or machine["device"] == "cpu")
    ]
    if changed or not known:
        known.append({**place, **machine})
    if not changed:
        return ""
    return (
        f"{'; '.join(changed)}: sums are rounded otherwise, so this run will not be bit for bit what it "
        "would have been. Results are equal for equal numbers of threads and processes only."
    )


def pictures_go_on(folder: Path, machine: Machine, made: int) -> str:
    """The same of a folder of pictures that is being filled, which keeps a file of it.

    Args:
        folder: an unfinished output.
        machine: of what follows; a picture does not depend on the number of processes.
        made: pictures that are there.
    """
    known = machines_of(folder) if made else []
    told = goes_on(known, {k: v for k, v in machine.items() if k != "world_size"}, {"from_picture": made})
    draft = folder / f"{MACHINES}.partial"
    write_bytes(draft, json.dumps({"machines": known}).encode())
    os.replace(draft, folder / MACHINES)
    return told


def machines_of(folder: Path) -> list[dict[str, Any]]:
    """What the pictures in a folder were made on."""
    return read_object(folder / MACHINES)["machines"] if (folder / MACHINES).exists() else []
