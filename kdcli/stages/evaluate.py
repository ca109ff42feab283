"""Measure models on one split: quality, calibration, cost, agreement with a teacher.

One model:       kdcli eval runs/student --data cars/ --split test
Several models:  kdcli eval runs/a runs/b --teacher runs/teacher --data cars/ --split test --out runs/report
As a gate:       kdcli eval runs/student --data cars/ --require 'top1>=0.8'
Tiny, on a CPU:  kdcli eval runs/student --data example:fashion-mnist --no-cost
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts import forms
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.reading import LOG_LIMIT, read_object, read_rows
from kdcli.config import beneath, inputs, option, outputs, reading, running
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.report.curves import numbers_of
from kdcli.report.gates import Gate, judge, parse, refuse_unmeasured
from kdcli.runs import Result, banks, frame, show
from kdcli.runs.idle import of_eval, refuse_idle
from kdcli.sections import LARGEST_SIDE, DataSection, RunSection, TextSection
from kdcli.tasks import covering, entry, figures, providing, task_of
from kdcli.tasks.settings import EvalOptions, Validation

if TYPE_CHECKING:
    from kdcli.data.samples import Data, Samples
    from kdcli.engine.runtime import Runtime, Stop
    from kdcli.models.protocol import Model
    from kdcli.tasks import Evaluation, Task

_CURVE_POINTS = 400


class Config(RunSection):
    """Measure models on one split: quality, calibration, cost, agreement with a teacher."""

    models: list[str] = option(
        [], "Model artifacts, their ARTIFACT/onnx too; - reads one from a pipe.", positional=True
    )
    teacher: str | None = inputs(None, "Compare with this model.", "--teacher")
    data: DataSection = DataSection()
    texts: TextSection = TextSection()
    split: str = reading("test", "test, validation, train, or any split's name.", "--split")
    require: list[str] = outputs(
        [], "Exit 5 unless it holds, e.g. 'top1>=0.8' (repeatable).", "--require", runtime=True
    )
    cost: bool = running(True, "Measure FLOPs, latency, throughput and memory.", "--cost")
    batch_size: int = running(64, "Pictures per forward.", "--batch-size", ge=1, le=1_000_000)
    window: int | None = option(
        None, "Slide a window of so many pixels over the picture (masks).", ge=8, le=LARGEST_SIDE
    )
    stride: int | None = option(
        None, "Pixels between windows (default: two thirds of one).", ge=1, le=LARGEST_SIDE
    )
    rerank: bool = option(False, "Rank answers again by their neighbours (retrieval).")
    repeats: int = option(30, "Timed forwards of latency and throughput.", ge=3, le=1_000_000)
    exit_slack: float = option(0.005, "Accuracy that early exit may lose on validation.", ge=0, le=1)
    effects_mix: float = option(0.5, "Weight of the teacher in the effects' gradient factors.", ge=0, le=1)
    occlusion: bool = option(False, "Measure also with 10 % to 90 % of a picture's cells hidden at random.")
    occlusion_grid: int = option(14, "Cells along a side of a picture.", ge=2, le=LARGEST_SIDE)
    cka: bool = option(False, "Compare each block with each of the teacher's (CKA).")


# Keys that say how, and that only some tasks heed; see kdcli.tasks.settings.EvalOptions.
_OF_SOME_TASKS = (
    *("window", "stride", "exit_slack", "effects_mix", "rerank"),
    *("occlusion", "occlusion_grid", "cka"),
)


@dataclass
class Plan:
    """Everything a run needs, checked.

    ``classes`` are those of the models' logits: first those of the data, then the ``absent`` ones, which the
    data lack.
    """

    config: Config
    target: frame.Target
    data: Data
    samples: Samples
    networks: dict[str, Model]
    teacher: Model | None
    gates: list[Gate]
    evaluation: Evaluation
    classes: tuple[str, ...]
    absent: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "data": self.data.describe(),
            "models": list(self.networks),
            "require": [gate.text for gate in self.gates],
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        console.note(
            f"reads    {self.config.data.source}: {self.config.split} {len(self.samples):,} labelled pictures"
        )
        for name, net in self.networks.items():
            console.note(f"measures {name}: {net.spec.size[0]} px, {len(net.classes or [])} classes")
            show.notes(console, net)
        for line in self.evaluation.describe():
            console.note(line)
        if self.teacher is not None:
            console.note(f"teacher  {self.teacher.name}")
            show.notes(console, self.teacher)
        console.note(f"writes   {self.target.path}")


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> Plan | Result:
    """Open data and models, match their classes by name, parse the gates.

    With ``unless_complete`` it ends early where the output stands already, and judges that.

    Raises:
        UsageError: a gate that is no comparison of what is measured, an option that the task does not heed.
        InputError: data or models that cannot be used together.
    """
    frame.require(config.models, "a model (kdcli eval MODEL …)")
    refuse_idle(config, of_eval(config))
    config = frame.task_of_models(config, [*config.models, *([config.teacher] if config.teacher else [])])
    if banks.is_asked(config.texts) and config.data.task == "auto":
        config = beneath(config, {"data.task": providing("text")})[0]
    gates = [parse(text, figures()) for text in config.require]
    if (config.stride or 0) > (config.window or 0):
        raise UsageError("stride: no pixel may fall between windows; give a window of at least the stride.")
    data = frame.labelled(config.data, config.split, run=config)
    frame.say(console, data)
    task = task_of(data, config.data)
    lacking = {part for part, given in (("teacher", config.teacher), ("cost", config.cost)) if not given}
    refuse_unmeasured(gates, figures(task.name), lacking)
    samples = data.split(config.split)
    samples = samples.take(samples.labelled())
    if len(samples) == 0:
        raise InputError(f"split '{config.split}' of {config.data.source} has no labelled picture.")
    parents = [frame.parent(f"model{i}", name) for i, name in enumerate(config.models)]
    if config.teacher:
        parents.append(frame.parent("teacher", config.teacher))
    wanted = task.wants_validation(config.models)
    beside = entry(task.name).beside
    validation = _validation(config, samples, beside, task.classes) if wanted else Validation(None)
    prints = {"data": samples.fingerprint, **banks.fingerprints(config.texts)}
    if validation.samples is not None:
        prints["validation"] = validation.samples.fingerprint
    target = frame.target("eval", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return _answer(target.path, gates, console)
    frame.refuse_absent(config)
    paths = {_short(name, config.models): name for name in config.models}
    built, task, absent = _built(config, task, console)
    if absent:
        console.warn(_lacking(task.classes, absent))
    networks = {short: built[name] for short, name in paths.items()}
    teacher = built[config.teacher] if config.teacher else None
    options = _options(config, networks, teacher, absent, len(samples))
    evaluation = task.evaluation(options, paths, validation)
    return Plan(
        config, target, data, samples, networks, teacher, gates, evaluation, tuple(task.classes), absent
    )


def _built(config: Config, task: Task, console: Console) -> tuple[dict[str, Model], Task, tuple[str, ...]]:
    """All networks by name, in the order of one task's classes; that task; the classes that the data lack."""
    order = config.data.class_order
    names = dict.fromkeys([*config.models, *([config.teacher] if config.teacher else [])])
    built = {name: frame.opened(name, task, order, exported=True) for name in names}
    if banks.is_asked(config.texts):
        banks.refuse_unread(config.texts, task.name)
        for name, network in built.items():
            banks.asked_again(network, config.texts, task.classes, name, console)
    task, absent = covering(task, built, order)
    for name, network in built.items():
        task.match(network, order, name)
    return built, task, absent


