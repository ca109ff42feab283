"""Taps: named tensors of a call.

``input`` [B,C,H,W], the pictures as the network takes them · ``logits`` [B,C] · ``pooled`` [B,D], what the
classifier takes · ``embedding``, the same, as retrieval and banks of texts call it · ``features`` [B,D], what
the neck of a head takes; ``pooled`` where there is none · ``backbone`` [B,D], pooled features of the network
itself, whatever head stands on it · ``tokens`` [B,N,D], all tokens after the final norm · ``grid``
[B,D,H,W], patch tokens or the last feature map · ``blockK``, output of the K-th block or stage (from 1;
``block-1`` is the last), as the network has it · ``mapK``, the same as a map [B,D,H,W], prefix tokens left
out · ``stage1`` to ``stage4``, maps at the ends of a network's quarters: a CNN's last four stages, the blocks
at 1/4, 2/4, 3/4 and the end of a ViT · ``a.b.c``, ``a.b.c.in`` or ``a.b.c.map``, output, first input, or
output as a map of any module of the timm model · ``stageK.pre``, ``mapK.pre`` or ``a.b.c.pre``, the map that
the activation at its end is given · ``BatchNorm2d.in`` or ``BatchNorm2d.out``, the :class:`Layers` of all
modules of a class and its subclasses (timm's BatchNormAct2d) · ``decoderK`` [B,1+N,W], output of the K-th
block of a masked autoencoder's decoder, in a call that sees some patches alone.
Parameters and buffers are read by a model's ``tensor``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from kdcli.errors import InputError, nearest

if TYPE_CHECKING:
    from kdcli.models.timm import TimmModel

_ROWS = ("pooled", "embedding", "features")
_OWN = ("input", "logits", *_ROWS, "backbone", "tokens", "grid")
_BLOCK = re.compile(r"(block|map|stage)(-?\d+)")
DECODED = re.compile(r"decoder(\d+)")
_QUARTERS = 4


class Layers(list[Any]):
    """The tensors of all modules that a pattern of taps names, in the order in which they ran.

    A plain list is no such thing: it has an entry for every row.
    """


class _End:
    """The activation that ran last in a module: what it was given, and what it made of that."""

    def __init__(self) -> None:
        self.given: Any = None
        self.made: tuple[Any, int] = None, 0

    def enter(self, given: Any) -> None:
        """It begins."""
        self.given = given

    def leave(self, made: Any) -> None:
        """It has run."""
        self.made = made, _version(made)

    def is_of(self, output: Any) -> bool:
        """Whether the module gives away what the activation made, unchanged."""
        made, version = self.made
        return made is not None and output is made and version == _version(output)


class Recorder:
    """Hooks the modules behind tap names for the length of one call.

    Args:
        network: whose modules.
        names: taps wanted.

    Raises:
        InputError: a name that fits no module, with the nearest one.
    """

    def __init__(self, network: TimmModel, names: Sequence[str]) -> None:
        self.network, self.names = network, tuple(names)
        self._seen: dict[str, Any] = {}
        self._handles: list[Any] = []
        self._modules = dict(network.body.named_modules())

    def __enter__(self) -> Recorder:
        try:
            for name in self.names:
                if name in _ROWS:
                    neck = getattr(self.network.head, "neck", None) if name == "features" else None
                    taking = self._classifier() if neck is None else neck
                    self._watch(taking, True, partial(self._seen.__setitem__, name))
                elif name not in _OWN:
                    self._hook(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _classifier(self) -> nn.Module:
        if self.network.head is not None:
            return cast(nn.Module, self.network.head.linear)
        body: Any = self.network.body
        found = body.get_classifier()
        if not isinstance(found, nn.Module):
            raise InputError(f"{self.network.name} has several classifiers, so no one 'pooled' feature.")
        return found

    def _hook(self, name: str) -> None:
        modules = self._modules
        path, _, end = name.rpartition(".")
        by_class = [m for m in modules.values() if end in ("in", "out") and _is_a(m, path)]
        if by_class:
            self._seen[name] = Layers()
            for module in by_class:
                self._watch(module, end == "in", self._seen[name].append)
            return
        if end == "pre" and (module := modules.get(block_path(self.network.body, path) or path)) is not None:
            self._before_end(name, module)
            return
        entering = end == "in" and path in modules
        module = modules.get(
            path
            if entering or (end == "map" and path in modules)
            else block_path(self.network.body, name) or name
        )
        if module is None:
            raise InputError(f"{self.network.name} has no module '{name}' to tap.{nearest(name, modules)}")
        self._watch(module, entering, partial(self._seen.__setitem__, name))

    def _before_end(self, name: str, module: nn.Module) -> None:
        """Keep what the last activation of a module is given, where that is the last thing it does.

        Which one that is, its forward shows: modules need not stand in the order in which they run.
        """
        end, last = _End(), module
        while isinstance(last, nn.Sequential) and len(last):
            last = last[-1]

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not end.is_of(output):
                raise InputError(
                    f"no '{name}': what it names of {self.network.name} does not end in an activation. "
                    "Blocks of transformers, ConvNeXt, MobileNet and EfficientNet have none at their end."
                )
            self._seen[name] = end.given

        for part in filter(_is_activation, last.modules()):
            self._watch(part, True, end.enter)
            self._handles.append(part.register_forward_hook(lambda _m, _i, output: end.leave(output)))
        self._handles.append(module.register_forward_hook(keep))

    def _watch(self, module: nn.Module, entering: bool, put: Callable[[Any], None]) -> None:
        """Hand every input or output of a module to ``put``, whose None leaves the tensor as it is."""
        if entering:
            handle = module.register_forward_pre_hook(lambda m, inputs: put(_taken(m, inputs[0])))
        else:
            handle = module.register_forward_hook(lambda _m, _i, output: put(_kept(output)))
        self._handles.append(handle)

    def result(self, x: Tensor, features: Tensor, logits: Tensor) -> dict[str, Any]:
        """The wanted tensors, once the call on ``x`` is over."""
        found = dict(self._seen)
        body: Any = self.network.body
        if "backbone" in self.names:
            found["backbone"] = body.forward_head(features, pre_logits=True)
        if not isinstance(features, Tensor) and {"tokens", "grid"} & set(self.names):
            raise InputError(f"{self.network.name} ends in several maps: no 'tokens' and no 'grid'.")
        if isinstance(features, Tensor) and features.ndim == 4:
            features = as_map(body, features)
        for name in self.names:
            if name in ("input", "logits"):
                found[name] = x if name == "input" else logits
            elif name == "tokens":
                found[name] = features if features.ndim == 3 else features.flatten(2).transpose(1, 2)
            elif name == "grid":
                found[name] = grid(features, getattr(body, "num_prefix_tokens", 0))
            elif name not in found:
                raise InputError(f"{self.network.name} has a module '{name}', but does not run it.")
            elif is_map(name):
                found[name] = as_map(body, found[name])
        return {name: found[name] for name in self.names}


def _kept(output: Any) -> Any:
    """A copy: the next module may change an output in place (``ReLU(inplace=True)``, ``x += shortcut``)."""
    output = output[0] if isinstance(output, tuple) else output
    return output.clone() if isinstance(output, Tensor) else output


def _taken(module: nn.Module, value: Any) -> Any:
    """A copy where the module changes its input in place; others leave it, as their own gradient needs it."""
    return _kept(value) if getattr(module, "inplace", False) else value


def decoder_block(tap: str) -> int:
    """K of ``decoderK``."""
    match = DECODED.fullmatch(tap)
    return int(match[1]) if match else 0


def _version(value: Any) -> int:
    """How often a tensor was changed in place; those of inference mode do not count it."""
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def _is_activation(module: nn.Module) -> bool:
    """Whether it is an activation of torch's or timm's own."""
    home = type(module).__module__
    ours = home == "torch.nn.modules.activation" or home.startswith("timm.layers.activations")
    return ours and not isinstance(module, nn.MultiheadAttention)


def _is_a(module: nn.Module, class_name: str) -> bool:
    return any(kind.__name__ == class_name for kind in type(module).__mro__)


def block_path(body: nn.Module, name: str) -> str | None:
    """The module behind ``blockK``, ``mapK`` or ``stageK``; None for another tap.

    Raises:
        InputError: a number outside the network's blocks, or a network that has none.
    """
    match = _BLOCK.fullmatch(name)
    if not match:
        return None
    info = getattr(body, "feature_info", None) or []
    stages, kind = [entry["module"] for entry in info], type(body).__name__
    if not stages:
        raise InputError(f"no '{name}': {kind} has no stages.")
    number = int(match[2])
    if match[1] == "stage":
        ends = quarter_ends(body)
        if not 1 <= number <= _QUARTERS or not ends:
            raise InputError(f"no '{name}': {kind} has {len(stages)} stages; name maps by 'map1' and so on.")
        return stages[ends[number - 1]]
    index = number - 1 if number > 0 else number + len(stages)
    if number == 0 or not 0 <= index < len(stages):
        raise InputError(f"no '{name}': {kind} has blocks 1 to {len(stages)}.")
    return stages[index]


def block_names(body: nn.Module) -> list[str]:
    """``block1`` to ``blockK`` of a timm model, without those whose module it has not."""
    modules = dict(body.named_modules())
    count = len(getattr(body, "feature_info", None) or [])
    return [name for name in (f"block{i + 1}" for i in range(count)) if block_path(body, name) in modules]


def quarter_ends(body: Any) -> list[int]:
    """Indices of the blocks or stages behind ``stage1`` to ``stage4``; none of too few stages."""
    count = len(getattr(body, "feature_info", None) or [])
    if is_isotropic(body):
        return [-(-quarter * count // _QUARTERS) - 1 for quarter in range(1, _QUARTERS + 1)]
    return list(range(count - _QUARTERS, count)) if count >= _QUARTERS else []


def is_isotropic(body: Any) -> bool:
    """Whether all blocks of a timm model give maps of one size, as a ViT's do."""
    return len({entry["reduction"] for entry in getattr(body, "feature_info", None) or []}) == 1


