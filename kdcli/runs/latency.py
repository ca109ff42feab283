"""Times of a network's blocks on this machine, measured once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kdcli.artifacts.files import write_bytes
from kdcli.artifacts.lock import alone_in
from kdcli.console import Console
from kdcli.engine.runtime import Runtime, device_of
from kdcli.errors import EnvironmentFault, InputError
from kdcli.models.sites import Site
from kdcli.models.timing import Table, block_of, measure
from kdcli.models.timm import TimmModel
from kdcli.reading import read_bytes
from kdcli.sections import StudentSection

FOLDER = "latency"
_PAUSE_S, _TRIES = 0.5, 1200  # for another process to measure: ten minutes
_MOST = 1 << 20  # bytes of a table


def table(config: StudentSection, network: TimmModel, sites: Sequence[Site], console: Console) -> Table:
    """The times of a network's blocks; measured by one process where several ask, and kept for the next run.

    A run that goes on after a stop must choose as it would have chosen, and so must all its processes: what
    was measured once is not measured again, as long as the cache stands.

    Args:
        config: device, threads, and where caches are.
        network: with its full widths and no compactors.
        sites: of this network.
        console: says that it takes a while.

    Raises:
        EnvironmentFault: the cache cannot be written to, or another process measures for ten minutes.
    """
    device, threads = device_of(config), config.threads or torch.get_num_threads()
    folder = Path(config.cache, FOLDER)
    file = folder / f"{_key(network, sites, device, threads)}.json"
    try:
        with alone_in(folder, _PAUSE_S, _held):
            if (kept := _kept(file)) is not None and kept.inner.keys() == set(map(block_of, sites)):
                return kept
            console.note(f"measuring blocks of {network.name} at several widths on {device.type}")
            made = _measured(network, sites, device, threads)
            partial = file.with_suffix(".partial")
            write_bytes(partial, json.dumps(made.to_json()).encode())
            os.replace(partial, file)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: the times of blocks cannot be kept there ({error.strerror}). Choose another --cache."
        ) from error
    return made


def _held(tries: int) -> None:
    if tries >= _TRIES:
        raise EnvironmentFault("another process measures times of blocks, and does not end. Try again.")


def _kept(file: Path) -> Table | None:
    """What an earlier run measured; None where there is nothing that can be used."""
    try:
        return Table.from_json(json.loads(read_bytes(file, _MOST)))
    except (OSError, ValueError, InputError):
        return None


def _measured(network: TimmModel, sites: Sequence[Site], device: torch.device, threads: int) -> Table:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure(network, sites, device)
    finally:
        torch.set_num_threads(before)


def _key(network: TimmModel, sites: Sequence[Site], device: torch.device, threads: int) -> str:
    """Of what times depend on: the layers, the size of pictures, and the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    what: list[Any] = [
        repr(network),  # strides, grids and activations, which no shape of a weight tells
        [(key, list(tensor.shape)) for key, tensor in network.state_dict().items()],
        [(site.name, site.width) for site in sites],
        list(network.spec.size),
        [name, threads, _processor(), torch.__version__],
    ]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _processor() -> str:
    """What this machine's processor is called, as far as its system tells."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return f"{platform.machine()} {next(names, '')} × {os.cpu_count()}"


def refuse_unlike(cost: Callable[[Sequence[int]], float], widths: Sequence[int], runtime: Runtime) -> None:
    """Raise EnvironmentFault, in all processes, where their times differ: they would choose unlike rows.

    Args:
        cost: of a network at widths.
        widths: of the sites.
        runtime: of all processes.
    """
    own = [cost(widths), cost([1] * len(widths))]
    found = runtime.largest([*own, *(-value for value in own)])
    if found[:2] != [-value for value in found[2:]]:
        raise EnvironmentFault(
            "the processes of this run have measured other times of the same blocks. Let all machines have "
            "one --cache."
        )