def _validation(config: Config, samples: Samples, split: str, classes: Sequence[str]) -> Validation:
    """Labelled pictures of another split that are not measured, of these classes; or why there are none."""
    try:
        data = frame.labelled(config.data, split, run=config)
    except InputError as error:
        return Validation(None, str(error))
    found = data.split(split).without(samples)
    if data.classes is not None and list(data.classes) != list(classes):  # of classes that are divided
        found = found.numbered(data.classes, classes)
    if len(found) == 0:
        return Validation(None, f"all {split} pictures are in the split {config.split}.")
    return Validation(found)


def _lacking(classes: Sequence[str], absent: Sequence[str]) -> str:
    """What to say of classes that the models know and the data lack."""
    shown = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    return (
        f"the data lack {len(absent)} of the {len(classes)} classes that are known here ({shown}): measured "
        f"are the {len(classes) - len(absent)} that are there. All logits are kept, so that an answer which "
        "names one of the others is wrong."
    )


def _options(
    config: Config,
    networks: dict[str, Model],
    teacher: Model | None,
    absent: tuple[str, ...],
    pictures: int,
) -> EvalOptions:
    fields, values = Config.model_fields, {key: getattr(config, key) for key in _OF_SOME_TASKS}
    return EvalOptions(
        given=frozenset(key for key, value in values.items() if value != fields[key].default),
        networks=networks,
        teacher=teacher,
        pictures=pictures,
        class_order=config.data.class_order,
        repeats=config.repeats if config.cost else 0,
        seed=config.seed,
        absent=absent,
        **values,
    )


def run(plan: Plan, console: Console, *, stop: Stop | None = None, command: str = "") -> Result:
    """Measure, print the table, write ``report.json`` and ``report.html`` as a report artifact."""
    from kdcli.artifacts.store import write_bytes
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.report.page import render, to_json

    runtime = open_runtime(plan.config)
    path = plan.target.path
    with shared_output(path, plan.target.identity, plan.config.overwrite, runtime) as output:
        if output is not None:
            if runtime.main:
                show.decisions(console, plan.networks)
            report, shown = _report(plan, runtime, console)
            if runtime.main:
                page = render(report, figures(plan.data.task), plan.evaluation.panels(report, shown))
                write_bytes(output.partial / "report.json", to_json(report).encode())
                write_bytes(output.partial / "report.html", page.encode())
                manifest = Manifest("report", "eval", plan.target.identity, plan.target.parents)
                manifest.facts = frame.facts(
                    plan.config,
                    command,
                    data=plan.data.describe(),
                    models=_numbers(report),
                    **runtime.describe(),
                )
                output.commit(manifest, ["report.json", "report.html"])
        runtime.barrier()
    return _answer(path, plan.gates, console)


