"""One door for picture towers of vision-language models: by a folder, the hub, or an artifact."""

from __future__ import annotations

from typing import Any

import torch

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.manifest import digest
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError, UsageError
from kdcli.models import checkpoints, families
from kdcli.models.banks import contexts_of
from kdcli.models.creation import LOCAL, REMOTE, Options, explained
from kdcli.models.heads.texts import BankHead, described_bank
from kdcli.models.surgery import FIELD
from kdcli.models.transformers import PictureTower, read_spec

_FILES = (artifacts.CONFIG, artifacts.PROCESSOR)


def is_tower(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is of a vision-language model, or of its picture tower, that is read here."""
    return families.family_of(config, "picture") is not None


def tower_of(name: str, options: Options) -> PictureTower | None:
    """The picture tower of a name; None for a name of something else.

    Raises:
        InputError: weights that are not there or do not fit.
        UsageError: an option that it has not.
    """
    prefix = next((prefix for prefix in (LOCAL, *REMOTE) if name.startswith(prefix)), None)
    if prefix is None:
        return None
    place = name.removeprefix(prefix)
    try:
        folder = families.folder_of(place, _FILES)
    except InputError:  # whoever asks for weights says what is wrong
        return None
    if not (folder / artifacts.CONFIG).is_file():
        return None
    config = read_object(folder / artifacts.CONFIG)
    if not is_tower(config):
        return None
    _refuse(name, options)
    family, own = _configured(config, str(folder / artifacts.CONFIG))
    if options.pretrained:
        with explained(name, True, hub=prefix != LOCAL):
            body = families.loaded(family, "picture", place, own, name)
        checkpoints.refuse_spoilt(body.state_dict(), name)
    else:
        body = families.blank(family, "picture", own, name)
    spec = read_spec(folder, _side(own, name), family)
    trained = "pretrained" if options.pretrained else "random"
    return PictureTower(
        body, spec, family=family, name=name, source=_source(body, options), trained=trained, task=_TASK
    )


_TASK = BankHead.task


def of_artifact(files: artifacts.ModelFiles, options: Options) -> PictureTower:
    """The picture tower of an artifact, whose files are verified, with its bank of texts if it has one."""
    path, where = files.path, str(files.path / artifacts.CONFIG)
    _refuse(str(path), options)
    config = dict(files.config)
    operations = config.pop(FIELD, [])
    family, own = _configured(config, where)
    body = families.blank(family, "picture", own, where, path / artifacts.WEIGHTS)
    if options.pretrained:
        _load(body, files.tensors(), str(path / artifacts.WEIGHTS))
    head = None
    if artifacts.HEAD in files.names:
        head = bank_head(files, operations[-1] if operations else {})
        if head.neck.state_dict():
            raise InputError(f"{path}: a picture tower answers in the space of texts; this one is projected.")
    found = PictureTower(
        body,
        read_spec(path, _side(own, where), family),
        family=family,
        head=head,
        name=str(path),
        source=digest([files.hash]) if options.pretrained else "",
        trained="artifact" if options.pretrained else "random",
        task=str(files.manifest.facts.get("task") or _TASK),
        temperature=files.temperature,
    )
    if head is not None and files.classes != found.classes:
        raise InputError(f"{path}: its manifest names other classes than its bank of texts.")
    return found


def bank_head(files: artifacts.ModelFiles, config: dict[str, Any]) -> BankHead:
    """The bank of an artifact, with what is before it. Raises InputError where it is none, or damaged."""
    if artifacts.TEXTS not in files.names:
        raise InputError(f"{files.path}: there is no {artifacts.TEXTS} that describes its bank of texts.")
    tensors, where = files.tensors(artifacts.HEAD), str(files.path / artifacts.TEXTS)
    described = read_object(files.path / artifacts.TEXTS)
    head = described_bank(config, tensors, described, where, contexts_of(files))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if head is None or {n: t.shape for n, t in head.state_dict().items()} != shapes:
        raise InputError(f"{files.path}: its head is none that this kdcli knows.")
    checkpoints.refuse_spoilt(tensors, str(files.path / artifacts.HEAD))
    head.load_state_dict(tensors)
    return head


def _configured(config: dict[str, Any], where: str) -> tuple[str, Any]:
    family = families.family_of(config, "picture")
    assert family is not None
    return family, families.configured(config, "picture", where)


def _side(config: Any, where: str) -> int:
    side = getattr(config, "image_size", None)
    if not isinstance(side, int) or not 1 <= side <= 8192:
        raise InputError(f"{where}: pictures of {side} pixels; a square side in pixels is wanted.")
    return side


def _load(body: Any, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Load all tensors into a network. Raises InputError for missing, unknown or misshapen ones."""
    checkpoints.refuse_spoilt(tensors, where)
    own = {name: tensor.shape for name, tensor in body.state_dict().items()}
    given = {name: tensor.shape for name, tensor in tensors.items()}
    for name in sorted(own.keys() | given.keys()):
        if own.get(name) != given.get(name):
            raise InputError(
                f"{where} does not fit its configuration: {name} is {_shape(given.get(name))}, and "
                f"{_shape(own.get(name))} is wanted."
            )
    body.load_state_dict(tensors)


def _shape(shape: Any) -> str:
    return "missing" if shape is None else str(list(shape))


def _source(body: Any, options: Options) -> str:
    if not options.pretrained:
        return ""
    tensors = body.state_dict().items()
    sums = (
        (name, tuple(t.shape), float(t.double().sum()), float(t.double().abs().sum())) for name, t in tensors
    )
    return digest(list(sums))


def _refuse(name: str, options: Options) -> None:
    """Raise UsageError for what a picture tower of transformers has not."""
    if options.drop_path is not None:
        raise UsageError(f"drop_path={options.drop_path:g}: {name} has no stochastic depth.")
    if options.size is not None:
        raise UsageError(f"--image-size: {name} takes pictures of its own size only.")
    if options.weights is not None:
        raise UsageError(f"--weights: {name} is a folder or repository with weights of its own.")
    if options.decoder:
        raise InputError(f"{name} is a picture tower, and no masked autoencoder.")
