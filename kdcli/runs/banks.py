"""Texts about classes as a run reads them, and the banks that are made of them or taken from artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts import model as artifacts
from kdcli.artifacts.reading import read_object
from kdcli.console import Console
from kdcli.data import class_texts
from kdcli.errors import InputError, UsageError
from kdcli.sections import TextSection

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.models.banks import TextBank
    from kdcli.models.protocol import Model
    from kdcli.models.texts import TextTower

_NEEDS = (
    "zeroshot tells classes apart by texts: give a --teacher that has some (kdcli probe --task zeroshot "
    "makes one), or --set texts.file=FILE and --set texts.tower=FOLDER of a text tower."
)


# -- what is said --------------------------------------------------------------------------------------------


def fingerprints(section: TextSection, captions: str | None = None) -> dict[str, str]:
    """Hashes of the files that are read, for the identity of a run; those that are not there are left out."""
    files = {"texts": section.file, "descriptions": section.descriptions, "captions": captions}
    there = {name: Path(file) for name, file in files.items() if file}
    return {name: manifests.file_hash(file) for name, file in there.items() if file.is_file()}


def is_asked(section: TextSection) -> bool:
    """Whether the user names anything that a bank is made of."""
    return section != type(section)()


def said_of(
    section: TextSection, classes: Sequence[str] | None, *, bare: bool = False
) -> tuple[list[str], list[list[str]]]:
    """The classes, and the texts about each.

    Args:
        section: what the user wrote.
        classes: of the data; None where there are none, and those of the file are taken.
        bare: whether no template is put around names: learned contexts stand there.

    Raises:
        UsageError: neither a file nor data.
        InputError: classes without a text, or a file that cannot be read.
    """
    if section.descriptions and not section.file:
        raise UsageError(
            "texts.descriptions are of the classes of a label2text.txt: give it too, --texts FILE."
        )
    if section.file is None and classes is None:
        raise UsageError("which classes? Give --texts FILE, or --data whose classes are named.")
    entries = (
        class_texts.bare(classes or ())
        if section.file is None
        else class_texts.read_class_texts(section.file, section.descriptions)
    )
    described = section.described
    if described is None:
        described = any(entry.descriptions for entry in entries.values())
    names = list(entries) if classes is None else list(classes)
    around = ["{}"] if bare else templates(section)
    return names, class_texts.texts_of(entries, names, around, described=described)


def templates(section: TextSection) -> list[str]:
    """The templates that are meant, those of a name written out. Raises UsageError for one without ``{}``."""
    found: list[str] = []
    for template in section.templates:
        for one in class_texts.TEMPLATES.get(template, (template,)):
            class_texts.check_template(one)
            found.append(one)
    if not found:
        raise UsageError("texts.templates is empty: a text needs at least {} for the name.")
    return list(dict.fromkeys(found))


# -- banks ---------------------------------------------------------------------------------------------------


def bank_of_texts(
    section: TextSection,
    classes: Sequence[str] | None,
    tower: str,
    scale: float,
    console: Console,
    *,
    tower_hash: str = "",
    contexts: Tensor | None = None,
) -> TextBank:
    """A bank, by a text tower.

    Args:
        section: what is said of the classes.
        classes: of the data, or None for those of the file.
        tower: folder or hub id, where the section names none.
        scale: where the section says none.
        console: is told of texts that are cut.
        tower_hash: of the tower that is wanted; empty for any.
        contexts: [M, W] that were learned for this tower and stand in the place of templates.

    Raises:
        InputError: another tower, or classes without a text.
        UsageError: templates beside contexts.
    """
    from kdcli.models.banks import TextBank, mean_of_texts, refuse_equal
    from kdcli.models.texts import open_text_tower

    if contexts is not None:
        _refuse_templates(section, len(contexts))
    names, texts = said_of(section, classes, bare=contexts is not None)
    opened = open_text_tower(section.tower or tower)
    _refuse_other(opened, tower_hash)
    flat = [text for own_texts in texts for text in own_texts]
    if contexts is None:
        encoded, read = opened.encode(flat), f"{opened.length}"
    else:
        from kdcli.models.prompts import encode

        encoded = encode(opened, flat, contexts)
        read = f"{opened.length - len(contexts)}, beside {len(contexts)} learned contexts,"
    if encoded.truncated:
        count, first = len(encoded.truncated), flat[encoded.truncated[0]]
        are = "text is" if count == 1 else "texts are"
        console.warn(
            f"{count} of {len(flat)} {are} longer than the {read} tokens that {opened.name} reads, and cut "
            f"there, first: {first[:80]!r}."
        )
    rows = mean_of_texts(encoded.embeddings, [len(own_texts) for own_texts in texts])
    refuse_equal(names, rows)
    return TextBank(
        tuple(names),
        rows,
        tuple(map(tuple, texts)),
        opened.name,
        opened.hash,
        section.scale or scale,
        tuple(templates(section)) if contexts is None else (),
        len(encoded.truncated),
        contexts,
    )


def _refuse_templates(section: TextSection, contexts: int) -> None:
    """Raise UsageError for templates where learned contexts stand in their place."""
    if section.templates != type(section)().templates:
        raise UsageError(
            f"texts.templates is given, and the {contexts} contexts that this model has learned stand in the "
            "place of templates, before each name. Leave it out."
        )


def bank_of_artifact(name: str) -> TextBank | None:
    """The bank that a model artifact answers by; None of a model without one. Its network is not built."""
    from kdcli.models.banks import contexts_of, read_bank

    if artifacts.find(name) is None:
        return None
    files = artifacts.read(name)
    if artifacts.TEXTS not in files.names or artifacts.HEAD not in files.names:
        return None
    tensors = files.tensors(artifacts.HEAD)
    weight = tensors.get("linear.weight")
    where = str(files.path / artifacts.TEXTS)
    if weight is None:
        raise InputError(f"{where} describes a bank of texts, and {artifacts.HEAD} holds none.")
    described = read_object(files.path / artifacts.TEXTS)
    return read_bank(described, weight, where, beside=tensors.get("beside"), contexts=contexts_of(files))


def chosen(section: TextSection, data: Data, sources: Sequence[str], console: Console) -> TextBank | None:
    """The texts that networks in training answer by; None where the task of the data has none.

    Args:
        section: what the user says of the classes.
        data: whose classes they are.
        sources: models whose bank is taken where the user says nothing, the first one that has one.
        console: is told of texts that are cut.

    Raises:
        UsageError: neither texts nor a model that has some.
        InputError: classes without a text.
    """
    from kdcli.tasks import entry
    from kdcli.tasks.zeroshot import TEMPERATURE

    refuse_unread(section, data.task)
    if "text" not in entry(data.task).provides:
        return None
    classes, scale = list(data.classes or ()), section.scale or 1 / TEMPERATURE
    found = [(name, bank) for name in sources if (bank := bank_of_artifact(name)) is not None]
    if found and found[0][1].contexts is None:
        _warn_of_contexts(found[1:], found[0][0], console)
    if found and not section.file:
        name, bank = found[0]
        _refuse_beside(section, name)
        return _at(bank, section).taking(classes, name).scaled(scale)
    if not (section.tower or found):
        raise UsageError(_NEEDS)
    if not found:
        return bank_of_texts(section, classes, "", scale, console)
    own = found[0][1]
    return bank_of_texts(
        section, classes, own.tower, scale, console, tower_hash=own.tower_hash, contexts=own.contexts
    )


def _at(bank: TextBank, section: TextSection) -> TextBank:
    """A bank whose text tower stands where the user says, if at all. Raises InputError for another tower."""
    from kdcli.models.texts import open_text_tower

    if section.tower is None:
        return bank
    _refuse_other(open_text_tower(section.tower), bank.tower_hash)
    return replace(bank, tower=section.tower)


def _refuse_other(tower: TextTower, wanted: str) -> None:
    """Raise InputError for another text tower than the one that is wanted, by its hash; empty for any."""
    own = tower.hash
    if wanted and own != wanted:
        raise InputError(
            f"{tower.name} is another text tower than the one whose space the model embeds pictures in "
            f"({own[:8]}, not {wanted[:8]}): its texts mean nothing there. Give that one: --set "
            "texts.tower=FOLDER."
        )


def _warn_of_contexts(others: Sequence[tuple[str, TextBank]], taken: str, console: Console) -> None:
    """Warn where the bank of ``taken`` stands in the place of one that a network has learned contexts for."""
    for name, bank in others:
        if bank.contexts is not None:
            console.warn(
                f"{name} has learned {len(bank.contexts)} contexts for its texts, and the bank is that of "
                f"{taken}, without them: only method.contexts={len(bank.contexts)} goes on from them."
            )


def _refuse_beside(section: TextSection, name: str) -> None:
    """Raise UsageError for what says how texts are made, where the bank of a model is taken as it is."""
    plain = type(section)()
    for key in ("descriptions", "templates", "described"):
        if getattr(section, key) != getattr(plain, key):
            raise UsageError(
                f"texts.{key} is given, and the texts are those of {name}. Say what they are made of: --set "
                "texts.file=FILE; or leave it out."
            )


def attach(
    network: Model, section: TextSection, classes: Sequence[str] | None, name: str, console: Console
) -> None:
    """Let a vision-language model answer by texts: those that the user names, read by its own text tower.

    Args:
        network: of ``--teacher``; one that has a bank already gets another one.
        section: what is said of the classes.
        classes: of the data, or None.
        name: of the network, as the user wrote it: its text tower is looked for there.
        console: is told of texts that are cut.

    Raises:
        InputError: a network that embeds pictures in no space that texts are in.
    """
    from kdcli.models.creation import LOCAL, REMOTE
    from kdcli.models.families import logit_scale
    from kdcli.tasks.zeroshot import TEMPERATURE

    own = bank_of_artifact(name)
    if not network.text_width:
        raise InputError(
            f"{name} embeds pictures in no space that texts are in. Give a vision-language model "
            "(local-dir:FOLDER or hf-hub:OWNER/NAME of a CLIP or SigLIP, clip_vitb32, …), or align a network "
            "with a text tower: kdcli distill --method supervised --task zeroshot --set texts.file=FILE "
            "--set texts.tower=FOLDER."
        )
    if own is None and not section.tower and not name.startswith((LOCAL, *REMOTE)):
        raise UsageError(
            f"{name} is a picture tower of timm, whose text tower is elsewhere: give the folder or hub id of "
            "the whole model, --set texts.tower=FOLDER."
        )
    known = logit_scale(name) or logit_scale(f"{LOCAL}{section.tower}")
    scale = own.scale if own is not None else known or 1 / TEMPERATURE
    tower = own.tower if own is not None else name
    wanted = own.tower_hash if own is not None else _own_hash(name, section)
    contexts = own.contexts if own is not None else None
    bank = bank_of_texts(section, classes, tower, scale, console, tower_hash=wanted, contexts=contexts)
    if bank.width != network.text_width:
        raise InputError(
            f"{name} embeds pictures in {network.text_width} numbers, and {bank.tower} texts in "
            f"{bank.width}: they are not of one model."
        )
    network.attach_bank(bank, projected=True)


def _own_hash(name: str, section: TextSection) -> str:
    """Hash of a model's own text tower, where the user names a place of one; empty where it has none."""
    from kdcli.models.creation import LOCAL, REMOTE
    from kdcli.models.texts import open_text_tower

    if not section.tower or not name.startswith((LOCAL, *REMOTE)):
        return ""
    try:
        return open_text_tower(name).hash
    except InputError:  # a picture tower by itself
        return ""


