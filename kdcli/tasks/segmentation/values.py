"""What the values of masks stand for: class numbers and void, or, of 0 and 255 alone, two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcli.errors import InputError

VOID = 255
VALUES = 256  # of 8 bits


@dataclass(frozen=True)
class Values:
    """What the values of a source's masks stand for.

    Attributes:
        void: the value of pixels of no class.
        two: whether 0 and 255 are the two classes, and no pixel is void.
    """

    void: int
    two: bool = False

    def classes(self, mask: np.ndarray, where: str) -> np.ndarray:
        """Class numbers uint8 [H, W] of a mask's values, ``VOID`` where void.

        Raises:
            InputError: a value that can be neither.
        """
        if self.two:
            found = mask == VOID
            if not (found | (mask == 0)).all():
                value = int(mask[~found & (mask != 0)][0])
                raise InputError(
                    f"{where}: its mask has the value {value}, and those of train have 0 and 255 only, which "
                    "are two classes. Give all masks class numbers from 0 on."
                )
            return found.astype(np.uint8)
        if self.void == VOID:
            return mask
        if (mask == VOID).any():
            raise InputError(
                f"{where}: its mask has the value {VOID}, which is no class number (they end at {VOID - 1}) "
                f"and not data.void={self.void}. Without data.void, {VOID} is void; where all masks have 0 "
                f"and {VOID} only, these are read as two classes."
            )
        return np.where(mask == self.void, np.uint8(VOID), mask)

    def class_of(self, present: np.ndarray) -> np.ndarray:
        """[..., VALUES] which classes masks have, of [..., VALUES] which values they have."""
        found = present.copy()
        if self.two:
            found[..., 1], found[..., VOID] = present[..., VOID], False
            return found
        found[..., VOID] = found[..., self.void] = False
        return found

    def names(self, highest: int) -> list[str]:
        """Names of the classes where the user gives none: their values."""
        return ["0", str(VOID)] if self.two else [str(i) for i in range(highest + 1)]


class Colours:
    """Colours of values in the palettes that were seen: one value with two colours would be two classes."""

    def __init__(self, values: Values) -> None:
        self._values = values
        self._seen: dict[int, tuple[tuple[int, ...], str]] = {}

    def check(self, palette: np.ndarray, present: np.ndarray, where: str) -> None:
        """Compare the palette [K, 3] of a mask, which has the values ``present`` [VALUES], with the others'.

        Raises:
            InputError: a value had another colour before.
        """
        void = None if self._values.two else self._values.void
        for value in np.flatnonzero(present[: len(palette)]).tolist():
            colour = tuple(palette[value].tolist())
            known, first = self._seen.setdefault(value, (colour, where))
            if known != colour and value != void:
                raise InputError(
                    f"{where}: the palette of its mask gives {value} the colour {colour}, that of {first} "
                    f"{known}: the values are no class numbers. Give each colour a class number, and save "
                    "the masks in mode L."
                )


def lacking(present: np.ndarray, names: Sequence[str], where: str) -> str:
    """What is to be said of classes without a pixel; empty for none.

    Args:
        present: [C] which classes have pixels.
        names: of the classes.
        where: of which masks.

    Raises:
        InputError: fewer than two classes have.
    """
    without = [name for name, there in zip(names, present) if not there]
    if not without:
        return ""
    shown = ", ".join(f"'{name}'" for name in without[:3]) + (", …" if len(without) > 3 else "")
    if len(names) - len(without) < 2:
        raise InputError(
            f"no mask of {where} has a pixel of class {shown}: at most one class is left, and two are "
            f"needed. Check the values: they are class numbers from 0 on, and {VOID}, or data.void=…, is no "
            "class."
        )
    return (
        f"no mask of {where} has a pixel of {len(without)} of the {len(names)} classes ({shown}): they "
        "cannot be learned"
    )
