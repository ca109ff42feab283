"""Classes that training sees and classes that it never sees, and what a language model is asked about them.

    kdcli classes split --data birds/ --out split.json
    kdcli classes prompts --data birds/ > prompts.jsonl

``split`` divides the classes of some data and writes the division to a file, which every stage reads with
``--set data.open_classes=split.json`` (:mod:`kdcli.data.open_classes`). ``prompts`` writes what to ask for
descriptions of classes, so that any language model can be asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from kdcli.config import Section, asked, inputs, option, outputs, reading
from kdcli.errors import UsageError
from kdcli.sections import DataSection

if TYPE_CHECKING:
    from kdcli.console import Console
    from kdcli.data.tables import Raw
    from kdcli.data.targets import Reader

_HEEDED = ("source", "image_column", "on_bad_image", "label_column", "task")  # of the data section
_FORM = '{"CLASS": {"name": "…", "description": "…"}, …}'


class SplitConfig(Section):
    """Divide classes into seen and unseen ones, their pictures into train, id and ood; write that to a file.

    Both are drawn by hash, so the same pictures are divided alike in any order and in any kind of source. The
    source's own splits are laid together first.
    """

    data: DataSection = DataSection()
    splits: list[str] = reading(
        [], "Take the pictures of this split of the source only (repeatable; default: all).", "--split"
    )
    ood: float = reading(0.5, "Part of the classes that training never sees.", "--ood", gt=0, lt=1)
    train: float = reading(0.7, "Part of each seen class that is trained on.", "--train", gt=0, lt=1)
    seed: int = reading(0, "Seed of the division.", "--seed", ge=-(2**63), lt=2**63)
    out: str | None = outputs(None, "File to write (JSON).", "--out")
    overwrite: bool = outputs(False, "Replace another division.", "--overwrite")


class PromptsConfig(Section):
    """Print what to ask a language model for a description of each class, as JSON lines.

    The prompts are those of Li et al. 2023 (arXiv 2307.03135).
    """

    data: DataSection = DataSection()
    texts: str | None = inputs(None, "Classes and their natural names: JSON, label2text.txt.", "--texts")
    style: Literal["main", "succinct", "detailed", "distinct"] = option(
        "main", "Which of the paper's prompts.", "--style", panel="Method"
    )


def _split(config: SplitConfig, console: Console) -> Iterator[str]:
    """Write a division; gives its path."""
    _check(config, config.data)
    if not config.out:
        raise UsageError("--out is required: the file that the division is written to.")
    from kdcli.data import open_classes
    from kdcli.data.sources import open_pool

    file, source = Path(config.out).expanduser(), config.data.source or ""
    pool = open_pool(config.data, _reader, config.splits)
    for note in pool.notes:
        console.warn(f"{note}.")
    division = open_classes.draw(pool, source, seed=config.seed, ood=config.ood, train=config.train)
    if not open_classes.write_open_classes(file, division, overwrite=config.overwrite):
        console.note(f"{file} holds this division already")
    rows = []
    for name, ids in division.splits.items():
        half = open_classes.UNSEEN if name == open_classes.UNSEEN else open_classes.SEEN
        rows.append([name, f"{len(division.classes[half]):,}", f"{len(ids):,}"])
    console.table(["split", "classes", "pictures"], rows)
    yield str(file)


def _prompts(config: PromptsConfig, console: Console) -> Iterator[str]:
    """What to ask about each class, a JSON object each."""
    if (config.texts is None) == (config.data.source is None):
        raise UsageError("classes are those of --data, or those of --texts: give one of the two.")
    from kdcli.data import class_texts

    if config.texts is not None:
        entries = class_texts.read_class_texts(config.texts)
    else:
        _check(config, config.data)
        from kdcli.data.sources import class_names

        entries = class_texts.bare(class_names(config.data, _reader))
    words = [entry.words for entry in entries.values()]
    console.note(f"{len(words):,} classes. Write the answers into a file for --texts: {_FORM}")
    for name, prompt in zip(entries, class_texts.prompts_of(words, config.style)):
        yield json.dumps({"class": name, "prompt": prompt})


def _reader(raw: Raw, config: DataSection) -> Reader:
    """What reads one class a picture, whatever task the data will be used for."""
    from kdcli.tasks.classification.target import LabelReader

    return cast("Reader", LabelReader(raw, config))


def _check(config: Section, data: DataSection) -> None:
    """Raise UsageError for data that are not named, or read as something else, and for idle fields."""
    from kdcli.tasks import entry

    if not data.source:
        raise UsageError("--data is required.")
    for name in type(data).model_fields:
        if name not in _HEEDED and asked(config, f"data.{name}"):
            raise UsageError(
                f"data.{name} changes nothing here. Of the data kdcli classes heeds: {', '.join(_HEEDED)}."
            )
    if data.task != "auto" and "class" not in entry(data.task).provides:
        raise UsageError(f"data.task={data.task} reads more than one class a picture, or none: leave it out.")


@dataclass(frozen=True)
class Tool:
    """A command.

    Attributes:
        Config: its configuration.
        line: of help.
        options: those of its fields' options that are offered.
        run: does the work, and gives the lines of stdout.
    """

    Config: type[Section]
    line: str
    options: tuple[str, ...]
    run: Callable[[Any, Console], Iterator[str]]


COMMANDS = {
    "split": Tool(
        SplitConfig,
        "Divide the classes of some data, and write the division to a file.",
        ("--data", "--split", "--ood", "--train", "--seed", "--out", "--overwrite"),
        _split,
    ),
    "prompts": Tool(
        PromptsConfig,
        "Print what to ask a language model for descriptions of classes.",
        ("--data", "--texts", "--style"),
        _prompts,
    ),
}
"""The commands of ``kdcli classes``."""
