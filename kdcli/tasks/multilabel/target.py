"""Several labels for each picture: a column of lists, or one column of yes and no for each label.

An answer is 1, 0, or NaN where nobody gave one; a picture without any answer is unlabelled. A list names what
is there, so it answers all labels; columns, and vectors of fixed length, may leave answers out (null).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.data.columns import named_column
from kdcli.data.targets import UNLABELLED, Targets, unlabelled
from kdcli.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection

NAMES = ("labels", "label", "classes", "categories", "tags", "targets", "target", "attributes")
_MOST = 100_000


@dataclass(frozen=True)
class Answers(Targets):
    """Which labels each picture has; ``labels`` is the rarest of them, by which splits are carved.

    Attributes:
        answers: [N, L] float32: 1, 0, or NaN where there is none.
    """

    answers: np.ndarray

    @property
    def hashes(self) -> tuple[np.ndarray, ...]:
        """One of each picture's answers."""
        rows = np.ascontiguousarray(np.nan_to_num(self.answers, nan=2.0).astype(np.uint8))
        return (np.array([_hash(row.tobytes()) for row in rows], np.uint64),)

    def take(self, keep: np.ndarray) -> Answers:
        """The answers selected by a mask or index array."""
        return replace(super().take(keep), answers=self.answers[keep])

    def hidden(self, rows: np.ndarray) -> Answers:
        """The same with all answers of some pictures hidden."""
        answers = self.answers.copy()
        answers[rows] = np.nan
        return replace(super().hidden(rows), answers=answers)

    def blank(self, count: int) -> Answers:
        """No answers, of ``count`` pictures."""
        answers = np.full((count, self.answers.shape[1]), np.nan, np.float32)
        return Answers(np.full(count, UNLABELLED, np.int64), answers)

    def columns(self, indices: np.ndarray, moved: Sequence[Any]) -> dict[str, Any]:
        """``answers`` float32 [B, L]."""
        import torch

        return {"answers": torch.from_numpy(self.answers[indices])}


def strata(answers: np.ndarray) -> np.ndarray:
    """[N] the rarest label that a picture has, L where it has none, -1 where nothing is answered."""
    counts = np.nansum(answers, axis=0)
    rarity = np.where(answers == 1, counts, np.inf)
    found = np.where((answers == 1).any(axis=1), rarity.argmin(axis=1), answers.shape[1])
    return np.where(np.isnan(answers).all(axis=1), UNLABELLED, found).astype(np.int64)


