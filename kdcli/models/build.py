"""One door for every name: aliases, timm names, ``hf-hub:``, ``local-dir:``, artifact paths."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcli.artifacts import forms
from kdcli.artifacts import model as artifacts
from kdcli.artifacts.manifest import digest, file_hash
from kdcli.artifacts.model import InputSpec
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError, UsageError
from kdcli.models import checkpoints, checks, detr, heads, surgery, towers, whole
from kdcli.models.aliases import ALIASES
from kdcli.models.autoencoder import Decoder, official, read_decoder
from kdcli.models.checks import input_spec
from kdcli.models.creation import (
    LOCAL,
    REMOTE,
    Options,
    create,
    creator,
    explained,
    fixed_size,
    refuse_unknown,
    sized,
)
from kdcli.models.headed import projects
from kdcli.models.heads.base import Head
from kdcli.models.heads.texts import BankHead
from kdcli.models.integers import restored
from kdcli.models.legacy import first_line, read_weights
from kdcli.models.protocol import Model
from kdcli.models.timm import TimmModel
from kdcli.models.wanted import Wanted, fit

DROPPED = "the decoder of {} is left out"
_NAMED = (whole.detr_of, towers.tower_of)  # networks of transformers, by a name; None for another's
_STORED = ((detr.is_detr, whole.of_artifact), (towers.is_tower, towers.of_artifact))


def build(
    name: str,
    wanted: Wanted | None = None,
    *,
    pretrained: bool = True,
    weights: str | None = None,
    size: int | None = None,
    drop_path: float | None = None,
    seed: int = 0,
) -> Model:
    """Build a network by any of its names.

    Args:
        name: alias, timm name (with or without tag; perhaps with arguments of timm's function for the
            architecture, ``vit_tiny_patch16_224,patch_size=8,depth=6``), ``hf-hub:…``, ``local-dir:…`` or the
            path of an artifact.
        wanted: give it a classifier for these classes, its own if that is one for them.
        pretrained: load weights; False for random ones.
        weights: the user's own checkpoint for a model name, ``FILE`` or ``FILE:KEY``.
        size: input size in pixels, position embeddings resampled.
        drop_path: stochastic depth rate.
        seed: of random weights.

    Raises:
        InputError: no such model, no weights to be had, weights that do not fit, an input that it has not.
        UsageError: ``weights`` beside an artifact, an argument that is none, a size beyond all measure.
    """
    if size is not None and size > checks.LARGEST_SIDE:
        raise UsageError(f"--image-size {size}: at most {checks.LARGEST_SIDE}.")
    decoder = wanted is not None and wanted.decoder
    options = Options(pretrained, weights, size, drop_path, decoder)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs too
        path = Path(name)
        prefixed = name.startswith((*REMOTE, LOCAL))
        if (root := forms.find(path)) is not None:
            raise InputError(
                f"{name} is an exported form, which eval alone takes: give its artifact, {root}."
            )
        if artifacts.find(path) is not None or (path.is_dir() and not prefixed):
            if weights:
                raise UsageError(
                    f"{name} is an artifact and has its weights; --weights goes with a model name."
                )
            network = _from_artifact(path, options)
        elif os.sep in name and not prefixed:
            raise InputError(f"{name} does not exist (a hub model is named hf-hub:{name}).")
        else:
            network = _from_name(name, options)
        if wanted is not None:
            if wanted.kind is not None and network.layout == "transformers":
                raise UsageError(
                    f"head={wanted.kind}: {name} is a whole detector; another one stands on a backbone."
                )
            had = network.decoder
            fit(network, wanted)
            network.decoder = had if wanted.decoder else None
            if had is not None and not wanted.decoder:
                network.notes += (DROPPED.format(network.name),)
    return network


def open_form(name: str) -> Model:
    """An exported form of an artifact, ``ARTIFACT/onnx`` or a file in it, as a model that answers.

    Raises:
        InputError: no such form, or one that ONNX Runtime cannot load.
        EnvironmentFault: ONNX Runtime is not installed.
    """
    from kdcli.models.onnx import OnnxModel

    form = forms.read(name)
    return OnnxModel(build(str(form.root)), form)


# -- sources -------------------------------------------------------------------------------------------------


def _from_name(name: str, options: Options) -> Model:
    for of_name in _NAMED:
        if (whole_one := of_name(name, options)) is not None:
            return whole_one
    plain, arguments = checks.with_arguments(name) if not name.startswith((*REMOTE, LOCAL)) else (name, {})
    timm_name, keywords = ALIASES.get(plain, (plain, {}))
    local, remote = timm_name.startswith(LOCAL), timm_name.startswith(REMOTE)
    if not (local or remote):
        refuse_unknown(plain, timm_name)
    load = options.pretrained and options.weights is None
    file = options.weights or name
    with explained(name, load, hub=remote or (load and not local)):
        made = creator(timm_name, options.drop_path, arguments)
        body = sized(made, name, options.size or keywords.get("img_size"), load)
    if load:
        checkpoints.refuse_spoilt(body.state_dict(), name)
    notes: tuple[str, ...] = ()
    classified, source = load, digest(_fingerprint(body)) if load else ""
    if options.weights is not None:
        found = read_weights(options.weights)
        loaded = checkpoints.load(body, found.tensors, options.weights)
        classified, notes = loaded.classified, (*found.notes, *(() if options.decoder else loaded.notes))
        source = _source(options.weights, options.size)
    classes, unnamed = _trained_classes(body) if classified else (None, 0)
    if classes is not None and (options.weights is not None or (local and not _label_names(body))):
        notes += (f"{file} names no classes: its {len(classes)} are taken to be those of timm's own weights",)
    spec = _with_size(input_spec(body, file), options.size, body)
    if options.size is not None or local or remote:
        notes += checks.refuse_size(body, spec, name, options.size, made)
    trained = "pretrained" if load or options.weights else "random"
    facts: dict[str, Any] = {"name": name, "source": source, "trained": trained}
    network = TimmModel(body, spec, classes, unnamed=unnamed, notes=notes, **facts)
    if options.decoder:
        tensors = official(found.tensors) if options.weights is not None else {}
        checkpoints.refuse_spoilt(tensors, file)
        network.decoder = read_decoder(tensors, network, 0, file)
    return network


def _from_artifact(path: Path, options: Options) -> Model:
    files = artifacts.read(path)
    for fits, of_artifact in _STORED:
        if fits(files.config):
            return of_artifact(files, options)
    config, where = files.config, str(path / artifacts.CONFIG)
    checks.refuse_configuration(config, where)
    operations = surgery.read(config, where)

    def made(side: int | None, pretrained: bool = False) -> Any:
        keywords = {"drop_path_rate": options.drop_path, **fixed_size(config["architecture"], side)}
        with checks.limited(where, path / artifacts.WEIGHTS, narrowed=len(operations) > 0):
            body = create(f"{LOCAL}{path}", pretrained, **keywords)
        return surgery.replay(body, operations, where)

    try:
        body = sized(made, str(path), options.size, load=False)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot build {config['architecture']}: {first_line(error)}") from error
    spec = _with_size(input_spec(body, where), options.size, body)
    replaced = bool(operations) and operations[-1]["op"] == surgery.REPLACE_HEAD
    structure = operations[:-1] if replaced else operations
    if structure:
        surgery.settle(body, spec, where)
    head = None
    if replaced:
        head = _head(files, body, operations[-1], options.pretrained)
    notes: tuple[str, ...] = ()
    if options.pretrained:
        notes = checkpoints.load(body, restored(files.tensors()), str(path / artifacts.WEIGHTS)).notes
    if options.size is not None:
        notes += checks.refuse_size(body, spec, str(path), options.size, made)
    facts: dict[str, Any] = {
        "name": str(path),
        "source": digest([files.hash, options.size]) if options.pretrained else "",
        "trained": "artifact" if options.pretrained else "random",
        "task": files.manifest.facts.get("task") or (head.task if head is not None else Head.task),
        "temperature": files.temperature if options.pretrained else 1.0,
    }
    classes = _checked_classes(files, body, head)
    network = TimmModel(body, spec, classes, head=head, operations=structure, notes=notes, **facts)
    if options.pretrained and (set(artifacts.DECODER) <= set(files.names) or options.decoder):
        network.decoder = _decoder(files, network)
    return network


def _decoder(files: artifacts.ModelFiles, network: TimmModel) -> Decoder:
    """The decoder of ``decoder.safetensors``. Raises InputError where there is none, or a damaged one."""
    weights, description = artifacts.DECODER
    if weights not in files.names:
        return read_decoder({}, network, 0, str(files.path))
    heads = read_object(files.path / description).get("heads")
    if not isinstance(heads, int) or not 0 < heads <= checks.LARGEST_SIDE:
        raise InputError(f"{files.path / description} does not describe a decoder: no number of heads.")
    tensors = files.tensors(weights)
    checkpoints.refuse_spoilt(tensors, str(files.path / weights))
    return read_decoder(tensors, network, heads, str(files.path / weights))


def _head(files: artifacts.ModelFiles, body: Any, config: dict[str, Any], pretrained: bool) -> Head:
    """The head of ``head.safetensors``. Raises InputError for one of another kind or shape."""
    if config.get("kind") == BankHead.kind:
        return towers.bank_head(files, config)
    tensors = restored(files.tensors(artifacts.HEAD))
    try:
        head = heads.described(config, tensors, body)
    except InputError as error:
        raise InputError(f"{files.path}: {error}") from error
    if head is None:
        raise InputError(f"{files.path}: its head is none that this kdcli knows.")
    if pretrained:
        head.load_state_dict(tensors)
    return head


def _checked_classes(files: artifacts.ModelFiles, body: Any, head: Head | None) -> list[str] | None:
    """The class names of an artifact. Raises InputError where they are not as many as its logits."""
    linear: Any = None if head is None else head.linear
    classes, count = files.classes, body.num_classes if linear is None else len(getattr(linear, "weight", ()))
    if classes is not None and len(classes) != count:
        raise InputError(f"{files.path}: its manifest has no {count} class names for its {count} logits.")
    return classes


def _with_size(spec: InputSpec, size: int | None, body: nn.Module) -> InputSpec:
    if size is None or spec.size == (size, size):
        return spec
    if getattr(getattr(body, "patch_embed", None), "img_size", None) is not None:
        return spec
    return replace(spec, size=(size, size))


def _trained_classes(body: Any) -> tuple[list[str] | None, int]:
    """Names of a trained classifier's logits where timm knows them; else None and their number.

    The number is 0 for a backbone without a classifier.
    """
    count = int(getattr(body, "num_classes", 0) or 0)
    if names := _label_names(body):
        return names, 0
    if count == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        names = [info.index_to_description(i) for i in range(count)]
        return [n if names.count(n) == 1 else f"{n} ({i})" for i, n in enumerate(names)], 0
    if projects(body):
        return None, 0
    return None, count


def _label_names(body: Any) -> list[str] | None:
    """Names in a model's configuration, one for each logit."""
    names = body.pretrained_cfg.get("label_names") or ()
    names = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(names, list | tuple):
        return None
    names = list(names)
    return names if len(names) == body.num_classes and all(isinstance(n, str) for n in names) else None


def _source(weights: str, size: int | None) -> str:
    """Hash of the user's own weights as they are read."""
    file, key = artifacts.split_weights(weights)
    return digest([file_hash(file), size, *([key] if key else [])])


def _fingerprint(body: nn.Module) -> list[Any]:
    """Cheap but sure enough identity of hub weights: exact sums of every tensor."""
    return [
        (n, tuple(t.shape), float(t.double().sum()), float(t.double().abs().sum()))
        for n, t in body.state_dict().items()
    ]
