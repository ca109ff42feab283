"""Analyses of networks for whole pictures that ``eval`` makes where it is asked to: occlusion and CKA.

A model's part of the report then has ``"occlusion": [{"ratio", NAME}]``, NAME being what quality is called,
and ``"cka": {"student": [taps], "teacher": [taps], "values": [[float | None]]}``, rows the model's blocks.
The report has ``"occlusion": {"grid", "value": NAME, "chance"}`` and ``"cka": {"pictures", "minibatch"}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from kdcli.console import Console
from kdcli.engine import similarity
from kdcli.engine.inference import Measuring
from kdcli.engine.occlusion import HIDDEN, occluded
from kdcli.errors import InputError, UsageError
from kdcli.metrics.cka import LEAST
from kdcli.models.protocol import Model
from kdcli.tasks.settings import EvalOptions, Measured

HEEDED = ("occlusion", "occlusion_grid", "cka")
OTHERS = {  # why a task whose answers are others does not heed them
    "occlusion": "patches are hidden from networks that name classes of whole pictures",
    "occlusion_grid": "patches are hidden from networks that name classes of whole pictures",
    "cka": "blocks are compared of networks that name classes of whole pictures",
}


@dataclass(frozen=True)
class Quality:
    """How good answers to pictures are of which a part is hidden.

    Attributes:
        name: as the report has it.
        keep: what is kept of logits [B, C] and the pictures' indices, [B, K].
        of: quality of what was kept of all pictures, [N, K].
        chance: quality of guessing.
        plain: quality of the models' answers to whole pictures.
    """

    name: str
    keep: Callable[[Tensor, list[int]], Tensor]
    of: Callable[[Tensor], float]
    chance: float
    plain: Mapping[str, float]


@dataclass(frozen=True)
class Analyses:
    """What was asked for, checked.

    Attributes:
        grid: cells along a side of a picture, of which more and more are hidden; None for no occlusion.
        cka: whether blocks are compared with the teacher's.
        seed: of the hidden cells, and of which pictures blocks are compared on.
        depths: numbers of blocks of the networks whose blocks are compared.
        pictures: number of those measured.
    """

    grid: int | None
    cka: bool
    seed: int
    depths: Mapping[str, int]
    pictures: int

    @classmethod
    def of(cls, options: EvalOptions) -> Analyses:
        """Check the options.

        Raises:
            UsageError: CKA without a teacher, more cells than pixels.
            InputError: a network whose blocks have no names, too few pictures for CKA.
        """
        if options.occlusion:
            for name, network in options.networks.items():
                if min(network.spec.size) < options.occlusion_grid:
                    height, width = network.spec.size
                    raise UsageError(
                        f"occlusion_grid: {options.occlusion_grid} cells along a side are more than the "
                        f"pixels of what {name} sees ({height} x {width})."
                    )
        depths = _depths(options) if options.cka else {}
        grid = options.occlusion_grid if options.occlusion else None
        return cls(grid, options.cka, options.seed, depths, options.pictures)

    def describe(self) -> list[str]:
        """Lines of the plan."""
        lines = []
        if self.grid is not None:
            lines.append(
                f"occludes {HIDDEN[0]:.0%} to {HIDDEN[-1]:.0%} of {self.grid} x {self.grid} cells at random: "
                f"{len(HIDDEN)} more passes per model"
            )
        if self.cka:
            counts = ", ".join(f"{name} {count}" for name, count in self.depths.items())
            lines.append(
                f"compares blocks by CKA ({counts}): one more pass per network over "
                f"{min(similarity.MOST, self.pictures):,} of {self.pictures:,} pictures"
            )
        return lines

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        quality: Quality | None,
        console: Console,
    ) -> Measured:
        """Parts of the report; empty where nothing was asked for.

        Args:
            measuring: on what.
            networks: on the device, by the name that the report gives each.
            teacher: that they are compared with, on the device.
            quality: of answers; None where networks answer nothing.
            console: shows progress.
        """
        found = Measured({name: {} for name in networks})
        if self.grid is not None and quality is not None:
            self._occlude(self.grid, measuring, networks, quality, console, found)
        if self.cka and teacher is not None:
            self._align(measuring, networks, teacher, console, found)
        return found

    def _occlude(
        self,
        grid: int,
        measuring: Measuring,
        networks: Mapping[str, Model],
        quality: Quality,
        console: Console,
        found: Measured,
    ) -> None:
        for name, network in networks.items():
            with console.progress(f"{name}, occluded", len(measuring.samples), "pictures") as bar:
                kept = occluded(network, grid, self.seed, quality.keep, measuring, bar.update)
            values = [quality.plain[name], *(quality.of(kept[:, i]) for i in range(len(HIDDEN)))]
            rows = [{"ratio": r, quality.name: value} for r, value in zip((0.0, *HIDDEN), values)]
            found.models[name]["occlusion"] = rows
        found.together["occlusion"] = {"grid": grid, "value": quality.name, "chance": quality.chance}

    def _align(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model,
        console: Console,
        found: Measured,
    ) -> None:
        parts = similarity.minibatches(measuring.samples.ids, self.seed)
        pictures = sum(map(len, parts))

        def blocks(name: str, network: Model) -> similarity.Blocks:
            with console.progress(f"{name}, blocks", pictures, "pictures") as bar:
                return similarity.run(network, parts, measuring, bar.update)

        theirs = blocks("teacher", teacher)
        for name, network in networks.items():
            ours = theirs if network is teacher else blocks(name, network)
            values = similarity.alike(ours, theirs, measuring.runtime)
            found.models[name]["cka"] = {
                "student": list(ours.taps),
                "teacher": list(theirs.taps),
                "values": values,
            }
        found.together["cka"] = {"pictures": pictures, "minibatch": similarity.MINIBATCH}
        if pictures < min(len(measuring.samples), similarity.MOST):
            left = min(len(measuring.samples), similarity.MOST) - pictures
            found.notes.append(
                f"CKA leaves out a last minibatch of {left}: HSIC is estimated of {LEAST} pictures or more."
            )


def _depths(options: EvalOptions) -> dict[str, int]:
    """How many blocks each network has. Raises UsageError or InputError where they cannot be compared."""
    if options.teacher is None:
        raise UsageError("cka: it compares blocks with those of a teacher; give --teacher.")
    if options.pictures < LEAST:
        raise InputError(f"cka: it takes {LEAST} pictures or more, and {options.pictures} are measured.")
    networks = {**options.networks, "teacher": options.teacher}
    for name, network in networks.items():
        if not network.block_taps():
            raise InputError(
                f"cka: the blocks of {name} ({network.architecture}) have no names; "
                "compared are networks of timm. Measure without it, or without cka."
            )
    return {name: len(network.block_taps()) for name, network in networks.items()}
