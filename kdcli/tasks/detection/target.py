"""Boxes: where the objects of a picture are, and what each of them is.

Inside kdcli a box is two corners in pixels of the upright picture, x1, y1, x2, y2. Every box is checked
against its picture once, before anything is learned: a box that cannot be is refused by its row, one that
reaches beyond its picture is cut to it, one without an area is left out, and the user is told.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kdcli.data.targets import UNLABELLED, Place, Targets
from kdcli.errors import InputError, UsageError
from kdcli.tasks.detection.boxes import Placed, lacking, refuse_other_sizes, strata
from kdcli.tasks.detection.cells import COLUMN, Cells, Form, column_of, declared_sizes, form_of, read_cells
from kdcli.tasks.detection.names import Names

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection

_VISIBLE = 1.0  # pixels of a view: what has less of a side is not seen in it


@dataclass(frozen=True)
class Boxes(Targets):
    """The boxes of each picture; the label is 0, or -1 where nobody annotated it.

    Attributes:
        offsets: [N + 1] int64: the boxes of picture i are those from ``offsets[i]`` to ``offsets[i + 1]``.
        boxes: [M, 4] float64 corners in pixels, cut to their pictures in place by :meth:`BoxReader.classes`.
        classes: [M] int64 class numbers.
        ignored: [M] bool: crowds and difficult objects, neither learned nor held against a network.
        hashed: [N] uint64 hash of each picture's boxes as they are stored, 0 where it has none.
        declared: [N, 2] float64 width and height as the data say them, NaN where they do not.
    """

    offsets: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    ignored: np.ndarray
    hashed: np.ndarray
    declared: np.ndarray

    @property
    def hashes(self) -> tuple[np.ndarray, ...]:
        """Those of the boxes."""
        return (self.hashed,)

    @property
    def rows(self) -> np.ndarray:
        """[M] int64: the picture of each box."""
        return np.repeat(np.arange(len(self.labels)), np.diff(self.offsets))

    @property
    def strata(self) -> np.ndarray:
        """The rarest class that each picture has a box of; see :func:`kdcli.tasks.detection.boxes.strata`."""
        learned = ~self.ignored
        return strata(self.labels, self.rows[learned], self.classes[learned])

    def truth(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Corners float64 [n, 4] in the picture's own pixels, classes int64 [n] and which are ignored [n]."""
        own = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.boxes[own], self.classes[own], self.ignored[own]

    def take(self, keep: np.ndarray) -> Boxes:
        """The boxes of the pictures selected by a mask or index array."""
        pictures = np.arange(len(self.labels))[keep]
        counts = np.diff(self.offsets)[pictures]
        offsets = _offsets(counts)
        own = np.repeat(self.offsets[pictures] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            super().take(keep),
            offsets=offsets,
            boxes=self.boxes[own],
            classes=self.classes[own],
            ignored=self.ignored[own],
            hashed=self.hashed[keep],
            declared=self.declared[keep],
        )

    def hidden(self, rows: np.ndarray) -> Boxes:
        """The same without the boxes of some pictures, selected by a mask or index array."""
        gone = np.zeros(len(self.labels), bool)
        gone[rows] = True
        kept = ~gone[self.rows]
        return replace(
            super().hidden(rows),
            offsets=_offsets(np.where(gone, 0, np.diff(self.offsets))),
            boxes=self.boxes[kept],
            classes=self.classes[kept],
            ignored=self.ignored[kept],
            hashed=np.where(gone, np.uint64(0), self.hashed),
        )

    def blank(self, count: int) -> Boxes:
        """No boxes, of ``count`` pictures."""
        return _nothing(count)

    def read(self, index: int, place: Place) -> Any:
        """``boxes``, a ``tv_tensors.BoundingBoxes`` [n, 4] of corners, and ``classes`` int64 [n].

        Of the boxes that are learned: ignored ones are left out. Of an unlabelled picture, none.
        """
        import torch
        from torchvision.tv_tensors import BoundingBoxes

        boxes, classes, ignored = self.truth(index)
        corners = torch.from_numpy(boxes[~ignored].astype(np.float32))
        return {
            "boxes": BoundingBoxes(corners, format="XYXY", canvas_size=place.size[::-1]),
            "classes": torch.from_numpy(classes[~ignored]),
        }

    def columns(self, indices: np.ndarray, moved: Sequence[Any]) -> dict[str, Any]:
        """``boxes``, B tensors float32 [n, 4], and ``classes``, B tensors int64 [n].

        Boxes are centre x, centre y, width and height as fractions of the view. One that the view has cut to
        less than a pixel of it in width or height is left out, and its class too.
        """
        import torch

        boxes, classes = [], []
        for own in moved:
            height, width = own["boxes"].canvas_size
            sides = torch.tensor([width, height] * 2, dtype=torch.float32)
            corners = own["boxes"].as_subclass(torch.Tensor).clamp(max=sides)  # scaled, they may round beyond
            x1, y1, x2, y2 = corners.unbind(-1)
            seen = (x2 - x1 >= _VISIBLE) & (y2 - y1 >= _VISIBLE)
            middle = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)
            boxes.append(middle[seen] / sides)
            classes.append(own["classes"][seen])
        return {"boxes": boxes, "classes": classes}


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _nothing(count: int) -> Boxes:
    """Boxes of pictures of which nothing is known."""
    return Boxes(
        labels=np.full(count, UNLABELLED, np.int64),
        offsets=np.zeros(count + 1, np.int64),
        boxes=np.zeros((0, 4)),
        classes=np.zeros(0, np.int64),
        ignored=np.zeros(0, bool),
        hashed=np.zeros(count, np.uint64),
        declared=np.full((count, 2), np.nan),
    )


