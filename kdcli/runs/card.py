"""The card of a model: what it is, what it was made of, how good it was, whose data it saw.

In the form that the hub reads: YAML between dashes, then Markdown. Which licence the weights have is for
their owner to say; the card names that of the data. All is from the network and its manifest, so that two
equal runs have one card.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdcli.artifacts.files import write_bytes
from kdcli.artifacts.manifest import Manifest
from kdcli.compression.deployment import answer_of
from kdcli.console import legible
from kdcli.models.protocol import Model

FILE = "README.md"
_TAGS = {
    "class": "image-classification",
    "labels": "image-classification",
    "mask": "image-segmentation",
    "boxes": "object-detection",
    "embedding": "image-feature-extraction",
}  # of the hub, by the kind of answer
_SHOWN = 20  # names of classes


def write_card(network: Model, manifest: Manifest, folder: Path) -> str:
    """Write the card of a model beside it; returns the file's name.

    Args:
        network: that was written.
        manifest: with all facts.
        folder: of the artifact.
    """
    lines = [*_head(network, manifest.facts), "", f"# {_line(network.architecture)}: {network.task}", ""]
    lines += [
        *_model(network, manifest.facts["layout"]),
        *_made(manifest),
        *_data(manifest.facts),
        *_metrics(manifest.facts),
    ]
    write_bytes(folder / FILE, ("\n".join(lines) + "\n").encode(errors="backslashreplace"))
    return FILE


def _head(network: Model, facts: Mapping[str, Any]) -> list[str]:
    found = {
        "library_name": facts["layout"],
        "pipeline_tag": _TAGS[answer_of(network)],
        "tags": ["kdcli"],
    }
    return ["---", *yaml.safe_dump(found, sort_keys=False).splitlines(), "---"]


def _model(network: Model, layout: str) -> list[str]:
    spec = network.spec
    millions = sum(tensor.numel() for tensor in network.parameters()) / 1e6
    read = {
        "timm": "`timm.create_model('local-dir:FOLDER', pretrained=True)`",
        "transformers": "`transformers.AutoModelForObjectDetection.from_pretrained('FOLDER')`",
        "kdcli": "`kdcli.models.build.build('FOLDER')`: its structure is in `config.json`, as operations",
    }
    lines = [
        f"* Read by {read[layout]}",
        f"* Input: {spec.size[0]}x{spec.size[1]} pixels, {spec.channels} channels, mean {_few(spec.mean)}, "
        f"std {_few(spec.std)}, {spec.interpolation}, crop {spec.crop:g}",
        f"* {millions:.2f} M parameters",
    ]
    if names := network.classes:
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        lines.append(f"* {len(names):,} classes: {', '.join(map(_line, names[:_SHOWN]))}{more}")
    return lines


def _made(manifest: Manifest) -> list[str]:
    facts = manifest.facts
    lines = [f"* Made by `kdcli {manifest.stage}` {(facts.get('versions') or {}).get('kdcli', '')}".rstrip()]
    if method := facts.get("method"):
        given = ", ".join(
            f"{key}={value}" for key, value in method.items() if key != "name" and value is not None
        )
        lines[0] += f", method {method['name']}" + (f" ({given})" if given else "")
    for parent in manifest.parents:
        lines.append(f"* {parent['role'].capitalize()}: {_line(parent['path'])}{_hash(parent['hash'])}")
    if compression := facts.get("compression"):
        parts = [
            f"{compression[key][1] / compression[key][0]:.1%} of the {name}"
            for key, name in (("flops", "FLOPs"), ("parameters", "parameters"))
        ]
        lines.append(f"* {compression['removed']:,} channels removed: {' and '.join(parts)} are left")
    for role, notes in (facts.get("decisions") or {}).items():
        lines += [f"* {role.capitalize()}: {_line(note)}" for note in notes]
    return lines


def _data(facts: Mapping[str, Any]) -> list[str]:
    data = facts.get("data") or {}
    if not data:
        return []
    counts = ", ".join(f"{name} {split['samples']:,}" for name, split in data["splits"].items())
    licence = _line(data.get("licence") or "")
    lines = [f"* Data: {_line(data['source'])} ({counts}), fingerprint {data['fingerprint'][:12]}"]
    lines.append(f"* Licence of the data: {licence}" if licence else "* The data name no licence")
    return lines


def _metrics(facts: Mapping[str, Any]) -> list[str]:
    found = facts.get("metrics") or {}
    metrics = {name: value for name, value in found.items() if isinstance(value, float)}
    if not metrics:
        return []
    lines = ["", f"On validation pictures ({facts['selection']}):" if facts.get("selection") else "Measured:"]
    lines += ["", "| metric | value |", "|---|---|"]
    return lines + [f"| {name} | {value:.4f} |" for name, value in metrics.items()]


def _hash(digest: str) -> str:
    return f" (sha256 {digest[:12]})" if digest else ""


def _line(text: str) -> str:
    return legible(" ".join(str(text).split()))


def _few(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)
