"""Weights of convolutions and linear layers as 8-bit integers, one scale for each output channel.

w ≈ s·q with q in -127 … 127 and s = max|w| / 127 of the channel: the symmetric quantiser of restricted range,
per channel, of Krishnamoorthi 2018 (arXiv 1806.08342). What is read back are ordinary fp32 weights, s·q: the
network that was rounded, in a quarter of the bytes, as fast as before. A scale is rounded to 17 significant
bits, so that s·q is exact and a network that is rounded again keeps every bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdcli.errors import InputError

SCALE = ".scale"  # behind the name of a weight of integers
_LARGEST, _SMALLEST_SCALE = 127, 2.0**-100
_BITS = 17  # 7 more are those of q, and 24 are what fp32 has


def quantised(network: nn.Module) -> dict[str, Tensor]:
    """The state dict, with the weights of convolutions and linear layers as int8 beside their scales.

    A weight keeps its name and shape [O, …]; its scale, fp32 [O], has ``.scale`` behind that name. All else
    (biases, norms, statistics, embeddings) is as it was.

    Args:
        network: left as it is.

    Raises:
        InputError: a weight with NaN or Inf.
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    layers = {f"{path}.weight".lstrip(".") for path, m in network.named_modules() if isinstance(m, kinds)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        tensors[name] = tensor
        if name in layers and tensor.numel():
            tensors[name], tensors[name + SCALE] = _rounded(name, tensor.detach().float())
    return tensors


def _rounded(name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
    """q and s of a weight [O, …]."""
    if not weight.isfinite().all():
        raise InputError(f"{name} has NaN or Inf, which no integer stands for: the training diverged.")
    rows = weight.flatten(1)
    mantissa, exponent = torch.frexp(rows.abs().amax(1) / _LARGEST)
    scale = torch.ldexp((mantissa * 2**_BITS).round() / 2**_BITS, exponent).clamp(min=_SMALLEST_SCALE)
    whole = (rows / scale[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return whole.to(torch.int8).view_as(weight), scale


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that :func:`quantised` was made of, as it is after rounding; others as they are.

    Args:
        tensors: by name, of any prefix.

    Raises:
        InputError: integers without a scale for each of their rows, or scales without integers.
    """
    scales = {name.removesuffix(SCALE) for name, t in tensors.items() if _is_scale(name, tensors)}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in scales:
            scale = tensors[name + SCALE]
            if scale.shape != tensor.shape[:1] or scale.dtype != torch.float32 or not scale.isfinite().all():
                raise InputError(f"{name + SCALE} is no scale for each of the {len(tensor)} rows of {name}.")
            found[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif tensor.dtype == torch.int8:
            raise InputError(f"{name} has integers without {name + SCALE}: the file is not whole.")
        elif name.removesuffix(SCALE) not in scales:
            found[name] = tensor
    return found


def _is_scale(name: str, tensors: Mapping[str, Tensor]) -> bool:
    weight = tensors.get(name.removesuffix(SCALE))
    return name.endswith(SCALE) and weight is not None and weight.dtype == torch.int8 and weight.ndim > 0


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Of :func:`quantised`: ``tensors`` that are integers, ``bytes`` of all, and ``fp32_bytes`` before."""
    whole = [name for name, t in tensors.items() if t.dtype == torch.int8 and name + SCALE in tensors]
    own = sum(tensor.nbytes for tensor in tensors.values())
    more = sum(3 * tensors[name].nbytes - tensors[name + SCALE].nbytes for name in whole)
    return {"tensors": len(whole), "bytes": own, "fp32_bytes": own + more}
