"""What a network costs in use, whatever its task."""

from __future__ import annotations

from typing import Any

import torch

from kdcli.engine.runtime import Runtime
from kdcli.metrics.efficiency import flops, latency, parameters, peak_memory, throughput
from kdcli.models.protocol import Model


def cost(network: Model, runtime: Runtime, batch_size: int, repeats: int) -> dict[str, Any]:
    """What a forward costs, on random pictures: the part ``cost`` of a report (:mod:`kdcli.report.page`)."""
    shape = (batch_size, 3, *network.spec.size)
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(runtime.device)
    with runtime.accelerator.autocast():
        return {
            "parameters": parameters(network.counted),
            "flops": flops(network.counted, batch[:1]),
            "latency_ms": latency(network, batch[:1], repeats, 5),
            "throughput": throughput(network, batch, max(3, repeats // 3), 2),
            **({} if network.runs_in else {"peak_memory_mb": peak_memory(network, batch)}),
            "device": network.runs_in or runtime.describe()["device"],
            "threads": torch.get_num_threads(),
        }
