"""One door for whole detectors: by a name that is known here, a folder, the hub, or an artifact."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.manifest import digest, file_hash
from kdcli.artifacts.model import InputSpec
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError, UsageError
from kdcli.hub import reachable_hub
from kdcli.models import checkpoints, detr
from kdcli.models.aliases import NAMED
from kdcli.models.creation import LOCAL, REMOTE, Options, explained
from kdcli.models.detr import Detr
from kdcli.models.legacy import read_weights

_STEP = 32  # what the side of an input is a multiple of
_TASK = "detection"  # what they answer


def detr_of(name: str, options: Options) -> Detr | None:
    """The detector of a name; None for a name of something else.

    Raises:
        InputError: weights that are not there or do not fit, a size that it does not take.
        UsageError: an option that it has not.
    """
    if name in NAMED:
        return _known(name, options)
    if (source := _source(name)) is None:
        return None
    place, folder, config = source
    _refuse(name, options)
    where, load = str(folder / artifacts.CONFIG), options.pretrained and options.weights is None
    if load:
        with explained(name, True, hub=name.startswith(REMOTE)):
            body = detr.pretrained(place, name)
    else:
        body = detr.from_configuration(config, where)
    return _made(
        name, body, detr.read_spec(folder), detr.class_names(config, body.config.num_labels), options
    )


def of_artifact(files: artifacts.ModelFiles, options: Options) -> Detr:
    """The detector of an artifact, whose files are verified."""
    path, name = files.path, str(files.path)
    _refuse(name, options)
    if options.pretrained:
        body = detr.pretrained(name, name)
    else:
        body = detr.from_configuration(files.config, str(path / artifacts.CONFIG), path / artifacts.WEIGHTS)
    found = _made(name, body, detr.read_spec(path), files.classes, options)
    if options.pretrained:
        found.trained, found.source = "artifact", digest([files.hash, options.size])
    return found


def _known(name: str, options: Options) -> Detr:
    """A configuration of :data:`NAMED`, with the user's weights or random ones."""
    _refuse(name, options)
    if options.pretrained and options.weights is None:
        raise InputError(
            f"no weights for {name}: kdcli has none by that name. Ways out: --weights FILE; "
            f"hf-hub:PekingU/{name} or local-dir:PATH of a downloaded copy; or --from-scratch for a student."
        )
    return _made(name, detr.named(name), detr.SPEC, None, options)


def _made(name: str, body: Any, spec: InputSpec, classes: list[str] | None, options: Options) -> Detr:
    """The model around a network, its own weights or the user's checked and loaded."""
    count, source = int(body.config.num_labels), ""
    trained = "pretrained" if options.pretrained else "random"
    if options.weights is not None:
        found = read_weights(options.weights)
        own = len(found.tensors.get("model.enc_score_head.weight", ()))
        if own and own != count:
            body = detr.from_configuration({**body.config.to_dict(), **_labels(own)}, options.weights)
            classes, count = None, own
        body = detr.pretrained("", options.weights, body.config, found.tensors)
        trained = "pretrained"
        source = digest([file_hash(artifacts.split_weights(options.weights)[0]), options.size])
    elif options.pretrained:
        state = body.state_dict()
        source = digest([(n, tuple(t.shape), float(t.double().sum())) for n, t in state.items()])
    if trained != "random":
        checkpoints.refuse_spoilt(body.state_dict(), options.weights or name)
    if options.size is not None:
        spec = replace(spec, size=(options.size, options.size))
    if spec.size[0] % _STEP:
        near = " or ".join(
            str(n) for n in (spec.size[0] // _STEP * _STEP, (spec.size[0] // _STEP + 1) * _STEP) if n
        )
        raise InputError(f"{name} does not take pictures of {spec.size[0]} pixels. Take {near}.")
    queries, side = int(body.config.num_queries), spec.size[0]
    places = sum((side // stride) ** 2 for stride in body.config.feat_strides)
    if not 0 < queries <= places:
        raise InputError(
            f"{name}: {queries} queries begin at {places} places of pictures of {side} pixels: there are "
            "too few. Take larger ones (--image-size)."
        )
    unnamed = count if classes is None and trained != "random" else 0
    return Detr(
        body,
        spec,
        classes if trained != "random" else None,
        name=name,
        source=source,
        trained=trained,
        task=_TASK,
        unnamed=unnamed,
    )


def _labels(count: int) -> dict[str, Any]:
    return {
        "id2label": {i: f"LABEL_{i}" for i in range(count)},
        "label2id": {f"LABEL_{i}": i for i in range(count)},
    }


def _source(name: str) -> tuple[str, Path, dict[str, Any]] | None:
    """What transformers loads, the folder of its files, its configuration; None for a name of timm's."""
    if name.startswith(LOCAL):
        place = name.removeprefix(LOCAL)
        folder = Path(place)
    elif name.startswith(REMOTE):
        place = name.partition(":")[2]
        folder = _downloaded(place)
    else:
        return None
    if not (folder / artifacts.CONFIG).is_file():
        return None
    config = read_object(folder / artifacts.CONFIG)
    return (place, folder, config) if detr.is_detr(config) else None


def _downloaded(place: str) -> Path:
    """The folder of a repository's configuration files; one that is not there where they cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        with reachable_hub():
            folder = Path(hf_hub_download(place, artifacts.CONFIG)).parent
            if detr.is_detr(read_object(folder / artifacts.CONFIG)) and not _lacks_processor(place):
                with suppress(RemoteEntryNotFoundError):
                    hf_hub_download(place, artifacts.PROCESSOR)
            return folder
    except Exception:  # of many kinds; whoever asks for weights says what is wrong
        return Path(place, "nowhere")


def _lacks_processor(place: str) -> bool:
    """Whether the cache knows that a repository describes no input."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(place, artifacts.PROCESSOR) is _CACHED_NO_EXIST


def _refuse(name: str, options: Options) -> None:
    """Raise UsageError for what a whole detector has not."""
    if options.drop_path is not None:
        raise UsageError(
            f"drop_path={options.drop_path:g}: {name} has no stochastic depth that kdcli can set."
        )
    if options.decoder:
        raise InputError(f"{name} is a detector, and no masked autoencoder.")
