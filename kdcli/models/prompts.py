"""Learned contexts: vectors that stand where a template's words would, before what is said of each class.

CoOp (Zhou et al. 2022, arXiv 2109.01134) with contexts that all classes share, as Li et al. 2023 (arXiv
2307.03135) train them beside a student. The text tower is frozen, and the gradient goes through it. A prompt
is, without the words of a template,

    first token, M contexts, tokens of "name." or "name . description."

The tower is given the numbers of tokens as ever, M more of them, and the contexts take the place of what its
table of words answers there: CLIP finds the end of a text by those numbers, and RoBERTa counts positions by
them, so that ``inputs_embeds`` would do for neither.

The contexts belong to the student's head. They have its optimiser, its rate and its moving average, and the
steps that are kept by validation are chosen with the texts that they make.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError, UsageError
from kdcli.models.banks import TextBank, contexts_of, mean_of_texts, refuse_equal
from kdcli.models.heads.texts import scaled_cosines
from kdcli.models.protocol import Model
from kdcli.models.texts import Encoded, TextTower, open_text_tower

STD = 0.02  # of the normal distribution that contexts are drawn from
_BESIDE = 3  # tokens that a prompt needs beside contexts: the first, a word, the last
_TEXTS = 64  # that are embedded at once

# -- texts ---------------------------------------------------------------------------------------------------


def without_templates(bank: TextBank) -> tuple[tuple[str, ...], ...]:
    """What the texts of a bank say of each class, without the words of its templates.

    Each template is filled with the same, so what is said with the first of them is all of it.

    Raises:
        InputError: texts that are not made of the bank's templates.
    """
    if not bank.templates:
        return bank.texts
    before, after = bank.templates[0].split("{}")
    found = []
    for name, texts in zip(bank.classes, bank.texts):
        own = texts[: max(1, len(texts) // len(bank.templates))]
        if not all(text.startswith(before) and after in text[len(before) :] for text in own):
            raise InputError(
                f"the text {own[0]!r} of the class {name!r} is not made of the template "
                f"{bank.templates[0]!r}: its words cannot be taken out. Make the bank anew: --set "
                "texts.file=FILE."
            )
        found.append(tuple(_said(text.removeprefix(before), after) for text in own))
    return tuple(found)


def _said(text: str, after: str) -> str:
    """A text without the end ``after`` of its template, which may stand before a description."""
    name, apart, description = text.partition(f"{after} . ")
    return f"{name} . {description}" if apart else text.removesuffix(after)


def ended(text: str) -> str:
    """A text as it stands in a prompt: with a full stop at its end."""
    return text if text.endswith(".") else f"{text}."


# -- tokens --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompts:
    """Texts as a tower's tokens, with places for contexts.

    Attributes:
        tokens: ``input_ids``, perhaps ``attention_mask``, each [N, L].
        first: place of the first context.
        truncated: numbers of the texts that are longer than the contexts leave room for.
    """

    tokens: dict[str, Tensor]
    first: int
    truncated: tuple[int, ...]


def prompts_of(tower: TextTower, texts: Sequence[str], contexts: int) -> Prompts:
    """Tokens of texts behind so many contexts, which follow the token that begins a text.

    Where no text begins with a token of its own (SigLIP), the contexts do. In their places stands the first
    token's number, which is no padding and no end of a text.

    Raises:
        UsageError: more contexts than the tower has room for.
    """
    if not 0 < contexts <= tower.length - _BESIDE:
        raise UsageError(
            f"{contexts} contexts: {tower.name} reads {tower.length} tokens, which leaves room for 1 to "
            f"{tower.length - _BESIDE} beside the first token, the last, and a word."
        )
    said = [ended(text) for text in texts]
    found = tower.tokens(said, spare=contexts)
    first = int(int(found["input_ids"][0, 0]) in tower.tokenizer.all_special_ids)

    def widened(tensor: Tensor) -> Tensor:
        places = tensor[:, :1].expand(-1, contexts)
        return torch.cat([tensor[:, :first], places, tensor[:, first:]], dim=1)

    tokens = {name: widened(tensor) for name, tensor in found.items()}
    return Prompts(tokens, first, tower.truncated(said, spare=contexts))


def prompted(tower: TextTower, tokens: dict[str, Tensor], first: int, contexts: Tensor) -> Tensor:
    """Embeddings [N, D] of prompts, whose places from ``first`` on are taken by the contexts [M, W]."""
    behind = first + len(contexts)

    def placed(_module: nn.Module, _given: Any, words: Tensor) -> Tensor:
        own = contexts.to(words.dtype).expand(len(words), -1, -1)
        return torch.cat([words[:, :first], own, words[:, behind:]], dim=1)

    handle = tower.words.register_forward_hook(placed)
    try:
        return tower.embed(tokens)
    finally:
        handle.remove()


def encode(tower: TextTower, texts: Sequence[str], contexts: Tensor) -> Encoded:
    """Embeddings of texts behind learned contexts [M, W].

    Raises:
        InputError: contexts of another width than the tower's words.
        UsageError: more contexts than it has room for.
    """
    _refuse_unfit(tower, contexts)
    prompts = prompts_of(tower, texts, len(contexts))
    with torch.inference_mode():
        parts = [
            prompted(tower, rows, prompts.first, contexts).float()
            for rows in _in_parts(prompts.tokens, len(texts))
        ]
    return Encoded(torch.cat(parts).clone(), prompts.truncated)


def _in_parts(tokens: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    return [
        {name: tensor[begin : begin + _TEXTS] for name, tensor in tokens.items()}
        for begin in range(0, count, _TEXTS)
    ]


def _refuse_unfit(tower: TextTower, contexts: Tensor) -> None:
    width = int(tower.words.weight.shape[1])
    if contexts.ndim != 2 or contexts.shape[1] != width:
        raise InputError(
            f"contexts of the shape {list(contexts.shape)} do not fit the words of {tower.name}, which have "
            f"{width} numbers."
        )


# -- what is trained -----------------------------------------------------------------------------------------


class PromptedTexts(nn.Module):
    """Scaled cosines with the texts of classes behind contexts that are learned; its parameters are these.

    The bank is made anew whenever the contexts are others: once in each micro-batch, which is a forward and a
    backward of the text tower over the texts of all classes, in fp32. Beyond 64 texts it is made in parts
    that keep no activations, and the backward makes each once more. The tower is no part of the module: it
    is neither trained nor saved, and copies of the module share it.

    Args:
        bank: classes and what is said of them; its rows are not read.
        tower: that reads texts.
        contexts: [M, W] to begin with.

    Raises:
        InputError: contexts that do not fit the tower, or two classes whose texts are cut to the same.
        UsageError: more contexts than the tower has room for.

    Attributes:
        texts: of each class, without templates.
        truncated: how many of them are cut.
    """

    def __init__(self, bank: TextBank, tower: TextTower, contexts: Tensor) -> None:
        super().__init__()
        _refuse_unfit(tower, contexts)
        self.tower, self.texts = tower, without_templates(bank)
        prompts = prompts_of(tower, [text for own in self.texts for text in own], len(contexts))
        self.first, self.truncated = prompts.first, len(prompts.truncated)
        self.contexts = nn.Parameter(contexts.detach().clone().float())
        self.register_buffer("scale", torch.tensor(bank.scale))
        for name, tensor in prompts.tokens.items():
            self.register_buffer(name, tensor, persistent=False)
        self._tokens = tuple(prompts.tokens)
        self._made: tuple[Tensor, Tensor, bool] | None = None
        with torch.no_grad():
            refuse_equal(bank.classes, self.weight)

    def __getstate__(self) -> dict[str, Any]:
        """What copies are made of: not the bank, which may be within a graph."""
        return {**self.__dict__, "_made": None}

    @property
    def weight(self) -> Tensor:
        """The bank [C, D] of the contexts as they are now, each row of length 1, with a gradient to them.

        It is made once for all who read it between two backwards.
        """
        contexts, learns = self.contexts.detach(), torch.is_grad_enabled()
        if self._made is not None:
            rows, of, learned = self._made
            if learned == learns and of.device == contexts.device and torch.equal(of, contexts):
                return rows
        rows = self._rows()
        if rows.requires_grad:
            rows.register_hook(self._spent)
        self._made = rows, contexts.clone(), learns
        return rows

    def _spent(self, _gradient: Tensor) -> None:
        """A backward goes through the graph of the bank, which serves for one alone."""
        self._made = None

    def _rows(self) -> Tensor:
        device = self.contexts.device
        self.tower.body.to(device)
        tokens = {name: self.get_buffer(name) for name in self._tokens}
        parts = _in_parts(tokens, len(tokens["input_ids"]))
        with torch.autocast(device.type, enabled=False):
            if len(parts) > 1 and torch.is_grad_enabled():
                made = [
                    checkpoint(
                        prompted,
                        self.tower,
                        part,
                        self.first,
                        self.contexts,
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                    for part in parts
                ]
            else:
                made = [prompted(self.tower, part, self.first, self.contexts) for part in parts]
            return mean_of_texts(torch.cat(made), [len(own) for own in self.texts])

    def forward(self, embedding: Tensor) -> Tensor:
        """Logits [B, C] of embeddings [B, D]."""
        scale: Any = self.scale
        return scaled_cosines(embedding, self.weight, scale)

    def learned(self, bank: TextBank) -> TextBank:
        """The bank as the contexts make it now: its rows, and what others need to make more of them."""
        with torch.no_grad():
            rows = self.weight.detach().cpu().clone()
        contexts = self.contexts.detach().cpu().clone()
        beside = None if bank.beside is None else behind(bank.beside, self.tower, contexts)
        return replace(
            bank,
            embeddings=rows,
            texts=self.texts,
            templates=(),
            truncated=self.truncated,
            contexts=contexts,
            beside=beside,
        )


def behind(bank: TextBank, tower: TextTower, contexts: Tensor) -> TextBank:
    """A bank of the same texts, without templates, behind contexts [M, W]."""
    texts = without_templates(bank)
    tower.body.to("cpu")
    encoded = encode(tower, [text for own in texts for text in own], contexts)
    rows = mean_of_texts(encoded.embeddings, [len(own) for own in texts])
    cut = len(encoded.truncated)
    return replace(bank, embeddings=rows, texts=texts, templates=(), truncated=cut, contexts=contexts)


def learn_contexts(network: Model, count: int) -> None:
    """Let a network answer by texts behind contexts that it learns, in the place of its bank of texts.

    They are drawn from N(0, 0.02²) by torch's generator. A student that learned contexts for the same text
    tower goes on from them.

    Args:
        network: has a bank of texts.
        count: M.

    Raises:
        InputError: a network without a bank, a text tower that cannot be opened any more or is another one,
            contexts of another number, texts that are cut to the same.
        UsageError: more contexts than the text tower has room for.
    """
    head: Any = network.head
    bank = network.bank
    if bank is None:
        raise InputError(f"method.contexts: {network.name} compares pictures with no texts.")
    tower = _tower_of(bank)
    start = _learned_before(network, bank, count)
    if start is None:
        start = torch.empty(count, tower.words.weight.shape[1]).normal_(std=STD)
    else:
        network.notes += (f"the {count} contexts go on from those that {network.name} has learned",)
    made = PromptedTexts(bank, tower, start)
    if made.truncated:
        total = sum(map(len, made.texts))
        are = "text is" if made.truncated == 1 else "texts are"
        network.notes += (
            f"{made.truncated} of {total} {are} longer than the {tower.length} tokens that {tower.name} "
            f"reads, {count} of them contexts, and cut there",
        )
    head.linear = made.to(device=head.device)


def _tower_of(bank: TextBank) -> TextTower:
    """The text tower that has made a bank. Raises InputError where it is not to be had."""
    ways = (
        "method.contexts learns through the text tower that made the bank. Put it back there, or name it: "
        "--set texts.tower=FOLDER (and texts.file=FILE, where more than names is said of classes); or leave "
        "method.contexts out."
    )
    try:
        tower = open_text_tower(bank.tower)
    except InputError as error:
        raise InputError(f"{error} {ways}") from error
    if tower.hash != bank.tower_hash:
        raise InputError(f"{bank.tower} is another text tower now than the one that made the bank. {ways}")
    return tower


def _learned_before(network: Model, bank: TextBank, count: int) -> Tensor | None:
    """Contexts that the student's artifact has for the same text tower; None where there are none."""
    if network.trained != "artifact" or artifacts.find(network.name) is None:
        return None
    files = artifacts.read(network.name)
    contexts = contexts_of(files)
    if contexts is None:
        return None
    said = read_object(files.path / artifacts.TEXTS).get("tower")
    if not isinstance(said, dict) or said.get("hash") != bank.tower_hash:
        return None
    if len(contexts) != count:
        raise InputError(
            f"method.contexts={count}: {network.name} has learned {len(contexts)}, from which training goes "
            f"on. Say method.contexts={len(contexts)}, or begin with another student."
        )
    return contexts


def learns_contexts(network: Any) -> bool:
    """Whether a network's bank is one of contexts in training."""
    return isinstance(network, Model) and isinstance(getattr(network.head, "linear", None), PromptedTexts)


def settled(network: Model, tensors: Mapping[str, Tensor]) -> Model:
    """A copy of a network as at a step, whose bank is what its contexts make there, and learns no more.

    Args:
        network: see :func:`learns_contexts`.
        tensors: its state dict at that step.
    """
    made = copy.deepcopy(network)
    made.load_state_dict(dict(tensors))
    head: Any = made.head
    head.replace_bank(head.linear.learned(head.bank))
    return made
