"""Names of the classes of boxes, and the numbers that categories have among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdcli.data import splits as splits_of
from kdcli.data.labels import note_of_first, numbers_as_names
from kdcli.errors import InputError, nearest
from kdcli.tasks.detection.cells import Cells, Form

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.sections import DataSection

_MOST = 100_000  # classes: a larger number is no class number


@dataclass(frozen=True)
class Names:
    """Names of the classes of a source.

    Attributes:
        names: by number.
        first: the number, as it is stored, of the first of them.
        where: what they are those of, for messages.
        text: whether categories are stored as text, as numbers, or (None) as either.
        given: whether the column's type or the options name them, not the boxes.
    """

    names: list[str]
    first: int
    where: str
    text: bool | None
    given: bool = False

    @classmethod
    def of(
        cls,
        forms: Mapping[str, Form],
        read: Callable[[str], Cells],
        column: str,
        raw: Raw,
        config: DataSection,
    ) -> Names:
        """Those of a source: of a ``ClassLabel``, of the options, or what the boxes of train say.

        Without a training split, what those of all splits say.

        Args:
            forms: of the boxes, by split.
            read: gives the boxes of a split.
            column: that holds them.
            raw: the source; is told where numbers begin at 1.
            config: its options.

        Raises:
            InputError: no boxes, categories of unlike kinds, or too large a number.
        """
        source = config.source or ""
        if named := _class_label(forms, column, source):
            if config.class_names and config.class_names != named:
                raise InputError(
                    f"{source}: column '{column}' names its {len(named)} classes itself ({_few(named)}); "
                    "data.class_names gives others. Leave it out."
                )
            return cls(named, 0, f"column '{column}'", False, given=True)
        if config.class_names:
            return cls(list(config.class_names), 0, "data.class_names", None, given=True)
        train = splits_of.find(raw.tables, config.train, source, "data.train")
        asked = [train] if train in forms else [*forms]
        own = [cells for name in asked if len((cells := read(str(name))).rows)]
        where = str(train) if train in forms else "the data"
        if not own:
            raise InputError(f"{source}: no picture of {where} has a box in column '{column}'.")
        if all(cells.names is not None for cells in own):
            return cls(sorted({name for cells in own for name in cells.names or ()}), 0, where, True)
        if any(cells.names is not None for cells in own):
            raise _unlike(source, column)
        known = np.unique(np.concatenate([cells.categories for cells in own]))
        if odd := [number for number in known[[0, -1]].tolist() if not 0 <= number <= _MOST]:
            raise InputError(
                f"{source}: a box in column '{column}' is of category {odd[0]}; classes are numbered from 0."
            )
        names = numbers_as_names(known.tolist())
        raw.notes.extend(note_of_first(column, names))
        return cls(names, int(names[0]), where, False)

    def numbers(self, cells: Cells, split: str) -> np.ndarray:
        """[M] int64 class numbers of the boxes of a split.

        Raises:
            InputError: a category that is none of the classes.
        """
        text = cells.names is not None
        if len(cells.rows) and self.text not in (None, text):
            kinds = ("numbers", "text")
            raise InputError(
                f"{split}: categories are {kinds[text]}, and {kinds[not text]} in {self.where}: save them "
                "alike."
            )
        if cells.names is not None:
            place = {name: number for number, name in enumerate(self.names)}
            known = np.array([place.get(name, -1) for name in cells.names], np.int64)
            found = known[cells.categories]
        else:
            found = cells.categories - self.first
        outside = np.flatnonzero((found < 0) | (found >= len(self.names)))
        if len(outside):
            first = int(outside[0])
            raise InputError(f"{split} row {cells.rows[first]}: {self._unknown(cells, first)}")
        return found

    def _unknown(self, cells: Cells, box: int) -> str:
        """What to say of a box that is of no class."""
        category, count = int(cells.categories[box]), len(self.names)
        mend = "Correct it." if self.given else "Name all of them with --set data.class_names=[…]."
        if cells.names is not None:
            name = cells.names[category]
            near = nearest(name, self.names)
            return f"a box is of '{name}', none of the {count} classes of {self.where}.{near} {mend}"
        last = self.first + count - 1
        return (
            f"a box is of category {category}, outside the {count} classes of {self.where}, {self.first} to "
            f"{last}. {mend}"
        )


def _class_label(forms: Mapping[str, Form], column: str, source: str) -> list[str]:
    """Names that the type of categories has, of all splits alike; empty where it is no ``ClassLabel``."""
    import datasets

    kinds = {name: form.kind for name, form in forms.items()}
    labels = {n: list(k.names) for n, k in kinds.items() if isinstance(k, datasets.ClassLabel)}
    if not labels:
        return []
    plain = [n for n, kind in kinds.items() if n not in labels and getattr(kind, "dtype", "") != "null"]
    first = next(iter(labels.values()))
    if plain or any(names != first for names in labels.values()):
        raise _unlike(source, column)
    return first


def _unlike(source: str, column: str) -> InputError:
    return InputError(
        f"{source}: categories in column '{column}' differ between the splits: save them alike."
    )


def _few(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (", …" if len(names) > 3 else "")
