"""The command line: runs one stage, with one line on stdout, one message per failure and an exit code.

stdout carries exactly one line, the artifact's path or a JSON object (or what ``--version`` asks for, or the
lines of a command of :data:`kdcli.commands.TOOLS`); all else goes to stderr. Only this module touches file
descriptors, signal handlers and exit codes.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
import traceback
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import typer
from typer.exceptions import TyperException

from kdcli import commands, errors
from kdcli.console import Console
from kdcli.launch import StopSignal, adopt_slurm, is_worker, launch, rank, share_slurm_gpus
from kdcli.reading import TEXT_LIMIT
from kdcli.runs import Result

_PLATFORMS = ("linux", "darwin")
_PATIENCE_S = 5.0
_LONGEST_PATH = 4096  # characters
_FEW = 8  # processes that any machine can bear


def main(arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Run the command line and exit with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    stop = StopSignal()
    stop.watched = False  # until the engine looks
    stop.install()
    answer = _reserve_stdout()
    code = run(arguments, answer, stop)
    for stream in (answer, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError, OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def run(arguments: list[str], answer: TextIO, stop: StopSignal) -> int:
    """Run one command; every failure becomes one message on stderr and an exit code.

    Args:
        arguments: without the program's name.
        answer: where the one line of output goes.
        stop: set when a signal asks the run to commit and stop.
    """
    console = Console(quiet="--quiet" in arguments, silent=is_worker() and rank() > 0)
    try:
        if not sys.platform.startswith(_PLATFORMS):
            raise errors.EnvironmentFault("kdcli runs on Linux and macOS; on Windows use WSL.")
        execute = partial(_execute, arguments, answer, stop)
        app = commands.build(arguments, execute, partial(_use, answer), partial(_say, answer))
        # The stage runs outside Typer, which would swallow its EPIPE, and take its EOFError for an interrupt.
        work = app(arguments, standalone_mode=False, prog_name="kdcli")
        return work() if callable(work) else int(work or 0)
    except errors.KdcliError as error:
        if _said_by_another(stop):
            return error.exit_code
        if error.exit_code == errors.KdcliError.exit_code:  # a bug: say where
            for note in getattr(error, "__notes__", ()):
                console.trace(note)
        console.error(str(error))
        return error.exit_code
    except TyperException as error:
        console.error(_usage(error))
        return errors.UsageError.exit_code
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.error("interrupted. The same command continues from the last committed step.")
        return 130
    except Exception as error:
        if errors.is_out_of_memory(error):
            console.error(_OUT_OF_MEMORY)
            return errors.EnvironmentFault.exit_code
        if isinstance(error, OSError) and error.errno in errors.DISK_FAULTS:
            console.error(str(errors.from_os_error(error, "the output")))
            return errors.EnvironmentFault.exit_code
        console.trace(traceback.format_exc())
        console.error(f"this is a bug in kdcli: {type(error).__name__}: {error}")
        return 1


_OUT_OF_MEMORY = (
    "out of memory. Lower --batch-size. In training, --auto-batch or --set optim.accumulate=2 split the "
    "batch (the result stays the same but for batch statistics), and smaller views (--set views.size=…) "
    "help; --precision bf16 helps everywhere."
)


def _said_by_another(stop: StopSignal) -> bool:
    """Whether this is not the first process of a job, and the job is ended while it waits a little.

    What all processes meet (a wrong option, a missing file) the first one says; what only this one meets
    (its own disk, its own memory) it has to say itself.
    """
    if not is_worker() or rank() == 0:
        return False
    until = time.monotonic() + _PATIENCE_S
    with stop.watching():
        while stop.requested is None and time.monotonic() < until:
            time.sleep(0.05)
    return stop.requested is not None


def _usage(error: TyperException) -> str:
    """Typer's message; of an unknown option with the nearest name instead of three."""
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        name = str(error.option_name)
        return f"unknown option '{name}'.{errors.nearest(name, error.possibilities or ())}"
    return error.format_message()


