"""What a network costs once its sites have other widths: exact, and without building it.

FLOPs and parameters of a layer are a product of its inputs and outputs, so that those of the network are a
polynomial of the widths, in which two sites meet where one layer stands between them. A single measured pass
gives its coefficients. FLOPs are counted as :func:`kdcli.metrics.efficiency.flops` counts them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdcli.metrics.efficiency import flops, parameters
from kdcli.models.compactors import removed
from kdcli.models.sites import Site
from kdcli.models.timm import TimmModel

Cost = Callable[[Sequence[int]], float]
Ends = Mapping[str, Mapping[str, tuple[int, int]]]


class Polynomial:
    """A sum of coefficients times up to two widths each: the number of a whole network."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.terms: Counter[tuple[int, ...]] = Counter()

    def add(self, factor: int, *ends: tuple[int, int]) -> None:
        """Add ``factor`` times the widths of ends, each the number of its site and channels of a unit."""
        for _, each in ends:
            factor *= each
        self.terms[tuple(sorted(site for site, _ in ends))] += factor

    def complete(self, widths: Sequence[int], value: int) -> None:
        """Let it be ``value`` at these widths, by what depends on none of them."""
        self.terms[()] += value - int(self(widths))

    def part(self, sites: Collection[int]) -> Polynomial:
        """What of it depends on the widths of these sites."""
        own = Polynomial(self.count)
        own.terms.update({at: factor for at, factor in self.terms.items() if not set(sites).isdisjoint(at)})
        return own

    def __call__(self, widths: Sequence[int]) -> float:
        """The number at these widths; raises ValueError for another number of widths than of sites."""
        if len(widths) != self.count:
            raise ValueError(f"{self.count} sites have {self.count} widths, not {len(widths)}")
        total = 0
        for at, factor in self.terms.items():
            for site in at:
                factor *= widths[site]
            total += factor
        return float(total)


def cost_of(network: TimmModel, sites: Sequence[Site]) -> Polynomial:
    """FLOPs of one picture, at widths of the sites in their order, without compactors.

    Args:
        network: with its full widths; compactors in it are not counted.
        sites: of this network.

    Raises:
        ValueError: (of what is returned) another number of widths than of sites.
    """
    plain = removed(network)
    spec = plain.spec
    counted: Counter[str] = Counter()
    ends = _ends(sites)
    attentions = _attentions(sites)

    def outputs(path: str) -> Callable[..., None]:
        def hook(layer: Any, _: Any, output: torch.Tensor) -> None:
            counted[path] += output.numel() // _widths(layer)["out"]

        return hook

    def products(path: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: Any, _: Any) -> None:
            pictures, tokens = inputs[0].shape[:2]
            counted[path] += pictures * tokens**2
            counted[f"{path}.tokens"] += pictures * tokens

        return hook

    modules = dict(plain.body.named_modules())
    layers = [path for path in ends if isinstance(modules[path], nn.Conv2d | nn.Linear)]
    handles = [modules[path].register_forward_hook(outputs(path)) for path in layers]
    handles += [modules[path].register_forward_hook(products(path)) for path in attentions]
    like = next(plain.body.parameters())
    try:
        total = flops(plain, like.new_zeros(1, spec.channels, *spec.size))
    finally:
        for handle in handles:
            handle.remove()
    cost = Polynomial(len(sites))
    for path in layers:
        _add_layer(cost, modules[path], ends[path], 2 * counted[path])
    for path, own in attentions.items():
        own.add_layers(cost, plain.body.get_submodule(path), 2 * counted[f"{path}.tokens"])
        for end in ("keys", "values"):  # two products: of queries with keys, and of these with values
            own.add(cost, 2 * counted[path], "heads", end)
    cost.complete([site.width for site in sites], total)
    return cost


def parameters_of(network: TimmModel, sites: Sequence[Site]) -> Polynomial:
    """Parameters at widths of the sites in their order, without compactors.

    Args:
        network: with its full widths; compactors in it are not counted.
        sites: of this network.

    Raises:
        ValueError: (of what is returned) another number of widths than of sites.
    """
    plain = removed(network)
    number = Polynomial(len(sites))
    for path, own in _ends(sites).items():
        module = plain.body.get_submodule(path)
        if isinstance(module, nn.Conv2d | nn.Linear):
            _add_layer(number, module, own, 1)
            vectors = int(module.bias is not None)
        else:
            vectors = 2  # a batch norm's weight and bias
        if "out" in own:
            number.add(vectors, own["out"])
    for path, attention in _attentions(sites).items():
        layers: Any = plain.body.get_submodule(path)
        attention.add_layers(number, layers, 1)
        if layers.qkv.bias is not None:
            attention.add(number, 2, "heads", "keys")
            attention.add(number, 1, "heads", "values")
    number.complete([site.width for site in sites], parameters(plain))
    return number


class _Attention:
    """What heads, and channels of their keys and values, an attention has: fixed numbers, or those of sites.

    Args:
        dimensions: of it, at full width.
    """

    def __init__(self, dimensions: tuple[int, int, int]) -> None:
        self.fixed = dict(zip(("heads", "keys", "values"), dimensions))
        self.sites: dict[str, int] = {}

    def add(self, polynomial: Polynomial, factor: int, *kinds: str) -> None:
        """Add ``factor`` times the product of these."""
        for kind in kinds:
            factor *= 1 if kind in self.sites else self.fixed[kind]
        polynomial.add(factor, *((self.sites[kind], 1) for kind in kinds if kind in self.sites))

    def add_layers(self, polynomial: Polynomial, attention: Any, each: int) -> None:
        """Add the numbers of the weights of its two layers, ``each`` times."""
        self.add(polynomial, 2 * each * attention.qkv.in_features, "heads", "keys")
        self.add(polynomial, each * attention.qkv.in_features, "heads", "values")
        self.add(polynomial, each * attention.proj.out_features, "heads", "values")


def _attentions(sites: Sequence[Site]) -> dict[str, _Attention]:
    """The attentions that have a site, by path."""
    found: dict[str, _Attention] = {}
    for number, site in enumerate(sites):
        if site.attention is not None:
            path = site.producer.rpartition(".")[0]
            found.setdefault(path, _Attention(site.attention)).sites[site.kind] = number
    return found


def _ends(sites: Sequence[Site]) -> Ends:
    """For each module the site that its inputs and outputs depend on, and channels of one of its units."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for number, site in enumerate(sites):
        for (path, end), each in site.ends.items() if site.attention is None else ():
            found.setdefault(path, {})[end] = (number, each)
    return found


def _widths(layer: Any) -> dict[str, int]:
    if isinstance(layer, nn.Linear):
        return {"in": layer.in_features, "out": layer.out_features}
    return {"in": layer.in_channels, "out": layer.out_channels}


def _add_layer(polynomial: Polynomial, layer: Any, ends: Mapping[str, tuple[int, int]], each: int) -> None:
    """Add the numbers of a layer's weight, ``each`` times."""
    names = ["in", "out"]
    if isinstance(layer, nn.Conv2d):
        each *= layer.kernel_size[0] * layer.kernel_size[1]
        names = names if layer.groups == 1 else ["out"]  # depthwise: one input for each output
    for name in names:
        each *= 1 if name in ends else _widths(layer)[name]
    polynomial.add(each, *(ends[name] for name in names if name in ends))
