"""``kdcli synthesize`` without data: pictures, or a generator of them, optimised against a teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdcli import synthesis
from kdcli.artifacts import dataset
from kdcli.artifacts.files import write_bytes
from kdcli.artifacts.manifest import Manifest
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.launch import world_size
from kdcli.runs import Result, frame, shards, show
from kdcli.synthesis.settings import InversionSection, refuse_unheeded, resolved

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.engine.runtime import Runtime
    from kdcli.models.timm import Network
    from kdcli.synthesis.draws import Draw
    from kdcli.synthesis.lopes import Records
    from kdcli.synthesis.making import Make
    from kdcli.words import Phase

_SHEET_PICTURES = 64
_LOG, _GENERATOR = "metrics.jsonl", "generator.safetensors"
_UNHEEDED = {
    "data": "--data: it makes pictures from the teacher alone",
    "batch_size": "--batch-size: --set inversion.batch=… is the number that is optimised together",
    "sampling": "sampling (steps, guidance, …)",
    **dict.fromkeys(("sources", "per_image", "weights", "alpha"), ""),
}


@dataclass
class Plan:
    """Everything a run needs, checked.

    Attributes:
        config: of synthesize, with the mixer's defaults filled in.
        target: where and what.
        networks: by role, ``teacher`` and perhaps ``student``, frozen.
        phases: of the mixer.
        numbers: of the pictures of this shard.
        kept: numbers of the classes that pictures are made for.
        records: of the teacher's activations, for the mixer that needs them.
    """

    config: Any
    target: frame.Target
    networks: dict[str, Network]
    phases: tuple[Phase, ...]
    numbers: range
    kept: list[int]
    records: Records | None = None

    @property
    def generates(self) -> bool:
        """Whether a generator is trained, instead of pictures."""
        return synthesis.entry(self.config.mixer).family == "generator"

    @property
    def section(self) -> InversionSection:
        """Weights and steps, resolved."""
        return self.config.inversion

    @property
    def classes(self) -> list[str]:
        """The teacher's."""
        return self.networks["teacher"].classes or []

    def draw(self, number: int) -> Draw:
        """Noise of a picture's block."""
        from kdcli.synthesis.draws import draw_of_block

        return draw_of_block(number, self.config.seed, self.batch)

    def target_class(self, number: int) -> int:
        """Class that a picture is made for: one after another."""
        return self.kept[number % len(self.kept)]

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "mixer": self.config.mixer,
            "images": len(self.numbers),
            "images_of_all_shards": self.config.count,
            "parameters": show.parameters(self.networks),
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        config, section = self.config, self.section
        for role, network in self.networks.items():
            show.network(console, role, network)
        given = {k: v for k, v in section if v is not None}
        console.note(f"makes    {len(self.kept)} of {len(self.classes)} classes by {config.mixer}, no data")
        console.note("descends " + ", ".join(f"{k} {v}" for k, v in given.items()))
        part = f" of {config.count:,} (shard {config.shard}, whole blocks)" if config.shard else ""
        console.note(f"writes   {self.target.path}: {len(self.numbers):,} pictures{part}")

    @property
    def batch(self) -> int:
        """Pictures that belong together."""
        return self.section.batch or 1

    @property
    def features(self) -> Any:
        """``datasets.Features`` of what is written."""
        from kdcli.synthesis.generate import features

        return features(target=not self.generates)

    def maker(self, output: Output, runtime: Runtime, console: Console, stop: Any) -> Make:
        """What turns draws into pictures; trains the generator where there is one.

        Raises:
            Preempted: a signal came while it was trained.
        """
        return (self._generated if self.generates else self._optimised)(output, runtime, console, stop)

    def _generated(self, output: Output, runtime: Runtime, console: Console, stop: Any) -> Make:
        """Trains the generator, or goes on with it."""
        from kdcli.artifacts.store import write_tensors
        from kdcli.engine.runtime import watching
        from kdcli.synthesis import generator as engine

        teacher, (phase,), seed = self.networks["teacher"].to(runtime.device), self.phases, self.config.seed
        generator = engine.initial(self.section, teacher.spec.size[0], seed).to(runtime.device)
        with watching(stop):
            engine.train_generator(
                generator, teacher, phase, self.section, seed, output, runtime, console, stop
            )
        write_tensors(output.partial / _GENERATOR, generator.state_dict())
        return engine.from_generator(generator, teacher, self.batch, runtime)

    def _optimised(self, output: Output, runtime: Runtime, console: Console, stop: Any) -> Make:
        from torch import nn

        from kdcli.models.pictures import Renormalised
        from kdcli.synthesis.inversion import Inversion, from_teacher

        parties: dict[str, nn.Module] = {k: v.to(runtime.device) for k, v in self.networks.items()}
        parties["half"] = nn.AvgPool2d(2)
        if "student" in self.networks:
            specs = (self.networks[role].spec for role in ("teacher", "student"))
            parties["renormalise"] = Renormalised(*specs).to(runtime.device)
        inversion = Inversion(self.phases, parties, self.section, self.target_class)
        if self.records is not None:
            inversion = replace(inversion, columns=self.records.sampled)
        return from_teacher(inversion, output.partial, runtime, console, stop)

    def columns(self, draws: list[Draw]) -> dict[str, list[Any]]:
        """(seed, number) says all that is random; ``target`` is the class that was asked for, not a label."""
        target = {} if self.generates else {"target": [self.target_class(draw.number) for draw in draws]}
        return {
            "source_ids": [[] for _ in draws],
            "mixer": [self.config.mixer] * len(draws),
            "seed": [self.config.seed] * len(draws),
            "number": [draw.number for draw in draws],
            **target,
        }

    def export(self, output: Output, runtime: Runtime, command: str, rate: float) -> None:
        """Write what makes the parts a dataset, the blocks' figures and the contact sheet, and commit."""
        from kdcli.data.images import decode
        from kdcli.synthesis.sheet import gallery

        facts = frame.model_facts(self.config.teacher)  # what the teacher learned from shows in the pictures
        licences = {"data": str((facts.get("data") or {}).get("licence", ""))}
        names = dataset.finish(output.partial, self.features, licences)
        cells = dataset.head(output.partial, "image", _SHEET_PICTURES)
        write_bytes(output.partial / shards.SHEET, gallery([decode(cell["bytes"]) for cell in cells]))
        more = self._figures(output)
        manifest = Manifest("dataset", "synthesize", self.target.identity, self.target.parents)
        manifest.facts = frame.facts(
            self.config,
            command,
            mixer=self.config.mixer,
            images=len(self.numbers),
            images_of_all_shards=self.config.count,
            images_per_second=round(rate, 4),
            licences=licences,
            **more,
            **runtime.describe(),
        )
        kept = [_GENERATOR] if self.generates else []
        output.commit(manifest, [*names, shards.SHEET, _LOG, *kept])

    def _figures(self, output: Output) -> dict[str, Any]:
        """Facts of the manifest about how it went; gathers the blocks' rows into the log."""
        section, log = self.section, output.partial / _LOG
        if self.generates:
            last = json.loads(log.read_text().splitlines()[-1])
            metrics = {"label_entropy": last["label_entropy"]}
            return {"metrics": metrics, "cost": {"teacher_forwards": (section.steps or 0) * self.batch}}
        rows = [json.loads(file.read_text()) for file in sorted(output.partial.glob("block-*.json"))]
        write_bytes(log, "".join(json.dumps(row) + "\n" for row in rows).encode())
        steps = (section.steps or 0) + (section.half_steps or 0)
        return {
            "targets": self.classes,
            "metrics": {"agreement": sum(row["agreement"] for row in rows) / len(rows)},
            "cost": {"teacher_forwards": len(rows) * steps * self.batch},
        }


