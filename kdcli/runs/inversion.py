"""``kdcli synthesize`` without data: pictures, or a generator of them, optimised against a teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import synthesis, tasks
from kdcli.artifacts.files import write_bytes
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.launch import world_size
from kdcli.methods.datafree import InversionSection, resolved
from kdcli.runs import Result, frame, show
from kdcli.runs.pictures import PicturePlan, refuse_unheeded

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.artifacts.store import Output
    from kdcli.engine.moments import Moments
    from kdcli.engine.runtime import Runtime, Stop
    from kdcli.models.protocol import Model
    from kdcli.synthesis.draws import Draw, Make
    from kdcli.words import Method

_SHEET_PICTURES = 64
_LOG, _GENERATOR = "metrics.jsonl", "generator.safetensors"
_UNHEEDED = {
    "data": "--data: it makes pictures from the teacher alone",
    "batch_size": "--batch-size: --set inversion.batch=… is the number that is optimised together",
    "sampling": "sampling (steps, guidance, …)",
    **dict.fromkeys(("sources", "per_image", "weights", "alpha"), ""),
}


@dataclass
class Plan(PicturePlan):
    """Everything a run needs, checked.

    Attributes:
        networks: by role, ``teacher`` and perhaps ``student``, frozen.
        method: of the mixer.
        kept: numbers of the classes that pictures are made for.
        moments: of the teacher's activations, for the mixer that needs them.
    """

    networks: dict[str, Model]
    method: Method
    kept: list[int]
    moments: Moments | None = None

    @property
    def generates(self) -> bool:
        """Whether a generator is trained, instead of pictures."""
        return synthesis.entry(self.kind).family == "generator"

    @property
    def section(self) -> InversionSection:
        """Weights and steps, resolved."""
        return self.config.inversion

    @property
    def classes(self) -> list[str]:
        """The teacher's."""
        return self.networks["teacher"].classes or []

    @property
    def batch(self) -> int:
        """Pictures that belong together."""
        return self.section.batch or 1

    @property
    def features(self) -> Any:
        """``datasets.Features`` of what is written."""
        from kdcli.synthesis.generate import features

        return features(target=not self.generates)

    @property
    def beside(self) -> tuple[str, ...]:
        """Files that are kept beside the dataset."""
        return (_LOG, _GENERATOR) if self.generates else (_LOG,)

    def draw(self, number: int) -> Draw:
        """Noise of a picture's block."""
        from kdcli.synthesis.draws import draw_of_block

        return draw_of_block(number, self.config.seed, self.batch)

    def target_class(self, number: int) -> int:
        """Class that a picture is made for: one after another."""
        return self.kept[number % len(self.kept)]

    def columns(self, draws: list[Draw]) -> dict[str, list[Any]]:
        """All columns but the pictures; ``target`` is the class that was asked for, not a label."""
        target = {} if self.generates else {"target": [self.target_class(draw.number) for draw in draws]}
        return {**super().columns(draws), **target}

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {**super().to_json(), "parameters": show.parameters(self.networks)}

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        for role, network in self.networks.items():
            show.network(console, role, network)
        given = {k: v for k, v in self.section if v is not None}
        console.note(f"makes    {len(self.kept)} of {len(self.classes)} classes by {self.kind}, no data")
        console.note("descends " + ", ".join(f"{k} {v}" for k, v in given.items()))
        self.note_output(console, ", whole blocks")

    def maker(self, output: Output, runtime: Runtime, console: Console, stop: Stop | None) -> Make:
        """What turns draws into pictures; trains the generator, or goes on with it, where there is one.

        Raises:
            Preempted: a signal came while it was trained.
        """
        from kdcli.artifacts.store import write_tensors
        from kdcli.runs import descent as engine

        if runtime.main:
            show.decisions(console, self.networks)
        networks = {role: network.to(runtime.device) for role, network in self.networks.items()}
        descent = engine.Descent(self.method, networks, self.section, runtime, console, stop)
        if self.generates:
            generator = engine.trained_generator(descent, self.config.seed, output)
            write_tensors(output.partial / _GENERATOR, generator.state_dict())
            return engine.drawn_maker(descent, generator)
        return engine.picture_maker(descent, self.target_class, self._drawn, output)

    def _drawn(self, seed: int, targets: Tensor) -> dict[str, Tensor]:
        """Columns of a block beside its classes: the activations that are sought."""
        from kdcli.methods.lopes import sampled

        return sampled(self.moments, self.section, seed, targets) if self.moments else {}

    def facts(self, folder: Path) -> dict[str, Any]:
        """Licences, cost, and how it went; gathers the blocks' rows into the log."""
        found = frame.model_facts(self.config.teacher)  # what the teacher learned from shows in the pictures
        licences = {"data": str((found.get("data") or {}).get("licence", ""))}
        log, steps = folder / _LOG, (self.section.steps or 0) + (self.section.half_steps or 0)
        if self.generates:
            last = json.loads(log.read_text().splitlines()[-1])
            metrics, more, runs = {"label_entropy": last["label_entropy"]}, {}, 1
        else:
            rows = [json.loads(file.read_text()) for file in sorted(folder.glob("block-*.json"))]
            write_bytes(log, "".join(json.dumps(row) + "\n" for row in rows).encode())
            metrics = {"agreement": sum(row["agreement"] for row in rows) / len(rows)}
            more, runs = {"targets": self.classes}, len(rows)
        cost = {"teacher_forwards": runs * steps * self.batch}
        return {"licences": licences, **more, "metrics": metrics, "cost": cost}

    def sheet(self, folder: Path) -> bytes:
        """The first pictures, side by side."""
        from kdcli.artifacts import dataset
        from kdcli.data.images import decode
        from kdcli.synthesis.sheet import gallery

        cells = dataset.head(folder, "image", _SHEET_PICTURES)
        return gallery([decode(cell["bytes"]) for cell in cells])