def asked_again(
    network: Model, section: TextSection, classes: Sequence[str], name: str, console: Console
) -> None:
    """Let a model with a bank answer for the classes of other data, by texts that the user names.

    Where nothing but ``texts.scale`` or ``texts.tower`` is named, its own texts stay.

    Raises:
        InputError: a model without a bank, or a text tower that is not its own.
    """
    if network.bank is None:
        raise InputError(
            f"--texts: {name} compares pictures with no texts; only such a model can be asked so. "
            "kdcli probe --task zeroshot makes one of a vision-language model."
        )
    if not is_asked(section.model_copy(update={"scale": None, "tower": None})):
        bank = _at(network.bank, section)
        network.attach_bank(bank.scaled(section.scale or bank.scale), projected=True)
        return
    attach(network, section, classes, name, console)


def refuse_unread(section: TextSection, task: str) -> None:
    """Raise UsageError where texts are named for a task that has none."""
    from kdcli.tasks import entry

    if "text" not in entry(task).provides:
        refuse_texts(section, task)


def refuse_texts(section: TextSection, task: str) -> None:
    """Raise UsageError where texts are named for a task that has none."""
    if is_asked(section):
        raise UsageError(
            f"--texts: networks for {task} compare pictures with no texts. Say --task zeroshot, or leave "
            "texts.… out."
        )


def described(network: Model) -> dict[str, Any]:
    """What the manifest says of a network's bank; empty where it has none."""
    bank = network.bank
    if bank is None:
        return {}
    return {
        "texts": {
            "tower": bank.tower,
            "hash": bank.tower_hash,
            "width": bank.width,
            "scale": bank.scale,
            "templates": list(bank.templates),
            "truncated": bank.truncated,
            **({} if bank.contexts is None else {"contexts": len(bank.contexts)}),
        }
    }
