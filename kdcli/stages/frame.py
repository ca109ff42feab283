"""What every stage does around its work: parents, identity, output path, facts of the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts import model as models
from kdcli.config import RunSection, identity
from kdcli.errors import UsageError

if TYPE_CHECKING:
    from kdcli.models.network import Network
    from kdcli.words import Method


def require(value: Any, flag: str) -> Any:
    """A field that this stage cannot do without. Raises UsageError."""
    if value in (None, "", []):
        raise UsageError(f"{flag} is required.")
    return value


def parent(role: str, name: str, weights: str | None = None) -> dict[str, str]:
    """Where a network came from: an artifact's path and hash, or a model's name and its weights' hash."""
    if models.find(name) is not None:
        return dict(models.parent(role, models.read(name)))
    found = {"role": role, "path": name, "hash": ""}
    if weights and Path(weights).is_file():
        found |= {"weights": weights, "hash": manifests.file_hash(Path(weights))}
    return found


def identity_of(
    stage: str, config: RunSection, parents: list[dict[str, str]], data: dict[str, str]
) -> dict[str, Any]:
    """What makes a run what it is: identity fields, hashes of parents, fingerprints of data."""
    hashes = {p["role"]: p["hash"] for p in parents if p["hash"]}
    return {"stage": stage, "config": identity(config), "parents": hashes, "data": data}


def output_path(stage: str, config: RunSection, identity: dict[str, Any]) -> Path:
    """``--out``, or a name made of the run's identity."""
    return Path(config.out or Path("runs", f"{stage}-{manifests.digest(identity)[:10]}"))


def facts(config: RunSection, command: str, **more: Any) -> dict[str, Any]:
    """Facts of the manifest that every stage records, beside its own."""
    return {
        "command": command,
        "config": config.model_dump(mode="json", exclude={"overwrite"}),
        "seed": config.seed,
        "versions": manifests.versions(),
        **more,
    }


def summary(path: Path) -> dict[str, Any]:
    """What ``--json`` says of a finished artifact."""
    manifest = manifests.read(path)
    wanted = ("metrics", "selection", "steps", "seconds", "models")
    return {
        "kind": manifest.kind,
        "hash": manifest.hash,
        **{k: manifest.facts[k] for k in wanted if k in manifest.facts},
    }


def teacher(name: str, classes: list[str], order: Literal["names", "same"]) -> Network:
    """A frozen network whose logits stand in the order of ``classes``.

    Raises:
        InputError: it knows other classes.
    """
    from kdcli.models.build import build
    from kdcli.tasks.classification import permutation

    network = build(name)
    network.reorder(permutation(classes, network.classes, order, name), classes)
    return network.requires_grad_(False).eval()


def split_hash(name: str, split: str) -> str:
    """Hash of a split that an artifact was made with, or an empty string."""
    data = model_facts(name).get("data") or {}
    return str(data.get("splits", {}).get(split, {}).get("hash", ""))


def model_facts(name: str) -> dict[str, Any]:
    """Facts of a model artifact's manifest; empty for other models."""
    return models.read(name).manifest.facts if models.find(name) is not None else {}


def objective(method: Method) -> list[dict[str, str]]:
    """Terms of a method as rows of a table."""
    return [
        {
            "turn": turn.name,
            "term": term.name,
            "loss": term.loss.__name__,
            "taps": ", ".join(term.args),
            "rows": term.rows or "all",
            "weight": "scheduled" if callable(term.weight) else f"{term.weight:g}",
            "with": ", ".join(f"{k}={v}" for k, v in term.keywords.items()),
            "sees": "each row" if term.scope == "sample" else "one micro-batch of one process",
        }
        for phase in method.phases
        for turn in phase.turns
        for term in turn.terms
    ]
