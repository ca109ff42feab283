"""The two halves of a test by search: what asks and what is searched, laid together as one split."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcli.data import splits as splits_of
from kdcli.errors import InputError

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.sections import DataSection

BOTH, QUERY, GALLERY = 0, 1, 2
"""What a picture does in a search: it asks and is searched, it asks, it is searched."""


def lay_together(raw: Raw, config: DataSection) -> dict[str, np.ndarray]:
    """Make one split of each query and its gallery, in this order.

    Beside a query the test split is its gallery where there is no other (Market-1501).

    Args:
        raw: the source, whose tables are changed.
        config: names splits.

    Returns:
        ``QUERY`` or ``GALLERY`` of each picture [N] int8 of a split that was made, by its name.

    Raises:
        InputError: one without the other, two of a kind, a test split beside both, or unlike columns.
    """
    roles = {}
    for split, asked in (("validation", config.validation or "validation"), ("test", config.test)):
        halves = _halves(raw.tables, split, config)
        if not halves:
            continue
        source = config.source or ""
        others = [name for name in raw.tables if splits_of.side(name) is None]
        whole = splits_of.find(others, asked, source, f"data.{split}")
        query, gallery = halves.get("query"), halves.get("gallery") or whole
        if query is None or gallery is None:
            has, lacks = ("query", "gallery") if query else ("gallery", "query")
            raise InputError(
                f"{source} has a split '{query or gallery}' and no {lacks} beside it; it has: "
                f"{', '.join(raw.tables)}. Give the {lacks} too, or take the {has} away: pictures of a split "
                f"called {split} are searched for among themselves."
            )
        if whole is not None and whole != gallery:
            raise InputError(
                f"{source} has the splits {query} and {gallery}, and {whole} beside them: which are for "
                f"{split}? Rename one, or move it away."
            )
        parts = [raw.tables[query], raw.tables[gallery]]
        rest = {name: table for name, table in raw.tables.items() if name not in (query, gallery)}
        name = whole or split
        raw.tables = {**rest, name: _joined(parts, f"{source}: {query} and {gallery}")}
        roles[name] = np.repeat(np.array([QUERY, GALLERY], np.int8), [len(part) for part in parts])
    return roles


def _halves(names: Collection[str], split: str, config: DataSection) -> dict[str, str]:
    """The query and the gallery of a split. Raises InputError for two of a kind."""
    halves: dict[str, str] = {}
    for name in names:
        part, half = splits_of.side(name) or ("", "")
        if part == split and halves.setdefault(half, name) != name:
            raise InputError(
                f"{config.source}: {halves[half]} and {name} both name the {half} of the {split} split. "
                "Rename one, or move it away."
            )
    return halves


def _joined(parts: list[Any], what: str) -> Any:
    """Tables end to end."""
    import datasets

    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:
        first, second = (part.features for part in parts)
        unlike = [f"'{name}'" for name, kind in first.items() if second.get(name, kind) != kind]
        raise InputError(f"{what} have unlike columns: {', '.join(unlike)}. Save them alike.") from error
