"""Classes that texts tell apart: read as classification reads them, where the user asks for the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdcli.tasks.classification.target import LabelReader

if TYPE_CHECKING:
    from kdcli.sections import DataSection


class TextReader(LabelReader):
    """One class for each picture."""

    task = "zeroshot"

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Never: labels look like classification's, and the user says who is to be asked."""
        return False
