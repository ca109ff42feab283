"""What a network costs: parameters, FLOPs, time and memory of a forward pass.

Every function measures the network in eval mode and leaves it as it was: training flags per submodule, the
attention backend and torch's fast-path switch are put back even if the forward fails.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode; on leaving, each submodule's own flag is back (a frozen BatchNorm stays in eval)."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


@contextmanager
def _no_attention_fast_path() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` and ``nn.TransformerEncoder`` out of their opaque fused kernels."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included, shared ones once, buffers not."""
    return sum(p.numel() for p in module.parameters())


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def flops(module: nn.Module, example: Tensor) -> int:
    """Floating-point operations of one forward of one sample: 2 x multiply-accumulates (MACs).

    Counted are matrix products, convolutions and attention, masked entries included; elementwise operations,
    normalisation and pooling are not, as is the custom in papers. ``FlopCounterMode`` alone counts fused
    attention as 0 on the CPU: here attention is made to run as two matrix products, and the fused kernels
    that cannot be switched off (on MPS, or chosen by the network itself) get a formula.

    Args:
        module: any network that takes one tensor.
        example: ``[B, ...]``; the first sample is used.

    Raises:
        ValueError: the example holds no sample.
    """
    fused = (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
        torch.ops.aten._scaled_dot_product_attention_math_for_mps,
    )
    counter = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(fused, _attention_flops))
    one = _first(example)
    plain_attention = sdpa_kernel(SDPBackend.MATH)
    with evaluating(module), torch.no_grad(), plain_attention, _no_attention_fast_path(), counter:
        module(one)
    return int(counter.get_total_flops())


def _first(example: Tensor) -> Tensor:
    if example.ndim == 0 or len(example) == 0:
        raise ValueError("the example holds no sample to measure with")
    return example[:1]


def synchronize(device: torch.device) -> None:
    """Wait for queued kernels: without it a clock reads the time to launch them."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _seconds(module: nn.Module, examples: Tensor, repeats: int, warmup: int) -> np.ndarray:
    """Wall-clock seconds of each of ``repeats`` forwards, after ``warmup`` forwards that are not counted."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats must be at least 1 and warmup at least 0, not {repeats} and {warmup}")
    seconds = []
    with evaluating(module), torch.inference_mode():
        for i in range(-warmup, repeats):
            synchronize(examples.device)
            start = time.perf_counter()
            module(examples)
            synchronize(examples.device)
            if i >= 0:
                seconds.append(time.perf_counter() - start)
    return np.array(seconds)


def _quantiles(values: np.ndarray) -> dict[str, float]:
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def latency(module: nn.Module, example: Tensor, repeats: int = 50, warmup: int = 10) -> dict[str, float]:
    """Time of a forward at batch size 1, kernels waited for.

    Args:
        module: any network that takes one tensor.
        example: ``[B, ...]`` on the network's device; the first sample is used.
        repeats: timed forwards.
        warmup: forwards before them.

    Returns:
        ``median``, ``p10`` and ``p90`` in milliseconds, and ``repeats``.

    Raises:
        ValueError: repeats < 1, warmup < 0, or the example holds no sample.
    """
    return _quantiles(1e3 * _seconds(module, _first(example), repeats, warmup)) | {"repeats": repeats}


def throughput(module: nn.Module, examples: Tensor, repeats: int = 20, warmup: int = 5) -> dict[str, float]:
    """Images per second at the batch size of ``examples``, kernels waited for after each batch.

    Args:
        module: any network that takes one tensor.
        examples: ``[B, ...]`` on the network's device.
        repeats: timed forwards.
        warmup: forwards before them.

    Returns:
        ``median``, ``p10`` (the slow end) and ``p90`` in images/s, and ``batch``.

    Raises:
        ValueError: repeats < 1, warmup < 0, or the examples hold no sample.
    """
    batch = len(examples)
    _first(examples)
    return _quantiles(batch / _seconds(module, examples, repeats, warmup)) | {"batch": batch}


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operators return: their live bytes now (``live``) and at most (``peak``)."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        # The known storages are held, so that none of their addresses is given to a new one.
        self.known = {t.untyped_storage()._cdata: t.untyped_storage() for t in known}
        self.seen: set[int] = set()

    def _freed(self, address: int, size: int) -> None:
        self.seen.discard(address)
        self.live -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            address, size = storage._cdata, storage.nbytes()
            if address not in self.known and address not in self.seen:
                self.seen.add(address)
                weakref.finalize(storage, self._freed, address, size)
                self.live += size
        self.peak = max(self.peak, self.live)
        return result


def peak_memory(module: nn.Module, examples: Tensor) -> float:
    """Peak memory of one forward without gradients, in MB (10^6 bytes): weights, buffers, input and the rest.

    What the forward adds at its peak is read from the caching allocator on CUDA, after one forward that lets
    the libraries take their workspaces: every byte that torch allocates counts, and other networks on the
    GPU do not. On other devices no allocator can be asked, and the live tensors that operators return are
    added up instead: scratch space inside a kernel is not seen, but the number is exact and repeatable, and
    nothing else on the machine changes it.

    Args:
        module: any network that takes one tensor.
        examples: ``[B, ...]`` on the network's device.

    Raises:
        ValueError: the examples hold no sample.
    """
    _first(examples)
    known = [*module.parameters(), *module.buffers(), examples]
    base = sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in known}.values())
    with evaluating(module), torch.no_grad():
        if examples.device.type == "cuda":
            module(examples)
            torch.cuda.synchronize(examples.device)
            before = torch.cuda.memory_allocated(examples.device)
            torch.cuda.reset_peak_memory_stats(examples.device)
            module(examples)
            torch.cuda.synchronize(examples.device)
            added = torch.cuda.max_memory_allocated(examples.device) - before
        else:
            with _LiveBytes(known) as tracker:
                module(examples)
            added = tracker.peak
    return (base + added) / 1e6
