"""A generator trained against a frozen teacher alone, and pictures drawn from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kdcli.artifacts.store import Output
from kdcli.console import Console
from kdcli.engine import state
from kdcli.engine.runtime import Runtime
from kdcli.engine.turn import TurnModule
from kdcli.models.generator import Generator
from kdcli.models.timm import Network
from kdcli.seeds import seed_of
from kdcli.synthesis.draws import Draw
from kdcli.synthesis.inversion import adam, descend, learning_rate
from kdcli.synthesis.settings import InversionSection
from kdcli.words import Phase

LOG = "metrics.jsonl"
_WEIGHTS, _STEPS = 1, 2


def initial(section: InversionSection, size: int, seed: int) -> Generator:
    """The generator before training; its weights are a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(seed, _WEIGHTS) >> 1)
        return Generator(section.latent or 1, 3, size)


def train_generator(
    generator: Generator,
    teacher: Network,
    phase: Phase,
    section: InversionSection,
    seed: int,
    output: Output,
    runtime: Runtime,
    console: Console,
    stop: Any = None,
) -> None:
    """Train on noise that is a function of (seed, step), from the last committed state of ``output`` on.

    Rows of the log hold the terms, among them the entropy of the pseudo-labels' histogram.

    Args:
        generator: on the device; trained in place.
        teacher: frozen, on the device.
        phase: its turn trains the party ``generator``.
        section: steps, batch, Adam.
        seed: of the run.
        output: whose state and log are written.
        runtime: of one process.
        console: shows progress.
        stop: set when a signal asks to stop.

    Raises:
        Preempted: the state after the last step is committed.
        Diverged: the loss became NaN or Inf; the last committed state is kept.
    """
    steps, batch = section.steps or 0, section.batch or 1
    optimizer = adam(generator, section)
    turn = TurnModule(phase.turns[0], {"generator": generator, "teacher": teacher}, shared=False)
    progress, found = state.Progress(), output.last_state()
    if found is not None:
        progress = state.load(found[1], {"generator": generator}, {"generator": optimizer}, None, None)
    if progress.step == steps:
        return
    before, started = progress.seconds, time.monotonic()

    def noise(step: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(seed_of(seed, _STEPS, step) >> 1)
        return {"z": torch.randn((batch, generator.latent), generator=random).to(runtime.device)}

    with (
        state.Log(output.partial / LOG, progress.log_bytes, True) as log,
        console.progress("generator", steps, "steps", start=progress.step) as bar,
    ):

        def watch(step: int, row: dict[str, float]) -> None:
            log.write({"step": step, **row})
            bar.update(step, loss=row["loss"], label_entropy=row["label_entropy"])

        def save(step: int) -> None:
            progress.step, progress.log_bytes = step, log.sync()
            progress.seconds = before + time.monotonic() - started
            state.save(output, progress, {"generator": generator}, {"generator": optimizer}, None, None)

        descend(
            turn,
            optimizer,
            progress.step,
            steps,
            columns=noise,
            rate=learning_rate(section, steps),
            save=save,
            watch=watch,
            runtime=runtime,
            stop=stop,
        )
        save(steps)


def from_generator(
    generator: Generator, teacher: Network, batch: int, runtime: Runtime
) -> Callable[[list[Draw]], Sequence[Any]]:
    """What turns the draws of one block of ``batch`` numbers into pictures; a block is always drawn whole."""
    generator.eval()

    def make(draws: list[Draw]) -> Sequence[Any]:
        random = torch.Generator().manual_seed(draws[0].noise)
        z = torch.randn((batch, generator.latent), generator=random).to(runtime.device)
        with torch.inference_mode():
            arrays = teacher.restore(generator(z)).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(arrays[draw.number % batch]) for draw in draws]

    return make
