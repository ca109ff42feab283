"""Compactors folded into the layers in front of them: a smaller dense network of the same answers.

A full compactor C behind a convolution W and its batch norm (γ, β, μ, σ² with ε; CDD's and ResRep's merge)
gives, for the rows K that are kept, with G = C_K diag(γ / sqrt(σ² + ε)),

    C_K bn(W x) = G W x - G μ + C_K β

The batch norm stays in the architecture, so that W' = G W and the rest of it is

    μ' = G μ,    σ'² = Σ_j C_ij² γ_j² σ_j² / (σ_j² + ε),    γ' = sqrt(σ'² + ε),    β' = C_K β

Any σ'² is exact in eval mode. This one is the variance of C_K bn(W x) if the normalised channels do not
correlate, so that in train mode, where the batch's own variance takes its place, the scale stays about what
it was (exactly, if C_K is diagonal) and the network can be trained on. A batch norm set to the identity
(σ'² = 1 - ε, γ' = 1) would lose all scales there.

A diagonal compactor scales the weight and bias of what stands in front of it; one of heads, or of channels of
values, the rows of the values, and one of channels of keys those of the queries. A linear layer becomes
W' = C_K W, b' = C_K b. All is computed in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kdcli.models import surgery
from kdcli.models.compactors import Compactor, compactors, removed
from kdcli.models.sites import Site
from kdcli.models.timm import TimmModel

Tensors = dict[str, Tensor]
_OF_CHANNELS = ("weight", "bias", "running_mean", "running_var")


def zeroed(network: TimmModel, kept: Mapping[str, Tensor]) -> TimmModel:
    """A copy whose compactors' rows are zero where they are not kept: what :func:`fold` makes smaller.

    Args:
        network: with compactors, left as it is.
        kept: bool [p] by names of sites; sites that are not named keep all.

    Raises:
        ValueError: no such compactor, a mask of another width, or one that keeps nothing.
    """
    zero = copy.deepcopy(network)
    found = compactors(zero)
    rows = _rows(found, kept)
    with torch.no_grad():
        for name, compactor in found.items():
            weight = torch.zeros_like(compactor.weight)
            at = rows[name].to(weight.device)
            weight[at] = compactor.weight[at]
            compactor.weight.copy_(weight)
    return zero


def fold(network: TimmModel, kept: Mapping[str, Tensor]) -> TimmModel:
    """The network without compactors and without the channels that are not kept.

    It answers in eval mode what :func:`zeroed` does. Its ``operations`` say what was removed, so that its
    files are rebuilt by :func:`kdcli.models.build.build`; it can be compacted again.

    Args:
        network: with compactors, left as it is.
        kept: bool [p] by names of sites, at least one True; sites that are not named keep all.

    Raises:
        ValueError: no such compactor, a mask of another width, or one that keeps nothing.
    """
    found = compactors(network)
    rows = _rows(found, kept)
    folded = removed(network)
    tensors: Tensors = dict(folded.body.state_dict())
    modules: dict[str, dict[str, int]] = {}
    for name, compactor in found.items():
        tensors.update(_folded(folded.body, tensors, compactor, rows[name]))
        if len(rows[name]) < compactor.site.width and compactor.site.attention is None:
            _widths(modules, compactor.site, len(rows[name]))
    for own in _attentions(found):
        tensors.update(_narrowed(tensors, own, rows, modules))
    if modules:
        operation = {"op": "remove channels", "modules": modules}
        folded.body = surgery.remove_channels(folded.body, operation).to(memory_format=torch.channels_last)
        folded.operations = (*folded.operations, operation)
    folded.body.load_state_dict(tensors)
    return folded


def _rows(found: Mapping[str, Compactor], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of the rows kept, for every compactor."""
    if odd := sorted(set(kept) - set(found)):
        raise ValueError(f"there is no compactor at {odd[0]}")
    rows = {name: torch.arange(compactor.site.width) for name, compactor in found.items()}
    for name, mask in kept.items():
        if mask.dtype != torch.bool or mask.shape != rows[name].shape:
            raise ValueError(f"{name}: the mask of {len(rows[name])} rows is {mask.dtype} {list(mask.shape)}")
        if not mask.any():
            raise ValueError(f"{name}: at least one row is kept")
        rows[name] = mask.cpu().nonzero().flatten()
    return rows


def _widths(modules: dict[str, dict[str, int]], site: Site, width: int) -> None:
    """Add what a site leaves of its modules; a module may stand between two sites."""
    for (path, end), each in site.ends.items():
        modules.setdefault(path, {})[end] = each * width


