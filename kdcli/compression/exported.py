"""A network as a program of ``torch.export``: ``model.pt2``, the one file that kdcli writes and never reads.

Who has torch alone runs it by ``torch.export.load("model.pt2").module()``. What it would hold as a pickle,
the pictures that it was traced by, is left out, and so are the lines of source code.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from kdcli.artifacts.files import write_bytes
from kdcli.compression.onnx import example, plain_copy, quiet, refusal
from kdcli.models.protocol import Model

FILE = "model.pt2"


def export_torch(network: Model, folder: Path, *, inside: bool = False) -> dict[str, Any]:
    """Write a network as ``model.pt2``, fp32, for the CPU, in eval mode, with a batch of any size.

    The same network gives the same bytes.

    Args:
        network: left as it is.
        folder: existing directory.
        inside: whether the program takes views uint8 [B, 3, H, W], and normalises them; else it takes what
            the network's ``prepare`` makes of them, float32 [B, C, H, W].

    Returns:
        Facts for the manifest: ``file``, ``bytes``, ``input`` (``dtype`` and ``shape``), ``inside`` and the
        version of ``torch``, which promises to read files of its last versions only.

    Raises:
        InputError: the network cannot be traced.
        EnvironmentFault: the disk refuses.
    """
    own = plain_copy(network)
    given = example(own, inside)
    with quiet(), own.traceable():
        try:
            program: Any = torch.export.export(
                own, (given,), dynamic_shapes=({0: torch.export.Dim("batch")},)
            )
        except Exception as error:  # torch raises errors of many kinds, some of them Python's own
            raise refusal(network, error, "torch") from error
        program.example_inputs = None
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    data = buffer.getvalue()
    write_bytes(folder / FILE, data)
    return {
        "file": FILE,
        "bytes": len(data),
        "input": {"dtype": str(given.dtype).removeprefix("torch."), "shape": ["batch", *given.shape[1:]]},
        "inside": inside,
        "versions": {"torch": torch.__version__},
    }
