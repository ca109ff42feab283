"""Banks of texts: an embedding for each class, what was said of it, and which text tower has read that.

Logits are scaled cosines between what a network makes of a picture and the bank's rows, as CLIP's zero-shot
classifier has them (Radford et al. 2021, arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdcli.artifacts import model as artifacts
from kdcli.errors import InputError, nearest

_FORM = 1
_MOST_TEXTS = 10_000  # of a class


@dataclass(frozen=True, eq=False)
class TextBank:
    """What classes are told apart by.

    Attributes:
        classes: names, in the order of the rows.
        embeddings: [C, D] fp32, each of length 1.
        texts: what was said of each class; of several, the mean of their embeddings is taken, as CLIP does.
        tower: where the text tower is from, for whoever makes another bank with it.
        tower_hash: of its weights and its vocabulary.
        scale: by which cosines are multiplied: 1/τ, or the teacher's own.
        templates: into which names were put.
        truncated: number of texts that were longer than the tower reads.
        contexts: [M, W] that were learned to stand before each text, in the place of templates, perhaps none
            (:mod:`kdcli.models.prompts`).
        beside: texts of other classes, which are no candidates; a bank of its own, or None.
    """

    classes: tuple[str, ...]
    embeddings: Tensor
    texts: tuple[tuple[str, ...], ...]
    tower: str
    tower_hash: str
    scale: float
    templates: tuple[str, ...] = ()
    truncated: int = 0
    contexts: Tensor | None = None
    beside: TextBank | None = None

    @property
    def width(self) -> int:
        """D."""
        return int(self.embeddings.shape[1])

    def taking(self, classes: Sequence[str], who: str) -> TextBank:
        """The same bank with these of its classes for candidates, in this order; it keeps all others beside.

        Args:
            classes: names.
            who: has it, for messages.

        Raises:
            InputError: a class that it has no text of.
        """
        known = self.whole()
        place = {name: row for row, name in enumerate(known.classes)}
        if missing := [name for name in classes if name not in place]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise InputError(
                f"{who} has no text for {', '.join(map(repr, missing[:3]))}{more}."
                f"{nearest(missing[0], place)} Make a bank with it: --set texts.file=FILE, or leave its "
                "pictures out."
            )
        rest = [row for name, row in place.items() if name not in set(classes)]
        found = known._rows([place[name] for name in classes])
        return replace(found, beside=known._rows(rest) if rest else None)

    def whole(self) -> TextBank:
        """All classes for candidates, those beside last."""
        if self.beside is None:
            return self
        return replace(
            self,
            classes=(*self.classes, *self.beside.classes),
            embeddings=torch.cat([self.embeddings, self.beside.embeddings.to(self.embeddings)]),
            texts=(*self.texts, *self.beside.texts),
            beside=None,
        )

    def _rows(self, rows: Sequence[int]) -> TextBank:
        """Some of its classes, by their rows, and nothing beside."""
        return replace(
            self,
            classes=tuple(self.classes[row] for row in rows),
            embeddings=self.embeddings[list(rows)],
            texts=tuple(self.texts[row] for row in rows),
            beside=None,
        )

    def scaled(self, scale: float) -> TextBank:
        """The same bank with another scale."""
        return replace(self, scale=scale)

    def to_json(self) -> dict[str, Any]:
        """What ``texts.json`` says of it; the rows themselves are tensors of the head."""
        learned = {} if self.contexts is None else {"contexts": len(self.contexts)}
        return {
            "form": _FORM,
            "tower": {"name": self.tower, "hash": self.tower_hash, "width": self.width},
            "scale": self.scale,
            "templates": list(self.templates),
            "truncated": self.truncated,
            **learned,
            "texts": said_by(self),
            **({"beside": said_by(self.beside)} if self.beside is not None else {}),
        }


def said_by(bank: TextBank) -> dict[str, list[str]]:
    """Texts by class."""
    return {name: list(texts) for name, texts in zip(bank.classes, bank.texts)}


def read_bank(
    described: Mapping[str, Any],
    weight: Tensor,
    where: str,
    *,
    beside: Tensor | None = None,
    contexts: Tensor | None = None,
) -> TextBank:
    """The bank that ``texts.json`` and the tensor ``linear.weight`` [C, D] of a head describe.

    Args:
        described: content of ``texts.json``.
        weight: the rows.
        where: names the file.
        beside: the rows of classes that are no candidates, the head's ``beside``.
        contexts: of :func:`contexts_of`.

    Raises:
        InputError: a description that is none, or of other rows or contexts.
    """
    try:
        tower, texts = described["tower"], described["texts"]
        classes = tuple(str(name) for name in texts)
        said = tuple(tuple(str(text) for text in own) for own in texts.values())
        scale = float(described["scale"])
        bank = TextBank(
            classes,
            weight.float(),
            said,
            str(tower["name"]),
            str(tower["hash"]),
            scale,
            tuple(map(str, described.get("templates", ()))),
            int(described.get("truncated", 0)),
            contexts,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} describes no bank of texts: {error}.") from error
    if weight.ndim != 2 or len(classes) != len(weight) or not all(0 < len(own) < _MOST_TEXTS for own in said):
        raise InputError(f"{where} describes {len(classes)} classes, and the bank has {len(weight)} rows.")
    if not 0 < scale < 1e6 or not bool(weight.isfinite().all()):
        raise InputError(f"{where}: a bank whose numbers are none (scale {scale:g}).")
    told, found = described.get("contexts", 0), 0 if contexts is None else len(contexts)
    if told != found:
        raise InputError(f"{where} tells of {told} contexts, and {artifacts.PROMPTS} holds {found}.")
    others = described.get("beside", {})
    if not isinstance(others, dict) or len(others) != (0 if beside is None else len(beside)):
        raise InputError(f"{where} describes other classes beside than the bank has rows of.")
    if beside is None:
        return bank
    more = read_bank({**described, "texts": others, "beside": {}}, beside, where, contexts=contexts)
    return replace(bank, beside=more)


def contexts_of(files: artifacts.ModelFiles) -> Tensor | None:
    """Contexts [M, W] that a model's texts stand behind; None where there are none.

    Raises:
        InputError: a file that holds something else.
    """
    if artifacts.PROMPTS not in files.names:
        return None
    tensors = files.tensors(artifacts.PROMPTS)
    found = tensors.get("contexts")
    if found is None or len(tensors) != 1 or found.ndim != 2 or not bool(found.isfinite().all()):
        raise InputError(f"{files.path / artifacts.PROMPTS} holds no contexts that texts could stand behind.")
    return found.float()


def refuse_equal(names: Sequence[str], rows: Tensor) -> None:
    """Raise InputError where two classes have the same embedding, as where both are cut to the same words."""
    seen: dict[bytes, str] = {}
    for name, row in zip(names, rows.detach().cpu()):
        other = seen.setdefault(row.numpy().tobytes(), name)
        if other != name:
            raise InputError(
                f"the texts of '{other}' and '{name}' are the same to the text tower: nothing could tell "
                "their pictures apart. Describe them differently, or leave one out."
            )


def mean_of_texts(embeddings: Tensor, counts: Sequence[int]) -> Tensor:
    """The bank's rows [C, D] of the embeddings [ΣN_c, D] of all texts, ``counts`` of each class in turn."""
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    rows = torch.stack([part.mean(dim=0) for part in unit.split(list(counts))])
    return torch.nn.functional.normalize(rows, dim=1)
