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

Such mixers (:mod:`kdcli.stages.invert`) optimise pictures in blocks against a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import synthesis
from kdcli.artifacts.manifest import Manifest, digest
from kdcli.config import inputs, method_option, option, outputs, running
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.sections import RunSection, SourceSection
from kdcli.stages import Result, frame, invert, shards
from kdcli.synthesis.sampling import SamplingSection, resolved
from kdcli.synthesis.settings import InversionSection

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.data.samples import Data, Samples
    from kdcli.engine.mixing import Make
    from kdcli.engine.runtime import Runtime
    from kdcli.synthesis.draws import Draw
    from kdcli.synthesis.weights import Weights

_SHEET_ROWS = 8


class Sources(SourceSection):
    """Where the source pictures come from; their labels are never read."""

    min_side: int = option(16, "Refuse pictures that are smaller than this in pixels.", ge=1)


class Config(RunSection):
    """Make new pictures: mixtures and variations of a training set, or pictures from a teacher alone."""

    weights: str | None = inputs(None, "Diffusers directory, or hub id with @revision.", "--weights")
    teacher: str | None = inputs(None, "Model that pictures are made from, without data.", "--teacher")
    student: str | None = inputs(None, "Model that adaptive-deepinversion plays against it.", "--student")
    merge: list[str] = inputs([], "Join all shards of a run instead (repeatable).", "--merge", runtime=True)
    data: Sources = Sources()
    mixer: str = method_option("imagemixer", ", ".join(synthesis.MIXERS) + ".", "--mixer")
    sources: int | None = method_option(
        None, "Pictures that one is made of (default: the mixer's).", "--sources", ge=1
    )
    sampling: SamplingSection = SamplingSection()
    inversion: InversionSection = InversionSection()
    alpha: float = option(1.0, "Of mixup and cutmix: λ from Beta(alpha, alpha).", gt=0)
    resolution: int | None = outputs(None, "Side in pixels (default: the model's).", "--resolution", ge=8)
    per_image: int | None = outputs(None, "New pictures per source, each with it [1].", "--per-image", ge=1)
    count: int | None = outputs(None, "Number of new pictures, of random sources.", "--count", ge=1)
    shard: str | None = outputs(None, "Make part i/n of them only, from 1/n to n/n.", "--shard")
    batch_size: int = running(4, "Pictures at a time of a process.", "--batch-size", runtime=True, ge=1)
    commit_images: int = option(256, "Pictures between commits (or a minute).", runtime=True, ge=1)


@dataclass
class Plan:
    """Everything a run needs, checked.

    Attributes:
        config: with the defaults of mixer and weights filled in.
        target: where and what.
        data: with the one split ``train``.
        weights: of the diffusion model, None for mixers in pixels.
        kind: the mixer as it is recorded.
        total: pictures of all shards.
        numbers: of the pictures of this one.
    """

    config: Config
    target: frame.Target
    data: Data
    weights: Weights | None
    kind: str
    total: int
    numbers: range

    @property
    def samples(self) -> Samples:
        """The source pictures."""
        return self.data.split("train")

    def draw(self, number: int) -> Draw:
        """Sources and noise of a picture."""
        from kdcli.synthesis.draws import draw

        config = self.config
        return draw(number, config.seed, len(self.samples), config.sources or 1, config.per_image)

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {
            **self.target.to_json(),
            "data": self.data.describe(),
            "mixer": self.kind,
            "images": len(self.numbers),
            "images_of_all_shards": self.total,
        }

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        config, weights, how = self.config, self.weights, self.config.sampling
        console.note(f"reads    {config.data.source}: {len(self.samples):,} pictures, no labels")
        console.note(f"mixes    {config.sources} by {self.kind}" + ("" if weights else ", in pixels"))
        if weights:
            zeros = f"zeros up to {how.pad_tokens} tokens" if how.pad_tokens else "no padding"
            solver = f"{how.scheduler} in {how.steps} steps, guidance {how.guidance:g}"
            console.note(f"samples  {weights.name}: {solver}, {zeros}, {config.resolution} px")
        part = f" of {self.total:,} (shard {config.shard})" if config.shard else ""
        console.note(f"writes   {self.target.path}: {len(self.numbers):,} pictures{part}")


