"""Text towers: transformers' networks and tokenizers that embed sentences, as plain transformers has them.

The text tower of a vision-language model, or a sentence encoder (BERT and its kin with mean or class-token
pooling, as sentence-transformers' ``1_Pooling`` says) for pictures that are aligned with it here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError
from kdcli.models import families
from kdcli.models.checkpoints import refuse_spoilt
from kdcli.models.creation import LOCAL, REMOTE
from kdcli.models.families import FAMILIES
from kdcli.models.legacy import first_line

_ENCODERS = ("bert", "distilbert", "roberta", "xlm-roberta", "mpnet")
_OPEN_CLIP = "open_clip_config.json"
_POOLING = ("1_Pooling", "config.json")
_LENGTH = "sentence_bert_config.json"
_WORDS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
_FILES = (
    artifacts.CONFIG,
    *_WORDS,
    "/".join(_POOLING),
    _OPEN_CLIP,
    _LENGTH,
    artifacts.PROCESSOR,
)
_BATCH = 64
_ENDLESS = 100_000  # tokens: what tokenizers say that know no limit


@dataclass(frozen=True)
class Encoded:
    """Texts as a tower sees them.

    Attributes:
        embeddings: [N, D] fp32, as the tower answers, not normalised.
        truncated: numbers of the texts that are longer than it reads.
    """

    embeddings: Tensor
    truncated: tuple[int, ...]


class TextTower:
    """A frozen text tower.

    Args:
        body: the network.
        tokenizer: of transformers.
        name: where it is from.
        length: tokens that it reads, the special ones among them.
        family: of :data:`FAMILIES`; None for a sentence encoder.
        pooling: of a sentence encoder, ``mean`` of all tokens or ``cls``, the first.
    """

    def __init__(
        self,
        body: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        length: int,
        family: str | None = None,
        pooling: str = "mean",
    ) -> None:
        self.body, self.tokenizer = body.requires_grad_(False).eval(), tokenizer
        self.name, self.length, self.family, self.pooling = name, length, family, pooling

    @property
    def hash(self) -> str:
        """Hash of its weights and of its vocabulary, whatever files they are in."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.body.state_dict().items()):
            if tensor.is_floating_point():
                sha.update(f"{name}{tuple(tensor.shape)}".encode())
                sha.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        for word, number in sorted(self.vocabulary().items()):
            sha.update(f"{word}\0{number}\0".encode(errors="surrogatepass"))
        return sha.hexdigest()[:32]

    def vocabulary(self) -> Mapping[str, int]:
        """Words by their numbers."""
        return self.tokenizer.get_vocab()

    def __deepcopy__(self, _memo: Any) -> TextTower:
        """Itself: it is frozen, so that copies of who holds it share it."""
        return self

    @property
    def words(self) -> Any:
        """The table [V, W] of its words' embeddings, a module."""
        body: Any = self.body
        return body.get_input_embeddings()

    def tokens(self, texts: Sequence[str], *, spare: int = 0) -> dict[str, Tensor]:
        """What it reads of texts: ``input_ids`` and ``attention_mask`` [N, L], cut at its length.

        ``spare`` leaves room for so many more tokens.
        """
        pads = self.family is not None and FAMILIES[self.family].pads
        found = self.tokenizer(
            list(texts),
            padding="max_length" if pads else True,
            truncation=True,
            max_length=self.length - spare,
            return_tensors="pt",
            return_attention_mask=not pads,
        )
        return {key: found[key] for key in ("input_ids", "attention_mask") if key in found}

    def truncated(self, texts: Sequence[str], *, spare: int = 0) -> tuple[int, ...]:
        """Numbers of the texts that are longer than it reads, but for ``spare`` tokens."""
        whole = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return tuple(number for number, ids in enumerate(whole) if len(ids) > self.length - spare)

    def embed(self, tokens: dict[str, Tensor]) -> Tensor:
        """Embeddings [N, D] of tokens, as the tower answers."""
        found = self.body(**tokens)
        if self.family is not None:
            return getattr(found, FAMILIES[self.family].answers["text"])
        hidden = found.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embeddings of texts, in batches.

        Raises:
            InputError: no text, or one that becomes NaN.
        """
        if not texts:
            raise InputError(f"{self.name}: there is no text to embed.")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # of like length together: less to pad
        found: Tensor | None = None
        with torch.inference_mode():
            for begin in range(0, len(order), _BATCH):
                rows = order[begin : begin + _BATCH]
                part = self.embed(self.tokens([texts[row] for row in rows])).float()
                if found is None:
                    found = torch.zeros(len(texts), part.shape[1])
                found[rows] = part
        assert found is not None
        if not bool(found.isfinite().all()):
            raise InputError(f"{self.name} embeds texts as NaN or Inf: its weights are damaged.")
        return Encoded(found.clone(), self.truncated(texts))


def open_text_tower(source: str) -> TextTower:
    """The text tower of a folder or of a repository of the hub, perhaps with ``local-dir:`` or ``hf-hub:``.

    Raises:
        InputError: no such place, no text tower or tokenizer in it, or a tokenizer of another network.
    """
    place = source
    for prefix in (LOCAL, *REMOTE):
        place = place.removeprefix(prefix)
    folder = families.folder_of(place, _FILES)
    file = folder / artifacts.CONFIG
    if not file.is_file() and (folder / _OPEN_CLIP).is_file():
        from kdcli.models import open_clip_texts

        return open_clip_texts.open_texts(families.folder_of(place, open_clip_texts.WEIGHTS), source)
    config = read_object(file)
    family = families.family_of(config, "text")
    if family is not None:
        own = families.configured(config, "text", str(file))
        body = families.loaded(family, "text", place, own, source)
        length = int(own.max_position_embeddings)
        pooling = "mean"
    elif config.get("model_type") in _ENCODERS:
        body, own = _encoder(place, source), config
        length, pooling = _length(folder, config), _pooling(folder, source)
    else:
        kinds = ", ".join((*FAMILIES, *_ENCODERS))
        raise InputError(
            f"{source} has no text tower that is known here: its type is {config.get('model_type')!r}, and "
            f"there are {kinds}. Name one: --set texts.tower=FOLDER."
        )
    refuse_spoilt(body.state_dict(), source)
    tokenizer = _tokenizer(place, source, folder)
    tower = TextTower(body, tokenizer, name=source, length=length, family=family, pooling=pooling)
    _refuse_unfit(tower, own)
    return tower


def _encoder(place: str, source: str) -> Any:
    """A sentence encoder with its weights."""
    from transformers import AutoModel

    try:
        with families.without_bars():
            made, told = AutoModel.from_pretrained(
                place, use_safetensors=True, output_loading_info=True, trust_remote_code=False
            )
    except Exception as error:  # of many kinds: no weights, other shapes
        raise InputError(f"{source}: transformers cannot load it: {first_line(error)}.") from error
    missing = sorted(n for n in told.get("missing_keys") or () if not n.startswith("pooler."))
    if missing:
        raise InputError(f"{source} lacks weights of its text tower, first {missing[0]}.")
    return made.float()


def _tokenizer(place: str, source: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    why = f"none of {', '.join(_WORDS)}"
    if any((folder / name).is_file() for name in _WORDS):  # without any, transformers makes up an empty one
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # of many kinds: damaged files, a library that is not there
            why = first_line(error)
    raise InputError(f"{source} has no tokenizer that can be read: {why}. A text tower comes with its own.")


def _length(folder: Path, config: dict[str, Any]) -> int:
    """Tokens that a sentence encoder reads, by sentence-transformers' word or its own positions."""
    known = int(config.get("max_position_embeddings", 512))
    known -= 2 if config.get("model_type") in ("roberta", "xlm-roberta", "mpnet") else 0  # from 2 on
    said = folder / _LENGTH
    asked = read_object(said).get("max_seq_length") if said.is_file() else None
    return min(known, asked) if isinstance(asked, int) and asked > 2 else known