class AnswerReader:
    """Finds the labels of a source and reads which of them each picture has."""

    task = "multi-label"

    def __init__(self, raw: Raw, config: DataSection) -> None:
        first = next(iter(raw.tables.values()))
        self.config, self.columns = config, tuple(config.label_columns or ())
        if not self.columns:
            self.columns = (_list_column(first, config),)
        for column in self.columns:
            named_column(first, column, config)
        self.names = list(self.columns) if config.label_columns else _names(raw, self.columns[0], config)
        if len(self.names) < 1:
            raise InputError(f"{config.source}: no picture has a label in '{self.columns[0]}'.")

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Whether columns of yes and no are named, or the column of labels holds lists."""
        return bool(config.label_columns) or bool(_lists(table, config))

    def targets(self, name: str, table: Any) -> Targets:
        """Answers of a split; none of a split without these columns."""
        if any(column not in table.column_names for column in self.columns):
            return unlabelled(len(table))
        if self.config.label_columns:
            cells = [table[column][:] for column in self.columns]
            rows: Any = zip(*cells)
            answers = [[self._answer(v, name, i) for v in row] for i, row in enumerate(rows)]
        else:
            answers = self._of_lists(name, table, self.columns[0])
        found = np.array(answers, np.float32).reshape(len(table), len(self.names))
        return Answers(strata(found), found)

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str]:
        """Those of the whole source."""
        return self.names

    def check(self, train: Samples, classes: list[str]) -> None:
        """Raise InputError for a label that no training picture has, or that all have."""
        targets = train.targets
        if not isinstance(targets, Answers) or not train.labelled().any():
            return
        for number, name in enumerate(classes):
            known = targets.answers[:, number]
            for answer, what in ((1, "has no"), (0, "is on every")):
                if not (known == answer).any():
                    raise InputError(
                        f"label '{name}' {what} labelled picture in train: there is nothing to learn. Remove "
                        "it, or add pictures."
                    )

    def _of_lists(self, name: str, table: Any, column: str) -> list[list[float]]:
        kind = table.features[column]
        number = {label: i for i, label in enumerate(self.names)}
        vector, text = _is_vector(kind), _is_text(kind)
        found = []
        for row, cell in enumerate(table[column][:]):
            if cell is None:
                found.append([np.nan] * len(self.names))
            elif vector:
                found.append([self._answer(value, name, row) for value in cell])
            else:
                places = [number.get(v, -1) if text else int(v) for v in cell if v is not None]
                if odd := [p for p in places if not 0 <= p < len(self.names)]:
                    raise InputError(
                        f"{name} row {row}: label {odd[0]} is outside the {len(self.names)} labels."
                    )
                found.append([float(i in places) for i in range(len(self.names))])
        return found

    def _answer(self, value: Any, name: str, row: int) -> float:
        if value is None:
            return np.nan
        if isinstance(value, str) or float(value) not in (0.0, 1.0):
            raise InputError(
                f"{name} row {row}: {value!r} where a label is answered by 1 or 0 (or null: not known)."
            )
        return float(value)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big")


def _lists(table: Any, config: DataSection) -> list[str]:
    """Columns of lists among those that may hold labels."""
    import datasets

    wanted = [config.label_column] if config.label_column else [n for n in NAMES if n in table.column_names]
    kinds = (datasets.List, datasets.LargeList)
    return [name for name in wanted if isinstance(table.features.get(name), kinds)]


def _list_column(table: Any, config: DataSection) -> str:
    found = _lists(table, config)
    if not found:
        raise InputError(
            f"{config.source} has no column of lists of labels among {', '.join(table.column_names)}. Name "
            "it: --set data.label_column=…, or the columns of single labels: --set 'data.label_columns=[…]'"
        )
    return found[0]


def _is_vector(kind: Any) -> bool:
    """Whether lists are answers, one for each label: all of one length, and numbers."""
    import datasets

    plain = isinstance(kind.feature, datasets.Value) and not _is_text(kind)
    return plain and getattr(kind, "length", -1) > 0


def _is_text(kind: Any) -> bool:
    return getattr(kind.feature, "dtype", "") in ("string", "large_string", "string_view")


def _names(raw: Raw, column: str, config: DataSection) -> list[str]:
    """Names of the labels by number."""
    import datasets

    tables = [table for table in raw.tables.values() if column in table.column_names]
    kind = tables[0].features[column]
    if any(table.features[column] != kind for table in tables):
        raise InputError(f"{config.source}: column '{column}' differs between the splits: save them alike.")
    if isinstance(kind.feature, datasets.ClassLabel):
        return list(kind.feature.names)
    if not isinstance(kind.feature, datasets.Value):
        raise InputError(f"{config.source}: column '{column}' holds {kind}; labels are names or numbers.")
    cells = [cell for table in tables for cell in table[column][:] if cell is not None]
    if _is_text(kind):
        return sorted({label for cell in cells for label in cell if label is not None})
    count = kind.length if _is_vector(kind) else 1 + max((int(v) for c in cells for v in c), default=-1)
    if count > _MOST:
        raise InputError(f"{config.source}: column '{column}' holds {count - 1}; labels count from 0.")
    if config.class_names and len(config.class_names) != count:
        raise InputError(
            f"data.class_names gives {len(config.class_names)} names, and column '{column}' has {count} "
            "labels."
        )
    return list(config.class_names or map(str, range(count)))


@dataclass(frozen=True)
class AnswerColumns:
    """What losses read of a batch of pictures with several labels.

    Attributes:
        weights: [L] factors of the answer yes, or None.
    """

    weights: Tensor | None = None

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``target`` [B, L], ``labelled`` [B], and ``label_weight`` [B, L] where labels are weighed."""
        return self._columns(batch["answers"], batch["y"] >= 0)

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """Answers averaged, NaN where one of the two is; a row is labelled when both pictures are."""
        from kdcli.data.mixing import averaged, both_labelled

        return self._columns(averaged(batch["answers"], share), both_labelled(batch["y"] >= 0))

    def _columns(self, target: Tensor, labelled: Tensor) -> dict[str, Any]:
        columns = {"target": target, "labelled": labelled}
        if self.weights is not None:
            columns["label_weight"] = self.weights.to(target).expand_as(target)
        return columns
