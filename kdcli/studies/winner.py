"""The best trial of a study: its student is what the run writes, its settings a YAML file that repeats it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.store import open_output
from kdcli.console import Console
from kdcli.errors import InputError
from kdcli.runs import Result, frame, places
from kdcli.studies import page
from kdcli.studies.journal import TRIALS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from kdcli.studies.search import Search

SETTINGS = "best.yaml"


def best(trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """The trial with the highest value among those that were trained to the end; of equals the first.

    Raises:
        InputError: there is none.
    """
    whole = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if not whole:
        whys = [trial.user_attrs.get("why", "") for trial in trials]
        raise InputError(f"no trial of {len(trials)} was trained to the end: {next(filter(None, whys), '')}")
    return max(whole, key=lambda trial: (trial.value, -trial.number))


def hand_over(plan: Search, trials: Sequence[FrozenTrial], console: Console, command: str) -> Result:
    """Write the settings, the page and the student of the best trial.

    Raises:
        InputError: no trial was trained to the end, or something else stands at ``--out``.
    """
    chosen = best(trials)
    source = plan.folder / TRIALS / f"{chosen.number:04d}"
    manifest = manifests.read(source)
    settings = {key: v for key, v in manifest.facts["config"].items() if key not in ("out", "overwrite")}
    made = manifests.digest(manifest.identity)[:10]
    path = Path(plan.config.out or Path("runs", f"{manifest.stage}-{made}"))
    places.check(plan.config, path)
    page.replace_file(plan.folder / SETTINGS, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    page.write(plan, trials, chosen)
    with open_output(path, manifest.identity, overwrite=plan.config.overwrite) as output:
        if output is not None:
            for name in manifest.files:
                (output.partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, output.partial / name)
            facts: dict[str, Any] = {**manifest.facts, "command": command}
            facts["config"] = {**facts["config"], "out": plan.config.out}
            facts["study"] = {"path": str(plan.folder), "trial": chosen.number, "trials": len(trials)}
            own = manifests.Manifest(
                manifest.kind, manifest.stage, manifest.identity, manifest.parents, facts=facts
            )
            output.commit(own, sorted(manifest.files))
    value, name = chosen.value, plan.base.task.selection
    console.note(f"{path}: trial {chosen.number + 1} of {len(trials)}, validation {name} {value:.4f}")
    return Result(path, frame.summary(path))
