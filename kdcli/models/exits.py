"""Exits of a network: small classifiers on its shallower maps, as in Be Your Own Teacher.

Source: Zhang et al. 2019, arXiv 1905.08094. ``attention`` is the form of the authors' later code: a mask
over the map, then one pair of separable convolutions (as DARTS has them) for each downsampling that the
map still lacks. ``bottleneck`` is the conference paper's reading: plain ResNet bottlenecks, no mask.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.store import write_bytes, write_tensors
from kdcli.errors import InputError
from kdcli.models.protocol import Model

Kind = Literal["attention", "bottleneck"]
Shape = Sequence[int]
_REDUCTION = 4  # of the bottleneck's middle width


def _normed(conv: nn.Module, width: int) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(width), nn.ReLU()]


def _separable(width: int, out: int, stride: int) -> nn.Sequential:
    """Twice: depthwise 3×3, pointwise, BN, ReLU; the first of them has the stride."""
    layers: list[nn.Module] = []
    for to, step in ((width, stride), (out, 1)):
        layers.append(nn.Conv2d(width, width, 3, step, 1, groups=width, bias=False))
        layers += _normed(nn.Conv2d(width, to, 1, bias=False), to)
    return nn.Sequential(*layers)


def _bottleneck(width: int, out: int, stride: int) -> nn.Sequential:
    """1×1, 3×3 with the stride, 1×1, each with BN and ReLU."""
    middle = max(1, out // _REDUCTION)
    return nn.Sequential(
        *_normed(nn.Conv2d(width, middle, 1, bias=False), middle),
        *_normed(nn.Conv2d(middle, middle, 3, stride, 1, bias=False), middle),
        *_normed(nn.Conv2d(middle, out, 1, bias=False), out),
    )


class ExitHead(nn.Module):
    """A classifier on a map, with as many convolutions as the map lacks downsamplings, at least one.

    Args:
        shape: of the map that it reads, [C, H, W].
        deepest: of the network's last map, [D, h, w]: the exit's features are as wide.
        classes: number of logits.
        kind: see the module.
        tap: name of the map (``map2``), for whoever feeds it.

    Raises:
        ValueError: another kind.
    """

    def __init__(
        self, shape: Shape, deepest: Shape, classes: int, kind: Kind = "attention", *, tap: str = ""
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise ValueError(f"an exit is of the kind {' or '.join(get_args(Kind))}, not {kind!r}")
        self.shape, self.deepest, self.classes = tuple(shape), tuple(deepest), classes
        self.kind, self.tap = kind, tap
        width, out = self.shape[0], self.deepest[0]
        missing = max(0, round(math.log2(max(self.shape[1:]) / max(self.deepest[1:]))))
        steps = max(1, missing)
        widths = [round(width * (out / width) ** (i / steps)) for i in range(steps + 1)]
        step, stride = _separable if kind == "attention" else _bottleneck, 2 if missing else 1
        self.attention = (
            nn.Sequential(_separable(width, width, 2), nn.BatchNorm2d(width), nn.ReLU())
            if kind == "attention"
            else None
        )
        self.steps = nn.Sequential(*(step(a, b, stride) for a, b in pairwise(widths)))
        self.linear = nn.Linear(out, classes)

    def forward(self, map: Tensor) -> dict[str, Tensor]:
        """``logits`` [B, K] and ``features`` [B, D] of a map [B, C, H, W]."""
        if self.attention is not None:
            mask = F.interpolate(
                self.attention(map), map.shape[-2:], mode="bilinear", align_corners=False
            ).sigmoid()
            map = mask * map
        features = self.steps(map).mean(dim=(2, 3))
        return {"logits": self.linear(features), "features": features}

    def reorder(self, order: Sequence[int] | None) -> None:
        """Put the logits into another order; ``order[i]`` is the old row of class i."""
        if order is not None:
            rows = torch.tensor(list(order))
            with torch.no_grad():
                for tensor in (self.linear.weight, self.linear.bias):
                    tensor.copy_(tensor[rows].clone())

    def describe(self) -> dict[str, Any]:
        """What :func:`load_exits` builds it from."""
        return {
            "tap": self.tap,
            "shape": self.shape,
            "deepest": self.deepest,
            "classes": self.classes,
            "kind": self.kind,
        }


class _Reached(Exception):
    """The exit that was asked for has answered."""


class WithExits(nn.Module):
    """A network and its exits as one that gives the logits of all.

    Args:
        network: whose maps the exits read.
        exits: by name, the shallowest first.
        upto: stop the network behind its exit of this number (from 1), as an early exit does.

    Raises:
        InputError: an exit taps a block that the network has not.
    """

    def __init__(self, network: Model, exits: Mapping[str, ExitHead], upto: int | None = None) -> None:
        super().__init__()
        self.network, self.exits, self.upto = network, nn.ModuleList(exits.values()), upto
        self.spec, self.name = network.spec, network.name
        self._places = [network.map_module(head.tap) for head in exits.values()]

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, E, K] of views: of the exits, shallow first, and of the network, as far as ``upto``."""
        found: list[Tensor] = []
        handles = []

        def hook(head: nn.Module) -> Any:
            def answer(_module: nn.Module, _inputs: Any, output: Any) -> None:
                output = output[0] if isinstance(output, tuple) else output
                found.append(head(self.network.as_map(output))["logits"])
                if len(found) == self.upto:
                    raise _Reached

            return answer

        try:
            for place, head in zip(self._places[: self.upto], self.exits):
                handles.append(place.register_forward_hook(hook(head)))
            found.append(self.network(x))
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(found, dim=1)


# -- files ---------------------------------------------------------------------------------------------------


_DAMAGE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, OSError)


def save_exits(folder: Path, exits: Mapping[str, ExitHead]) -> list[str]:
    """Write exits beside a model's files; the caller commits them.

    Args:
        folder: existing directory.
        exits: by name, the shallowest first.

    Returns:
        Names of the files written.
    """
    weights, description = artifacts.EXITS
    write_tensors(folder / weights, nn.ModuleDict(dict(exits)).state_dict())
    text = json.dumps({name: head.describe() for name, head in exits.items()}, indent=1)
    write_bytes(folder / description, (text + "\n").encode())
    return [weights, description]


def load_exits(folder: Path | str) -> dict[str, ExitHead]:
    """The exits of a model by name, the shallowest first; empty where it has none or is no artifact.

    Raises:
        InputError: damaged files, or weights that do not fit the description.
    """
    if artifacts.find(folder) is None:
        return {}
    files = artifacts.read(folder)
    weights, description = artifacts.EXITS
    if not set(artifacts.EXITS) & set(files.names):
        return {}
    try:
        facts = json.loads((files.path / description).read_text(encoding="utf-8"))
        with torch.device("meta"):  # nothing is allocated before the shapes are known to fit
            exits = nn.ModuleDict({name: ExitHead(**fields) for name, fields in facts.items()})
    except _DAMAGE as error:
        raise InputError(f"{files.path / description} does not describe exits: {error}") from error
    tensors, own = files.tensors(weights), exits.state_dict()
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise InputError(f"{files.path / weights} does not fit {description}.")
    if bad := [n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]:
        raise InputError(f"{files.path / weights} holds NaN or Inf in {bad[0]}.")
    exits.load_state_dict(tensors, assign=True)
    return cast("dict[str, ExitHead]", dict(exits.eval().items()))
