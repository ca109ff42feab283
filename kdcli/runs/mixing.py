"""``kdcli synthesize`` from a training set: mixtures and variations of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli import synthesis
from kdcli.artifacts.manifest import digest
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.runs import Result, frame, places
from kdcli.runs.pictures import PicturePlan, refuse_unheeded
from kdcli.synthesis.sampling import resolved

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output
    from kdcli.data.samples import Data, Samples
    from kdcli.engine.runtime import Runtime, Stop
    from kdcli.synthesis.draws import Draw, Make
    from kdcli.synthesis.weights import Weights

_SHEET_ROWS = 8


@dataclass
class Plan(PicturePlan):
    """Everything a run needs, checked.

    Attributes:
        data: with the one split ``train``.
        weights: of the diffusion model, None for mixers in pixels.
    """

    data: Data
    weights: Weights | None

    @property
    def samples(self) -> Samples:
        """The source pictures."""
        return self.data.split("train")

    @property
    def batch(self) -> int:
        """Pictures that are made at a time."""
        return min(self.config.batch_size, self.total)

    def draw(self, number: int) -> Draw:
        """Sources and noise of a picture."""
        from kdcli.synthesis.draws import draw

        config = self.config
        return draw(number, config.seed, len(self.samples), config.sources or 1, config.per_image)

    def sources(self, draw: Draw) -> list[str]:
        """Ids of the pictures that a new one is made of."""
        return [f"{int(self.samples.ids[i]):016x}" for i in draw.sources]

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {**super().to_json(), "data": self.data.describe()}

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        config, weights, how = self.config, self.weights, self.config.sampling
        console.note(f"reads    {config.data.source}: {len(self.samples):,} pictures, no labels")
        console.note(f"mixes    {config.sources} by {self.kind}" + ("" if weights else ", in pixels"))
        if weights:
            zeros = f"zeros up to {how.pad_tokens} tokens" if how.pad_tokens else "no padding"
            solver = f"{how.scheduler} in {how.steps} steps, guidance {how.guidance:g}"
            console.note(f"samples  {weights.name}: {solver}, {zeros}, {config.resolution} px")
        self.note_output(console)

    def maker(self, output: Output, runtime: Runtime, console: Console, stop: Stop | None) -> Make:
        """What turns draws into pictures; encodes the sources where the mixer needs that."""
        from kdcli.engine.cache import Filling
        from kdcli.synthesis.makers import Diffusion, from_pixels, from_tokens

        config, mixer = self.config, synthesis.function(self.config.mixer)
        reading = frame.reading(config, config.data)
        if self.weights is None:
            pixels = reading["max_pixels"]
            return from_pixels(
                mixer, self.samples, max_pixels=pixels, side=config.resolution, alpha=config.alpha
            )
        side = config.resolution or self.weights.resolution
        diffusion = Diffusion(self.weights, config.sampling, side, self.batch)
        filling = Filling(runtime, console, self.batch, stop=stop, **reading)
        draws = map(self.draw, self.numbers)
        return from_tokens(mixer, self.samples, draws, diffusion, Path(config.cache), filling)

    def facts(self, folder: Path) -> dict[str, Any]:
        """Licences, data and cost."""
        weights, how = self.weights, self.config.sampling
        forwards = len(self.numbers) * how.steps * (1 + (how.guidance > 1)) if weights else 0
        return {
            "licences": {"data": self.data.licence, "weights": weights.licence if weights else ""},
            "data": self.data.describe(),
            "cost": {"unet_forwards": forwards},
        }

    def sheet(self, folder: Path) -> bytes:
        """The first new pictures, each beside its sources."""
        from kdcli.artifacts import dataset
        from kdcli.data.images import decode
        from kdcli.synthesis.sheet import contact_sheet

        largest = self.config.data.max_pixels
        rows = [
            ([self.samples.picture(i, largest) for i in self.draw(j).sources], decode(cell["bytes"]))
            for j, cell in zip(self.numbers, dataset.head(folder, "image", _SHEET_ROWS))
        ]
        return contact_sheet(rows)


def plan(config: Any, unless_complete: bool) -> Plan | Result:
    """Check data, mixer and weights; with ``unless_complete`` it ends early where the output stands already.

    Args:
        config: of synthesize.
        unless_complete: see above.

    Raises:
        UsageError: an option that does not exist or does not fit the mixer.
        InputError: data or weights that cannot be used.
    """
    from kdcli.data.sources import open_train, refuse_small
    from kdcli.synthesis import draws

    frame.require(config.data.source, "--data")
    entry = synthesis.entry(config.mixer)
    _refuse_unheeded(config, entry)
    weights = None
    if entry.weights:
        from kdcli.synthesis.weights import find

        weights = find(config.weights or entry.default_weights, config.mixer)
    config = _resolved(config, entry, weights)
    data = open_train(config.data, partial(places.kept_hashes, config))
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
    frame.refuse_absent(config)
    kind = weights.kind(config.mixer, config.sources or 1) if weights else config.mixer
    refuse_small(samples, config.data.min_side, config.data.max_pixels)
    return Plan(config, target, kind, total, numbers, data, weights)


def _refuse_unheeded(config: Any, entry: synthesis.Entry) -> None:
    """Options that the mixer would not heed."""
    sampling = {"weights": "", "sampling": "sampling (steps, guidance, …)", "precision": ""}
    others = {"teacher": "", "student": "", "inversion": "inversion (steps, lr, …)"}
    refuse_unheeded(config, {**({"alpha": ""} if entry.weights else sampling), **others})
    if config.count is not None and config.per_image is not None:
        raise UsageError("--count and --per-image both say how many: give one.")


def _resolved(config: Any, entry: synthesis.Entry, weights: Weights | None) -> Any:
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