def is_map(name: str) -> bool:
    """Whether a tap is ``mapK``, ``stageK``, a module's ``.map`` or what is ``.pre`` of one of them."""
    match = _BLOCK.fullmatch(name)
    return name.endswith((".map", ".pre")) if match is None else match[1] != "block"


def as_map_tap(name: str) -> str:
    """The tap that gives as a map what ``name`` names, where it does not already."""
    if name == "grid" or is_map(name):
        return name
    match = _BLOCK.fullmatch(name)
    return f"map{match[2]}" if match else f"{name}.map"


def as_map(body: nn.Module, output: Tensor) -> Tensor:
    """What a block or stage of a timm model returns, as a map [B, D, H, W].

    Args:
        body: the model; it says whether its maps have their channels last, and how many prefix tokens it has.
        output: [B, D, H, W], [B, H, W, D] or tokens [B, N, D].

    Raises:
        InputError: tokens that stand in no square grid.
    """
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if getattr(body, "output_fmt", "NCHW") == "NHWC" else output
    if output.ndim != 3 or hasattr(body, "reroll"):  # Hiera keeps its tokens in the order of its pooling
        raise InputError(f"blocks of {type(body).__name__} are no maps.")
    return grid(output, getattr(body, "num_prefix_tokens", 0))


def grid(features: Tensor, prefix: int) -> Tensor:
    """Feature map [B, D, H, W]: maps as they are, square grids of patch tokens reshaped."""
    if features.ndim == 4:
        return features
    patches = features[:, prefix:].transpose(1, 2)
    side = math.isqrt(patches.shape[2])
    if side * side != patches.shape[2]:
        raise InputError(f"{patches.shape[2]} patch tokens are no square grid.")
    return patches.unflatten(2, (side, side))
