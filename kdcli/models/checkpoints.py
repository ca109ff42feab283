"""Other people's tensors in a timm model: names brought to timm's, strict keys and shapes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models.headed import reset_classifier
from kdcli.models.legacy import first_line, refuse_unlike

_ANCHORS = 3  # own names by which a prefix is found
_SHARE = 0.5  # of the model's tensors, that must stand behind a prefix
# What a pretraining has beside the encoder: MAE's decoder, masked tokens, the heads of DINO and iBOT.
_PRETRAINING = ("decoder_", "decoder.", "mask_token", "dino_head.", "ibot_head.")


@dataclass(frozen=True)
class Loaded:
    """What became of a checkpoint.

    Attributes:
        classified: whether the classifier, if the model has one, came along.
        notes: what was left out, a sentence each.
    """

    classified: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Match:
    """A checkpoint's tensors against a model's.

    Attributes:
        tensors: by the model's names.
        reason: why they do not fit; empty where they do.
        outputs: of its classifier, where that differs from the model's in nothing but their number.
        left: names of what belongs to a pretraining.
    """

    tensors: dict[str, Tensor]
    reason: str
    outputs: int | None = None
    left: tuple[str, ...] = ()


def load(body: Any, tensors: dict[str, Tensor], where: str) -> Loaded:
    """Load a state dict with strict keys and shapes; only the classifier may be missing.

    It may stand behind a prefix, as the network of a Lightning module does, and have the names of the
    architecture's own authors, where timm can convert them.

    Args:
        body: the timm model; it gets another classifier where the checkpoint's is of another width.
        tensors: by name.
        where: the file, for messages.

    Raises:
        InputError: tensors that do not fit, or that hold NaN or Inf.
    """
    refuse_unlike(tensors, where)
    classifier = _classifier_names(body)
    plain = _match(body, tensors, classifier)
    prefix, match = "", plain
    if plain.reason:
        tried = ((p, _match(body, _behind(p, tensors), classifier)) for p in _prefixes(body, tensors))
        prefix, match = next(((p, m) for p, m in tried if not m.reason), ("", plain))
    if match.reason:
        raise InputError(f"{where} does not fit {type(body).__name__}: {match.reason}.")
    refuse_spoilt(match.tensors, where)
    if match.outputs is not None:
        reset_classifier(body, match.outputs)
    body.load_state_dict(match.tensors, strict=False)  # all names were matched; the classifier may be missing
    notes = []
    if left := [name for name in tensors if not name.startswith(prefix)]:
        notes.append(f"{where}: read is what begins with '{prefix}', left out are {_shown(left)}")
    if match.left:
        notes.append(f"{where}: left out, as parts of its pretraining: {_shown(match.left)}")
    return Loaded(classifier <= set(match.tensors), tuple(notes))


def refuse_spoilt(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError for NaN or Inf in a tensor, as float32 has it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            far = " beyond float32" if torch.isfinite(tensor).all() else ""
            raise InputError(f"{where} holds {'numbers' + far if far else 'NaN or Inf'} in {name}.")


def _match(body: Any, tensors: dict[str, Tensor], classifier: set[str]) -> _Match:
    """How tensors fit, whose names are those of the model or are converted by timm."""
    own = body.state_dict()
    left = tuple(n for n in tensors if n.startswith(_PRETRAINING) and n not in own)
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    fits = set(tensors) == set(own) and all(tensors[n].shape == t.shape for n, t in own.items())
    if convert is not None and not fits:
        try:
            tensors = convert(dict(tensors), body)
        except Exception as error:  # it meets keys and shapes that it was not written for
            return _Match({}, first_line(error))
    tensors = {n: t for n, t in tensors.items() if n not in left}
    shapes = [n for n in own if n in tensors and tensors[n].shape != own[n].shape]
    outputs = None
    if shapes and set(shapes) <= classifier:  # another number of classes: the checkpoint's is taken
        widths = {tuple(tensors[n].shape[1:]) == tuple(own[n].shape[1:]) for n in shapes}
        if widths == {True}:
            outputs, shapes = len(tensors[shapes[0]]), []
    missing = [n for n in own if n not in tensors and n not in classifier]
    unexpected = [n for n in tensors if n not in own]
    bad = missing + unexpected + shapes
    if not bad:
        return _Match(tensors, "", outputs, left)
    kind = "misses" if missing else "has the unknown" if unexpected else "has another shape of"
    return _Match({}, f"it {kind} {bad[0]} ({len(bad)} differences)")


def _classifier_names(body: Any) -> set[str]:
    """Names of the tensors of a model's classifier."""
    classifier = body.get_classifier()
    layers = classifier if isinstance(classifier, tuple) else (classifier,)
    modules = [layer for layer in layers if isinstance(layer, nn.Module)]
    owned = {id(t) for layer in modules for t in (*layer.parameters(), *layer.buffers())}
    return {name for name, t in (*body.named_parameters(), *body.named_buffers()) if id(t) in owned}


def _prefixes(body: Any, tensors: dict[str, Tensor]) -> Iterator[str]:
    """What may stand before the names of a model's tensors in a checkpoint."""
    own = body.state_dict()
    found = dict.fromkeys(
        name.removesuffix(anchor)
        for anchor in list(own)[:_ANCHORS]
        for name in tensors
        if name.endswith(f".{anchor}")
    )
    return (prefix for prefix in found if len(_behind(prefix, tensors)) >= _SHARE * len(own))


def _behind(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _shown(names: list[str] | tuple[str, ...]) -> str:
    """The first of some names, and how many there are."""
    return f"{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
