"""Pictures, or a generator of them, optimised against a frozen teacher: steps of Adam on one turn.

Block b holds the pictures b·B … (b + 1)·B − 1 of a run. It is always optimised whole, for the pictures of a
batch depend on one another through its statistics, and all that is random in it is a function of (seed, b):
so shards, processes and restarts make the same pictures.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from kdcli.artifacts.files import remove, sync
from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.store import write_bytes, write_tensors
from kdcli.console import Console
from kdcli.engine.runtime import Runtime
from kdcli.engine.turn import TurnModule
from kdcli.errors import Diverged, Preempted
from kdcli.models.pictures import Pictures
from kdcli.models.timm import Network
from kdcli.seeds import seed_of
from kdcli.synthesis.draws import Draw
from kdcli.synthesis.settings import InversionSection
from kdcli.words import Phase

_LOOK = 20  # steps between looks at the loss, each of which waits for the device
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Inversion:
    """What pictures are optimised by.

    Attributes:
        phases: of turns that train the party ``pictures``.
        parties: the others by name, frozen, on the device; ``teacher`` is one.
        section: weights and steps, resolved.
        target: number of a picture to its class.
        columns: seed of a block and its targets [B] to more columns of every step's batch.
    """

    phases: Sequence[Phase]
    parties: Mapping[str, nn.Module]
    section: InversionSection
    target: Callable[[int], int]
    columns: Callable[[int, Tensor], dict[str, Tensor]] = field(default=lambda seed, targets: {})

    @property
    def teacher(self) -> Network:
        """Whose pictures are sought."""
        found: Any = self.parties["teacher"]
        return found


def descend(
    turn: TurnModule,
    optimizer: Any,
    first: int,
    end: int,
    *,
    columns: Callable[[int], dict[str, Tensor]],
    rate: Callable[[int], float],
    save: Callable[[int], None],
    watch: Callable[[int, dict[str, float]], None],
    runtime: Runtime,
    stop: Any = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Steps ``first`` … ``end`` − 1 of an optimiser on one turn.

    Args:
        turn: on the device.
        optimizer: of its trained parties.
        first: steps that were done before.
        end: steps in all.
        columns: of a step's batch.
        rate: learning rate of a step.
        save: keeps the state after so many steps; called each minute, and before a signal ends the loop.
        watch: shown the terms now and then, and after the last step.
        runtime: device and precision.
        stop: set when a signal asks to stop.
        after: called after each step.

    Raises:
        Preempted: a signal came.
        Diverged: the loss became NaN or Inf.
    """
    share, saved = torch.ones(1, device=runtime.device), time.monotonic()
    turn.train()
    for step in range(first, end):
        if stop is not None and stop.requested:
            save(step)
            raise Preempted(f"{stop.requested}: stopped after step {step}; run the same command again.")
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        with runtime.accelerator.autocast():
            terms = turn(columns(step), share, 0.0)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        if after is not None:
            after()
        if (step + 1) % _LOOK == 0 or step + 1 == end:
            row = dict(zip(terms, torch.stack([t.detach().float().sum() for t in terms.values()]).tolist()))
            if not math.isfinite(row["loss"]):
                raise Diverged(f"the loss became {row['loss']} by step {step + 1}. Lower inversion.lr.")
            watch(step + 1, row)
            if time.monotonic() - saved > _SAVE_SECONDS and step + 1 < end:
                save(step + 1)
                saved = time.monotonic()


def adam(module: nn.Module, section: InversionSection) -> torch.optim.Adam:
    """Adam over a module's parameters, its learning rate set by each step."""
    return torch.optim.Adam(module.parameters(), betas=section.betas or (0.9, 0.999))


def learning_rate(section: InversionSection, steps: int) -> Callable[[int], float]:
    """Learning rate of each of ``steps`` steps: linear warm-up over it, and a cosine where wanted."""
    top, warmup, cosine = section.lr or 0.0, section.warmup or 0, section.schedule == "cosine"

    def rate(step: int) -> float:
        if step < warmup:
            return top * (step + 1) / warmup
        done = (step - warmup) / max(steps - warmup, 1)
        return top * (0.5 * (1 + math.cos(math.pi * done)) if cosine else 1.0)

    return rate


def view_of(seed: int, step: int, section: InversionSection) -> Tensor:
    """(down, right, mirrored) of a step: uniform shifts of at most ``jitter`` pixels."""
    span = 2 * (section.jitter or 0) + 1
    down, right = (seed_of(seed, step, axis) % span - (section.jitter or 0) for axis in (0, 1))
    return torch.tensor([down, right, seed_of(seed, step, 2) < (section.flip or 0.0) * 2**64])


