"""A trained student as an artifact: best and last weights, exits and peers beside them, the manifest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from kdcli.artifacts.manifest import Manifest, digest
from kdcli.artifacts.store import Output
from kdcli.data.cache import Store
from kdcli.engine.cache import filled_by, requests
from kdcli.engine.job import Outcome
from kdcli.engine.loop import LOG
from kdcli.engine.runtime import Runtime
from kdcli.models.autoencoder import Decoder
from kdcli.models.branches import Tail
from kdcli.models.exits import ExitHead, save_exits
from kdcli.models.prompts import learns_contexts, settled
from kdcli.models.protocol import Model
from kdcli.models.save import write_decoder
from kdcli.runs import banks, frame
from kdcli.runs.material import Material
from kdcli.runs.teaching import Lessons
from kdcli.words import Method


def export(
    plan: Any, parties: Mapping[str, Any], outcome: Outcome, output: Output, runtime: Runtime, command: str
) -> None:
    """Write the best student as the artifact and the last one beside it, and commit.

    Args:
        plan: of ``distill``.
        parties: trained.
        outcome: of the training.
        output: to write into.
        runtime: described in the manifest.
        command: as it was typed.
    """
    config, material, progress = plan.config, plan.material, outcome.progress
    student = parties[plan.method.export]
    (output.partial / "last").mkdir(exist_ok=True)
    _save(student, output.partial / "last", outcome.last)
    keep = _save(student, output.partial, outcome.best or outcome.last)
    keep += _save_beside(plan.method, parties, outcome, output.partial)
    parents = [p for p in plan.target.parents if p["role"].rstrip("0123456789") in material.networks]
    manifest = Manifest("model", "distill", plan.target.identity, parents)
    manifest.facts = frame.facts(
        config,
        command,
        task=plan.task.name,
        layout=student.layout,
        classes=student.classes,
        **banks.described(student),
        metrics=outcome.metrics,
        metrics_last={f"validation/{k}": v for k, v in progress.last.items()},
        selection=outcome.selection,
        **_lessons(material, outcome),
        **frame.decisions(material.networks),
        data=plan.data.describe(),
        method={"name": plan.method.name, **plan.arguments},
        recipe=plan.recipe.to_json(),
        **plan.more,
        views=material.order.views or "live",
        global_batch=config.optim.batch_size,
        labelled_fraction=material.labelled_part,
        accumulate=progress.accumulate or config.optim.accumulate,
        lr=config.optim.lr,
        steps=progress.step,
        **({"ended": progress.ended} if progress.ended else {}),
        seconds=round(progress.seconds, 4),
        clipping=outcome.clipping,
        machines=progress.machines,
        cost={
            "student_steps": progress.step,
            "teacher_forwards": material.teacher_forwards,
            **_made(plan),
            "forwards": material.forwards,
        },
        **runtime.describe(),
    )
    output.commit(manifest, [*keep, "last", LOG])


def owner_of(plan: Any) -> str:
    """By what caches know the run."""
    return digest(plan.target.identity)[:16]


def _made(plan: Any) -> dict[str, int]:
    """How many of the teacher's forwards this run made itself, where caches may have had the others."""
    material, config = plan.material, plan.config
    if not material.cached:
        return {}
    asked = requests(material.method, material.networks, material.caching, Store(config.views.store))
    place, precision, owner = Path(config.cache), config.precision, owner_of(plan)
    return {"teacher_forwards_made": sum(filled_by(place, r, precision, owner) for _, r in asked)}


def _save(student: Model, folder: Path, tensors: dict[str, Tensor]) -> list[str]:
    """Write the student as at a step; learned contexts as the bank that they make there."""
    if learns_contexts(student):
        return settled(student, tensors).save(folder)
    return student.save(folder, tensors)


def _lessons(material: Material, outcome: Outcome) -> dict[str, Any]:
    """What the teacher's answers were worth, where the student learned from them."""
    lessons = Lessons.of(material)
    found = {} if lessons is None else lessons.facts(outcome)
    return {"teacher_answers": found} if found else {}


def _save_beside(method: Method, parties: Mapping[str, Any], outcome: Outcome, folder: Path) -> list[str]:
    """Write exits, a decoder, peers and branches as at the student's best step; returns names of files.

    A branch becomes a whole network, with the student's trunk.
    """
    names: list[str] = []
    exits: dict[str, ExitHead] = {}
    for name in method.beside:
        party = parties[name]
        if isinstance(party, ExitHead):
            party.load_state_dict(outcome.beside[name])
            exits[name] = party
        if isinstance(party, Decoder):
            names += write_decoder(party, folder, outcome.beside[name])
        if isinstance(party, Tail):
            party.load_state_dict(outcome.beside[name])
            student = copy.deepcopy(parties[method.export])
            student.load_state_dict(outcome.best or outcome.last)
            (folder / name).mkdir(exist_ok=True)
            party.grafted(student).save(folder / name)
            names.append(name)
        if isinstance(party, Model):
            (folder / name).mkdir(exist_ok=True)
            party.save(folder / name, outcome.beside[name])
            names.append(name)
    return [*names, *(save_exits(folder, exits) if exits else [])]
