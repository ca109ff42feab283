"""Measure models on one split: quality, calibration, cost, agreement with a teacher.

One model:       kdcli eval runs/student --data cars/ --split test
Several models:  kdcli eval runs/a runs/b --teacher runs/teacher --data cars/ --split test --out runs/report
As a gate:       kdcli eval runs/student --data cars/ --require 'top1>=0.8'
Tiny, on a CPU:  kdcli eval runs/student --data example:fashion-mnist --no-cost
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts.manifest import Manifest
from kdcli.config import inputs, option, outputs, reading, running
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.report.gates import Gate, judge, parse
from kdcli.runs import Result, frame
from kdcli.sections import DataSection, RunSection

if TYPE_CHECKING:
    from kdcli.data.samples import Data, Samples
    from kdcli.engine.runtime import Runtime
    from kdcli.models.timm import Network
    from kdcli.tasks.classification.exits import Exits

_CURVE_POINTS = 400


class Config(RunSection):
    """Measure models on one split: quality, calibration, cost, agreement with a teacher."""

    models: list[str] = option([], "Model artifacts; - reads one from a pipe.", positional=True)
    teacher: str | None = inputs(None, "Compare with this model.", "--teacher")
    data: DataSection = DataSection()
    split: str = reading("test", "test, validation, train, or any split's name.", "--split")
    require: list[str] = outputs(
        [], "Exit 5 unless it holds, e.g. 'top1>=0.8' (repeatable).", "--require", runtime=True
    )
    cost: bool = running(True, "Measure FLOPs, latency, throughput and memory.", "--cost")
    batch_size: int = running(64, "Pictures per forward.", "--batch-size", ge=1)
    window: int | None = option(None, "Slide a window of so many pixels over the picture (masks).", ge=8)
    stride: int | None = option(None, "Pixels between windows (default: two thirds of one).", ge=1)
    repeats: int = option(30, "Timed forwards of latency and throughput.", ge=3)
    exit_slack: float = option(0.005, "Accuracy that early exit may lose on validation.", ge=0, le=1)
    effects_mix: float = option(0.5, "Weight of the teacher in the effects' gradient factors.", ge=0, le=1)


@dataclass
class Plan:
    """Everything a run needs, checked."""

    config: Config
    target: frame.Target
    data: Data
    samples: Samples
    networks: dict[str, Network]
    teacher: Network | None
    gates: list[Gate]
    exits: dict[str, Exits]
    no_validation: str

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
        for name, exits in self.exits.items():
            how = f"{len(exits.validation):,} validation pictures" if exits.validation else "no validation"
            console.note(f"exits    {name}: {', '.join(exits.heads)}; early exit chosen on {how}")
        if self.teacher is not None:
            console.note(f"teacher  {self.teacher.name}")
        console.note(f"writes   {self.target.path}")


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> Plan | Result:
    """Open data and models, match their classes by name, parse the gates.

    With ``unless_complete`` it ends early where the output stands already, and judges that.

    Raises:
        UsageError: a gate that is no comparison of a known metric.
        InputError: data or models that cannot be used together.
    """
    frame.require(config.models, "a model (kdcli eval MODEL …)")
    gates = [parse(text) for text in config.require]
    if (config.stride or 0) > (config.window or 0):
        raise UsageError("stride: no pixel may fall between windows; give a window of at least the stride.")
    data = frame.labelled(config.data, config.split)
    if config.window and data.task != "segmentation":
        raise UsageError("window: only masks are judged by sliding windows.")
    samples = data.split(config.split)
    samples = samples.take(samples.labelled())
    if len(samples) == 0:
        raise InputError(f"split '{config.split}' of {config.data.source} has no labelled picture.")
    parents = [frame.parent(f"model{i}", name) for i, name in enumerate(config.models)]
    if config.teacher:
        parents.append(frame.parent("teacher", config.teacher))
    validation, reason = _validation(config, samples)
    prints = {"data": samples.fingerprint, **({"validation": validation.fingerprint} if validation else {})}
    target = frame.target("eval", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return _answer(target.path, gates, console)
    classes, order = data.classes or [], config.data.class_order
    networks = {_short(n, config.models): frame.teacher(n, classes, order, data.task) for n in config.models}
    teacher = None
    if config.teacher in config.models:
        teacher = networks[_short(config.teacher, config.models)]
    elif config.teacher:
        teacher = frame.teacher(config.teacher, classes, order, data.task)
    found = {}
    if data.task == "classification":
        from kdcli.tasks.classification.exits import Exits, load

        repeats = config.repeats if config.cost else 0
        heads = {_short(name, config.models): load(name, classes, order) for name in config.models}
        found = {n: Exits(own, validation, config.exit_slack, repeats) for n, own in heads.items() if own}
    return Plan(config, target, data, samples, networks, teacher, gates, found, reason)


def _validation(config: Config, samples: Samples) -> tuple[Samples | None, str]:
    """Labelled validation pictures that are not measured, where exits want them; or why there are none."""
    from kdcli.artifacts import model as models

    if not any(models.find(n) and models.EXITS[1] in models.read(n).names for n in config.models):
        return None, ""
    try:
        found = frame.labelled(config.data, "validation").split("validation")
    except InputError as error:
        return None, str(error)
    found = found.without(samples)
    return (found, "") if len(found) else (None, f"all validation pictures are in the split {config.split}.")


def run(plan: Plan, console: Console, *, stop: Any = None, command: str = "") -> Result:
    """Measure, print the table, write ``report.json`` and ``report.html`` as a report artifact."""
    from kdcli.artifacts.store import write_bytes
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.report.page import render

    runtime = open_runtime(plan.config)
    path = plan.target.path
    with shared_output(path, plan.target.identity, plan.config.overwrite, runtime) as output:
        if output is not None:
            report, overlays = _report(plan, runtime, console)
            if runtime.main:
                write_bytes(output.partial / "report.json", (json.dumps(report, indent=1) + "\n").encode())
                write_bytes(output.partial / "report.html", render(report, overlays).encode())
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

    report = json.loads((path / "report.json").read_text())
    console.table(*table(report))
    console.note(f"report   {path / 'report.html'}")
    judged = [judge(gate, model) for gate in gates for model in report["models"]]
    failed = [f"{text} does not hold: it is {value:.4g}" for text, met, value in judged if not met]
    return Result(path, frame.summary(path), failed)


def _short(name: str, names: list[str]) -> str:
    """The last part of a path, as long as that tells the models apart."""
    last = Path(name).name or name
    return last if [Path(n).name for n in names].count(last) == 1 else name


# -- measuring -----------------------------------------------------------------------------------------------


def _report(
    plan: Plan, runtime: Runtime, console: Console
) -> tuple[dict[str, Any], dict[int, list[tuple[str, str]]]]:
    """The report, and pictures for its page."""
    from kdcli.runs import assess
    from kdcli.tasks import task_of

    config = plan.config
    task = task_of(plan.data, config.data)
    reading = frame.reading(config, config.data)
    setting = assess.Setting(
        task,
        plan.samples,
        runtime,
        config.batch_size,
        reading,
        window=config.window,
        stride=config.stride,
        exits=plan.exits,
        effects_mix=config.effects_mix,
        seed=config.seed,
    )
    found, of_all = assess.rows(setting, plan.networks, plan.teacher, console)
    overlays = _overlays(plan, {name: part.pop("shown", {}) for name, part in found.items()})
    models = [_model(plan, name, net, found[name], runtime) for name, net in plan.networks.items()]
    report = {
        "title": f"{plan.config.split} split of {plan.config.data.source}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "name": plan.config.data.source,
            "split": plan.config.split,
            "samples": len(plan.samples),
            "classes": plan.data.classes,
            "fingerprint": plan.samples.fingerprint,
        },
        "models": models,
        **of_all,
        "notes": _notes(plan),
    }
    return report, overlays


def _overlays(plan: Plan, shown: dict[str, dict[int, Any]]) -> dict[int, list[tuple[str, str]]]:
    """Truth and predictions over the pictures that were kept, by row of the data."""
    from kdcli.report.overlays import panels

    samples, most = plan.samples, plan.config.data.max_pixels
    found = {}
    for index in next(iter(shown.values())):
        picture = samples.picture(index, most)
        predictions = {name: masks[index] for name, masks in shown.items()}
        truth = samples.beside(index, picture.size, most).numpy()
        count = len(plan.data.classes or ())
        found[int(samples.rows[index])] = panels(picture, truth, predictions, count)
    return found


def _model(
    plan: Plan, name: str, network: Network, found: dict[str, Any], runtime: Runtime
) -> dict[str, Any]:
    """One model's part of the report: what the task measured, its training, its cost."""
    from kdcli.runs import assess

    facts = frame.model_facts(network.name)
    row = {"name": name, "path": network.name, **found, "curves": _curves(Path(network.name))}
    if "selection" in facts:
        row["selection"] = facts["selection"]
    if plan.config.cost:
        row["cost"] = assess.cost(network, runtime, plan.config.batch_size, plan.config.repeats)
    return row


def _curves(path: Path) -> list[dict[str, Any]]:
    """Rows of the model's ``metrics.jsonl``, thinned to what a plot can show."""
    file = path / "metrics.jsonl"
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return rows[:: max(1, len(rows) // _CURVE_POINTS)]


def _notes(plan: Plan) -> list[str]:
    notes = []
    for name in plan.config.models:
        splits = (frame.model_facts(name).get("data") or {}).get("splits", {})
        if any(s.get("hash") == plan.samples.fingerprint for s in splits.values()):
            notes.append(f"{name} was trained or selected on this very split: its figures are no test.")
    if plan.no_validation:
        notes.append(f"No threshold was chosen for early exit: {plan.no_validation}")
    return notes


def _numbers(report: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("name", "path", "metrics", "teacher", "exits", "cost")
    return [{k: m[k] for k in keys if k in m} for m in report["models"]]
