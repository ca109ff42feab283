"""Make new pictures: mixtures and variations of a training set, without labels or prompts; or without data.

One process:     kdcli synthesize --weights image-mixer/ --data cars/ --per-image 2 --out runs/mixed
Several GPUs:    kdcli synthesize -n 8 --precision bf16 --weights image-mixer/ --data cars/ --count 100000
Tiny, on a CPU:  kdcli synthesize --mixer cutmix --data example:fashion-mnist --count 64

"On Good Practices for Task-Specific Distillation of Large Pretrained Visual Models" (arXiv 2402.11305) mixes
training pictures with Image Mixer; ``kdcli distill --extra`` reads what this stage writes. Only the split
``data.train`` is read, as a whole: where the data have no validation split, the part of train that probe and
distill carve for validation is among the sources too (carving needs the labels, which are never read here).

Picture j depends on (seed, j) alone: any ``--shard``, any number of processes and any restart make the same.

Without data:    kdcli synthesize --mixer deepinversion --teacher runs/teacher --count 5000 --out runs/dreams

Such mixers (:mod:`kdcli.runs.inversion`) optimise pictures in blocks against a teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdcli import synthesis
from kdcli.config import inputs, method_option, option, outputs, running
from kdcli.console import Console
from kdcli.errors import UsageError
from kdcli.methods.datafree import InversionSection
from kdcli.runs import Result, frame, mixing, shards
from kdcli.runs import inversion as invert
from kdcli.runs.idle import of_synthesize, refuse_idle
from kdcli.sections import LARGEST, LARGEST_SIDE, RunSection, SourceSection
from kdcli.synthesis.sampling import SamplingSection

if TYPE_CHECKING:
    from kdcli.engine.runtime import Stop


_MOST = 1_000_000_000  # pictures


class Sources(SourceSection):
    """Where the source pictures come from; their labels are never read."""

    min_side: int = option(16, "Refuse pictures that are smaller than this in pixels.", ge=1, le=LARGEST_SIDE)


class Config(RunSection):
    """Make new pictures: mixtures and variations of a training set, or pictures from a teacher alone."""

    weights: str | None = inputs(None, "Diffusers directory, or hub id with @revision.", "--weights")
    teacher: str | None = inputs(None, "Model that pictures are made from, without data.", "--teacher")
    student: str | None = inputs(None, "Model that adaptive-deepinversion plays against it.", "--student")
    merge: list[str] = inputs([], "Join all shards of a run instead (repeatable).", "--merge", runtime=True)
    data: Sources = Sources()
    mixer: str = method_option("imagemixer", ", ".join(synthesis.MIXERS) + ".", "--mixer")
    sources: int | None = method_option(
        None, "Pictures that one is made of (default: the mixer's).", "--sources", ge=1, le=1000
    )
    sampling: SamplingSection = SamplingSection()
    inversion: InversionSection = InversionSection()
    alpha: float = option(1.0, "Of mixup and cutmix: λ from Beta(alpha, alpha).", gt=0, le=LARGEST)
    resolution: int | None = outputs(
        None, "Side in pixels (default: the model's).", "--resolution", ge=8, le=LARGEST_SIDE
    )
    per_image: int | None = outputs(
        None, "New pictures per source, each with it [1].", "--per-image", ge=1, le=_MOST
    )
    count: int | None = outputs(None, "Number of new pictures, of random sources.", "--count", ge=1, le=_MOST)
    shard: str | None = outputs(None, "Make part i/n of them only, from 1/n to n/n.", "--shard")
    batch_size: int = running(
        4, "Pictures at a time of a process.", "--batch-size", runtime=True, ge=1, le=_MOST
    )
    commit_images: int = option(256, "Pictures between commits (or a minute).", runtime=True, ge=1, le=_MOST)


Plan = mixing.Plan | invert.Plan | shards.Merge


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> Plan | Result:
    """Check data, mixer, weights and teacher.

    With ``unless_complete`` it ends early where the output stands already, and returns it.

    Raises:
        UsageError: an option that does not exist or does not fit the mixer.
        InputError: data, weights, a teacher or shards that cannot be used.
    """
    from pathlib import Path

    from kdcli.data.tables import refuse_chain

    refuse_idle(config, of_synthesize(config))
    refuse_chain(Path(config.out or ""))
    if config.merge:
        if config.processes > 1:
            raise UsageError("--merge joins finished shards on one process: leave out -n.")
        return shards.plan(config, config.merge, unless_complete)
    if synthesis.entry(config.mixer).data_free:
        return invert.plan(config, unless_complete)
    made = mixing.plan(config, unless_complete)
    if isinstance(made, mixing.Plan):
        frame.say(console, made.data)
    return made


def run(plan: Plan, console: Console, *, stop: Stop | None = None, command: str = "") -> Result:
    """Make the pictures, or join shards, and write a dataset artifact with a contact sheet.

    Raises:
        Preempted: the pictures so far are kept, the same command goes on with the next.
        Diverged: NaN or Inf in a picture.
    """
    from kdcli.engine.runtime import open_runtime, shared_output
    from kdcli.synthesis.generate import generate

    config, path = plan.config, plan.target.path
    runtime = open_runtime(config)
    with shared_output(path, plan.target.identity, config.overwrite, runtime) as output:
        if output is None:
            return Result(path, frame.summary(path))
        if isinstance(plan, shards.Merge):
            plan.write(output, command)
            return Result(path, frame.summary(path))
        make = plan.maker(output, runtime, console, stop)
        rate = generate(plan, make, output, runtime, console, stop)
        runtime.barrier()
        if runtime.main:
            plan.export(output, runtime, command, rate)
            console.note(f"{path}: {len(plan.numbers):,} pictures")
        runtime.barrier()
    return Result(path, frame.summary(path))