def _attentions(found: Mapping[str, Compactor]) -> list[list[Site]]:
    """The sites of each attention, together."""
    by: dict[str, list[Site]] = {}
    for compactor in found.values():
        if compactor.site.attention is not None:
            by.setdefault(compactor.site.producer, []).append(compactor.site)
    return list(by.values())


def _narrowed(
    tensors: Tensors, sites: Sequence[Site], rows: Mapping[str, Tensor], modules: dict[str, dict[str, int]]
) -> Tensors:
    """Tensors of an attention's layers with the heads and channels that are kept; adds what it leaves."""
    first = sites[0]
    assert first.attention is not None
    full = dict(zip(("heads", "keys", "values"), first.attention))
    kept = {kind: torch.arange(width) for kind, width in full.items()}
    kept |= {site.kind: rows[site.name] for site in sites}
    left = {kind: len(numbers) for kind, numbers in kept.items() if len(numbers) < full[kind]}
    if not left:
        return {}
    keys, values = (
        (kept["heads"][:, None] * full[kind] + kept[kind]).flatten() for kind in ("keys", "values")
    )
    half = full["heads"] * full["keys"]
    outputs = torch.cat([keys, keys + half, values + 2 * half])
    path = first.producer.rpartition(".")[0]
    modules[path] = left
    modules[first.producer] = {"out": len(outputs)}
    found = {
        name: tensors[name].index_select(0, outputs)
        for name in (f"{first.producer}.weight", f"{first.producer}.bias")
        if name in tensors
    }
    if left.keys() & {"heads", "values"}:
        modules[f"{path}.proj"] = {"in": len(values)}
        found[f"{path}.proj.weight"] = tensors[f"{path}.proj.weight"].index_select(1, values)
    return found


def _folded(body: Any, tensors: Tensors, compactor: Compactor, rows: Tensor) -> Tensors:
    """The tensors that one compactor changes, or whose channels it removes."""
    site = compactor.site
    weight = compactor.weight.detach().double().cpu()
    touched = {path for path, _ in site.ends}
    own = {
        key: tensors[key].double().cpu()
        for path in touched
        for key in (f"{path}.{name}" for name in _OF_CHANNELS)
        if key in tensors
    }
    done: tuple[str, ...] = ()
    if site.attention is not None:
        _scale_attention(own, site, weight)
        return own
    if site.diagonal:
        _scale(own, site.front, weight)
    elif site.norms:
        _mix_normalised(own, site, weight[rows], body.get_submodule(site.norms[0]).eps)
        done = (site.producer, *site.norms)
    else:
        _mix(own, site.producer, weight[rows])
        done = (site.producer,)
    for path, end in site.ends:
        if end == "in" and path in site.through:  # a depthwise convolution has one input for each output
            continue
        if end == "in":
            own[f"{path}.weight"] = own[f"{path}.weight"].index_select(1, rows)
        elif path not in done:
            for key in (f"{path}.{name}" for name in _OF_CHANNELS):
                if key in own:
                    own[key] = own[key].index_select(0, rows)
    return own


def _mix(own: Tensors, producer: str, weight: Tensor) -> None:
    for name in ("weight", "bias"):
        key = f"{producer}.{name}"
        if key in own:
            own[key] = torch.tensordot(weight, own[key], dims=1)


def _mix_normalised(own: Tensors, site: Site, weight: Tensor, eps: float) -> None:
    gamma, beta, mean, variance = (own[f"{site.norms[0]}.{name}"] for name in _OF_CHANNELS)
    scale = gamma / (variance + eps).sqrt()
    _mix(own, site.producer, weight * scale)
    spread = weight.square() @ (scale.square() * variance)
    values = ((spread + eps).sqrt(), weight @ beta, (weight * scale) @ mean, spread)
    own.update({f"{site.norms[0]}.{name}": value for name, value in zip(_OF_CHANNELS, values)})


def _scale(own: Tensors, front: str, weight: Tensor) -> None:
    for name in ("weight", "bias"):
        key = f"{front}.{name}"
        if key in own:
            own[key] = own[key] * weight.view(-1, *[1] * (own[key].ndim - 1))


def _scale_attention(own: Tensors, site: Site, weight: Tensor) -> None:
    """Scale the rows of queries by a compactor of keys, those of values by the others."""
    assert site.attention is not None
    heads, keys, values = site.attention
    ones = weight.new_ones(heads * keys)
    if site.kind == "keys":
        scales = torch.cat([weight.repeat(heads), ones, weight.new_ones(heads * values)])
    else:
        each = weight.repeat_interleave(values) if site.kind == "heads" else weight.repeat(heads)
        scales = torch.cat([ones, ones, each])
    _scale(own, site.producer, scales)
