"""Exported forms of a model artifact: ``ARTIFACT/onnx``, which runs without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.manifest import Manifest
from kdcli.errors import InputError

ONNX = "onnx"


@dataclass(frozen=True)
class Form:
    """An ONNX file of a model artifact, checked.

    Attributes:
        root: the artifact.
        manifest: of the artifact.
        file: the ONNX file.
        hash: sha256 of it.
        whole: whether its graph normalises views (uint8) itself.
    """

    root: Path
    manifest: Manifest
    file: Path
    hash: str
    whole: bool


def find(name: Path | str) -> Path | None:
    """The artifact that ``ARTIFACT/onnx`` or ``ARTIFACT/onnx/FILE.onnx`` belongs to; None of other paths."""
    path = Path(name)
    folder = path.parent if path.suffix == ".onnx" else path
    inside = folder.name == ONNX and (folder.parent / manifests.NAME).exists()
    return folder.parent if inside else None


def read(name: Path | str) -> Form:
    """Read and verify a form: the file that its ``predict.py`` runs, or the one that is named.

    Raises:
        InputError: no form of an artifact, or a missing or changed file.
    """
    path, root = Path(name), find(name)
    if root is None:
        raise InputError(f"{path} is no exported form of an artifact.")
    manifests.refuse_half_written(root)
    manifest = manifests.read(root)
    facts: Any = (manifest.facts.get("forms") or {}).get(ONNX) or {}
    known = {entry["file"]: entry for entry in (facts, facts.get("fp32") or {}) if "file" in entry}
    file = path.name if path.suffix == ".onnx" else facts.get("file")
    if manifest.kind != "model" or file not in known:
        there = f" There are: {', '.join(known)}." if known else ""
        raise InputError(f"{path}: the manifest of {root} names no such form of a model.{there}")
    members = [f"{ONNX}/{member}" for member in known[file]["files"]]
    if missing := next((member for member in members if member not in manifest.files), None):
        raise InputError(f"{root} is damaged: its manifest names no {missing}.")
    manifests.verify(root, manifest, members)
    sha = manifests.digest([manifest.files[member]["sha256"] for member in members])
    return Form(root, manifest, root / ONNX / file, sha, bool(known[file].get("inside")))