def _reserve_stdout() -> TextIO:
    """Keep the real stdout for the answer and send everything else that is printed to stderr."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:  # closed by the shell (2>&-): the next file would take its number
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8")


# -- running a stage -----------------------------------------------------------------------------------------


def _execute(
    arguments: list[str],
    answer: TextIO,
    stop: StopSignal,
    name: str,
    stage: Any,
    given: dict[str, Any],
    common: dict[str, Any],
) -> int:
    from kdcli.config import resolve
    from kdcli.runs import places

    given, piped = _from_pipe(given)
    config = resolve(stage.Config, file=common["config_file"], sets=common["sets"] or (), options=given)
    for place in places.around(Path(config.out)) if config.out and common["config_file"] else ():
        places.refuse_overlap(place, "--config", common["config_file"])
    if refuse := getattr(stage, "refuse_unknown", None):  # a method, before torch is imported
        refuse(config)
    first = not is_worker() or rank() == 0
    console = Console(quiet=common["quiet"], silent=not first)
    _refuse_many(config.processes)
    if config.processes > 1 and not is_worker() and not common["dry_run"]:
        return launch(_without_dash(arguments, piped), config.processes, stop=stop, stdout=answer)
    if getattr(stage, "shares_work", lambda _: False)(config):
        share_slurm_gpus()
    else:
        adopt_slurm()
    command = shlex.join(["kdcli", *_without_dash(arguments, piped)])
    console.note(f"kdcli {name}: loading libraries")
    plan = stage.plan(config, console, unless_complete=not common["dry_run"])
    if common["dry_run"]:
        plan.describe(console)
        if common["as_json"] and first:
            _say(answer, json.dumps(plan.to_json(), default=str))
        return 0
    if isinstance(plan, Result):
        result = plan
        console.note(f"{result.path} is complete")
    else:
        result = stage.run(plan, console, stop=stop, command=command)
    if first:
        line = {"path": str(result.path), **result.summary}
        _say(answer, json.dumps(line, default=str) if common["as_json"] else str(result.path))
    if result.failed:
        raise errors.GateFailed("; ".join(result.failed))
    return 0


def _use(answer: TextIO, _: str, tool: Any, given: dict[str, Any], common: dict[str, Any]) -> int:
    """Run a command that is no stage: it has one process, and says its own lines."""
    from kdcli.config import resolve

    config = resolve(tool.Config, sets=common["sets"] or (), options=_from_pipe(given)[0])
    for line in tool.run(config, Console(quiet=common["quiet"])):
        _say(answer, line)
    return 0


def _refuse_many(processes: int) -> None:
    """Raise EnvironmentFault for more processes than a machine of so many cores can bear."""
    most = max(_FEW, os.cpu_count() or 1)
    if processes > most:
        raise errors.EnvironmentFault(
            f"--num-processes {processes}: this machine has {os.cpu_count()} cores, and no more than {most} "
            "processes are started on it."
        )


_PIPED = (
    "models",
    "teacher",
    "student",
    "data.source",
    "data.extra",
)  # what an upstream stage may have written


def _from_pipe(given: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Replace the one ``-`` among models and data by the path that the upstream command wrote."""
    dashes = [k for k in _PIPED for v in _listed(given.get(k)) if v == "-"]
    if not dashes:
        return given, None
    if len(dashes) > 1:
        raise errors.UsageError("'-' may stand for one model or dataset only.")
    text = _upstream()
    if not text:
        raise errors.InputError("'-' stands for an artifact, but upstream wrote no path.")
    line = text.splitlines()[-1]
    if line.startswith("{"):
        try:
            path = json.loads(line)["path"]
        except (ValueError, KeyError, RecursionError):
            path = None
        if not isinstance(path, str) or not path:
            raise errors.InputError(f"'-': upstream wrote JSON without a path: {line[:80]}")
        line = path
    if len(line) > _LONGEST_PATH:
        raise errors.InputError(f"'-': upstream wrote {len(line):,} characters, and no path is so long.")
    key = dashes[0]
    value = [line if v == "-" else v for v in _listed(given[key])]
    return {**given, key: value if isinstance(given[key], list) else value[0]}, line


def _upstream() -> str:
    """What the upstream command wrote, without spaces around it; empty where there is none."""
    if sys.stdin is None or sys.stdin.closed:
        return ""
    try:
        text = sys.stdin.read(TEXT_LIMIT + 1)
    except UnicodeDecodeError as error:
        raise errors.InputError("'-': upstream wrote bytes that are no text.") from error
    if len(text) > TEXT_LIMIT:
        raise errors.InputError(f"'-': upstream wrote more than {TEXT_LIMIT:,} characters, which is no path.")
    return text.strip()


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _without_dash(arguments: Sequence[str], piped: str | None) -> list[str]:
    """The arguments with the path read from the pipe in place of ``-`` or ``--option=-``."""
    if piped is None:
        return list(arguments)
    return [f"{a[:-1]}{piped}" if a == "-" or (a[:2] == "--" and a[-2:] == "=-") else a for a in arguments]


def _say(answer: TextIO, line: str) -> None:
    """Write the one line; a reader that has gone does not undo the work."""
    try:
        print(line, file=answer, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), answer.fileno())
