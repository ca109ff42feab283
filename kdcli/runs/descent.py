"""Pictures, or a generator of them, from a teacher alone: methods that read no data, run by the loop.

Block b holds the pictures b·B … (b + 1)·B − 1 of a run, and is a round of its method. It is always optimised
whole, for the pictures of a batch depend on one another through its statistics, and all that is random in it
is a function of (seed, b): so shards, processes and restarts make the same pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from kdcli.artifacts.store import Output, write_bytes
from kdcli.console import Console
from kdcli.engine.feed import Columns, Made
from kdcli.engine.job import Job
from kdcli.engine.loop import LOG, train
from kdcli.engine.rounds import fresh_parties, kept
from kdcli.engine.runtime import Runtime, Stop
from kdcli.methods.datafree import InversionSection
from kdcli.models.generator import Generator
from kdcli.models.protocol import Model
from kdcli.sections import OptimSection
from kdcli.seeds import seed_of
from kdcli.synthesis.draws import Draw, Make
from kdcli.words import Method

_LOOK = 20  # steps between looks at the loss, each of which waits for the device
_WEIGHTS, _STEPS = 1, 2  # of a generator: keep the seeds of its first weights and of its noise apart


@dataclass(frozen=True)
class Descent:
    """A method that reads no data, and what it is run with.

    Attributes:
        method: without terms that weigh nothing.
        networks: ``teacher`` and perhaps ``student``, frozen, on the device.
        section: weights and steps, resolved.
        runtime: device and precision.
        console: shows progress.
        stop: set when a signal asks to stop.
    """

    method: Method
    networks: Mapping[str, Model]
    section: InversionSection
    runtime: Runtime
    console: Console
    stop: Stop | None = None

    @property
    def teacher(self) -> Model:
        """What is learned from."""
        return self.networks["teacher"]

    @property
    def batch(self) -> int:
        """Pictures that belong together."""
        return self.section.batch or 1

    def parties(self, seed: int) -> dict[str, nn.Module]:
        """The networks, and what the method builds from a seed."""
        found = fresh_parties(self.method, self.networks, seed)
        return {name: party.to(self.runtime.device) for name, party in found.items()}

    def run(
        self, parties: dict[str, nn.Module], batches: Made, seed: int, output: Output, **more: Any
    ) -> dict[str, float]:
        """All phases, from the last committed state of ``output`` on; returns the terms of the last step.

        Args:
            parties: of the method, trained in place.
            batches: what each step reads.
            seed: of what the loop draws.
            output: whose state and log are written.
            more: fields of the job.

        Raises:
            Preempted: a signal came; the state after the last step is committed.
            Diverged: the loss became NaN or Inf.
        """
        section = self.section
        steps = (section.half_steps or 0) + (section.steps or 0)
        optim = OptimSection(
            opt="adam", lr=section.lr or 0.0, betas=section.betas, weight_decay=0.0, clip_grad=None
        )
        job = Job(
            method=self.method,
            parties=parties,
            batches=batches,
            optim=optim,
            steps=steps,
            schedule_steps=steps,
            seed=seed,
            rate=learning_rate(section),
            looks=False,
            save_minutes=1.0,
            log_every=_LOOK,
            remedy="Lower inversion.lr.",
            **more,
        )
        train(job, output, self.runtime.alone(), self.console, self.stop)
        last = json.loads((output.partial / LOG).read_text().splitlines()[-1])
        (turn,) = self.method.phases[-1].turns
        return {name: last[name] for name in ("loss", *(term.name for term in turn.terms))}


def learning_rate(section: InversionSection) -> Callable[[int, int], float]:
    """Learning rate of step k of n: linear warm-up over it, and a cosine where wanted."""
    top, warmup, cosine = section.lr or 0.0, section.warmup or 0, section.schedule == "cosine"

    def rate(step: int, steps: int) -> float:
        if step < warmup:
            return top * (step + 1) / warmup
        done = (step - warmup) / max(steps - warmup, 1)
        return top * (0.5 * (1 + math.cos(math.pi * done)) if cosine else 1.0)

    return rate


# -- pictures ------------------------------------------------------------------------------------------------


def view_of(seed: int, step: int, section: InversionSection) -> Tensor:
    """(down, right, mirrored) of a step: uniform shifts up to ``jitter`` pixels, half of it at half size."""
    most = (section.jitter or 0) // (2 if step < (section.half_steps or 0) else 1)
    down, right = (seed_of(seed, step, axis) % (2 * most + 1) - most for axis in (0, 1))
    return torch.tensor([down, right, seed_of(seed, step, 2) < (section.flip or 0.0) * 2**64])


def optimised(
    descent: Descent, number: int, seed: int, columns: Columns, output: Output
) -> tuple[Tensor, dict[str, float]]:
    """The pictures of one block, as the teacher takes them, [B, 3, H, W], and the terms of the last step.

    Args:
        descent: the method and what it is run with.
        number: of the block.
        seed: of the block.
        columns: that each step reads beside its ``view``.
        output: keeps the state of a block that is interrupted.

    Raises:
        Preempted, Diverged: see :meth:`Descent.run`.
    """
    section, device = descent.section, descent.runtime.device
    parties = descent.parties(seed)
    pictures: Any = parties["pictures"]
    fixed = {name: column.to(device) for name, column in columns.items()}
    batches = Made(lambda step: {**fixed, "view": view_of(seed, step, section)}, f"of block {number}")
    terms = descent.run(parties, batches, seed, output, label="", save_ends=False)
    return pictures.pixels.detach(), summed(terms)


def summed(row: Mapping[str, float]) -> dict[str, float]:
    """Terms with those of one kind (``statistics/LAYER``) added up."""
    found: dict[str, float] = {}
    for name, value in row.items():
        kind = name.partition("/")[0]
        found[kind] = found.get(kind, 0.0) + value
    return found


def picture_maker(
    descent: Descent,
    target: Callable[[int], int],
    columns: Callable[[int, Tensor], Columns],
    output: Output,
) -> Make:
    """What turns the draws of one block into pictures; leaves the block's figures beside them.

    Args:
        descent: the method and what it is run with.
        target: number of a picture to its class.
        columns: seed of a block and its targets [B] to columns beside ``y``.
        output: that the pictures are written to.
    """
    batch, teacher = descent.batch, descent.teacher

    def make(draws: list[Draw]) -> Sequence[Any]:
        number, seed = draws[0].number // batch, draws[0].noise
        targets = torch.tensor([target(number * batch + i) for i in range(batch)])
        with kept(output, number) as own:
            pixels, terms = optimised(descent, number, seed, {"y": targets, **columns(seed, targets)}, own)
            images = teacher.restore(pixels)
            with torch.no_grad():
                agreement = float((teacher(images).argmax(dim=1).cpu() == targets).float().mean())
            row = {"block": number, **terms, "agreement": agreement}
            write_bytes(output.partial / f"block-{number:09d}.json", json.dumps(row).encode())
        descent.console.note(
            ", ".join(f"{k} {v:g}" if k == "block" else f"{k} {v:.4g}" for k, v in row.items())
        )
        return _pictures(images, draws)

    return make


def _pictures(images: Tensor, draws: Sequence[Draw]) -> list[Any]:
    """Those of a whole block, uint8 [B, 3, H, W], that are asked for."""
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(arrays[draw.number % len(arrays)]) for draw in draws]


# -- a generator ---------------------------------------------------------------------------------------------


def trained_generator(descent: Descent, seed: int, output: Output) -> Generator:
    """The generator, on noise that is a function of (seed, step), from the last committed state on.

    Rows of the log hold the terms, among them the entropy of the pseudo-labels' histogram.

    Raises:
        Preempted, Diverged: see :meth:`Descent.run`.
    """
    parties = descent.parties(seed_of(seed, _WEIGHTS) >> 1)
    generator: Any = parties["generator"]
    noise = partial(_noise, descent, generator.latent)
    batches = Made(lambda step: {"z": noise(seed_of(seed, _STEPS, step) >> 1)})
    descent.run(parties, batches, seed, output, label="generator")
    return generator


def drawn_maker(descent: Descent, generator: Generator) -> Make:
    """What turns the draws of one block into the generator's pictures; a block is always drawn whole."""
    generator.eval()

    def make(draws: list[Draw]) -> Sequence[Any]:
        with torch.inference_mode():
            made = generator(_noise(descent, generator.latent, draws[0].noise))
            return _pictures(descent.teacher.restore(made), draws)

    return make


def _noise(descent: Descent, latent: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn((descent.batch, latent), generator=random).to(descent.runtime.device)
