"""Int8 networks: weights that an artifact stores as integers, and ONNX files that compute with them.

Stored integers (:mod:`kdcli.models.integers`) save bytes alone. An ONNX file is static int8 (QDQ: weights per
channel, activations by the range that calibration pictures gave them) or dynamic int8 (activations by the
range of each batch as it comes), both by onnxruntime.quantization. A dynamic one has scales per channel in
linear layers and one scale in each convolution, for ONNX's ConvInteger knows no more: prefer static ones for
CNNs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from kdcli.artifacts.files import sync
from kdcli.compression.onnx import EXPORT, PACKAGES, compare, detects, plain_copy, quiet
from kdcli.errors import InputError, from_os_error, shortened
from kdcli.models.integers import quantised, restored, sizes
from kdcli.models.legacy import first_line
from kdcli.models.onnx import INPUT, refuse_missing
from kdcli.models.protocol import Model

__all__ = ["FILE", "LEAST", "quantise_onnx", "quantised", "restored", "sizes"]

FILE = "model.int8.onnx"
LEAST = 16  # pictures that calibrate: with fewer, one odd picture decides the range of every activation
Kind = Literal["static", "dynamic"]


def refuse_few(pictures: int) -> None:
    """Raise InputError for fewer than 16 pictures to calibrate on."""
    if pictures < LEAST:
        raise InputError(
            f"--quantize int8: {pictures} pictures to calibrate on, and at least {LEAST} are needed. Use a "
            "larger training split, or quantise dynamically."
        )


def refuse_detectors(network: Model, kind: Kind) -> None:
    """Raise InputError for a static file of a detector, which ends in numbers of queries and classes."""
    if kind == "static" and detects(network):
        raise InputError(
            f"--quantize int8: {network.name} is a detector, which ends in numbers of queries and classes, "
            "and 256 values would round these. Take --quantize int8-dynamic, which leaves them alone."
        )


def quantise_onnx(
    network: Model, folder: Path, facts: Mapping[str, Any], batches: Sequence[Tensor], kind: Kind
) -> dict[str, Any]:
    """Write ``model.int8.onnx`` beside an ONNX file, and measure by how much its answers differ.

    The difference is told and not bounded: what int8 costs is for the task's metrics to say.

    Args:
        network: that the ONNX file was made of.
        folder: of the file.
        facts: of :func:`kdcli.compression.onnx.export_onnx`.
        batches: views uint8 [B, 3, H, W] of real pictures: they calibrate a static one, and both are compared
            with the network on the first batch.
        kind: static or dynamic.

    Returns:
        The facts of the new file, of the same entries, and ``quantised``: ``kind``, ``pictures`` that
        calibrated (0 of a dynamic one), ``fp32_bytes``, and of the answers ``difference`` and ``largest``.

    Raises:
        InputError: fewer than 16 pictures for a static one, none for a dynamic one, or a graph that
            onnxruntime cannot quantise.
        EnvironmentFault: a package is missing, or the disk refuses.
    """
    refuse_missing(PACKAGES, EXPORT)
    refuse_detectors(network, kind)
    pictures = sum(map(len, batches))
    if kind == "static":
        refuse_few(pictures)
    external = len(facts["files"]) > 1
    with tempfile.TemporaryDirectory(dir=folder) as scratch, quiet():
        try:
            _quantise(folder / facts["file"], folder / FILE, Path(scratch), network, batches, kind, external)
        except OSError as error:
            raise from_os_error(error, folder / FILE) from error
        except Exception as error:  # onnxruntime's errors have no common kind
            why = shortened(first_line(error))
            raise InputError(
                f"--quantize int8: onnxruntime cannot quantise {facts['file']} ({why}). Leave --quantize out."
            ) from error
    files = [FILE, *([f"{FILE}.data"] if external else [])]
    for name in files:
        sync(folder / name)
    measured = compare(folder / FILE, network, batches[:1])
    if measured["difference"] != measured["difference"]:
        raise InputError(f"--quantize int8: {folder / FILE} answers NaN. Leave --quantize out.")
    return {
        **{name: value for name, value in facts.items() if name != "check"},
        "file": FILE,
        "files": files,
        "bytes": sum((folder / name).stat().st_size for name in files),
        "quantised": {
            "kind": kind,
            "pictures": pictures if kind == "static" else 0,
            "fp32_bytes": facts["bytes"],
            "difference": measured["difference"],
            "largest": measured["largest"],
        },
    }


def _quantise(
    source: Path,
    target: Path,
    scratch: Path,
    network: Model,
    batches: Sequence[Tensor],
    kind: Kind,
    external: bool,
) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(CalibrationDataReader):
        """The batches, one after the other."""

        def __init__(self, given: Iterator[dict[str, Any]]) -> None:
            self._given = given

        def get_next(self) -> dict[str, Any] | None:
            return next(self._given, None)

    ready = scratch / "ready.onnx"  # shapes known, constants folded: what onnxruntime asks for
    quant_pre_process(str(source), str(ready), skip_symbolic_shape=True, save_as_external_data=external)
    common = {
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "use_external_data_format": external,
    }
    if kind == "dynamic":
        quantize_dynamic(str(ready), str(target), **common)
    else:
        reader = Calibration(_inputs(ready, network, batches))
        types = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QInt8}
        quantize_static(str(ready), str(target), reader, **types, **common)
    _keep_used_domains(target)


def _inputs(file: Path, network: Model, batches: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    """What a file takes for each batch of views."""
    import onnx

    kind = onnx.load(str(file), load_external_data=False).graph.input[0].type.tensor_type.elem_type
    own = plain_copy(network)
    for views in batches:
        given = views if kind == onnx.TensorProto.UINT8 else own.prepare(views)
        yield {INPUT: given.contiguous().numpy()}


def _keep_used_domains(file: Path) -> None:
    """Drop the operator sets that no node is of: other runtimes refuse a file for one they do not know."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    file.write_bytes(model.SerializeToString(deterministic=True))