def plan(config: Any, unless_complete: bool) -> Plan | Result:
    """Check teacher, student and settings; with ``unless_complete`` it ends early where the output stands.

    Args:
        config: of synthesize.
        unless_complete: see above.

    Raises:
        UsageError: an option that is missing, or that the mixer does not heed.
        InputError: a teacher that cannot be inverted in this way.
    """
    from kdcli.engine.moments import read_moments
    from kdcli.methods.lopes import allowed
    from kdcli.synthesis import draws

    _refuse_unheeded(config)
    entry = synthesis.entry(config.mixer)
    section = resolved(config.inversion, config.mixer)
    config = config.model_copy(update={"inversion": section})
    roles = {role: getattr(config, role) for role in ("teacher", "student") if getattr(config, role)}
    parents = [frame.parent(role, name) for role, name in roles.items()]
    numbers = draws.shard(config.shard, config.count, section.batch or 1)
    moments = read_moments(config.teacher) if entry.records else None
    prints = {"statistics": moments.hash} if moments else {}
    target = frame.target("synthesize", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    frame.refuse_absent(config)
    networks = _networks(config)
    teacher = networks["teacher"]
    if entry.family == "generator" and teacher.spec.size[0] % 4:
        raise UsageError("--resolution: a generator makes pictures whose side is a multiple of 4.")
    classes = teacher.classes or []
    kept = allowed(moments, classes, section) if moments else list(range(len(classes)))
    method = _method(config.mixer, section, {**networks, **({"moments": moments} if moments else {})})
    return Plan(config, target, config.mixer, config.count, numbers, networks, method, kept, moments)


def _method(mixer: str, section: InversionSection, given: dict[str, Any]) -> Method:
    """The mixer's method without terms that weigh nothing. Raises UsageError where none weighs anything."""
    from kdcli.words.analysis import without_zero_terms

    method = without_zero_terms(synthesis.function(mixer)(section, **given))
    if not all(turn.terms for turn in method.turns):
        raise UsageError(f"every term of --mixer {mixer} weighs 0: there is nothing to make pictures by.")
    return method


def _refuse_unheeded(config: Any) -> None:
    """Options that these mixers need, and those that they would not heed."""
    mixer, entry = config.mixer, synthesis.entry(config.mixer)
    refuse_unheeded(config, _UNHEEDED)
    frame.require(config.teacher, f"--mixer {mixer}: --teacher")
    frame.require(config.count, f"--mixer {mixer}: --count")
    if config.precision == "fp16":
        raise UsageError(f"--mixer {mixer}: --precision fp16 would need loss scaling; use bf16 or no.")
    if entry.student:
        frame.require(config.student, f"--mixer {mixer}: --student (or use deepinversion)")
    elif config.student:
        raise UsageError(f"--mixer {mixer} has no use for --student; adaptive-deepinversion has.")
    if entry.family == "generator" and (config.shard or max(config.processes, world_size()) > 1):
        raise UsageError(
            f"--mixer {mixer} runs on one process without --shard: each would train the generator again, and "
            "drawing from it takes seconds."
        )


def _networks(config: Any) -> dict[str, Model]:
    """Teacher and student, frozen.

    Raises:
        InputError: a teacher without a trained classifier, or a student that knows other classes.
    """
    from kdcli.models.build import build

    teacher = build(config.teacher, size=config.resolution)
    if teacher.unnamed and teacher.classes is None:
        raise InputError(
            f"{config.teacher} knows no names of its {teacher.unnamed} classes. Name them first: kdcli probe "
            "--head keep --data DATA --set data.class_order=same."
        )
    if teacher.trained == "random" or not teacher.classes:
        raise InputError(f"{config.teacher} has no trained classifier: there is nothing to make pictures of.")
    if "class" not in tasks.entry(teacher.task).provides:
        raise InputError(f"{config.teacher} does {teacher.task}; --mixer {config.mixer} inverts classifiers.")
    networks = {"teacher": teacher.requires_grad_(False).eval()}
    if config.student:
        task = tasks.task_named(teacher.task, teacher.classes)
        networks["student"] = frame.teacher(config.student, task, "names")
    return networks