def _answer(path: Path, gates: list[Gate], console: Console) -> Result:
    """Show a finished report and judge it."""
    from kdcli.report.page import table

    manifests.verify(path, manifests.read(path), ["report.json"])
    report = read_object(path / "report.json", LOG_LIMIT)
    console.table(*table(report, figures(report["data"].get("task"))))
    console.note(f"report   {path / 'report.html'}")
    judged = [judge(gate, model) for gate in gates for model in report["models"]]
    failed = [f"{text} does not hold: it is {value:.4g}" for text, met, value in judged if not met]
    return Result(path, frame.summary(path), failed)


def _short(name: str, names: list[str]) -> str:
    """The last part of a path (of a form, from its artifact on), as long as that tells the models apart."""
    lasts = [_last(n) for n in names]
    last = _last(name)
    return last if lasts.count(last) == 1 else name


def _last(name: str) -> str:
    root = forms.find(name)
    return (Path(name).name if root is None else str(Path(name).relative_to(root.parent))) or name


# -- measuring -----------------------------------------------------------------------------------------------


def _report(plan: Plan, runtime: Runtime, console: Console) -> tuple[dict[str, Any], Any]:
    """The report, and what else its task shows on the page."""
    from kdcli.engine.inference import Measuring, answering

    config = plan.config
    reading = frame.reading(config, config.data)
    measuring = Measuring(plan.samples, runtime, config.batch_size, reading)
    with answering({**plan.networks, **({"--teacher": plan.teacher} if plan.teacher is not None else {})}):
        found = plan.evaluation.measure(measuring, plan.networks, plan.teacher, console)
    models = [_model(plan, name, net, found.models[name], runtime) for name, net in plan.networks.items()]
    report = {
        "title": f"{plan.config.split} split of {plan.config.data.source}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "name": plan.config.data.source,
            "split": plan.config.split,
            "samples": len(plan.samples),
            "task": plan.data.task,
            "classes": list(plan.classes),
            **({"absent": list(plan.absent)} if plan.absent else {}),
            "fingerprint": plan.samples.fingerprint,
        },
        "models": models,
        **found.together,
        "notes": [*_notes(plan), *found.notes],
    }
    return report, found.shown


def _model(plan: Plan, name: str, network: Model, found: dict[str, Any], runtime: Runtime) -> dict[str, Any]:
    """One model's part of the report: what the task measured, its training, its cost."""
    from kdcli.runs.cost import cost

    facts = frame.model_facts(network.name)
    row = {"name": name, "path": network.name, **found, "curves": _curves(Path(network.name))}
    if "selection" in facts:
        row["selection"] = facts["selection"]
    if "compression" in facts and not network.runs_in:  # a form has its network's
        row["compression"] = facts["compression"]
    if plan.config.cost:
        row["cost"] = cost(network, runtime, plan.config.batch_size, plan.config.repeats)
    return row


def _curves(path: Path) -> list[dict[str, Any]]:
    """Rows of the model's ``metrics.jsonl``, thinned for a plot; raises InputError for a damaged log."""
    file = path / "metrics.jsonl"
    manifest = manifests.read(path) if manifests.is_artifact(path) else None
    if manifest is None or file.name not in manifest.files:
        return []
    manifests.verify(path, manifest, [file.name])
    every = max(1, sum(1 for _ in numbers_of(read_rows(file))) // _CURVE_POINTS)
    return list(islice(numbers_of(read_rows(file)), 0, None, every))


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.absent:
        lack = _lacking(plan.classes, plan.absent)
        notes.append(lack[0].upper() + lack[1:])
    for name in plan.config.models:
        facts = frame.model_facts(name)
        splits = (facts.get("data") or {}).get("splits", {})
        if any(s.get("hash") == plan.samples.fingerprint for s in splits.values()):
            notes.append(f"{name} was trained or selected on this very split: its figures are no test.")
        learned = ((facts.get("config") or {}).get("data") or {}).get("shots") or 0
        if plan.config.data.open_classes and learned > (plan.config.data.shots or 0):
            notes.append(
                f"{name} learned from {learned} pictures of each unseen class: without --set "
                f"data.shots={learned} they are measured too."
            )
        answers = facts.get("teacher_answers") or {}
        if said := answers.get("warning") or answers.get("said"):
            notes.append(f"{name}, in training: {said.rstrip('.')}.")
    for name, network in plan.networks.items():
        notes += [f"{name}: {note}." for note in network.notes]
    return notes


def _numbers(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each model's part what has figures, for the manifest."""
    keys = dict.fromkeys(figure.keys[0] for figure in figures(report["data"]["task"]))
    return [{key: m[key] for key in ("name", "path", *keys) if key in m} for m in report["models"]]
