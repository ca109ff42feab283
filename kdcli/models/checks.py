"""What is refused of a configuration before a network is built of it, and of a network before it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.func import functional_call
from torch.nn.modules.module import register_module_parameter_registration_hook

from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError, UsageError
from kdcli.metrics.efficiency import evaluating
from kdcli.models.legacy import first_line

LARGEST_SIDE = 8192  # of an input, in pixels
_LARGEST = 1_000_000  # number in a configuration: of classes, pixels, channels, blocks
_DEEPEST = 32  # of its nesting
_MOST_TENSORS, _MOST_NUMBERS = 20_000, 2 * 10**10  # of parameters: the largest of timm have 4,000 and 7e9
# How much larger than its file a network may be: position embeddings grow with the input, and what was
# narrowed is built whole.
_SLACK, _NARROWED = 4, 1000
_SMALLEST_LIMIT = 1 << 26
_ELSEWHERE = {
    "img_size": "--image-size says it",
    "drop_path_rate": "--set drop_path=… says it",
    "num_classes": "the data say it",
    "in_chans": "pictures have three channels",
    "pretrained": "--from-scratch says it",
    "checkpoint_path": "--weights says it",
    **dict.fromkeys(
        ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable", "exportable"),
        "it is no structure",
    ),
}
_MAPS_ONLY = ("features_only", "out_indices", "feature_cfg")  # of timm: no classifier, another class
_RUN = 10**8, 1024  # parameters, and pixels of a side, above which a trial is of shapes only
_CHANNELS = (1, 3)
_LEAST_STD = torch.finfo(torch.float32).tiny  # pictures are divided by it
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "random")
_CROP_MODES = ("center", "squash", "border")


def refuse_configuration(config: Mapping[str, Any], where: str) -> None:
    """Refuse a ``config.json`` that no network of timm can be built of, or only one beyond all measure.

    Args:
        config: parsed.
        where: the file, for messages.

    Raises:
        InputError: another type than timm's, a number out of range, options for a network without classifier.
    """
    if not isinstance(config.get("architecture"), str):
        raise InputError(f"{where} names no architecture of timm.")
    for field in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(field, {}), dict):
            raise InputError(f"{where}: {field} is a {type(config[field]).__name__}, not an object.")
    arguments = config.get("model_args", {})
    if odd := next((name for name in _MAPS_ONLY if arguments.get(name)), None):
        raise InputError(f"{where}: model_args.{odd} makes a network of maps, without a classifier.")
    _refuse_numbers(config, where, "")


def with_arguments(text: str) -> tuple[str, dict[str, Any]]:
    """A network's name, and what stands behind it for timm's function for the architecture: ``NAME,depth=6``.

    Raises:
        UsageError: no ``KEY=VALUE``, one that an option says, or a value beyond all measure.
    """
    network, *texts = text.split(",")
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"{network},{text}: KEY=VALUE is wanted behind a name, as in patch_size=8.")
        if name in _ELSEWHERE or name in _MAPS_ONLY:
            raise UsageError(f"{network},{text}: {_ELSEWHERE.get(name, 'it makes a network of maps')}.")
        if name in found:
            raise UsageError(f"{network},{text}: {name} is given a second time.")
        value = _read(written)
        if not isinstance(value, (bool, int, float, str)):
            raise UsageError(f"{network},{text}: a number, a word, true or false is wanted.")
        found[name] = value
    try:
        _refuse_numbers(found, network, "")
    except InputError as error:
        raise UsageError(str(error)) from error
    return network, found


def _read(written: str) -> Any:
    """A number, also as Python writes it (1e-5), or what YAML reads."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(written)
    try:
        return yaml.safe_load(written)
    except yaml.YAMLError:
        return None


