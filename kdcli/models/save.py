"""A timm model as files: weights and configuration for plain timm, and a head that timm has no place for."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.store import write_bytes, write_tensors
from kdcli.models.surgery import FIELD, REPLACE_HEAD

if TYPE_CHECKING:
    from kdcli.models.autoencoder import Decoder
    from kdcli.models.timm import TimmModel


def write(network: TimmModel, folder: Path, tensors: dict[str, Tensor]) -> list[str]:
    """Write a network as a model directory; the caller commits it.

    Args:
        network: what to write.
        folder: existing directory.
        tensors: its state dict, perhaps of another step.

    Returns:
        Names of the files written.
    """
    names = [artifacts.WEIGHTS, artifacts.CONFIG]
    write_tensors(folder / artifacts.WEIGHTS, below(tensors, "body."))
    write_bytes(folder / artifacts.CONFIG, (json.dumps(_config(network), indent=1) + "\n").encode())
    if network.head is not None:
        write_tensors(folder / artifacts.HEAD, below(tensors, "head."))
        names += [artifacts.HEAD, *network.head.write_beside(folder)]
    if network.decoder is not None:
        names += write_decoder(network.decoder, folder, below(tensors, "decoder."))
    return names


def write_decoder(decoder: Decoder, folder: Path, tensors: dict[str, Tensor]) -> list[str]:
    """Write the decoder of a masked autoencoder beside its encoder; returns names of files."""
    weights, description = artifacts.DECODER
    write_tensors(folder / weights, tensors)
    write_bytes(folder / description, (json.dumps(decoder.facts, indent=1) + "\n").encode())
    return [weights, description]


def _config(network: TimmModel) -> dict[str, Any]:
    """``config.json`` of the artifact, as timm writes it, with our preprocessing and class names."""
    from timm.models._hub import save_config_for_hf

    spec = network.spec
    data = {
        "input_size": (spec.channels, *spec.size),
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop,
        "crop_mode": spec.crop_mode,
    }
    extra: dict[str, Any] = (
        {"label_names": network.classes} if network.classes and network.head is None else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        save_config_for_hf(network.body, str(file), model_config=extra, data_config=data)
        config = json.loads(file.read_text())
    # timm reads the number of classes beside it too, and transformers would be given it twice
    config.get("model_args", {}).pop("num_classes", None)
    operations = [dict(operation) for operation in network.operations]
    if network.head is not None:
        operations.append({"op": REPLACE_HEAD, **network.head.to_json()})
    if operations:
        config[FIELD] = operations
    return config


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
