"""An identity for each picture, perhaps a camera, and whether it asks or is searched.

Identities come from a column, from class folders, or from file names as Market-1501 has them (Zheng et al.
2015): ``0002_c1s1_000451_03.jpg`` shows identity 0002 to camera 1. There -1 marks junk, neither right nor
wrong to find, which is unlabelled here; and 0000 marks distractors, wrong for everyone, which are an identity
of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kdcli.data import splits as splits_of
from kdcli.data.targets import UNLABELLED, Targets
from kdcli.errors import InputError
from kdcli.tasks.retrieval.columns import (
    CLASS_NAMES,
    FILE_NAME,
    JUNK,
    NAMES,
    Texts,
    camera_column,
    files,
    identity_column,
    in_order,
    named,
    numbered,
    texts,
)
from kdcli.tasks.retrieval.halves import BOTH, GALLERY, QUERY, lay_together

if TYPE_CHECKING:
    from kdcli.data.loading import Raw
    from kdcli.data.samples import Samples
    from kdcli.sections import DataSection

_DISTRACTOR = "0000"
_KIND = "0002_c1s1_000451_03.jpg (identity 0002, camera 1)"
_MEANING = {
    JUNK: "junk: they count as unlabelled, neither right nor wrong",
    _DISTRACTOR: "which Market-1501 has for distractors: here it is an identity like any other",
}


@dataclass(frozen=True)
class Identities(Targets):
    """The identity of each picture; ``labels`` is its number over the whole source.

    Attributes:
        cameras: [N] int64, -1 where it is not known.
        roles: [N] int8: ``BOTH``, ``QUERY`` or ``GALLERY``.
    """

    cameras: np.ndarray
    roles: np.ndarray

    @property
    def hashes(self) -> tuple[np.ndarray, ...]:
        """Cameras where any is known, roles where any is not ``BOTH``: without, that of labels alone."""
        cameras = (self.cameras,) if (self.cameras != UNLABELLED).any() else ()
        roles = (self.roles,) if (self.roles != BOTH).any() else ()
        return (*cameras, *roles)

    @property
    def strata(self) -> np.ndarray:
        """[N] int64 0, -1 for unlabelled: whole identities are held out, of all of them alike."""
        return np.where(self.labels == UNLABELLED, UNLABELLED, 0)

    @property
    def together(self) -> np.ndarray:
        """[N] int64 identities: those of validation are none that were trained on, as in a test."""
        return self.labels

    def refuse_carving(self, held: np.ndarray, fraction: float, name: str) -> None:
        """Raise InputError unless two identities or more were held out that can be searched for.

        Args:
            held: [N] mask of what was held out of these.
            fraction: that was to be held out.
            name: of the split.
        """
        part = self.take(held)
        found = len(np.unique(part.labels[part.asks & ~part.unmatched()]))
        if found < 2:
            known = self.labels[self.labels != UNLABELLED]
            cameras = " from two cameras" if (self.cameras != UNLABELLED).any() else ""
            raise InputError(
                f"{name}: {fraction:.0%} of {len(known)} pictures of {len(np.unique(known))} identities, "
                f"whole identities held out for validation, hold {found} with two pictures{cameras}, and two "
                "such are wanted. Give a validation split, or raise --set data.validation_fraction=…"
            )

    def take(self, keep: np.ndarray) -> Identities:
        """The identities selected by a mask or index array."""
        return replace(super().take(keep), cameras=self.cameras[keep], roles=self.roles[keep])

    def blank(self, count: int) -> Identities:
        """No identities, of ``count`` pictures."""
        return _blank(count)

    def unmatched(self) -> np.ndarray:
        """[N] mask of the pictures that ask and for which there is nothing to find.

        To be found is another picture of the identity that is searched; where the camera of the one that
        asks is known, it has to be of another (Zheng et al. 2015).
        """
        if not len(self.labels):
            return np.zeros(0, bool)
        searched = ((self.roles != QUERY) & (self.labels != UNLABELLED)).astype(np.int64)
        identity = self.labels + 1
        camera = np.unique(self.cameras, return_inverse=True)[1]
        pair = np.unique(identity * (camera.max() + 1) + camera, return_inverse=True)[1]
        per_identity = np.bincount(identity, weights=searched)[identity]
        same = np.bincount(pair, weights=searched)[pair]
        removed = np.where(self.cameras == UNLABELLED, searched, same)
        return self.asks & (per_identity - removed <= 0)

    @property
    def asks(self) -> np.ndarray:
        """[N] mask of the pictures that ask and have an identity."""
        return (self.roles != GALLERY) & (self.labels != UNLABELLED)


def _blank(count: int) -> Identities:
    unknown = np.full(count, UNLABELLED, np.int64)
    return Identities(unknown, unknown.copy(), np.full(count, BOTH, np.int8))


class IdentityReader:
    """Finds the identities of a source and its cameras, and lays query and gallery together.

    Raises:
        InputError: a query without a gallery or the reverse, no identities, or a picture whose file's name
            says none where they are read from names.
    """

    task = "retrieval"

    def __init__(self, raw: Raw, config: DataSection) -> None:
        self.raw, self.config = raw, config
        roles = lay_together(raw, config)
        self.column, self.camera = identity_column(raw, config), camera_column(raw, config)
        self.columns = tuple(name for name in (self.column, self.camera) if name)
        identities = {name: self._identities(name) for name in raw.tables}
        cameras = numbered(self._cameras())
        self.names = in_order({v for own in identities.values() for v in own if v not in (None, JUNK)})
        number: dict[str | None, int] = {name: i for i, name in enumerate(self.names)}
        self._junk = {name: np.array([v == JUNK for v in own], bool) for name, own in identities.items()}
        self._targets = {
            name: Identities(
                np.array([number.get(v, UNLABELLED) for v in own], np.int64),
                cameras[name],
                roles.get(name, np.full(len(own), BOTH, np.int8)),
            )
            for name, own in identities.items()
        }

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        """Whether a column is named for identities, and none beside it for classes."""
        import datasets

        found = named(table, NAMES)
        if config.label_column:
            return config.label_column in NAMES and config.label_column in table.column_names
        others = {name: kind for name, kind in table.features.items() if name != found}
        classes = any(n in CLASS_NAMES or isinstance(k, datasets.ClassLabel) for n, k in others.items())
        return found is not None and not classes

    def targets(self, name: str, table: Any) -> Targets:
        """Identities, cameras and roles of a split."""
        return self._targets[name]

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str]:
        """Names of all identities of the source; says what of the splits in use no search can count."""
        source, held = self.config.source, splits_of.held_out(splits, self.config)
        for name, samples in splits.items():
            own = cast(Identities, samples.targets)
            searched = name in held or bool((own.roles == QUERY).any())
            what = f"{'queries' if searched else 'pictures'} of {name}"
            self._say(int(self._junk[name][samples.rows].sum()), len(samples), f"pictures of {name}", JUNK)
            if self.column is None and _DISTRACTOR in self.names:
                distractors = own.asks & (own.labels == self.names.index(_DISTRACTOR))
                self._say(int(distractors.sum()), int(own.asks.sum()), what, _DISTRACTOR)
            if searched and (count := int(own.unmatched().sum())):
                cameras = " from another camera" if (own.cameras != UNLABELLED).any() else ""
                if count == int(own.asks.sum()):
                    raise InputError(
                        f"{source}: none of the {count} {what} has a match{cameras} to be found: there is "
                        "nothing to measure. Add pictures of their identities, or name the columns."
                    )
                self.raw.notes.append(
                    f"{source}: {count} of {int(own.asks.sum())} {what} have no match{cameras} to be found"
                )
        return self.names

    def check(self, train: Samples, classes: list[str]) -> None:
        """Say which identities have nothing to be drawn to.

        Raises:
            InputError: fewer than two identities, or none of two pictures: triplets cannot be made of them.
        """
        source, counts = self.config.source, np.bincount(train.labels[train.labelled()])
        found, single = int((counts > 0).sum()), int((counts == 1).sum())
        remedy = "Add pictures, or name the column of the identities: --set data.label_column=…"
        if found < 2:
            raise InputError(
                f"{source}: the {int(counts.sum())} pictures of train with an identity show {found}, and two "
                f"are wanted to tell apart. {remedy}"
            )
        if single == found:
            raise InputError(
                f"{source}: each of the {found} identities of train has one picture only, and nothing is "
                f"learned of what makes two pictures alike. {remedy}"
            )
        if single:
            self.raw.notes.append(
                f"{source}: {single} of {found} identities of train have one picture, and so no other to be "
                "drawn to"
            )

    def _say(self, count: int, total: int, what: str, identity: str) -> None:
        """Note pictures of an identity that Market-1501 gives a meaning of its own."""
        if count:
            self.raw.notes.append(
                f"{self.config.source}: {count} of {total} {what} have the identity {identity}, "
                f"{_MEANING[identity]}"
            )

    def _identities(self, name: str) -> Texts:
        """Names of the identities of a split, by row."""
        table = self.raw.tables[name]
        if self.column is not None:
            return texts(table, self.column, name)
        found: Texts = []
        for row, file in enumerate(files(table, self.config, self.columns)):
            if (match := FILE_NAME.match(file)) is None:
                raise InputError(
                    f"{self.config.source}: no column of identities ({', '.join(NAMES)}, label) among "
                    f"{', '.join(table.column_names)}, and {name} row {row} ({file or 'no file'}) has no "
                    f"name like {_KIND}. Name the column: --set data.label_column=…, or put the pictures of "
                    "each identity into a folder of its own."
                )
            found.append(match[1])
        return found

    def _cameras(self) -> dict[str, Texts]:
        """Names of the cameras by split and row: of the column, or of file names that all say one."""
        tables, column = self.raw.tables, self.camera
        if column is not None:
            return {name: texts(table, column, name) for name, table in tables.items()}
        found: dict[str, Texts] = {}
        for name, table in tables.items():
            with suppress(InputError):  # of pictures that are not found: whoever uses the split is told
                matches = [FILE_NAME.match(file) for file in files(table, self.config, self.columns)]
                found[name] = [match[2] if match else None for match in matches]
        total, known = sum(map(len, tables.values())), sum(v is not None for f in found.values() for v in f)
        if len(found) == len(tables) and known == total:
            if self.column is not None:
                self.raw.notes.append(f"{self.config.source}: cameras are those of file names like {_KIND}")
            return found
        if known:
            self.raw.notes.append(
                f"{self.config.source}: {known} of {total} file names say a camera as {_KIND} does, and so "
                "none is taken for known"
            )
        return {name: [None] * len(table) for name, table in tables.items()}
