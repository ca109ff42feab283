"""Experiment trackers, through accelerate: rows of ``metrics.jsonl`` as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from kdcli.config import identity
from kdcli.engine.runtime import Runtime
from kdcli.errors import EnvironmentFault, UsageError, nearest
from kdcli.sections import RunSection


def refuse_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that a run could not write to.

    Raises:
        UsageError: one that accelerate does not know.
        EnvironmentFault: one whose package is not installed.
    """
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(name) for name in get_available_trackers()}
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--track: no tracker '{name}'.{nearest(name, known)} There are: {', '.join(known)}."
            )
        if name not in available:
            raise EnvironmentFault(
                f"--track {name}: its package is not installed. Install kdcli[track] or {name}."
            )


@contextmanager
def tracking(
    config: RunSection, out: Path, runtime: Runtime
) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Open the trackers of ``--track``; yields what takes log rows, or None.

    Raises:
        UsageError, EnvironmentFault: see :func:`refuse_trackers`.
    """
    if not config.track or not runtime.main:
        yield None
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    refuse_trackers(config.track)
    folder = out.with_name(f"{out.name}.track")
    with ExitStack() as stack:
        trackers = []
        for name in config.track:
            kind = LOGGER_TYPE_TO_CLASS[name]
            place = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
            tracker = kind(out.name, **place)
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(_flat(identity(config)))
            stack.callback(tracker.finish)
            trackers.append(tracker)

        def log(row: dict[str, Any]) -> None:
            values = {k: v for k, v in row.items() if k != "step"}
            for tracker in trackers:
                tracker.log(values, step=row["step"])

        yield log


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