def noise(seed: int, size: tuple[int, int], teacher: Network, section: InversionSection) -> Tensor:
    """The first pictures, normalised, [B, 3, H, W]: standard normal, or with the section's pixels."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((section.batch or 1, 3, *size), generator=generator)
    if section.start is None:
        return values
    mean, deviation = section.start
    centre, scale = (torch.tensor(v).view(-1, 1, 1) for v in (teacher.spec.mean, teacher.spec.std))
    return (mean + deviation * values - centre) / scale


def optimise(
    job: Inversion,
    seed: int,
    targets: Tensor,
    runtime: Runtime,
    *,
    watch: Callable[[int, dict[str, float]], None] = lambda step, row: None,
    resting: Path | None = None,
    stop: Any = None,
) -> Tensor:
    """The pictures of one block, as the teacher takes them, [B, 3, H, W].

    Args:
        job: phases, parties, weights.
        seed: of the block.
        targets: class of each picture, [B].
        runtime: device and precision.
        watch: shown the terms now and then.
        resting: file in which an interrupted block is kept.
        stop: set when a signal asks to stop.

    Raises:
        Preempted, Diverged: see :func:`descend`.
    """
    section, device, teacher = job.section, runtime.device, job.teacher
    pictures = Pictures(noise(seed, teacher.spec.size, teacher, section)).to(device)
    fixed = {"y": targets.to(device), **{k: v.to(device) for k, v in job.columns(seed, targets).items()}}
    black = torch.zeros((1, 3, *teacher.spec.size), dtype=torch.uint8, device=device)
    limits = [teacher.prepare(colour) for colour in (black, ~black)]
    total, share, begin = (section.half_steps or 0) + (section.steps or 0), 0.0, 0
    kept = _Resting(resting)

    def clip() -> None:
        with torch.no_grad():
            pictures.pixels.clamp_(*limits)

    for phase in job.phases:
        share += phase.share
        end = round(total * share)
        turn = TurnModule(phase.turns[0], {**job.parties, "pictures": pictures}, shared=False)
        optimizer = adam(pictures, section)
        first = kept.restore(pictures.pixels, optimizer, begin, end)
        rate = learning_rate(section, end - begin)
        descend(
            turn,
            optimizer,
            first,
            end,
            columns=lambda step: {**fixed, "view": view_of(seed, step, section)},
            rate=lambda step, rate=rate, begin=begin: rate(step - begin),  # type: ignore[misc]
            save=lambda step, optimizer=optimizer: kept.save(step, pictures.pixels, optimizer),  # type: ignore[misc]
            watch=watch,
            runtime=runtime,
            stop=stop,
            after=clip if section.clip else None,
        )
        begin = end
    if not pictures.pixels.isfinite().all():
        raise Diverged(f"the pictures became NaN or Inf in step {total}. Lower inversion.lr.")
    return pictures.pixels.detach()


class _Resting:
    """An interrupted block: pixels, Adam's moments and the step, in one file that is replaced whole."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.tensors = read_tensors(path) if path is not None and path.exists() else {}

    def save(self, step: int, pixels: Tensor, optimizer: Any) -> None:
        if self.path is None:
            return
        tensors = {"pixels": pixels, "done": torch.tensor(step), **optimizer.state.get(pixels, {})}
        draft = self.path.with_suffix(".draft")
        write_tensors(draft, tensors)
        os.replace(draft, self.path)
        sync(self.path.parent)

    def restore(self, pixels: Tensor, optimizer: Any, begin: int, end: int) -> int:
        """Steps that are done of those up to ``end``."""
        if not self.tensors or int(self.tensors["done"]) <= begin:
            return begin
        done = int(self.tensors["done"])
        with torch.no_grad():
            pixels.copy_(self.tensors["pixels"])
        if done < end:
            state = {k: v for k, v in self.tensors.items() if k not in ("pixels", "done")}
            optimizer.state[pixels] = {k: v if k == "step" else v.to(pixels.device) for k, v in state.items()}
        return min(done, end)


def from_teacher(
    job: Inversion, folder: Path, runtime: Runtime, console: Console, stop: Any = None
) -> Callable[[list[Draw]], Sequence[Any]]:
    """What turns the draws of one block into pictures; leaves the block's figures in ``folder``.

    Args:
        job: phases, parties, weights.
        folder: of the partial output.
        runtime: device and precision.
        console: told of each block.
        stop: set when a signal asks to stop.
    """
    batch, teacher = job.section.batch or 1, job.teacher

    def make(draws: list[Draw]) -> Sequence[Any]:
        block = draws[0].number // batch
        targets = torch.tensor([job.target(block * batch + i) for i in range(batch)])
        rows: list[dict[str, float]] = []
        resting = folder / f"resting-{block:09d}.safetensors"
        pixels = optimise(
            job,
            draws[0].noise,
            targets,
            runtime,
            watch=lambda _, row: rows.append(row),
            resting=resting,
            stop=stop,
        )
        images = teacher.restore(pixels)
        with torch.no_grad():
            agreement = float((teacher(images).argmax(dim=1).cpu() == targets).float().mean())
        row = {"block": block, **summed(rows[-1] if rows else {}), "agreement": agreement}
        write_bytes(folder / f"block-{block:09d}.json", json.dumps(row).encode())
        console.note(", ".join(f"{k} {v:g}" if k == "block" else f"{k} {v:.4g}" for k, v in row.items()))
        remove(resting)
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(arrays[draw.number % batch]) for draw in draws]

    return make


def summed(row: Mapping[str, float]) -> dict[str, float]:
    """Terms with those of one kind (``statistics/LAYER``) added up."""
    found: dict[str, float] = {}
    for name, value in row.items():
        kind = name.partition("/")[0]
        found[kind] = found.get(kind, 0.0) + value
    return found
