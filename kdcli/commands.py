"""Typer commands made of configurations: a field that has a flag is an option with its help."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Sequence
from functools import partial, reduce
from typing import Any

import typer
from typer.core import TyperCommand

from kdcli import errors
from kdcli.stages import STAGES

if typing.TYPE_CHECKING:
    from kdcli.config import Section

Execute = Callable[[str, Any, dict[str, Any], dict[str, Any]], int]

TOOLS: dict[str, tuple[str, str]] = {
    "classes": ("kdcli.classes", "Divide classes into seen and unseen ones; ask for texts about them."),
}
"""Groups of commands that write no artifact: the module whose ``COMMANDS`` they are, and a line of help."""


class _Command(TyperCommand):
    """A stage's command with plain help in panels (rich's help would cost 0.3 s of imports)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the panels, their columns aligned with one another."""
        from kdcli.config import PANELS

        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in (*PANELS, _PANEL)}
        for parameter in self.get_params(ctx):
            panel = getattr(parameter, "rich_help_panel", None) or _PANEL
            if record := parameter.get_help_record(ctx):
                first = str(parameter.metavar) if parameter.param_type_name == "argument" else record[0]
                panels.setdefault(panel, []).append((first, record[1]))
        width = max(len(first) for rows in panels.values() for first, _ in rows)
        for name, rows in panels.items():
            if rows:
                with formatter.section(name):
                    formatter.write_dl([(first.ljust(width), help) for first, help in rows], col_max=width)


def build(
    arguments: Sequence[str], execute: Execute, use: Execute, say: Callable[[str], None]
) -> typer.Typer:
    """A Typer application in which only the invoked command's configuration is loaded.

    Args:
        arguments: of the command line.
        execute: runs a stage: (name, module, options given, options common to all) -> exit code.
        use: runs a command of :data:`TOOLS`, given in the place of the module.
        say: writes the one line of output.
    """

    def show_version(wanted: bool) -> None:
        if wanted:
            from kdcli import __version__

            say(f"kdcli {__version__}")
            raise typer.Exit(0)

    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version and exit.", is_eager=True, callback=show_version
        ),
    ) -> None:
        pass

    app = typer.Typer(
        name="kdcli",
        help="Distil large pretrained vision models into small ones. Stages read and write directories.",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(root)
    invoked = next((a for a in arguments if not a.startswith("-")), None)
    for name, (module, line) in STAGES.items():
        command: Callable[..., Any] = _stub
        if name == invoked:
            command = _stage(name, module, list(arguments), execute)
        app.command(name, help=None if name == invoked else line, short_help=line, cls=_Command)(command)
    for name, (module, line) in TOOLS.items():
        if name == invoked:
            app.add_typer(_tools(name, module, use), name=name, help=line, short_help=line)
        else:
            app.command(name, help=line, short_help=line)(_stub)
    known = (*STAGES, *TOOLS)
    if invoked is not None and invoked not in known:
        raise errors.UsageError(
            f"unknown command '{invoked}'.{errors.nearest(invoked, known)} Commands: {', '.join(known)}."
        )
    return app


def _stub() -> None:
    raise AssertionError("a stub command is never invoked")


def _stage(name: str, module: str, arguments: list[str], execute: Execute) -> Callable[..., Any]:
    """A function whose signature is the stage's configuration, and which returns the work to do."""
    import importlib

    stage = importlib.import_module(module)
    return _command(stage.Config, partial(execute, name, stage), _common(), _method_help(arguments))


def _tools(name: str, module: str, use: Execute) -> typer.Typer:
    """The commands of a group."""
    import importlib

    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    shared = [one for one in _common("data.label_column=species") if one[0] in ("sets", "quiet")]
    for own, tool in importlib.import_module(module).COMMANDS.items():
        command = _command(tool.Config, partial(use, f"{name} {own}", tool), shared, only=tool.options)
        group.command(own, short_help=tool.line, cls=_Command)(command)
    return group


