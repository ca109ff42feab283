"""Names of splits as users write them: in any case, with the usual synonyms, numbers and words around them.

One rule for folders, parquet files and saved datasets. What a name plainly means is its :func:`role`; a name
that only :func:`resembles` a split's is never taken for a class nor merged into another split.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from kdcli.errors import InputError
from kdcli.sections import DataSection, SourceSection

WORDS = {
    "train": ("train", "training", "trainval", "trn"),
    "validation": ("validation", "validate", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_ROLES = {word: role for role, words in WORDS.items() for word in words}
SIDES = {"query": ("query", "queries"), "gallery": ("gallery",)}
"""The two halves of a test by search. A class may be called so too, so these words alone name no split."""
_SIDES = {word: side for side, words in SIDES.items() for word in words}
_BOX = re.compile(r"bounding[\W_]*box(?:es)?", re.IGNORECASE)  # pictures cut by a detector, of any split
_BESIDE = (
    "set|sets|data|dataset|split|part|shard|image|images|img|imgs|picture|pictures|photos|jpg|jpeg|png|"
    "s?daten|s?bilder|s?menge"
)
_WORD = re.compile(rf"({'|'.join(_ROLES)})(?:{_BESIDE})?")
_BEGINS = re.compile(rf"({'|'.join(_ROLES)})(?:[-._ 0-9].*)?", re.DOTALL)
_NO_CLASS = frozenset(("test", "testing", "tst", "val", "validation", "evaluation"))
_APART = re.compile(r"hold[\W_]*(?:out|back)|held[\W_]*out|unlabell?ed|(?:^|[\W\d_])unseen(?:[\W\d_]|$)")
_SHORT = {"tr": "train", "va": "validation", "te": "test"}
"""What these mean where there are no other folders beside two of them: alone they may name a class."""
_OTHERS = "entra[iî]nement|apprentissage|entrenamiento|prueba|addestramento|treino|treinamento|teste"
"""Train and test in other languages: near enough to be refused, not to be taken for a split."""
_UNCLEAR = re.compile(
    rf"{_APART.pattern}|(?:^|[\W\d_])(?:fold|split)s?(?:[\W\d_]|$)|(?:^|[\W\d_])(?:{_OTHERS})s?(?:[\W\d_]|$)"
)


def role(name: str) -> str | None:
    """What a split of this name is for, where the name says nothing else.

    ``Train``, ``train2017``, ``TestSet`` and ``val-small`` are clear; ``bullet_train`` (a class?),
    ``train_test`` (which?) and ``holdout`` (from what?) are not.

    Returns:
        ``train``, ``validation``, ``test``, ``query``, ``gallery``, or None.
    """
    known = word(name) or ""
    return _ROLES.get(known) or _SIDES.get(known)


def word(name: str) -> str | None:
    """The word that makes a name a split's, in lower case; None where its role is None."""
    found, others = _words(name)
    roles = {_ROLES[w] for w in found}
    if not found and side(name):
        return others[0]
    begins = _BEGINS.fullmatch(name.casefold())
    if not found or _UNCLEAR.search(name.casefold()):
        return None
    if roles == {"train", "validation"} and not others:  # both of them are what is trained on
        return "trainval"
    return found[0] if len(roles) == 1 and (begins or not others) else None


def side(name: str) -> tuple[str, str] | None:
    """Of a search, which split a name is a half of and which half: ``val_query``, ``Gallery``, ``queries-1``.

    Returns:
        ``validation`` or ``test``, and ``query`` or ``gallery``; None for names that say anything else.
    """
    found, others = _words(name)
    sides = {_SIDES.get(w, "") for w in others}
    splits = {_ROLES[w] for w in found} or {"test"}
    if len(sides) > 1 or sides <= {""} or len(splits) > 1 or _UNCLEAR.search(name.casefold()):
        return None
    split = splits.pop()
    return None if split == "train" else (split, sides.pop())


def folder_splits(folders: Collection[str]) -> dict[str, str]:
    """The splits that folders side by side stand for, by their names; those that stand for none are left out.

    ``tr`` and ``te`` do where they stand for themselves. A class may be called ``query`` or ``gallery``. Such
    a folder is a split beside those of other splits (a gallery: of a query, or of train where there is no
    test), or where there are these two and no other.
    """
    plain = {name: role(name) for name in sorted(folders)}
    short = {name: _SHORT.get(name.casefold()) for name in plain}
    if len(short) > 1 and all(short.values()) and len(set(short.values())) == len(short):
        return {name: own for name, own in short.items() if own}
    halves = {name: own for name, own in plain.items() if own in SIDES}
    found = {name: own for name, own in plain.items() if own and name not in halves}
    others = set(found.values())
    both = len(halves) == len(folders) and len(set(halves.values())) == len(SIDES)
    asks = "query" in halves.values() and (both or bool(others))
    searched = asks or ("train" in others and "test" not in others)
    found |= {name: own for name, own in halves.items() if own and (asks if own == "query" else searched)}
    for name in found:
        if (own := side(name)) and name not in halves:
            found[name] = own[1] if own[0] == "test" else "_".join(own)
    return dict(sorted(found.items()))


