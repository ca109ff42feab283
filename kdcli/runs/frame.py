"""What every stage does around its work: data, parents, identity, output path, facts of the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kdcli.artifacts import forms, store
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts import model as models
from kdcli.config import C, beneath, identity
from kdcli.errors import InputError, UsageError
from kdcli.launch import world_size
from kdcli.runs import places
from kdcli.sections import DataSection, OptimSection, RunSection, SourceSection

if TYPE_CHECKING:
    from kdcli.console import Console
    from kdcli.data.samples import Data
    from kdcli.models.protocol import Model
    from kdcli.tasks import Task


@dataclass(frozen=True)
class Target:
    """Where a run writes, and what makes it what it is.

    Attributes:
        path: where the artifact will stand.
        identity: identity fields of the configuration, hashes of parents, fingerprints of data.
        parents: what it is made of, for the manifest.
    """

    path: Path
    identity: dict[str, Any]
    parents: list[dict[str, str]]

    def to_json(self) -> dict[str, Any]:
        """What ``--dry-run --json`` prints of it."""
        return {"out": str(self.path), "identity": self.identity, "parents": self.parents}


def target(stage: str, config: RunSection, parents: list[dict[str, str]], data: dict[str, str]) -> Target:
    """The output of a run: ``--out``, or a name made of the run's identity.

    Args:
        stage: its name.
        config: all fields.
        parents: see :func:`parent`.
        data: fingerprints by role.

    Raises:
        InputError: the run must not write there, see :func:`kdcli.runs.places.check`.
    """
    # what is taught depends on the temperature too, which is no part of the weights
    hashes = {p["role"]: p["hash"] + p.get("temperature", "") for p in parents if p["hash"]}
    found = {"stage": stage, "config": identity(config), "parents": hashes, "data": data}
    path = Path(config.out or Path("runs", f"{stage}-{manifests.digest(found)[:10]}"))
    places.check(config, path)
    return Target(path, found, parents)


def complete(target: Target, config: RunSection) -> bool:
    """Whether the artifact stands already, so that the rest of the plan need not be made.

    What a killed process left of writing it is deleted then. The processes of a job do not ask: they would
    have to agree, and do so when they open the output.

    Raises:
        InputError: something else stands there.
    """
    done = world_size() == 1 and store.complete(target.path, target.identity, overwrite=config.overwrite)
    if done:
        store.sweep(target.path)
    return done


def refuse_absent(config: RunSection) -> None:
    """Raise EnvironmentFault or UsageError for a device or a tracker that is not there; imports torch."""
    from kdcli.engine.runtime import device_of
    from kdcli.engine.track import refuse_trackers

    device_of(config)
    refuse_trackers(config.track)


def require(value: Any, flag: str) -> Any:
    """A field that this stage cannot do without. Raises UsageError."""
    if value in (None, "", []):
        raise UsageError(f"{flag} is required.")
    return value


def refuse_uneven(optim: OptimSection, processes: int) -> None:
    """Raise UsageError for a global batch that does not divide into micro-batches of one size."""
    parts = max(world_size(), processes) * optim.accumulate
    if optim.batch_size % parts:
        raise UsageError(
            f"a batch of {optim.batch_size} does not divide by {parts} (processes × accumulate): change "
            "optim.batch_size or optim.accumulate."
        )


def refuse_cut_groups(optim: OptimSection, processes: int, group: int) -> None:
    """Raise UsageError where pictures that stand together in a batch would come apart.

    Args:
        optim: batches and how they are split.
        processes: asked for.
        group: pictures that stand together.
    """
    if group == 1:
        return
    parts = max(world_size(), processes) * optim.accumulate
    if optim.batch_size % (group * parts):
        raise UsageError(
            f"a batch of {optim.batch_size} in {parts} parts (processes × accumulate) holds no whole groups "
            f"of data.per_identity={group} pictures: take a multiple of {group * parts}."
        )
    if optim.batch_size // optim.accumulate < 2 * group:
        raise UsageError(
            f"a batch of {optim.batch_size // optim.accumulate} holds one identity "
            f"(data.per_identity={group}): nothing to tell it from. Take {2 * group} or more in each "
            "micro-batch."
        )
    if optim.auto_batch:
        raise UsageError("--auto-batch may part pictures of one identity: set optim.accumulate yourself.")


def labelled(
    config: DataSection,
    *splits: str,
    run: RunSection | None = None,
    known: tuple[str, Sequence[str]] | None = None,
) -> Data:
    """The data with these splits.

    Args:
        config: the data section.
        splits: that are needed.
        run: says where hashes of their files are kept.
        known: a teacher and the classes that it tells apart, which data without labels take from it.

    Raises:
        InputError: no labels where their task needs some and no teacher knows classes; what opening raises.
    """
    from kdcli.tasks import entry, open_task_data

    require(config.source, "--data")
    kept = None if run is None else partial(places.kept_hashes, run)
    data = open_task_data(config, *splits, kept=kept)
    if data.classes is None and config.labels_per_class:
        raise UsageError(f"--labels-per-class is given, and {config.source} has no labels to hide.")
    if data.classes is None and known is not None and "class" in entry(data.task).provides:
        teacher, classes = known
        note = (
            f"{config.source} has no labels: the {len(classes)} classes are those of {teacher}, which alone "
            "teaches, and the last step is taken, since nothing can be measured on validation pictures"
        )
        return replace(data, classes=list(classes), notes=(*data.notes, note))
    if data.classes is None and "features" not in entry(data.task).provides:
        raise InputError(
            f"{config.source} has no labels: no column of them (name it: --set data.label_column=…, or "
            "columns of 0 and 1: --set 'data.label_columns=[…]'), and no two class folders."
        )
    return data


def known_classes(teachers: Sequence[str]) -> tuple[str, list[str]] | None:
    """The first teacher that is an artifact with named classes, and these; None where there is none."""
    for name in teachers:
        if found := model_facts(name).get("classes"):
            return name, [str(one) for one in found]
    return None


def say(console: Console, *opened: Data | None) -> None:
    """What the user should know of how the data were read."""
    for data in opened:
        for note in data.notes if data is not None else ():
            console.warn(f"{note}.")


def reading(config: RunSection, data: SourceSection) -> dict[str, Any]:
    """How loaders read pictures, as their keyword arguments."""
    return {"max_pixels": data.max_pixels, "workers": config.workers, "timeout": config.worker_timeout}


def parent(role: str, name: str, weights: str | None = None) -> dict[str, str]:
    """Where a network came from: an artifact's path and hash, or a model's name and its weights' hash."""
    if forms.find(name) is not None:
        return {"role": role, "path": name, "hash": forms.read(name).hash}
    if models.find(name) is not None:
        return dict(models.parent(role, models.read(name)))
    found = {"role": role, "path": name, "hash": ""}
    if weights and (file := models.split_weights(weights)[0]).is_file():
        found |= {"weights": weights, "hash": manifests.file_hash(file)}
    return found


