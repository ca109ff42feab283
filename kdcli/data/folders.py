"""Pictures in class folders, in split folders of class folders, or beside metadata files.

The class of a picture is the name of the folder directly below its split's, however deep the picture lies in
it (torchvision's rule). A folder that stands alone where classes or splits would (``archive/``,
``train/images/``) is a cover, and what it holds counts. Rows are in the order of their paths.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdcli.data import splits as names
from kdcli.data.files import Found, below, by_folder, kinds, notes, refuse_mostly_unread
from kdcli.data.metadata import read_metadata
from kdcli.data.tables import Raw, table_of
from kdcli.errors import InputError

Splits = dict[str, list[str]]
"""Folders by the split that their pictures belong to."""


def image_folder(found: Found) -> Raw:
    """Tables of the pictures of a folder, their classes by folder or what metadata files say of them.

    Raises:
        InputError: folders that look like splits and are not understood, or pictures mostly of kinds that are
            not read; for classes that cannot be told see :attr:`Raw.fault`.
    """
    base = _below_covers(found)
    splits, said = _splits(base, found)
    direct = [os.path.basename(f) for f in found.folders if os.path.dirname(f) == base]
    for folder in (os.path.join(base, name) for name in names.folder_splits(direct)):
        inside = [list(below(folder, kind)) for kind in (found.pictures, found.others, found.dangling)]
        refuse_mostly_unread(folder, *inside)
    for split, folders in splits.items():
        inside = [list(_below_all(folders, kind)) for kind in (found.pictures, found.others, found.dangling)]
        refuse_mostly_unread(f"{found.root}, {split}", *inside)
    said = [*notes(found), *said]
    if found.metadata:
        return _by_metadata(splits, found, said)
    _refuse_inner(splits, found)
    splits = _below_common_covers(splits, found, said)
    return _by_class(splits, found, said)


# -- splits --------------------------------------------------------------------------------------------------


def _below_covers(found: Found) -> str:
    """The folder that holds the splits or classes: below folders that stand alone, as archives make them."""
    base = str(found.root)
    while True:
        loose, groups = by_folder(base, found.pictures)
        if loose or len(groups) != 1 or any(os.path.dirname(file) == base for file in found.metadata):
            return base
        (name, inner), *_ = groups.items()
        split = names.folder_splits([name]) or (names.resembles(name) and names.hint(name) != "train")
        if split or not by_folder(os.path.join(base, name), inner)[1]:
            return base
        base = os.path.join(base, name)


def _splits(base: str, found: Found) -> tuple[Splits, list[str]]:
    """The split folders below ``base``, or ``base`` itself as train, and what to say of what lies beside.

    Raises:
        InputError: a folder that looks like a split and cannot be taken for one.
    """
    loose, groups = by_folder(base, found.pictures)
    deep = {name for name, inner in groups.items() if by_folder(os.path.join(base, name), inner)[1]}
    deep |= {file[len(base) + 1 :].split(os.sep)[0] for file in below(base, found.metadata)} & set(groups)
    roles = names.folder_splits(groups)
    rest = [name for name in sorted(groups) if name not in roles]
    there = set(roles.values())
    searched = "query" in there and ("test" in there or {"train", "gallery"} <= there)  # of no classes
    if roles and (deep & set(roles) or not rest or searched):
        _refuse_unclear(base, [n for n in rest if names.resembles(n)], sorted(roles))
        _refuse_synonyms(base, roles)
        aside = loose + [path for name in rest for path in groups[name]]
        what = f"{base}: {len(aside)} pictures beside the split folders are not read, first "
        return _grouped(base, roles), [what + found.short(aside[0])] if aside else []
    if roles:  # a class may be called "train" or "valid"
        looks = [n for n in rest if names.resembles(n)] + [n for n in roles if names.names_no_class(n)]
        _refuse_unclear(base, looks, [n for n in sorted(groups) if n not in looks])
        return {"train": [base]}, []
    hints = {name: hint for name in rest if (hint := names.hint(name))}
    if len(hints) == len(rest) and deep == set(rest) and len(set(hints.values())) == len(hints) > 1:
        return _grouped(base, hints), []
    looks = [name for name in rest if names.resembles(name)]
    if len(set(hints.values())) < 2:  # bullet_train beside tram is a class
        looks = [name for name in looks if name in deep or names.stands_apart(name)]
    _refuse_unclear(base, looks, rest)
    return {"train": [base]}, []


def _grouped(base: str, roles: Mapping[str, str]) -> Splits:
    found: Splits = {}
    for name, role in roles.items():
        found.setdefault(role, []).append(os.path.join(base, name))
    return found


def _refuse_unclear(base: str, looks: Sequence[str], beside: Sequence[str]) -> None:
    """Raise InputError where folders look like splits and cannot be taken for one."""
    if looks:
        others = [name for name in beside if name != looks[0]]
        where = f" beside {', '.join(others[:3])}" if others else ""
        raise InputError(
            f"{os.path.join(base, looks[0])}{where}: is it a split or a class? Call split folders train, "
            "validation and test; if it is a class, put all class folders into a folder called train."
        )


def _refuse_synonyms(base: str, roles: Mapping[str, str]) -> None:
    """Raise InputError for two folders that name one split in different words."""
    first: dict[str, str] = {}
    for name, role in roles.items():
        other = first.setdefault(role, name)
        if names.word(name) != names.word(other):
            raise InputError(
                f"{base}: {other} and {name} both name the {role} split. Rename one, or move it away."
            )


def _refuse_inner(splits: Splits, found: Found) -> None:
    """Raise InputError for split folders inside of classes, or alone in a split: ``bottle/test``."""
    for root, split in ((root, split) for split, roots in splits.items() for root in roots):
        alone = len(by_folder(root, found.pictures)[1]) == 1
        for folder in below(root, found.folders):
            inside, name = os.path.split(folder)
            other = names.names_no_class(name) and names.role(name) != split  # test/test is a cover
            if other and (alone or inside != root) and any(below(folder, found.pictures)):
                raise InputError(
                    f"{folder}: a split folder inside of {os.path.basename(inside)}. Put the split folders "
                    "outside (train, test) and the class folders into each; or give a folder that holds the "
                    "splits of one class."
                )


def _below_common_covers(splits: Splits, found: Found, said: list[str]) -> Splits:
    """The same below folders that stand alone in every split: ``train/images``, ``seg_test/seg_test``."""
    while True:
        inner: list[tuple[str, str, str]] = []
        for split, folders in splits.items():
            for folder in folders:
                loose, groups = by_folder(folder, found.pictures)
                if loose or len(groups) != 1:
                    return splits
                (name, paths), *_ = groups.items()
                if not by_folder(os.path.join(folder, name), paths)[1]:
                    return splits
                inner.append((split, folder, name))
        same = len({name for _, _, name in inner}) == 1
        if not inner or not (same or all(os.path.basename(folder) == name for _, folder, name in inner)):
            return splits
        splits = {split: [os.path.join(f, n) for s, f, n in inner if s == split] for split in splits}
        covers = ", ".join(found.short(os.path.join(folder, name)) for _, folder, name in inner)
        said.append(f"{found.root}: the folders in {covers} are taken for the classes")


def _below_all(folders: Iterable[str], paths: Sequence[str]) -> Iterable[str]:
    return (path for folder in folders for path in below(folder, paths))


# -- classes -------------------------------------------------------------------------------------------------


def _by_class(splits: Splits, found: Found, said: list[str]) -> Raw:
    """Tables with the class of each picture, or without where folders tell none."""
    groups: dict[str, list[tuple[str, str | None]]] = {}
    classes: set[str] = set()
    loose: list[str] = []
    for split, folders in splits.items():
        rows: list[tuple[str, str | None]] = []
        for folder in folders:
            direct, inner = by_folder(folder, found.pictures)
            classes |= set(inner)
            loose += direct if inner else []
            of = {path: name for name, paths in inner.items() for path in paths}
            rows += [(path, of.get(path)) for path in below(folder, found.pictures)]
        groups[split] = rows
    fault = _fault(splits, found, classes, loose)
    if len(classes) == 1 and not fault:
        said.append(f"{found.root}: one class folder only, {min(classes)}: its pictures count as unlabelled")
    labels = sorted(classes) if len(classes) > 1 and not fault else []
    for split, rows in groups.items():
        if labels and all(name is None for _, name in rows):
            said.append(
                f"{found.root}: {split} has no class folders: its {len(rows)} pictures are unlabelled"
            )
    said += _repeated(splits, found) if labels else []
    tables = {split: _table(rows, labels) for split, rows in groups.items() if rows}
    return Raw(tables, root=found.root, fault=fault, notes=said)


def _fault(splits: Splits, found: Found, classes: set[str], loose: Sequence[str]) -> str:
    """Why folders do not tell the classes, with what to do; empty where they do."""
    if loose:
        return (
            f"{loose[0]} lies beside class folders and so has no class ({len(loose)} such). Move it into "
            "one, or away."
        )
    direct = [f for root in _roots(splits) for f in found.folders if os.path.dirname(f) == root]
    empty = [f for f in direct if os.path.basename(f) not in classes and os.path.basename(f)[0] not in "._"]
    empty = [f for f in empty if not any(below(f, found.ours))]  # runs/, where the user keeps notes too
    if classes and empty:
        name = os.path.basename(empty[0])
        others = list(below(empty[0], found.others))
        held = f", only {kinds(others)}" if others else ""
        return f"{found.root}: class folder '{name}' holds no picture{held}."
    lists = [path for path in found.others if path.lower().endswith((".csv", ".tsv"))]
    if len(classes) < 2 and lists:
        return unread_list(lists[0])
    return ""


def unread_list(file: str) -> str:
    """What to do with a table of paths, which is not read as it is."""
    return (
        f"{file}: a list of pictures is read under the name metadata.csv only, separated by commas, with "
        "their paths from its folder in a column called file_name and the classes in one called label. "
        "Rename it so, or write the pictures into a parquet file."
    )


def _roots(splits: Splits) -> list[str]:
    return [folder for folders in splits.values() for folder in folders]


def _repeated(splits: Splits, found: Found) -> list[str]:
    """Say that folders inside classes are no classes, where they have the same names in several classes."""
    inner: dict[str, set[str]] = {}
    for folder in _roots(splits):
        for name, paths in by_folder(folder, found.pictures)[1].items():
            inner.setdefault(name, set()).update(by_folder(os.path.join(folder, name), paths)[1])
    counts = Counter(name for held in inner.values() for name in held)
    again = sorted(name for name, count in counts.items() if count > 1)
    if not again or max(map(len, inner.values())) < 2:
        return []
    owners = sorted(name for name, held in inner.items() if again[0] in held)
    return [
        f"{found.root}: classes are the outer folders ({', '.join(owners[:3])}); '{again[0]}' lies in "
        f"{len(owners)} of them and is no class"
    ]


def _table(rows: Sequence[tuple[str, str | None]], classes: Sequence[str]) -> Any:
    """Paths, and class numbers where there are classes."""
    import datasets
    import pyarrow as pa

    paths = pa.array([path for path, _ in rows], pa.string())
    columns, features = {"image": datasets.Image().cast_storage(paths)}, {"image": datasets.Image()}
    if classes:
        number = {name: i for i, name in enumerate(classes)}
        columns["label"] = pa.array([None if name is None else number[name] for _, name in rows], pa.int64())
        features["label"] = datasets.ClassLabel(names=list(classes))
    return table_of(pa.table(columns), datasets.Features(features))


# -- metadata ------------------------------------------------------------------------------------------------


def _by_metadata(splits: Splits, found: Found, said: list[str]) -> Raw:
    """Tables of what metadata files name.

    Raises:
        InputError: a split without a metadata file where others have one, or a metadata file outside of them.
    """
    files = {split: list(_below_all(folders, found.metadata)) for split, folders in splits.items()}
    outside = sorted(set(found.metadata) - {file for inside in files.values() for file in inside})
    if outside:
        raise InputError(f"{outside[0]} lies beside the split folders. Put one into each of them.")
    without = [split for split, inside in files.items() if not inside]
    if without:
        raise InputError(
            f"{found.root}: the {without[0]} split has no metadata file, as "
            f"{next(split for split in files if files[split])} has. Write one, or move the folder away."
        )
    tables: dict[str, Any] = {}
    named: set[str] = set()
    for split, inside in files.items():
        tables[split], own = read_metadata(inside)
        named |= own
    left = [path for path in _below_all(_roots(splits), found.pictures) if path not in named]
    if left:
        said.append(
            f"{found.root}: {len(left)} pictures are named in no metadata file and not read, first "
            f"{found.short(left[0])}"
        )
    if any(len(by_folder(folder, found.pictures)[1]) > 1 for folder in _roots(splits)):
        said.append(
            f"{found.root}: labels are those of the metadata files; folders are not taken for classes"
        )
    return Raw(tables, root=found.root, notes=said)