class BoxReader:
    """Finds the boxes of a source, in a column that is named for them."""

    task = "detection"

    def __init__(self, raw: Raw, config: DataSection) -> None:
        self.raw, self.config = raw, config
        if raw.annotated and config.box_format != type(config).model_fields["box_format"].default:
            raise UsageError(
                f"data.box_format={config.box_format}: {raw.annotated} files have one convention, in which "
                "they are read. Leave it out."
            )
        self.column = column_of(next(iter(raw.tables.values())), config)
        self.columns = (self.column,)
        self._cells: dict[str, Cells] = {}  # by split
        self.names = Names.of(self._forms(), self._read, self.column, raw, config)

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Whether a column is named and typed as boxes are, or the options name one."""
        return bool(config.box_column) or form_of(table.features.get(COLUMN)) is not None

    def targets(self, name: str, table: Any) -> Targets:
        """The boxes of a split; none of a split that has no such column."""
        if self.column not in table.column_names:
            return _nothing(len(table))
        cells = self._read(name)
        classes = self.names.numbers(cells, name)
        boxes = cells.numbers.copy()
        if self.config.box_format == "xywh":
            boxes[:, 2:] += boxes[:, :2]
        count = len(cells.known)
        whole = Boxes(
            labels=np.where(cells.known, 0, UNLABELLED).astype(np.int64),
            offsets=_offsets(np.bincount(cells.rows, minlength=count)),
            boxes=boxes,
            classes=classes,
            ignored=cells.ignored,
            hashed=np.zeros(count, np.uint64),
            declared=declared_sizes(table),
        )
        hashed = np.array([_hash(*whole.truth(i)) for i in range(count)], np.uint64)
        return replace(self._with_area(whole, name), hashed=np.where(cells.known, hashed, np.uint64(0)))

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str]:
        """Names of the classes by number; every box is checked against its picture, and cut to it, here.

        Those of a ``ClassLabel``; of text, what train says, in order; of numbers ``data.class_names``, or
        the numbers themselves.

        Raises:
            InputError: a picture of another size than the data say, a box outside of its picture, inverted,
                or in another convention than ``data.box_format``.
        """
        for samples in splits.values():
            self._look_through(samples)
        return self.names.names

    def check(self, train: Samples, classes: list[str]) -> None:
        """Say which classes have no box in training. Raises InputError where none has."""
        boxes = cast(Boxes, train.targets)
        learned = np.bincount(boxes.classes[~boxes.ignored], minlength=len(classes))
        if said := lacking(learned, classes, train.name):
            self.raw.notes.append(said)

    def _forms(self) -> dict[str, Form]:
        """How each split that has the column holds boxes. Raises InputError for one that does not."""
        found = {}
        for name, table in self.raw.tables.items():
            if self.column in table.column_names:
                form = form_of(table.features[self.column])
                if form is None:
                    raise InputError(
                        f"{self.config.source}: column '{self.column}' of {name} holds no lists of boxes "
                        f"('bbox') and their categories ('category'): {table.features[self.column]}."
                    )
                found[name] = form
        return found

    def _read(self, name: str) -> Cells:
        """The cells of a split, read once."""
        if name not in self._cells:
            table = self.raw.tables[name]
            form = cast(Form, form_of(table.features[self.column]))
            self._cells[name] = read_cells(table.data.column(self.column), form, name)
        return self._cells[name]

    def _with_area(self, boxes: Boxes, name: str) -> Boxes:
        """The boxes that have an area; says how many have none."""
        flat = (boxes.boxes[:, 2:] == boxes.boxes[:, :2]).any(axis=1)
        if not flat.any():
            return boxes
        rows, count = boxes.rows, int(flat.sum())
        what = "1 box of {} has" if count == 1 else f"{count} boxes of {{}} have"
        first = int(rows[flat][0])
        self.raw.notes.append(
            f"{what.format(name)} no width or no height: left out, first that of {name} row {first}"
        )
        return replace(
            boxes,
            offsets=_offsets(np.bincount(rows[~flat], minlength=len(boxes.labels))),
            boxes=boxes.boxes[~flat],
            classes=boxes.classes[~flat],
            ignored=boxes.ignored[~flat],
        )

    def _look_through(self, samples: Samples) -> None:
        """Check all boxes of a split against the sizes of their pictures, and cut them to these."""
        boxes, most = cast(Boxes, samples.targets), self.config.max_pixels
        counts = np.diff(boxes.offsets)
        wanted = (counts > 0) | (samples.labelled() & ~np.isnan(boxes.declared).all(axis=1))
        sizes = np.zeros((len(counts), 2))
        pictures = np.flatnonzero(wanted).tolist()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for index, size in zip(pictures, pool.map(lambda i: samples.size(i, most), pictures)):
                sizes[index] = size
        refuse_other_sizes(np.where(wanted[:, None], boxes.declared, np.nan), sizes, samples.where)
        rows = boxes.rows
        placed = Placed(
            samples.name,
            boxes.boxes,
            sizes[rows],
            self.config.box_format,
            lambda box: samples.where(int(rows[box])),
        )
        boxes.boxes[:], said = placed.inside()
        if said:
            self.raw.notes.append(said)


def _hash(*parts: np.ndarray) -> int:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(np.ascontiguousarray(part).tobytes())
    return int.from_bytes(sha.digest()[:8], "big")


class BoxColumns:
    """What losses read of a batch with boxes: beside ``boxes`` and ``classes``, which rows have them."""

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``labelled`` [B], and ``objects`` float32 [B], the number of boxes of each row."""
        import torch

        counts = torch.tensor([float(len(own)) for own in batch["boxes"]])
        return {"labelled": batch["y"] >= 0, "objects": counts.to(batch["y"].device)}

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """Raise UsageError: a mixed picture has the objects of two, each half there."""
        raise UsageError("pictures with boxes are not mixed.")