def teachers(names: list[str]) -> list[dict[str, str]]:
    """Parents in the role ``teacher``, or ``teacher1``, ``teacher2``, … where there are several."""
    numbers = [""] if len(names) == 1 else [str(i + 1) for i in range(len(names))]
    return [parent(f"teacher{number}", name) for number, name in zip(numbers, names)]


def facts(config: RunSection, command: str, **more: Any) -> dict[str, Any]:
    """Facts of the manifest that every stage records, beside its own."""
    return {
        "command": command,
        "config": config.model_dump(mode="json", exclude={"overwrite"}),
        "seed": config.seed,
        "versions": manifests.versions(),
        **more,
    }


def decisions(networks: Mapping[str, Model]) -> dict[str, dict[str, list[str]]]:
    """What was decided about networks while they were built, by role, for the manifest; empty for nothing."""
    found = {role: list(network.notes) for role, network in networks.items() if network.notes}
    return {"decisions": found} if found else {}


def summary(path: Path) -> dict[str, Any]:
    """What ``--json`` says of a finished artifact."""
    manifest = manifests.read(path)
    wanted = (
        "metrics",
        "selection",
        "calibration",
        "teacher_answers",
        "steps",
        "seconds",
        "models",
        "mixer",
        "images",
        "study",
        "pilot",
    )
    return {
        "kind": manifest.kind,
        "hash": manifest.hash,
        **{k: manifest.facts[k] for k in wanted if k in manifest.facts},
    }


def teacher(name: str, task: Task, order: Literal["names", "same"]) -> Model:
    """A frozen network whose logits stand in the order of a task's classes.

    Raises:
        InputError: it knows other classes, or does another task.
    """
    network = opened(name, task, order)
    task.match(network, order, name)
    return network


def opened(name: str, task: Task, order: Literal["names", "same"], *, exported: bool = False) -> Model:
    """A frozen network of a task, whose classes are yet to be matched.

    Args:
        name: of the network.
        task: of the data.
        order: see :class:`kdcli.models.build.Wanted`.
        exported: whether an exported form of an artifact will do.

    Raises:
        InputError: it does another task, or knows no names of its classes.
    """
    from kdcli.models.build import build, open_form

    network = open_form(name) if exported and forms.find(name) is not None else build(name)
    _admit(network, name, task, order)
    return network.requires_grad_(False).eval()


def match(network: Model, name: str, task: Task, order: Literal["names", "same"]) -> None:
    """Bring the logits of a network called ``name`` into the order of a task's classes.

    Raises:
        InputError: it knows other classes, or does another task.
    """
    _admit(network, name, task, order)
    task.match(network, order, name)


def _admit(network: Model, name: str, task: Task, order: Literal["names", "same"]) -> None:
    """Refuse a network of another task, and give one without names of its classes those of the data."""
    from kdcli.tasks import entry

    if "features" in entry(task.name).provides:
        return
    if network.task != task.name and task.name not in entry(network.task).serves:
        raise InputError(
            f"{name} does {network.task}, the data is for {task.name}. Probe the teacher on this data first."
        )
    network.take_names(list(task.classes), order)


def task_of_models(config: C, names: Sequence[str]) -> C:
    """The configuration with the task of the models, where all are artifacts of one that no table tells.

    What else the data could be for is then said by ``--task``.
    """
    from kdcli.tasks import TASKS

    tasks = {str(model_facts(name).get("task")) for name in names}
    task = tasks.pop() if len(tasks) == 1 else ""
    if config.data.task != "auto" or task not in TASKS or not TASKS[task].serves:  # type: ignore[attr-defined]
        return config
    return beneath(config, {"data.task": task})[0]


def warn_of_other_validation(name: str, data: Data, console: Console) -> None:
    """Warn where a model was chosen on other pictures than the validation split of ``data``."""
    own = data.splits.get("validation")
    if own is not None and split_hash(name, "validation") not in ("", own.fingerprint):
        console.warn(f"{name} was chosen on other validation samples than this run selects by.")


def split_hash(name: str, split: str) -> str:
    """Hash of a split that an artifact was made with, or an empty string."""
    data = model_facts(name).get("data") or {}
    return str(data.get("splits", {}).get(split, {}).get("hash", ""))


def model_facts(name: str) -> dict[str, Any]:
    """Facts of a model artifact's manifest; empty for other models.

    Its files are not checked: whoever builds the network does that.
    """
    root = models.find(name) or forms.find(name)
    return manifests.read(root).facts if root is not None else {}