AnyPlan = Plan | invert.Plan | shards.Merge


def plan(config: Config, console: Console, *, unless_complete: bool = False) -> AnyPlan | Result:
    """Check data, mixer and weights; with ``unless_complete`` it ends early where the output stands already.

    Raises:
        UsageError: an option that does not exist or does not fit the mixer.
        InputError: data, weights or shards that cannot be used.
    """
    if config.merge:
        if config.data.source or config.shard or config.processes > 1:
            raise UsageError(
                "--merge joins finished shards on one process: leave out --data, --shard and -n."
            )
        return shards.plan(config, config.merge, unless_complete)
    entry = synthesis.entry(config.mixer)
    if entry.data_free:
        return invert.plan(config, unless_complete)
    from kdcli.data.sources import open_train, refuse_small
    from kdcli.synthesis import draws

    frame.require(config.data.source, "--data")
    _refuse_unheeded(config, entry)
    weights = None
    if entry.weights:
        from kdcli.synthesis.weights import find

        weights = find(config.weights or entry.default_weights, config.mixer)
    config = _resolved(config, entry, weights)
    data = open_train(config.data)
    samples = data.split("train")
    total = config.count or len(samples) * (config.per_image or 1)
    numbers = draws.shard(config.shard, total)
    if (config.sources or 1) > len(samples):
        raise InputError(
            f"--sources {config.sources} is more than the {len(samples)} pictures of {config.data.source}."
        )
    parents = [weights.parent] if weights else []
    prints = {"data": data.fingerprint, "order": digest(samples.ids.tolist())}
    target = frame.target("synthesize", config, parents, prints)
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    kind = weights.kind(config.mixer, config.sources or 1) if weights else config.mixer
    refuse_small(samples, config.data.min_side, config.data.max_pixels)
    return Plan(config, target, data, weights, kind, total, numbers)


def _refuse_unheeded(config: Config, entry: synthesis.Entry) -> None:
    """Options that the mixer would not heed."""
    names = ("alpha",) if entry.weights else ("weights", "sampling", "precision")
    for name in (*names, "teacher", "student", "inversion"):
        if getattr(config, name) != getattr(Config(), name):
            what = "sampling (steps, guidance, …)" if name == "sampling" else name
            raise UsageError(f"--mixer {config.mixer} has no use for {what}.")
    if config.count is not None and config.per_image is not None:
        raise UsageError("--count and --per-image both say how many: give one.")


def _resolved(config: Config, entry: synthesis.Entry, weights: Weights | None) -> Config:
    """The configuration with what mixer and weights decide by default."""
    sources = config.sources or len(config.sampling.strengths) or entry.sources
    if entry.exact and sources != entry.sources:
        raise UsageError(f"--mixer {config.mixer} takes {entry.sources} source(s), not {sources}.")
    found: dict[str, Any] = {"sources": sources}
    if config.count is None:
        found["per_image"] = config.per_image or 1
    if weights:
        side = config.resolution or weights.resolution
        if side % weights.multiple:
            raise UsageError(f"--resolution {side} is no multiple of {weights.multiple}.")
        found |= {"resolution": side, "weights": weights.name}
        found["sampling"] = resolved(config.sampling, config.mixer, sources, weights.image_mixer)
    return config.model_copy(update=found)


