"""The command line: one Typer command per stage, built from the stage's configuration.

stdout carries exactly one line, the artifact's path or a JSON object; all else goes to stderr. Only this
module touches file descriptors, signal handlers and exit codes.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import typer
from typer.exceptions import TyperException

from kdcli import errors
from kdcli.console import Console
from kdcli.launch import StopSignal, adopt_slurm, is_worker, launch, rank
from kdcli.stages import STAGES

_PLATFORMS = ("linux", "darwin")


def main(arguments: Sequence[str] | None = None) -> typing.NoReturn:
    """Run the command line and exit with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    stop = StopSignal()
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
        app = build(arguments, answer, stop)
        code = app(arguments, standalone_mode=False, prog_name="kdcli")
        return int(code or 0)
    except errors.KdcliError as error:
        console.error(str(error))
        return error.exit_code
    except TyperException as error:
        console.error(error.format_message())
        return errors.UsageError.exit_code
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.error("interrupted. The same command continues from the last committed step.")
        return 130
    except MemoryError:
        console.error(_OUT_OF_MEMORY)
        return errors.EnvironmentFault.exit_code
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            console.error(_OUT_OF_MEMORY)
            return errors.EnvironmentFault.exit_code
        if isinstance(error, OSError) and error.errno in errors.DISK_FAULTS:
            console.error(str(errors.from_os_error(error, "the output")))
            return errors.EnvironmentFault.exit_code
        traceback.print_exc()
        console.error(f"this is a bug in kdcli: {type(error).__name__}: {error}")
        return 1


_OUT_OF_MEMORY = (
    "out of memory. Lower --batch-size and raise optim.accumulate by the same factor (the result stays the "
    "same "
    "but for batch statistics), use --precision bf16, or smaller views (--set views.size=…)."
)


