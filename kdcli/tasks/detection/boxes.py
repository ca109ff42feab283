"""Boxes beside the pictures that they are drawn on: which of them cannot be, and where all look wrong.

Boxes are corners x1, y1, x2, y2 in pixels here, whatever they are stored as.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcli.errors import InputError
from kdcli.tasks.detection.cells import shown

_ROUNDING = 1e-3  # pixels by which sums of rounded numbers miss the edge of a picture
_FAR = 0.1  # of its side: a box that leaves its picture by more is no careless one
_MANY, _NEARLY = 0.1, 0.95  # of the boxes
_FEW = 20  # pictures of a stratum: of fewer, a carving would hold out none or one
_ORDER = {"xywh": "x, y, width, height", "xyxy": "x1, y1, x2, y2"}


@dataclass(frozen=True)
class Placed:
    """Boxes of one split, each beside the size of its picture.

    Attributes:
        split: its name.
        boxes: [M, 4] float64 corners.
        sizes: [M, 2] width and height of the picture of each.
        stored: ``xywh`` or ``xyxy``, what they were read as.
        where: the split and row of a box, for messages.
    """

    split: str
    boxes: np.ndarray
    sizes: np.ndarray
    stored: str
    where: Callable[[int], str]

    def inside(self) -> tuple[np.ndarray, str]:
        """The boxes [M, 4], cut to their pictures, and what is to be said of that.

        Raises:
            InputError: boxes in another convention, one that is inverted or lies outside its picture.
        """
        self._refuse_convention()
        self._refuse_fractions()
        origin, end = self.boxes[:, :2], self.boxes[:, 2:]
        wrong: np.ndarray = np.any(end < origin, axis=1)
        if wrong.any():
            what = "x2 < x1 or y2 < y1" if self.stored == "xyxy" else "a negative width or height"
            raise self._fault(wrong, f"has {what}. Mend or remove it.")
        wrong = np.any((origin >= self.sizes) | (end <= 0), axis=1)
        if wrong.any():
            raise self._fault(wrong, f"lies outside its picture of {self._size(wrong)}. Mend or remove it.")
        cut = np.clip(self.boxes, 0, np.tile(self.sizes, 2))
        beyond = np.flatnonzero(self._overhang().max(axis=1, initial=0) > _ROUNDING)
        if not len(beyond):
            return cut, ""
        what = (
            "1 box reaches beyond its picture and is cut to it"
            if len(beyond) == 1
            else f"{len(beyond)} boxes reach beyond their pictures and are cut to them"
        )
        return cut, f"{self.split}: {what}, first that of {self.where(int(beyond[0]))}"

    def _overhang(self) -> np.ndarray:
        """[M, 2] pixels by which each box leaves its picture, across and down."""
        beyond = np.stack([-self.boxes[:, :2], self.boxes[:, 2:] - self.sizes, np.zeros_like(self.sizes)])
        return beyond.max(axis=0, initial=0)

    def _refuse_convention(self) -> None:
        """Raise InputError where some boxes cannot be what they were read as, and all can be the other.

        Or where many cannot, and nearly all can: a few boxes are careless in any convention.
        """
        origin, end = self.boxes[:, :2], self.boxes[:, 2:]
        if self.stored == "xywh":
            wrong = (self._overhang() > _FAR * np.abs(end - origin)).any(axis=1)
            other, name, shape = end - origin, "xyxy", "corners"
        else:
            wrong = (end < origin).any(axis=1)
            other, name, shape = origin + end, "xywh", "a corner with width and height"
        fits = ((origin >= 0) & (other >= origin) & (other <= self.sizes + _ROUNDING)).all(axis=1)
        few = wrong.any() and fits.all()
        if few or (len(wrong) and wrong.mean() > _MANY and fits.mean() > _NEARLY):
            fault = f"leaves its picture of {self._size(wrong)}" if name == "xyxy" else "is inverted"
            raise self._fault(
                wrong,
                f"{fault} if it is {_ORDER[self.stored]}, and {'all' if few else 'nearly all'} boxes of "
                f"{self.split} fit theirs as {shape} ({_ORDER[name]}). If that is what they are: --set "
                f"data.box_format={name}",
            )

    def _refuse_fractions(self) -> None:
        """Raise InputError for boxes in fractions of their pictures."""
        stored = self._stored()
        small = len(stored) and stored.min() >= 0 and stored.max() <= 1 and self.sizes.min() > 2
        if small:
            raise self._fault(
                np.ones(len(stored), bool),
                f"and all others of {self.split} are numbers from 0 to 1: boxes are wanted in pixels, not in "
                "fractions of the picture. Multiply them by its width and height.",
            )

    def _stored(self) -> np.ndarray:
        """[M, 4] the numbers as they were read."""
        if self.stored == "xyxy":
            return self.boxes
        return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)

    def _size(self, wrong: np.ndarray) -> str:
        """The size of the picture of the first of some boxes."""
        width, height = self.sizes[int(np.flatnonzero(wrong)[0])].tolist()
        return f"{width:g} x {height:g} pixels"

    def _fault(self, wrong: np.ndarray, text: str) -> InputError:
        """What is wrong with the first of these boxes."""
        first = int(np.flatnonzero(wrong)[0])
        return InputError(f"{self.where(first)}: its box {shown(self._stored()[first])} {text}")


def refuse_other_sizes(declared: np.ndarray, sizes: np.ndarray, where: Callable[[int], str]) -> None:
    """Raise InputError for a picture of another size than its data say.

    Args:
        declared: [N, 2] width and height, NaN where nothing is said.
        sizes: [N, 2] of the upright pictures.
        where: split and row of a picture, for messages.
    """
    other = np.flatnonzero((~np.isnan(declared) & (declared != sizes)).any(axis=1))
    if not len(other):
        return
    said, (width, height) = declared[other[0]].tolist(), sizes[other[0]].tolist()
    what = (
        "If its EXIF orientation turns it: boxes are wanted in pixels of the upright picture, as viewers "
        "show it. Turn them, or save the picture without an orientation."
        if said == [height, width]
        else "Boxes are wanted in pixels of the picture that is stored here: scale them with it and mend "
        "these columns, or leave the columns out if they mean something else."
    )
    raise InputError(
        f"{where(int(other[0]))}: the columns width and height say "
        f"{' x '.join('?' if np.isnan(side) else f'{side:g}' for side in said)}, and its picture has "
        f"{width:g} x {height:g} pixels. {what}"
    )


def refuse_nothing(samples: Any, name: str, *, trained: bool) -> None:
    """Raise InputError for a split to measure by in which no object counts.

    Args:
        samples: with their boxes.
        name: of the split.
        trained: whether it is trained on: what is said of that is :func:`lacking`.
    """
    boxes = samples.targets
    if trained or not samples.labelled().any() or not boxes.ignored.all():
        return
    ignored = f" ({len(boxes.ignored)} are marked as a crowd or difficult)" if len(boxes.ignored) else ""
    raise InputError(
        f"none of the {len(samples):,} pictures of {name} has an object that counts{ignored}: precision and "
        "recall cannot be measured. Give a split with objects (data.validation=…)."
    )


def strata(labels: np.ndarray, rows: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The rarest class that each picture has a box of, so that of rare classes too a part is held out.

    Args:
        labels: [N] -1 for unlabelled pictures.
        rows: [M] the picture of each box.
        classes: [M] of them.

    Returns:
        [N] int64: -1 for unlabelled, 0 without a box, 2 and the number of the class; 1 where the stratum of
        that class has fewer than twenty pictures: these are one together, of which a carving takes any.
    """
    many = int(classes.max(initial=0)) + 1
    pairs = np.stack(np.divmod(np.unique(rows * many + classes), many), axis=1)
    counts = np.bincount(pairs[:, 1])  # pictures of each class
    order = np.lexsort((pairs[:, 1], counts[pairs[:, 1]], pairs[:, 0]))
    pictures, first = np.unique(pairs[order, 0], return_index=True)
    rarest = pairs[order[first], 1]
    few = np.bincount(rarest, minlength=len(counts)) < _FEW
    found = np.where(labels < 0, labels, 0).astype(np.int64)
    found[pictures] = np.where(few[rarest], 1, 2 + rarest)
    return found


def lacking(counts: np.ndarray, names: list[str], where: str) -> str:
    """What is to be said of classes without a box; empty for none.

    Args:
        counts: [C] boxes of each class.
        names: of the classes.
        where: of which pictures.

    Raises:
        InputError: there is no box at all.
    """
    without = [name for name, count in zip(names, counts.tolist()) if not count]
    if len(without) == len(names):
        raise InputError(
            f"no picture of {where} has a box to learn from. Check the column of the boxes, or give pictures "
            "with objects."
        )
    if not without:
        return ""
    listed = ", ".join(f"'{name}'" for name in without[:3]) + (", …" if len(without) > 3 else "")
    return (
        f"no box of {where} is of {len(without)} of the {len(names)} classes ({listed}): they cannot be "
        "learned"
    )
