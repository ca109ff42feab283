"""Pictures whose labels, if they have any, are read to measure by and never learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.data.targets import Targets
from kdcli.errors import InputError
from kdcli.tasks.classification.target import LabelReader

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection


@dataclass(frozen=True)
class Seen(Targets):
    """Class numbers that only measure: where they are too few to carve by, nothing is carved."""

    def refuse_carving(self, held: np.ndarray, fraction: float, name: str) -> None:
        """Never: without validation pictures nothing is measured on the way."""


class UnreadReader(LabelReader):
    """Takes labels of one class a picture where there are any; others are left unread, which is said."""

    task = "representation"

    def __init__(self, raw: Raw, config: DataSection) -> None:
        try:
            super().__init__(raw, config)
        except InputError as error:
            if config.label_column:
                raise
            raw.notes.append(
                f"{config.source}: its labels are not read, not even to measure by: {str(error).rstrip('.')}"
            )
            self.names, self.column, self.columns = None, None, ()

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Never: who wants it says so, as methods do that learn from pictures alone."""
        return False

    def targets(self, name: str, table: Any) -> Targets:
        """Class numbers of a split."""
        return Seen(super().targets(name, table).labels)

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str] | None:
        """Those of the whole source; None where they tell nothing apart."""
        return self.names if self.names is not None and len(self.names) > 1 else None

    def check(self, train: Samples, classes: list[str]) -> None:
        """Nothing: a class without a picture is no fault where none is learned."""


class Unread:
    """What losses read of a batch: nothing but which rows have a label."""

    def plain(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``labelled`` [B]."""
        return {"labelled": batch["y"] >= 0}

    def mixed(self, batch: Mapping[str, Any], share: float) -> dict[str, Any]:
        """The same: pictures are mixed, and nothing else is there to be."""
        return self.plain(batch)
