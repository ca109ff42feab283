"""``kdcli synthesize --merge``: shards of one run, checked and joined into one dataset artifact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts import dataset
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.files import write_bytes
from kdcli.artifacts.manifest import Manifest
from kdcli.console import Console
from kdcli.errors import InputError
from kdcli.runs import Result, frame
from kdcli.runs.pictures import SHEET
from kdcli.sections import RunSection

if TYPE_CHECKING:
    from kdcli.artifacts.store import Output

_KEPT = ("mixer", "licences", "data", "seed", "targets")  # of a shard's facts


@dataclass
class Merge:
    """Shards to join.

    Attributes:
        config: all fields.
        target: where and what.
        shards: directory and manifest of each, in order.
    """

    config: RunSection
    target: frame.Target
    shards: list[tuple[Path, Manifest]]

    @property
    def images(self) -> int:
        """Pictures of all shards."""
        return sum(manifest.facts["images"] for _, manifest in self.shards)

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints."""
        return {**self.target.to_json(), "images": self.images}

    def describe(self, console: Console) -> None:
        """Show the plan on stderr."""
        console.note(f"joins    {len(self.shards)} shards, {self.images:,} pictures")
        console.note(f"writes   {self.target.path}")

    def write(self, output: Output, command: str) -> None:
        """Copy the parts of all shards, and the first one's contact sheet, and commit."""
        from kdcli.synthesis.generate import features

        dataset.remove_drafts(output.partial)
        for path, _ in self.shards:
            dataset.copy_parts(path, output.partial)
        first, manifest = self.shards[0]
        kept = {k: v for k, v in manifest.facts.items() if k in _KEPT}
        schema = features(target="targets" in kept)
        names = dataset.finish(output.partial, schema, kept["licences"])
        write_bytes(output.partial / SHEET, (first / SHEET).read_bytes())
        merged = Manifest("dataset", "synthesize", self.target.identity, self.target.parents)
        merged.facts = frame.facts(self.config, command) | kept | {"images": self.images}
        output.commit(merged, [*names, SHEET])


def plan(config: RunSection, paths: Sequence[str], unless_complete: bool) -> Merge | Result:
    """Check the shards at ``paths``; with ``unless_complete`` it ends early where the output stands already.

    Raises:
        InputError: no shard of a synthetic dataset, one of another run, missing, given twice, or damaged.
    """
    shards = _ordered(paths)
    parents = [
        {"role": f"shard{i}", "path": str(path), "hash": manifest.hash}
        for i, (path, manifest) in enumerate(shards, 1)
    ]
    target = frame.target("synthesize", config, parents, {})
    if unless_complete and frame.complete(target, config):
        return Result(target.path, frame.summary(target.path))
    frame.refuse_absent(config)
    for path, manifest in shards:
        manifests.verify(path, manifest)
    return Merge(config, target, shards)


def _ordered(paths: Sequence[str]) -> list[tuple[Path, Manifest]]:
    """The shards in order."""
    found: dict[int, tuple[Path, Manifest]] = {}
    of = 0
    for path in map(Path, paths):
        manifest = manifests.read(path)
        shard = str(manifest.identity.get("config", {}).get("shard") or "")
        whole = SHEET in manifest.files and {"images", "licences"} <= set(manifest.facts)
        if manifest.kind != "dataset" or not shard or not whole:
            raise InputError(f"{path} is no shard of a synthetic dataset (written with --shard i/n).")
        number, of = (int(part) for part in shard.split("/"))
        if not 1 <= number <= of:
            raise InputError(f"{path} is damaged: it is shard {shard}. Make the artifact again.")
        if number in found:
            raise InputError(f"{path} and {found[number][0]} are both shard {shard}. Give each once.")
        for first, other in list(found.values())[:1]:
            if fields := manifests.differing(_run(other), _run(manifest)):
                raise InputError(f"{path} is a shard of another run than {first}: {'; '.join(fields[:4])}.")
        found[number] = (path, manifest)
    if absent := [f"{i}/{of}" for i in range(1, of + 1) if i not in found]:
        raise InputError(f"--merge lacks shard {', '.join(absent)}. Give all shards of the run.")
    return [found[i] for i in sorted(found)]


def _run(manifest: Manifest) -> dict[str, Any]:
    """What the shards of a run have in common: its identity without the shard and without places on disk."""
    identity = json.loads(json.dumps(manifest.identity))
    config = identity["config"]
    shards = config.pop("shard").partition("/")[2]
    for place in ("weights", "teacher", "student"):  # their hashes are among the parents
        config.pop(place, None)
    config.get("data", {}).pop("source", None)
    return {**identity, "shards": shards}
