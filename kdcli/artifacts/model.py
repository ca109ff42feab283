"""Model artifacts: ``model.safetensors`` + ``config.json`` (+ ``head.safetensors``, exits, a decoder)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.reading import read_object
from kdcli.errors import InputError
from kdcli.reading import LIMIT, refuse_irregular

if TYPE_CHECKING:
    import torch

WEIGHTS, CONFIG, HEAD = "model.safetensors", "config.json", "head.safetensors"
EXITS = ("exits.safetensors", "exits.json")
DECODER = ("decoder.safetensors", "decoder.json")
PROCESSOR = "preprocessor_config.json"  # of transformers' networks: their input
TEXTS = "texts.json"  # what the bank of a head was made of
PROMPTS = "prompts.safetensors"  # contexts that were learned for those texts
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class InputSpec:
    """What a network wants to see: timm's data configuration.

    Attributes:
        size: (height, width) in pixels.
        mean: per channel, of values in [0, 1].
        std: per channel.
        interpolation: of resizing.
        crop: part of the shorter side that the evaluation crop keeps.
        crop_mode: timm's ``center``, ``squash`` or ``border``.
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = _IMAGENET[0]
    std: tuple[float, ...] = _IMAGENET[1]
    interpolation: str = "bicubic"
    crop: float = 1.0
    crop_mode: str = "center"

    @property
    def channels(self) -> int:
        """Of the pictures: 3, or 1 of a network that sees them grey."""
        return len(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Plain values for manifests and cache keys."""
        return {
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop": self.crop,
            "crop_mode": self.crop_mode,
        }


@dataclass(frozen=True)
class ModelFiles:
    """A model artifact (or a member such as ``OUT/last``) that was read and checked.

    Attributes:
        path: directory of the weights.
        manifest: of the artifact.
        hash: sha256 of its weights and configuration.
        config: parsed ``config.json``.
        names: of the files that were checked.
    """

    path: Path
    manifest: Manifest
    hash: str
    config: dict[str, Any]
    names: tuple[str, ...]

    def tensors(self, name: str = WEIGHTS) -> dict[str, torch.Tensor]:
        """Tensors of one of its files."""
        return read_tensors(self.path / name)

    @property
    def classes(self) -> list[str] | None:
        """Class names, None for a bare backbone."""
        return self.manifest.facts.get("classes")

    @property
    def temperature(self) -> float:
        """By what its logits are divided where it teaches: fitted by ``kdcli probe``; 1 where nothing was."""
        return float((self.manifest.facts.get("calibration") or {}).get("temperature", 1.0))


def find(path: Path | str) -> Path | None:
    """The artifact directory that ``path`` is, or is a member directory of; None if it is neither."""
    path = Path(path)
    if (path / manifests.NAME).exists() or path.name.endswith(".partial"):
        return path
    parent = path.parent
    if (path / CONFIG).exists() and (parent / manifests.NAME).exists():
        return parent
    if not path.exists() and path.with_name(path.name + ".partial").exists():
        return path
    return None


def read(path: Path | str) -> ModelFiles:
    """Read and verify the model at ``path``: hashes first, then configuration.

    Raises:
        InputError: no artifact, another kind, a missing, truncated or changed file.
    """
    path = Path(path)
    root = find(path)
    if root is None:
        manifests.read(path)  # says what is wrong
        raise InputError(f"{path} is not a model artifact.")
    manifests.refuse_half_written(root)
    manifest = manifests.read(root)
    if manifest.kind != "model":
        raise InputError(f"{root} is a {manifest.kind} artifact, not a model.")
    prefix = "" if path == root else f"{path.relative_to(root).as_posix()}/"
    names = [
        name
        for name in (WEIGHTS, CONFIG, HEAD, *EXITS, *DECODER, PROCESSOR, TEXTS, PROMPTS)
        if f"{prefix}{name}" in manifest.files
    ]
    if WEIGHTS not in names or CONFIG not in names:
        raise InputError(f"{root} is damaged: its manifest names no {prefix}{WEIGHTS} or {prefix}{CONFIG}.")
    for name in names:  # before they are hashed
        if name.endswith(".json") and (size := manifest.files[prefix + name]["size"]) > LIMIT:
            raise InputError(f"cannot read {path / name}: it has {size:,} bytes, more than {LIMIT:,}.")
    manifests.verify(root, manifest, [prefix + name for name in names])
    config = read_object(path / CONFIG)
    sha = manifests.digest([manifest.files[prefix + name]["sha256"] for name in names])
    return ModelFiles(path, manifest, sha, config, tuple(names))


def split_weights(weights: Path | str) -> tuple[Path, str]:
    """File and key of ``--weights FILE`` or ``FILE:KEY``; an existing file may have a colon in its name."""
    text = str(weights)
    file, colon, key = text.rpartition(":")
    return (Path(file), key) if colon and not Path(text).exists() else (Path(text), "")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Load a safetensors file; raises InputError for anything else."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        refuse_irregular(path)
        return load_file(path)
    except (InputError, SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error


def parent(role: str, files: ModelFiles) -> Mapping[str, str]:
    """The entry of a manifest's ``parents`` for this model."""
    found = {"role": role, "path": str(files.path), "hash": files.hash}
    return found if files.temperature == 1 else {**found, "temperature": f"{files.temperature:g}"}
