"""Captions of training pictures: matched by path, embedded once, and read as a column of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.artifacts.manifest import Manifest, digest
from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.store import open_output, write_tensors
from kdcli.console import Console
from kdcli.data.captions import captions_for, read_captions, unmatched
from kdcli.data.order import Pool
from kdcli.data.pool import files_of
from kdcli.data.targets import TargetColumns
from kdcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from kdcli.models.banks import TextBank
    from kdcli.words import Method

COLUMN = "caption"
_FILE = "embeddings.safetensors"


@dataclass(frozen=True)
class Captioned:
    """Columns of a task, and an embedding of each picture's caption beside them.

    Attributes:
        targets: of the task.
        numbers: [N] of the caption of each sample of the pool; -1 for none, which reads as zeros.
        texts: M captions, each once.
        tower: where the text tower is from.
        tower_hash: that it has to have.
        root: folder of caches.
    """

    targets: TargetColumns
    numbers: np.ndarray
    texts: tuple[str, ...]
    tower: str
    tower_hash: str
    root: Path

    @cached_property
    def table(self) -> Tensor:
        """[M + 1, D] at length 1, the last row zero: from the cache, or embedded now and kept there."""
        key = digest([self.tower_hash, list(self.texts)])[:24]
        folder = self.root / f"captions-{key}"
        if not folder.exists():
            self._embed(folder, key)
        rows = F.normalize(read_tensors(folder / _FILE)[COLUMN], dim=1)
        return F.pad(rows, (0, 0, 0, 1))

    def _embed(self, folder: Path, key: str) -> None:
        from kdcli.models.texts import open_text_tower

        tower = open_text_tower(self.tower)
        if tower.hash != self.tower_hash:
            raise InputError(
                f"{self.tower} is another text tower than the one of the bank of texts: captions would lie "
                "in another space. Say where that one is: --set texts.tower=FOLDER."
            )
        encoded = tower.encode(self.texts)
        self.root.mkdir(parents=True, exist_ok=True)
        with open_output(folder, {"captions": key}) as output:
            if output is not None:  # else another process was faster
                write_tensors(output.partial / _FILE, {COLUMN: encoded.embeddings})
                facts = {"network": self.tower, "truncated": len(encoded.truncated)}
                output.commit(Manifest("cache", "distill", {"captions": key}, facts=facts), [_FILE])

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The task's columns, and ``caption`` [B, D]."""
        found = self.targets.plain(batch)
        if COLUMN in batch:  # made up, of a dry step
            return found
        index = batch["index"]
        numbers = torch.from_numpy(self.numbers)[index.cpu()]
        return {**found, COLUMN: self.table[numbers].to(index.device)}

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """The task's columns: mixed pictures have no caption."""
        return self.targets.mixed(batch, share)


def captioned(
    targets: TargetColumns,
    pool: Pool,
    file: str | None,
    method: Method,
    bank: TextBank | None,
    root: Path,
    console: Console,
) -> TargetColumns:
    """The columns with captions, where the method reads some.

    Args:
        targets: of the task.
        pool: the training pictures.
        file: of captions.
        method: that is trained by.
        bank: whose text tower embeds them.
        root: folder of caches.
        console: is told of captions of other pictures.

    Raises:
        UsageError: captions that nothing reads, or a method that reads some and is given none.
        InputError: labelled pictures without a caption.
    """
    reads = any(COLUMN in term.args for turn in method.turns for term in turn.terms)
    if file is None and reads:
        raise UsageError(
            "method.caption compares pictures with their captions: give some, --set data.captions=FILE, or "
            "leave it at 0."
        )
    if file is None or bank is None:
        return targets
    if not reads:
        raise UsageError(f"data.captions is given, and no term of method {method.name} reads captions.")
    said = read_captions(file)
    names = [name for part in pool.parts for name in _names(part)]
    found = captions_for(said, names, file)
    labelled = pool.labels >= 0
    silent = [name for name, text, known in zip(names, found, labelled) if known and text is None]
    if silent:
        more = f" and {len(silent) - 1:,} more" if len(silent) > 1 else ""
        raise InputError(
            f"{file} has no caption of {silent[0] or 'a picture without a path'}{more}: each labelled "
            "training picture needs one."
        )
    if others := unmatched(said, names).captions:
        console.note(f"captions {others:,} of the {len(said):,} in {file} are of no training picture")
    texts = tuple(dict.fromkeys(text for text in found if text is not None))
    place = {text: number for number, text in enumerate(texts)}
    numbers = np.array([-1 if text is None else place[text] for text in found], np.int64)
    return Captioned(targets, numbers, texts, bank.tower, bank.tower_hash, root)


def _names(part: Any) -> Sequence[str]:
    """Where the pictures of samples lie in the folder of their data."""
    every = list(files_of(part))
    return [every[row] for row in part.rows]