def _reserve_stdout() -> TextIO:
    """Keep the real stdout for the answer and send everything else that is printed to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "w", encoding="utf-8")


# -- building commands ---------------------------------------------------------------------------------------


def build(arguments: Sequence[str], answer: TextIO, stop: StopSignal) -> typer.Typer:
    """A Typer application in which only the invoked stage's configuration is loaded."""
    app = typer.Typer(
        name="kdcli",
        help="Distil large pretrained vision models into small ones. Stages read and write directories.",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    invoked = next((a for a in arguments if not a.startswith("-")), None)
    for name, (module, line) in STAGES.items():
        command = _command(name, module, list(arguments), answer, stop) if name == invoked else _stub
        app.command(name, help=None if name == invoked else line, short_help=line)(command)
    if invoked is not None and invoked not in STAGES:
        raise errors.UsageError(
            f"unknown command '{invoked}'.{errors.nearest(invoked, STAGES)} Commands: {', '.join(STAGES)}."
        )
    return app


def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from kdcli import __version__

        print(f"kdcli {__version__}", file=sys.stderr)
        raise typer.Exit(0)


def _stub() -> None:
    raise AssertionError("a stub command is never invoked")


def _command(
    name: str, module: str, arguments: list[str], answer: TextIO, stop: StopSignal
) -> Callable[..., int]:
    """A function whose signature is the stage's configuration."""
    import importlib

    from kdcli.config import leaves

    stage = importlib.import_module(module)
    fields = {dotted: (field, extra) for dotted, field, extra in leaves(stage.Config) if extra.get("flag")}
    places = {dotted.replace(".", "__"): dotted for dotted in fields}
    positional = next((d for d, _, e in leaves(stage.Config) if e.get("positional")), None)

    def command(**values: Any) -> int:
        common = {key: values.pop(key) for key in list(values) if key in _COMMON_NAMES}
        names = values.pop("positional", None)
        given = {places[key]: value for key, value in values.items() if value not in (None, [])}
        if positional and names:
            given[positional] = list(names)
        return _execute(name, stage, given, common, arguments, answer, stop)

    parameters = []
    if positional:
        argument = typer.Argument(None, metavar=positional.upper(), help=_field_help(stage, positional))
        parameters.append(_parameter("positional", list[str] | None, argument))
    for key, dotted in places.items():
        field, extra = fields[dotted]
        parameters.append(_parameter(key, *_typed(field, extra)))
    parameters += [_parameter(key, kind, default) for key, kind, default in _common()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = (inspect.getdoc(stage.Config) or "") + _method_help(arguments)
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _field_help(stage: Any, dotted: str) -> str:
    from kdcli.config import leaves

    return next(field.description for name, field, _ in leaves(stage.Config) if name == dotted)


def _typed(field: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
    """Typer's annotation and option for a field; values stay text, pydantic gives them their type."""
    default = field.get_default(call_default_factory=True)
    shown: Any = False
    if default not in (None, [], False) and repr(default) != "PydanticUndefined":
        shown = str(default)
    common: dict[str, Any] = {
        "help": field.description,
        "rich_help_panel": extra["panel"],
        "show_default": shown,
    }
    flags = extra["flag"].split(",")
    if field.annotation is bool:
        return bool | None, typer.Option(
            None, f"{flags[0]}/--no-{flags[0][2:]}" if default else flags[0], **common
        )
    metavar = _metavar(field.annotation)
    if typing.get_origin(field.annotation) is list:
        return list[str] | None, typer.Option(None, *flags, metavar=metavar, **common)
    return str | None, typer.Option(None, *flags, metavar=metavar, **common)


def _metavar(annotation: Any) -> str:
    for candidate in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(candidate) is typing.Literal:
            return "|".join(typing.get_args(candidate))
        if candidate in (int, float):
            return "N" if candidate is int else "X"
    return "TEXT"


def _common() -> list[tuple[str, Any, Any]]:
    panel: dict[str, Any] = {"rich_help_panel": "Command", "show_default": False}
    return [
        (
            "config_file",
            str | None,
            typer.Option(None, "--config", metavar="FILE", help="YAML with any of the fields.", **panel),
        ),
        (
            "sets",
            list[str] | None,
            typer.Option(
                None,
                "--set",
                metavar="KEY=VALUE",
                help="Any field, for example optim.lr=1e-3 (repeatable).",
                **panel,
            ),
        ),
        (
            "dry_run",
            bool,
            typer.Option(False, "--dry-run", help="Check everything, show the plan, write nothing.", **panel),
        ),
        (
            "as_json",
            bool,
            typer.Option(False, "--json", help="Print one JSON object instead of the path.", **panel),
        ),
        ("quiet", bool, typer.Option(False, "--quiet", help="Only warnings and errors on stderr.", **panel)),
    ]


_COMMON_NAMES = {"config_file", "sets", "dry_run", "as_json", "quiet"}


def _method_help(arguments: Sequence[str]) -> str:
    """With ``--help --method NAME``: the method's paper and parameters."""
    if not {"--help", "-h"} & set(arguments) or "--method" not in arguments[:-1]:
        return ""
    from kdcli.methods import describe

    return "\n\n" + describe(arguments[arguments.index("--method") + 1])


# -- running a stage -----------------------------------------------------------------------------------------


def _execute(
    name: str,
    stage: Any,
    given: dict[str, Any],
    common: dict[str, Any],
    arguments: list[str],
    answer: TextIO,
    stop: StopSignal,
) -> int:
    from kdcli.config import resolve

    given, piped = _from_pipe(given)
    config = resolve(stage.Config, file=common["config_file"], sets=common["sets"] or (), options=given)
    first = not is_worker() or rank() == 0
    console = Console(quiet=common["quiet"], silent=not first)
    if config.processes > 1 and not is_worker() and not common["dry_run"]:
        replaced = [piped if a == "-" and piped else a for a in arguments]
        return launch(replaced, config.processes, stop=stop, stdout=answer)
    adopt_slurm()
    command = " ".join(["kdcli", *(piped if a == "-" and piped else a for a in arguments)])
    console.note(f"kdcli {name}: loading libraries")
    plan = stage.plan(config, console)
    if common["dry_run"]:
        plan.describe(console)
        if common["as_json"] and first:
            _say(answer, json.dumps(plan.to_json(), default=str))
        return 0
    if stop.requested and not is_worker():
        raise errors.Preempted(f"{stop.requested} before the first step; run the same command again.")
    result = stage.run(plan, console, stop=stop, command=command)
    if first:
        line = {"path": str(result.path), **result.summary}
        _say(answer, json.dumps(line, default=str) if common["as_json"] else str(result.path))
    if result.failed:
        raise errors.GateFailed("; ".join(result.failed))
    return 0


def _from_pipe(given: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Replace the one ``-`` among the options by the path that the upstream command wrote."""
    dashes = [k for k, v in given.items() if v == "-" or (isinstance(v, list) and "-" in v)]
    if not dashes:
        return given, None
    count = sum(v.count("-") if isinstance(v, list) else 1 for v in (given[k] for k in dashes))
    if count > 1:
        raise errors.UsageError("'-' may stand for one model or dataset only.")
    text = sys.stdin.read().strip() if sys.stdin is not None and not sys.stdin.closed else ""
    if not text:
        raise errors.InputError("'-' stands for an artifact, but upstream wrote no path.")
    line = text.splitlines()[-1]
    if line.startswith("{"):
        try:
            line = json.loads(line)["path"]
        except (ValueError, KeyError, TypeError):
            raise errors.InputError(f"'-': upstream wrote JSON without a path: {line[:80]}") from None
    key = dashes[0]
    value = given[key]
    return {**given, key: [line if v == "-" else v for v in value] if isinstance(value, list) else line}, line


def _say(answer: TextIO, line: str) -> None:
    """Write the one line; a reader that has gone does not undo the work."""
    try:
        print(line, file=answer, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), answer.fileno())
