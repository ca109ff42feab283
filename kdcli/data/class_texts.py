"""What is said about classes: natural names and descriptions, and the texts that are made of them.

A text tower reads sentences, so that a class is told apart from others by what is said of it. Li et al. 2023
(arXiv 2307.03135) put behind its name a sentence on its looks that a language model wrote; the authors' code
makes ``"a photo of " + name + " . " + description`` of the two, and so does this.

Three kinds of files are read; which one a file is, :func:`read_class_texts` tells.

* JSON, a class for each key: ``{"n02119789": {"name": "kit fox", "description": "…", "source": "…"}}``, where
  ``description`` may be a list, nothing must be there, and a text alone is the name.
* The authors' ``label2text.txt``, a line ``folder number natural_name`` for each class, perhaps beside their
  ``chatgpt.txt``, a sentence for each class in the same order.
* A name of a class on each line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcli.console import legible
from kdcli.errors import InputError, UsageError, nearest, shortened
from kdcli.reading import LIMIT, read_bytes

TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of {}",),
    "photo-a": ("a photo of a {}.",),
    "clip7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}
"""Templates by the names that users call them.

``photo`` is that of Li et al.'s code, ``photo-a`` CLIP's default (Radford et al. 2021, arXiv 2103.00020), and
``clip7`` the seven that CLIP's notebook on prompts finds to do best on ImageNet, spelled as there.
"""

PROMPTS: dict[str, str] = {
    "main": (
        "Use a single sentence to describe the appearance and shape of {cls}. Only describe the shape and "
        "appearance."
    ),
    "succinct": (
        "Use a single sentence to broadly describe the appearance and shape of {cls}. Don't give too much "
        "details. Only describe the shape and appearance."
    ),
    "detailed": (
        "Use a single sentence and short, simple, descriptive phrases to describe the detailed appearance "
        "and detailed shape of {cls}."
    ),
    "distinct": (
        "Use a single sentence to describe the unique, distinctive appearance and shape of {cls}. Only "
        "describe the unique, distinctive shape and appearance."
    ),
}
"""What Li et al. 2023 ask a language model for descriptions: ``main``, and the others of their ablation."""

_KEYS = ("name", "description", "source")  # of a class in JSON
_SHOWN = 3  # classes that a message names


@dataclass(frozen=True)
class ClassText:
    """What is said about a class.

    Attributes:
        name: what the data call it, for example its folder.
        words: its natural name, which is put into templates.
        descriptions: sentences about it, perhaps none.
        source: where the descriptions are from, perhaps unknown (empty).
    """

    name: str
    words: str
    descriptions: tuple[str, ...] = ()
    source: str = ""


# -- files ---------------------------------------------------------------------------------------------------


def read_class_texts(file: str, descriptions: str | None = None) -> dict[str, ClassText]:
    """What a file says about classes, by the names that the data have for them, in the order of the file.

    JSON is what is called so, or begins with ``{``. Any other file is a list, and must be called ``.txt``: a
    line of it is a class, empty ones are passed over. It is read as ``label2text.txt`` if it has that name,
    or if most of its lines are three words of which the middle one is a number that no other line has; and
    as plain names if not.

    Two classes may have the same words here, as the two cranes of ImageNet do in the authors' own file:
    :func:`texts_of` refuses them where both are asked for and nothing else is said of them.

    Args:
        file: its path.
        descriptions: path of a text file with a sentence for each class of a list, in the same order.

    Raises:
        InputError: a file that cannot be read, is larger than :data:`kdcli.reading.LIMIT`, no UTF-8, or says
            something that is not as above; a class that stands in it twice; empty names or descriptions;
            control characters; descriptions beside JSON, or not as many of them as there are classes.
    """
    path = Path(file)
    text = read_text(path)
    if path.suffix.lower() == ".json" or text.lstrip().startswith("{"):
        if descriptions is not None:
            raise InputError(
                f"{path} is JSON, which holds descriptions itself; those of {descriptions} are for the "
                "classes of a label2text.txt. Leave one of the two out."
            )
        return _of_json(path, text)
    if path.suffix.lower() != ".txt":
        raise InputError(
            f"{path}: texts about classes are JSON (.json), or a list with a class on each line (.txt)."
        )
    lines = [*_lines(path, text)]
    entries = _of_list(path, lines)
    return entries if descriptions is None else _described(path, entries, Path(descriptions))


def read_text(path: Path, limit: int = LIMIT) -> str:
    """The text of a file, which may begin with a byte order mark.

    Raises:
        InputError: it cannot be read, is no regular file, has more than ``limit`` bytes, or is not UTF-8.
    """
    try:
        data = read_bytes(path, limit)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line} is not UTF-8: {error.reason}. Save it as UTF-8.") from error


def parse_object(path: Path, text: str) -> dict[str, Any]:
    """The JSON object that a text is, of which no key hides another one.

    Args:
        path: where the text is from, for messages.
        text: what was read there.

    Raises:
        InputError: no JSON, something else than an object, or a key that stands twice in an object.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            raise InputError(f"{path}: the key {_quoted(twice)} stands twice in one object. Remove one.")
        return found

    try:
        found = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a JSON object.")
    return found


def refuse_unsayable(text: Any, where: str, what: str) -> str:
    """A text that something can be said by, as it was given.

    Args:
        text: as JSON or a line has it.
        where: file and line or key, for messages.
        what: it is, for messages.

    Raises:
        InputError: no text, an empty one, or one with line breaks or other characters that are not seen.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: {what} is {shortened(json.dumps(text))}, where a text is wanted.")
    if not text.strip():
        raise InputError(f"{where}: {what} is empty. Write one, or leave it out.")
    if legible(text) != text:
        raise InputError(
            f"{where}: {what} {_quoted(text)} has line breaks, control characters or others that are not "
            "seen. Take them out."
        )
    return text


def _of_json(path: Path, text: str) -> dict[str, ClassText]:
    content = parse_object(path, text)
    if not content:
        raise InputError(f"{path} names no class.")
    return {name: _entry(path, name, value) for name, value in content.items()}


def _entry(path: Path, name: str, value: Any) -> ClassText:
    """A class of JSON: an object, or a natural name alone."""
    refuse_unsayable(name, str(path), "a class")
    where = f"{path}, class {_quoted(name)}"
    said = {"name": value} if isinstance(value, str) else value
    if not isinstance(said, dict):
        raise InputError(
            f"{where}: {shortened(json.dumps(said))} where a natural name or an object with "
            f"{', '.join(_KEYS)} is wanted."
        )
    if unknown := [key for key in said if key not in _KEYS]:
        raise InputError(
            f"{where}: there is no key {_quoted(unknown[0])}; there are {', '.join(_KEYS)}."
            f"{nearest(unknown[0], _KEYS)}"
        )
    return ClassText(
        name,
        refuse_unsayable(said["name"], where, "'name'").strip() if "name" in said else _spaced(name, where),
        _sentences(said["description"], where) if "description" in said else (),
        refuse_unsayable(said["source"], where, "'source'").strip() if "source" in said else "",
    )


def _sentences(value: Any, where: str) -> tuple[str, ...]:
    """One description or a list of them."""
    if value == []:
        raise InputError(f"{where}: 'description' is an empty list. Write one, or leave it out.")
    several = isinstance(value, list)
    return tuple(
        refuse_unsayable(text, where, f"description {number}" if several else "'description'").strip()
        for number, text in enumerate(value if several else [value], 1)
    )


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Lines that are not empty, each after file and number for messages."""
    for number, line in enumerate(text.split("\n"), 1):
        if stripped := line.strip(" \t\r"):
            yield f"{path} line {number}", stripped


def _of_list(path: Path, lines: Sequence[tuple[str, str]]) -> dict[str, ClassText]:
    """The classes of ``label2text.txt`` or of plain names."""
    numbered = path.name == "label2text.txt" or _is_numbered([line for _, line in lines])
    entries: dict[str, ClassText] = {}
    places: dict[str, str] = {}
    for where, line in lines:
        name, natural = _columns(line, where) if numbered else (line, line)
        refuse_unsayable(name, where, "the class")
        if name in entries:
            raise InputError(f"{where}: the class {_quoted(name)} stands in {places[name]} too. Remove one.")
        refuse_unsayable(natural, where, "the name")
        entries[name] = ClassText(name, _spaced(natural, where))
        places[name] = where
    if not entries:
        raise InputError(f"{path} names no class.")
    return entries


def _is_numbered(lines: Sequence[str]) -> bool:
    """Whether most lines are three words, the middle one a number that no other line has.

    A number that several have is a part of names: ``Audi 2012 Sedan``, ``BMW 2012 Coupe``.
    """
    rows = [line.split() for line in lines]
    return 2 * len({row[1] for row in rows if len(row) == 3 and row[1].isdecimal()}) > len(rows)


def _columns(line: str, where: str) -> tuple[str, str]:
    """The folder and the natural name of a line of ``label2text.txt``."""
    words = line.split()
    if len(words) != 3 or not words[1].isdecimal():
        raise InputError(
            f"{where}: {_quoted(line)} where a folder, a number and a name with underscores are wanted, as "
            "in the lines of a label2text.txt. Names with spaces go into JSON."
        )
    return words[0], words[2]


def _described(path: Path, entries: Mapping[str, ClassText], file: Path) -> dict[str, ClassText]:
    """The classes of a list with the sentences of the file beside it."""
    sentences = [
        refuse_unsayable(line, where, "the sentence") for where, line in _lines(file, read_text(file))
    ]
    if len(sentences) != len(entries):
        raise InputError(
            f"{file} has {len(sentences):,} sentences, and {path} has {len(entries):,} classes: a line of "
            "the one is about the class in the same line of the other. Give each class one."
        )
    return {
        name: replace(entry, descriptions=(sentence,), source=file.name)
        for (name, entry), sentence in zip(entries.items(), sentences)
    }


# -- texts ---------------------------------------------------------------------------------------------------


def bare(classes: Iterable[str]) -> dict[str, ClassText]:
    """What the names of classes alone say: underscores become spaces, and nothing else is changed.

    Hyphens and numbers stay, for both may be part of a name (``hard-leaved_pocket_orchid``, ``Boeing_737``).

    Raises:
        InputError: a name of which nothing is left.
    """
    return {name: ClassText(name, _spaced(name, f"the class {_quoted(name)}")) for name in classes}


def check_template(text: str) -> None:
    """Raise UsageError for a template that does not have ``{}`` once, or that has other braces."""
    if not text.count("{") == text.count("}") == text.count("{}") == 1:
        raise UsageError(
            f"the template {_quoted(text)}: {{}} stands in it once, for the name of a class, and no other "
            f"braces do, as in 'a photo of {{}}'. By name there are: {', '.join(TEMPLATES)}."
            f"{nearest(text, TEMPLATES)}"
        )


def texts_of(
    entries: Mapping[str, ClassText], classes: Sequence[str], templates: Sequence[str], *, described: bool
) -> list[list[str]]:
    """The texts about each class: each template, and within it each description.

    A description follows the filled template behind `` . ``, as in Li et al.'s code.

    Args:
        entries: by class; those of other classes are left alone.
        classes: in the order that is wanted.
        templates: each with ``{}`` for the natural name.
        described: whether descriptions are put behind it. Nothing falls back to the name alone.

    Raises:
        UsageError: no template, or one without a place for the name.
        InputError: a class without an entry, one without a description where they are wanted, or two of which
            the same is said, so that nothing could tell their pictures apart.
    """
    if not templates:
        raise UsageError("there is no template to put the names of classes into, such as 'a photo of {}'.")
    for template in templates:
        check_template(template)
    if missing := [name for name in classes if name not in entries]:
        raise InputError(
            f"nothing is said about {_some(missing)}.{nearest(missing[0], entries)} Each class of the data "
            "needs an entry under the name that the data have for it."
        )
    if described and (silent := [name for name in classes if not entries[name].descriptions]):
        raise InputError(
            f"there is no description of {_some(silent)}. Describe each class, or leave all descriptions "
            "out: --set texts.described=false."
        )
    found = [_texts(entries[name], templates, described) for name in classes]
    _refuse_equal(classes, found)
    return found


def prompts_of(words: list[str] | tuple[str, ...], style: str = "main") -> list[str]:
    """What to ask a language model, for a description of each class.

    Args:
        words: natural names.
        style: of :data:`PROMPTS`.

    Raises:
        UsageError: no such style.
    """
    if style not in PROMPTS:
        raise UsageError(
            f"there is no prompt '{style}'; there are {', '.join(PROMPTS)}.{nearest(style, PROMPTS)}"
        )
    return [PROMPTS[style].replace("{cls}", one) for one in words]


def _texts(entry: ClassText, templates: Sequence[str], described: bool) -> list[str]:
    filled = [template.format(entry.words) for template in templates]
    if not described:
        return filled
    return [f"{text} . {description}" for text in filled for description in entry.descriptions]


def _refuse_equal(classes: Sequence[str], texts: Sequence[Sequence[str]]) -> None:
    """Raise InputError where all that is said of two classes is the same, in whatever order."""
    seen: dict[tuple[str, ...], str] = {}
    for name, own in zip(classes, texts):
        other = seen.setdefault(tuple(sorted(own)), name)
        if other != name:
            raise InputError(
                f"the same is said about the classes {_quoted(other)} and {_quoted(name)}, "
                f"{_quoted(own[0])}: nothing could tell their pictures apart. Describe them differently, "
                "or leave one out."
            )


def _spaced(name: str, where: str) -> str:
    words = name.replace("_", " ")
    if not words.strip():
        raise InputError(f"{where}: {_quoted(name)} is no name that can be read. Give the class one.")
    return words


def _quoted(text: str) -> str:
    return repr(shortened(text))


def _some(names: Sequence[str]) -> str:
    """``'a', 'b', 'c' and 4 more``."""
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(_quoted, names[:_SHOWN]))}{more}"