def _pooling(folder: Path, source: str) -> str:
    """How a sentence encoder makes one vector of all tokens: what its files say, else their mean."""
    file = folder.joinpath(*_POOLING)
    if not file.is_file():
        return "mean"
    modes = [key for key, on in read_object(file).items() if key.startswith("pooling_mode_") and on is True]
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if len(modes) != 1 or modes[0] not in known:
        raise InputError(
            f"{source}: {'/'.join(_POOLING)} asks for {' and '.join(modes) or 'no pooling'}; known are "
            f"{' and '.join(known)}, one of them."
        )
    return known[modes[0]]


def _refuse_unfit(tower: TextTower, config: Any) -> None:
    """Refuse a tokenizer that is not of the network: other numbers of words, or another end of a text."""
    said = config if isinstance(config, dict) else config.to_dict()
    words = int(said.get("vocab_size", 0))
    largest = max(tower.tokenizer.get_vocab().values(), default=0)
    if largest >= words:
        raise InputError(
            f"the tokenizer of {tower.name} does not fit its text tower: it numbers words up to {largest:,}, "
            f"and the tower knows {words:,}."
        )
    end, own = tower.tokenizer.eos_token_id, said.get("eos_token_id")
    if tower.family == "clip" and own != 2 and end != own:  # 2 stands for the largest number of a text
        raise InputError(
            f"the tokenizer of {tower.name} does not fit its text tower: a text ends with the word {end}, "
            f"and the tower looks for {own}."
        )
    if 2 < tower.tokenizer.model_max_length < min(tower.length, _ENDLESS):
        tower.length = int(tower.tokenizer.model_max_length)