def run(plan: AnyPlan, console: Console, *, stop: Any = None, command: str = "") -> Result:
    """Make the pictures, or join shards, and write a dataset artifact with a contact sheet.

    Raises:
        Preempted: the pictures so far are kept, the same command goes on with the next.
        Diverged: NaN or Inf in a picture.
    """
    from kdcli.engine.generate import Job, features, generate
    from kdcli.engine.runtime import open_runtime, shared_output

    config, path = plan.config, plan.target.path
    runtime = open_runtime(config)
    with shared_output(path, plan.target.identity, config.overwrite, runtime) as output:
        if output is None:
            return Result(path, frame.summary(path))
        if isinstance(plan, shards.Merge):
            plan.write(output, command)
            return Result(path, frame.summary(path))
        if isinstance(plan, invert.Plan):
            plan.write(output, runtime, console, stop, command)
            return Result(path, frame.summary(path))
        batch = min(plan.config.batch_size, plan.total)
        make = _maker(plan, batch, runtime, console, stop)
        job = Job(
            plan.numbers,
            plan.draw,
            make,
            lambda draws: _columns(plan, draws),
            features(),
            batch,
            plan.config.commit_images,
        )
        rate = generate(job, output, runtime, console, stop)
        runtime.barrier()
        if runtime.main:
            _export(plan, output, runtime, command, rate)
            console.note(f"{path}: {len(plan.numbers):,} pictures")
        runtime.barrier()
    return Result(path, frame.summary(path))


def _maker(plan: Plan, batch: int, runtime: Runtime, console: Console, stop: Any) -> Make:
    """What turns draws into pictures; encodes the sources where the mixer needs that."""
    from kdcli.engine.cache import Filling
    from kdcli.engine.mixing import from_pixels, from_tokens

    config, mixer = plan.config, synthesis.function(plan.config.mixer)
    reading = frame.reading(config, config.data)
    if plan.weights is None:
        pixels = reading["max_pixels"]
        return from_pixels(mixer, plan.samples, max_pixels=pixels, side=config.resolution, alpha=config.alpha)
    return from_tokens(
        mixer,
        plan.samples,
        plan.weights,
        config.sampling,
        map(plan.draw, plan.numbers),
        resolution=config.resolution or plan.weights.resolution,
        batch_size=batch,
        cache=Path(config.cache),
        filling=Filling(runtime, console, batch, stop=stop, **reading),
    )


def _columns(plan: Plan, draws: list[Draw]) -> dict[str, list[Any]]:
    """Where pictures come from: (seed, number) says all that is random."""
    ids = plan.samples.ids
    return {
        "source_ids": [[f"{int(ids[i]):016x}" for i in draw.sources] for draw in draws],
        "mixer": [plan.kind] * len(draws),
        "seed": [plan.config.seed] * len(draws),
        "number": [draw.number for draw in draws],
    }


def _export(plan: Plan, output: Output, runtime: Runtime, command: str, rate: float) -> None:
    """Write what makes the parts a dataset, and the contact sheet, and commit."""
    from kdcli.artifacts import dataset
    from kdcli.artifacts.files import write_bytes
    from kdcli.data.images import decode
    from kdcli.engine.generate import features
    from kdcli.synthesis.sheet import contact_sheet

    config, weights, how = plan.config, plan.weights, plan.config.sampling
    licences = {"data": plan.data.licence, "weights": weights.licence if weights else ""}
    names = dataset.finish(output.partial, features(), licences)
    rows = [
        (
            [plan.samples.picture(i, config.data.max_pixels) for i in plan.draw(j).sources],
            decode(cell["bytes"]),
        )
        for j, cell in zip(plan.numbers, dataset.head(output.partial, "image", _SHEET_ROWS))
    ]
    write_bytes(output.partial / shards.SHEET, contact_sheet(rows))
    manifest = Manifest("dataset", "synthesize", plan.target.identity, plan.target.parents)
    manifest.facts = frame.facts(
        config,
        command,
        mixer=plan.kind,
        images=len(plan.numbers),
        images_of_all_shards=plan.total,
        images_per_second=round(rate, 4),
        licences=licences,
        data=plan.data.describe(),
        cost={"unet_forwards": len(plan.numbers) * how.steps * (1 + (how.guidance > 1)) if weights else 0},
        **runtime.describe(),
    )
    output.commit(manifest, [*names, shards.SHEET])