def _refuse_numbers(value: Any, where: str, path: str, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise InputError(f"{where} is nested more than {_DEEPEST} deep.")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_numbers(inner, where, f"{path}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _refuse_numbers(inner, where, path, depth + 1)
    elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= _LARGEST):
        raise InputError(f"{where}: {path} is {value:.6g}, beyond what a network has.")


@contextmanager
def limited(where: str, weights: Path | None = None, *, narrowed: bool = False) -> Iterator[None]:
    """Refuse to build what has more parameters than its file could hold, before they take memory.

    Args:
        where: what is built, for messages.
        weights: a safetensors file; without one a network is refused that is larger than any.
        narrowed: whether the file is of a part of what is built.

    Raises:
        InputError: too many of them, inside the block.
    """
    most = _MOST_NUMBERS
    slack = _NARROWED if narrowed else _SLACK
    if weights is not None and weights.is_file():
        most = max(_SMALLEST_LIMIT, min(most, slack * _stored_numbers(weights)))
    count = numbers = 0

    def check(_module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, numbers
        count, numbers = count + 1, numbers + (0 if parameter is None else parameter.numel())
        if count > _MOST_TENSORS or numbers > most:
            raise InputError(
                f"{where}: its configuration asks for more than {numbers:,} parameters in {count:,} tensors, "
                "and is refused before they take memory."
            )

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _stored_numbers(weights: Path) -> int:
    """Numbers in a safetensors file, by its header. Raises InputError for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(weights), "pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{weights} is not a readable safetensors file: {error}") from error


def input_spec(body: Any, where: str = "its configuration") -> InputSpec:
    """timm's data configuration of a model, at the size it was built for.

    Args:
        body: the timm model.
        where: what is named in messages.

    Raises:
        InputError: no mean, deviation or size that pictures can have, or other than one or three channels.
    """
    from timm.data import resolve_model_data_config

    try:
        config = resolve_model_data_config(body)
        channels, *size = config["input_size"]
        mean, std = (tuple(float(v) for v in config[name]) for name in ("mean", "std"))
        crop = float(config["crop_pct"])
        fixed = getattr(getattr(body, "patch_embed", None), "img_size", None)
        height, width = (int(side) for side in (size if fixed is None else fixed))
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise InputError(f"{where} describes no input: {first_line(error)}.") from error
    if channels not in _CHANNELS:
        raise InputError(
            f"{where}: a network of {channels} input channels; kdcli's pictures have three, or one as grey."
        )
    if channels == 1:  # timm's own rule for statistics of other pictures
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    if len(mean) != channels or not all(math.isfinite(v) for v in mean):
        raise InputError(f"{where}: the mean {mean} is none of {channels} channels.")
    if len(std) != channels or not all(math.isfinite(v) and v >= _LEAST_STD for v in std):
        raise InputError(
            f"{where}: the deviations {std} are none of {channels} channels, above 0 in float32."
        )
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST_SIDE or not (
        math.isfinite(crop) and crop > 0
    ):
        raise InputError(f"{where}: an input of {height}x{width} pixels, cut to {crop:g} of its side.")
    interpolation, mode = config["interpolation"], config["crop_mode"]
    if interpolation not in _INTERPOLATIONS or mode not in _CROP_MODES:
        raise InputError(f"{where}: timm knows no interpolation '{interpolation}' or no crop '{mode}'.")
    return InputSpec((height, width), mean, std, interpolation, crop, mode)


def refuse_size(
    body: Any, spec: InputSpec, name: str, size: int | None, rebuilt: Callable[[int], Any]
) -> tuple[str, ...]:
    """Refuse an input that the patches, windows or strides of a network do not divide, by trying one picture.

    Args:
        body: the timm model.
        spec: its input.
        name: for messages.
        size: asked for by the user, if any.
        rebuilt: the same model, without weights, for another size.

    Returns:
        A note where the network leaves pixels unseen.

    Raises:
        InputError: it cannot take such pictures, with the next sizes that it takes.
    """
    if why := trial(body, spec):
        raise wrong_size(name, size or spec.size[0], why, body, rebuilt)
    patch, side = _patch(body), spec.size[0]
    if size is None or not patch or side % patch == 0:
        return ()
    near = " or ".join(f"{n}" for n in _multiples(side, patch))
    return (f"{name}: patches of {patch} pixels leave {side % patch} of {side} unseen; {near} would fit",)


def wrong_size(name: str, size: int, why: str, body: Any, rebuilt: Callable[[int], Any]) -> InputError:
    """What to say of a size that a network does not take, with the next ones that it takes.

    Args:
        name: of the network.
        size: in pixels.
        why: in timm's words.
        body: the network at some size.
        rebuilt: the same for another one.
    """
    fitting = []
    for side in _multiples(size, _step(body)):
        try:
            body = rebuilt(side)
            spec = input_spec(body)
            spec = replace(spec, size=(side, side))
        except Exception:  # of many kinds: it does not take that size either
            continue
        if not trial(body, spec):
            fitting.append(f"{side}")
    advice = f"Take {' or '.join(fitting)}." if fitting else "Leave out --image-size: it has one of its own."
    return InputError(f"{name} does not take pictures of {size} pixels ({why}). {advice}")


def trial(body: Any, spec: InputSpec) -> str:
    """Why a network cannot take one picture of its input, empty where it can.

    A large network is not run: its layers are asked for shapes only.
    """
    large = sum(p.numel() for p in body.parameters()) > _RUN[0] or max(spec.size) > _RUN[1]
    device = torch.device("meta") if large else next(body.parameters()).device
    picture = torch.zeros((1, spec.channels, *spec.size), device=device)
    try:
        with evaluating(body), torch.no_grad():
            if not large:
                body(picture)
                return ""
            own = (*body.named_parameters(), *body.named_buffers())
            shapes = {name: torch.empty_like(tensor, device=device) for name, tensor in own}
            functional_call(body, shapes, (picture,))
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        return first_line(error).rstrip(".")
    return ""


def _step(body: Any) -> int:
    """What a fitting size is a multiple of: a patch, or the stride of the last stage."""
    info = getattr(body, "feature_info", None) or [{"reduction": 32}]
    return _patch(body) or max(int(entry["reduction"]) for entry in info)


def _patch(body: Any) -> int:
    """Side of the patches of a network that sees nothing but whole ones; 0 of others."""
    size = getattr(getattr(body, "patch_embed", None), "patch_size", None)
    plain = hasattr(body, "blocks") and getattr(body, "num_prefix_tokens", None) is not None
    return int(size if isinstance(size, int) else size[0]) if plain and size is not None else 0


def _multiples(size: int, step: int) -> list[int]:
    """The next multiples of ``step``, below and above."""
    return [n for n in (size // step * step, (size // step + 1) * step) if n > 0]