def _command(
    kind: type[Section],
    work: Callable[[dict[str, Any], dict[str, Any]], int],
    shared: Sequence[tuple[str, Any, Any]],
    more_help: str = "",
    only: Collection[str] | None = None,
) -> Callable[..., Callable[[], int]]:
    """A function whose signature is a configuration, and which returns the work to do.

    Args:
        kind: of configuration.
        work: is given the options that were written, by dotted name, and the shared ones.
        shared: name, type and default of options that are no fields.
        more_help: put behind the help of the configuration.
        only: options that are offered, of those that fields have; None for all.
    """
    from kdcli.config import leaves

    fields = {dotted: (field, extra) for dotted, field, extra in leaves(kind) if extra.get("flag")}
    fields = {name: own for name, own in fields.items() if only is None or own[1]["flag"] in only}
    places = {dotted.replace(".", "__"): dotted for dotted in fields}
    positional = next((d for d, _, e in leaves(kind) if e.get("positional")), None)

    def command(**values: Any) -> Callable[[], int]:
        common = {key: values.pop(key) for key in list(values) if key in _COMMON_NAMES}
        names = values.pop("positional", None)
        given = {places[key]: value for key, value in values.items() if value not in (None, [])}
        if positional and names:
            given[positional] = list(names)
        return partial(work, given, common)

    parameters = []
    if positional:
        argument = typer.Argument(
            None, metavar=positional.upper(), help=_field_help(kind, positional), rich_help_panel="Inputs"
        )
        parameters.append(_parameter("positional", list[str] | None, argument))
    for key, dotted in places.items():
        field, extra = fields[dotted]
        default = reduce(getattr, dotted.split("."), kind())
        parameters.append(_parameter(key, *_typed(field, extra, default)))
    parameters += [_parameter(key, annotation, default) for key, annotation, default in shared]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = (inspect.getdoc(kind) or "") + more_help
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _field_help(kind: type[Section], dotted: str) -> str:
    from kdcli.config import leaves

    return next(field.description for name, field, _ in leaves(kind) if name == dotted)


def _typed(field: Any, extra: dict[str, Any], default: Any) -> tuple[Any, Any]:
    """Typer's annotation and option for a field; values stay text, pydantic gives them their type."""
    help = field.description
    if isinstance(default, (str, int, float)) and not isinstance(default, bool):
        help += f" [{default}]"
    common: dict[str, Any] = {"help": help, "rich_help_panel": extra["panel"], "show_default": False}
    common["hidden"] = not extra["listed"]
    flags = extra["flag"].split(",")
    if field.annotation is bool:
        return bool | None, typer.Option(
            None, f"{flags[0]}/--no-{flags[0][2:]}" if default else flags[0], **common
        )
    metavar = _metavar(field.annotation)
    if typing.get_origin(field.annotation) is list:
        return list[str] | None, typer.Option(None, *flags, metavar=metavar, **common)
    return str | None, typer.Option(None, *flags, metavar=metavar, **common)


_METAVAR = 30  # longer lists of choices stand in the help, beside the option


def _metavar(annotation: Any) -> str:
    for candidate in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(candidate) is typing.Literal:
            choices = "|".join(typing.get_args(candidate))
            return choices if len(choices) <= _METAVAR else "NAME"
        if candidate in (int, float):
            return "N" if candidate is int else "X"
    return "TEXT"


def _common(example: str = "optim.lr=1e-3") -> list[tuple[str, Any, Any]]:
    panel: dict[str, Any] = {"rich_help_panel": _PANEL, "show_default": False}
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
                help=f"Any field, for example {example} (repeatable).",
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
            typer.Option(False, "--json", help="Print a JSON object, not the path.", **panel),
        ),
        ("quiet", bool, typer.Option(False, "--quiet", help="Only warnings and errors on stderr.", **panel)),
    ]


_PANEL = "Command"
_COMMON_NAMES = {"config_file", "sets", "dry_run", "as_json", "quiet"}


def _method_help(arguments: Sequence[str]) -> str:
    """With ``--help --method NAME``: the method's paper and parameters."""
    words = [word for argument in arguments for word in argument.split("=", 1)]  # --method=NAME too
    if not {"--help", "-h"} & set(arguments) or "--method" not in words[:-1]:
        return ""
    from kdcli.methods import describe

    text = describe(words[words.index("--method") + 1])
    return "\n\n" + text.replace("\n\n* ", "\n\n\b\n* ")  # \b: the list of parameters keeps its lines
