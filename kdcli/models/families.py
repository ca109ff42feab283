"""Vision-language models of transformers: which there are, and each of their two towers read by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kdcli.artifacts import model as artifacts
from kdcli.errors import InputError
from kdcli.models.checks import limited
from kdcli.models.legacy import first_line

Side = Literal["picture", "text"]


@dataclass(frozen=True)
class Family:
    """How transformers calls the towers of one kind of model, and what they answer with.

    Attributes:
        classes: of the towers.
        answers: the output of each that lies in the space that they share.
        prefix: tokens before those of patches.
        pads: whether texts are filled up to their full length, as they were in training.
    """

    classes: Mapping[Side, str]
    answers: Mapping[Side, str]
    prefix: int = 1
    pads: bool = False


_PROJECTED: Mapping[Side, str] = {"picture": "image_embeds", "text": "text_embeds"}

FAMILIES: dict[str, Family] = {
    "clip": Family(
        {"picture": "CLIPVisionModelWithProjection", "text": "CLIPTextModelWithProjection"}, _PROJECTED
    ),
    "metaclip_2": Family(
        {"picture": "MetaClip2VisionModelWithProjection", "text": "MetaClip2TextModelWithProjection"},
        _PROJECTED,
    ),
    "siglip": Family(
        {"picture": "SiglipVisionModel", "text": "SiglipTextModel"},
        {"picture": "pooler_output", "text": "pooler_output"},
        prefix=0,
        pads=True,
    ),
}
"""By the type that ``config.json`` names: CLIP (arXiv 2103.00020), MetaCLIP 2, SigLIP (arXiv 2303.15343)."""

_OF_SIDE: Mapping[Side, str] = {"picture": "vision", "text": "text"}


def family_of(config: Mapping[str, Any], side: Side) -> str | None:
    """The family of a ``config.json``, of a whole model or of this tower alone; None for another."""
    kind = str(config.get("model_type"))
    ending = f"_{_OF_SIDE[side]}_model"
    return next((name for name in FAMILIES if kind in (name, f"{name}{ending}")), None)


def configured(config: Mapping[str, Any], side: Side, where: str) -> Any:
    """The configuration of one tower, out of a ``config.json`` of the model or of the tower.

    Raises:
        InputError: one that transformers does not take, or one of another tower.
    """
    from transformers import AutoConfig

    try:
        found: Any = AutoConfig.for_model(**dict(config))
        if config.get("model_type") in FAMILIES:
            own = getattr(found, f"{_OF_SIDE[side]}_config")
            width = getattr(found, "projection_dim", None)
            if width is not None and hasattr(own, "projection_dim"):
                own.projection_dim = width  # older files say it of the whole model only
            return own
        return found
    except Exception as error:  # of many kinds: no such configuration
        raise InputError(f"{where}: transformers cannot build it: {first_line(error)}.") from error


def blank(family: str, side: Side, config: Any, where: str, weights: Path | None = None) -> Any:
    """A tower with random weights. Raises InputError for one that cannot be built, or beyond all measure."""
    import transformers

    try:
        with limited(where, weights):
            return getattr(transformers, FAMILIES[family].classes[side])._from_config(config)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: transformers cannot build it: {first_line(error)}.") from error


def loaded(family: str, side: Side, source: str, config: Any, where: str) -> Any:
    """A tower with its weights, out of a folder or repository of the whole model or of the tower.

    Args:
        family: a key of :data:`FAMILIES`.
        side: which tower.
        source: folder or hub id.
        config: of :func:`configured`.
        where: names it in messages.

    Raises:
        InputError: tensors of this tower are missing, or have another shape.
    """
    import transformers

    kind = getattr(transformers, FAMILIES[family].classes[side])
    with without_bars():
        made, told = kind.from_pretrained(
            source, config=config, use_safetensors=True, output_loading_info=True
        )
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, told.get(what) or ())):
            raise InputError(
                f"{where} has no {side} tower of {family}: {what.replace('_', ' ')}, first {found[0]}."
            )
    return made.float()  # some are kept in half precision: what is cached or compared is not


@contextmanager
def without_bars() -> Iterator[None]:
    """A block in which transformers shows no progress, and no list of tensors that are another tower's."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def folder_of(source: str, files: tuple[str, ...] = (artifacts.CONFIG,)) -> Path:
    """The folder of some files of a place on disk or of a repository; those that it lacks are not there.

    Raises:
        InputError: neither a folder nor a repository that can be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    from kdcli.hub import reachable_hub

    path = Path(source).expanduser()
    if path.is_dir():
        return path
    folder: Path | None = None
    try:
        with reachable_hub():
            for name in files:
                try:
                    folder = Path(hf_hub_download(source, name)).parent
                except EntryNotFoundError:
                    continue
    except Exception as error:  # of many kinds: no such repository, no network, no rights
        raise InputError(
            f"{source} is no folder here, and cannot be had from the hub: {first_line(error)}. Give a folder "
            "of a downloaded copy."
        ) from error
    if folder is None:
        raise InputError(f"{source} has none of {', '.join(files)}.")
    return folder


def logit_scale(name: str) -> float | None:
    """Factor of a vision-language model's cosines, ``exp(logit_scale)``; None for an unknown one."""
    from safetensors import SafetensorError, safe_open

    from kdcli.models.creation import LOCAL, REMOTE

    prefix = next((prefix for prefix in (LOCAL, *REMOTE) if name.startswith(prefix)), None)
    if prefix is None:
        return None
    try:
        file = folder_of(name.removeprefix(prefix)) / artifacts.WEIGHTS
        with safe_open(file, framework="pt") as tensors:
            if "logit_scale" not in set(tensors.keys()):
                return None
            return float(tensors.get_tensor("logit_scale").float().exp())
    except (InputError, OSError, SafetensorError):
        return None
