"""Text towers of open_clip (extra ``vlm``), read from its folders: ``open_clip_config.json`` and safetensors.

Picture towers of such models are timm's (``vit_base_patch32_clip_224.laion2b``, …), whose projections lie in
the same space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError, refuse_missing
from kdcli.models.checkpoints import refuse_spoilt
from kdcli.models.legacy import first_line
from kdcli.models.texts import TextTower

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
_PICTURES = ("visual.", "logit_scale", "logit_bias")


class OpenClipTexts(TextTower):
    """A text tower as open_clip has it, with its own tokenizer.

    Args:
        body: the network, its picture tower left out.
        tokenizer: open_clip's.
        name: where it is from.
        length: tokens that it reads.
    """

    def vocabulary(self) -> Mapping[str, int]:
        """Words by their numbers."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        return self.tokenizer.encoder if inner is None else inner.get_vocab()

    @property
    def words(self) -> Any:
        """Raises InputError: contexts are learned through towers of transformers alone."""
        raise InputError(
            f"{self.name} is a text tower of open_clip, through which no contexts are learned. Take the same "
            "model in transformers' layout, or leave method.contexts out."
        )

    def tokens(self, texts: Sequence[str], *, spare: int = 0) -> dict[str, Tensor]:
        """What it reads of texts: ``text`` [N, L], filled up and cut at its length."""
        return {"text": self.tokenizer(list(texts), context_length=self.length - spare)}

    def truncated(self, texts: Sequence[str], *, spare: int = 0) -> tuple[int, ...]:
        """Numbers of the texts that are longer than it reads: those that a longer tower reads more of."""
        longer = self.tokenizer(list(texts), context_length=self.length - spare + 1)
        return tuple(torch.nonzero(longer[:, -1] != self._padding()).flatten().tolist())

    def _padding(self) -> int:
        """What fills up the shortest text."""
        return int(self.tokenizer(["a"], context_length=self.length)[0, -1])

    def embed(self, tokens: dict[str, Tensor]) -> Tensor:
        """Embeddings [N, D] of tokens, as the tower answers."""
        body: Any = self.body
        return body.encode_text(tokens["text"])


def open_texts(folder: Path, source: str) -> OpenClipTexts:
    """The text tower of a folder of open_clip's.

    Args:
        folder: has ``open_clip_config.json`` and weights.
        source: names it.

    Raises:
        InputError: no safetensors, or such as do not fit.
        EnvironmentFault: open_clip is not installed.
    """
    refuse_missing(("open_clip",), "vlm", f"{source} is a model of open_clip")
    import open_clip

    config = read_object(folder / CONFIG).get("model_cfg")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if not isinstance(config, dict) or weights is None:
        raise InputError(
            f"{source}: a model of open_clip has {CONFIG} with a model_cfg, and weights in one of "
            f"{', '.join(WEIGHTS)}: others may hold code, and are not read."
        )
    tensors = read_tensors(weights)
    refuse_spoilt(tensors, str(weights))
    try:
        body: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        tokenizer: Any = open_clip.get_tokenizer(f"local-dir:{folder}")
        told = body.load_state_dict(tensors, strict=False)
    except Exception as error:  # of many kinds: no such configuration, other shapes
        raise InputError(f"{source}: open_clip cannot build it: {first_line(error)}.") from error
    if missing := sorted(name for name in told.missing_keys if not name.startswith(_PICTURES)):
        raise InputError(f"{weights} lacks weights of the text tower, first {missing[0]}.")
    del body.visual
    return OpenClipTexts(body, tokenizer, name=source, length=int(body.context_length))