def hint(name: str) -> str | None:
    """The role of a name with a split's word among others: ``seg_train``, ``cars_test``, ``bullet_train``."""
    roles = {_ROLES[w] for w in _words(name)[0]}
    return roles.pop() if len(roles) == 1 and not _UNCLEAR.search(name.casefold()) else None


def names_no_class(name: str) -> bool:
    """Whether a name says nothing but test or validation, or that its pictures were kept for one.

    Classes are called ``train`` and ``valid`` too.
    """
    found, others = _words(name)
    plain = bool(found) and not others and _NO_CLASS.issuperset(found)
    return plain or bool(_APART.search(name.casefold()))


def stands_apart(name: str) -> bool:
    """Whether a name says, among other things, that its pictures are none to learn labels from."""
    return bool(_APART.search(name.casefold())) or not _NO_CLASS.isdisjoint(_words(name)[0])


def resembles(name: str) -> bool:
    """Whether a name speaks of splits at all, clearly or not."""
    return bool(_words(name)[0] or _UNCLEAR.search(name.casefold()))


def find(names: Collection[str], asked: str, source: str, key: str) -> str | None:
    """The split that is meant by ``asked``: of that very name, else the one that has the same role.

    Args:
        names: of all splits.
        asked: as configured.
        source: for the message.
        key: of the configuration, which names one where several have that role.

    Raises:
        InputError: several have that role.
    """
    if asked in names:
        return asked
    meant = role(asked)
    found = [name for name in names if meant is not None and role(name) == meant]
    if len(found) > 1:
        raise InputError(
            f"{source} has no split '{asked}' but {' and '.join(found)}. Name one: --set {key}={found[0]}"
        )
    return found[0] if found else None


def find_validation(names: Collection[str], source: str) -> str | None:
    """The validation split under any of its names, None if there is none. Raises InputError for several."""
    usual = next((name for name in ("validation", "val", "valid", "dev") if name in names), None)
    return usual or find(names, "validation", source, "data.validation")


def wanted(names: Collection[str], config: DataSection, need: Sequence[str]) -> tuple[dict[str, str], bool]:
    """The splits that a run needs, by the role that each takes.

    Args:
        names: of all splits of the source.
        config: names some of them.
        need: roles ``train``, ``validation``, ``test``, or any split's own name.

    Returns:
        The split of each role, and whether validation is to be carved from train.

    Raises:
        InputError: no such split, or several of one role.
    """
    source, validation = config.source or "", config.validation
    learns = not {"train", "validation"}.isdisjoint(need)
    if validation is None and learns:
        validation = find_validation(names, source)
    asked = {"train": config.train, "validation": validation or config.train, "test": config.test}
    found: dict[str, str] = {}
    for part in dict.fromkeys(need):
        name = find(names, asked.get(part, part), source, f"data.{part}")
        if name is None and (part == "train" or (part == "validation" and validation is None)):
            name = lone(names)
        if name is None:
            raise missing(names, asked.get(part, part), source, part)
        found[part] = name
    return found, learns and validation is None


def held_out(names: Iterable[str], config: DataSection) -> list[str]:
    """The splits that are kept from training: those for validation and test, by name or as configured."""
    named = (config.validation, config.test)
    return [name for name in names if name in named or role(name) in ("validation", "test")]


def wanted_train(names: Collection[str], config: SourceSection) -> str:
    """The training split, or the only one. Raises InputError if there is none, or several."""
    source = config.source or ""
    name = find(names, config.train, source, "data.train") or lone(names)
    if name is None:
        raise missing(names, config.train, source, "train")
    return name


def wanted_unlabelled(names: Collection[str], source: str) -> list[str]:
    """The splits that more pictures are taken from: train, or else all but those for validation and test.

    Raises:
        InputError: there is no other.
    """
    if train := find(names, "train", source, "data.train"):
        return [train]
    only = lone(names)
    found = [name for name in names if role(name) is None or name == only]
    if not found:
        raise InputError(
            f"{source} has only {' and '.join(names)}, which are never trained on. Give the folder or the "
            "file itself if that is meant."
        )
    return found


def lone(names: Collection[str]) -> str | None:
    """The only split of a source, which may stand for train whatever it is called, but for test."""
    only = next(iter(names))
    return only if len(names) == 1 and role(only) in (None, "train", *SIDES) else None


def missing(names: Iterable[str], asked: str, source: str, part: str) -> InputError:
    """That there is no split ``asked`` to play a part, which there are, and how to name one of them."""
    has = list(names)
    way = f" Name one: --set data.{part}=…" if part == "train" or (part in WORDS and len(has) > 1) else ""
    return InputError(f"{source} has no split '{asked}'; it has: {', '.join(has)}.{way}")


def _words(name: str) -> tuple[list[str], list[str]]:
    """The words of a name that name splits, and those that say something else."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _BOX.sub(" ", name)).casefold()
    found, others = [], []
    for token in re.findall(r"[^\W\d_]+", parted):
        if match := _WORD.fullmatch(token):
            found.append(match[1])
        elif not re.fullmatch(_BESIDE, token):
            others.append(token)
    return found, others