def plan(config: Any, unless_complete: bool) -> Plan | Result:
    """Check teacher, student and settings; with ``unless_complete`` it ends early where the output stands.

    Args:
        config: of synthesize.
        unless_complete: see above.

    Raises:
        UsageError: an option that is missing, or that the mixer does not heed.
        InputError: a teacher that cannot be inverted in this way.
    """
    from kdcli.synthesis import draws, lopes

    _refuse_unheeded(config)
    entry = synthesis.entry(config.mixer)
    section = resolved(config.inversion, config.mixer)
    config = config.model_copy(update={"inversion": section})
    roles = {role: getattr(config, role) for role in ("teacher", "student") if getattr(config, role)}
    parents = [frame.parent(role, name) for role, name in roles.items()]
    numbers = draws.shard(config.shard, config.count, section.batch or 1)
    records = lopes.read_records(config.teacher) if entry.records else None
    prints = {"statistics": records.hash} if records else {}
    target = frame.target("synthesize", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    networks = _networks(config)
    if entry.family == "generator" and networks["teacher"].spec.size[0] % 4:
        raise UsageError("--resolution: a generator makes pictures whose side is a multiple of 4.")
    teacher = networks["teacher"]
    classes = teacher.classes or []
    kept = lopes.allowed(records, classes, section) if records else list(range(len(classes)))
    phases = synthesis.function(config.mixer)(records or teacher, section)
    return Plan(config, target, networks, phases, numbers, kept, records)


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


def _networks(config: Any) -> dict[str, Network]:
    """Teacher and student, frozen.

    Raises:
        InputError: a teacher without a trained classifier, or a student that knows other classes.
    """
    from kdcli.models.build import build

    teacher = build(config.teacher, size=config.resolution)
    if teacher.trained == "random" or not teacher.classes:
        raise InputError(f"{config.teacher} has no trained classifier: there is nothing to make pictures of.")
    if teacher.task != "classification":
        raise InputError(f"{config.teacher} does {teacher.task}; --mixer {config.mixer} inverts classifiers.")
    networks = {"teacher": teacher.requires_grad_(False).eval()}
    if config.student:
        networks["student"] = frame.teacher(config.student, teacher.classes, "names")
    return networks
