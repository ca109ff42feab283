"""What a training refuses, or warns of, because options, method and networks do not go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from kdcli.console import Console
from kdcli.data.targets import WEIGHTS
from kdcli.engine.assembly import Assembly
from kdcli.engine.dry import dry_step
from kdcli.engine.norms import lone_values, named_in
from kdcli.engine.optim import section_of
from kdcli.errors import InputError, UsageError
from kdcli.launch import world_size
from kdcli.losses import features, logits
from kdcli.models.adapters import Regressor
from kdcli.models.feature_adapters import queue_state
from kdcli.models.protocol import Model
from kdcli.runs import frame
from kdcli.sections import OptimSection, RunSection, StudentSection, ViewSection
from kdcli.tasks import Task
from kdcli.words import Method
from kdcli.words.analysis import reads_labels, split_reference, states_of, views_used
from kdcli.words.answers import mended, placed_taps, shown_whole
from kdcli.words.pacing import unfinished


def refuse_options(config: StudentSection, method: Method) -> None:
    """Raise UsageError for options that contradict one another or mean nothing to the method."""
    optim, data = config.optim, config.data
    if data.extra_ratio is not None:
        if data.labelled_fraction:
            raise UsageError("--extra-ratio and data.labelled_fraction both fill batches: give one.")
        if not data.extra:
            raise UsageError("--extra-ratio needs --extra.")
    if data.shots and (data.extra_ratio is not None or data.labelled_fraction):
        raise UsageError(
            "data.shots fills half of a batch with few-shot pictures: no --extra-ratio and no "
            "data.labelled_fraction beside it."
        )
    if (views := views_used(method)) and (optim.mixup or optim.cutmix):
        raise UsageError(
            f"method {method.name} sees {', '.join(views)} beside each picture, and mixed pictures have no "
            "such view: no mixup, no CutMix."
        )
    if reads_labels(method) and (optim.mixup or optim.cutmix):
        raise UsageError(f"method {method.name} reads class numbers, and mixed pictures have none: no mixup.")
    terms = [term for turn in method.turns for term in turn.terms]
    if data.class_balance == "loss" and not any({*WEIGHTS} & {*term.args} for term in terms):
        raise UsageError(
            f"--class-balance loss: no term of method {method.name} weighs its rows; take sampler."
        )
    if optim.label_smoothing and not any("label_smoothing" in term.keywords for term in terms):
        raise UsageError(f"optim.label_smoothing: no term of method {method.name} heeds it.")
    if twice := next((name for name in config.teacher if config.teacher.count(name) > 1), None):
        raise UsageError(f"--teacher {twice} is given twice: the mean of equals teaches nothing more.")
    for turn in method.turns:
        section_of(turn, optim)


def refuse_lessons(config: StudentSection, method: Method, task: Task) -> None:
    """Raise UsageError for ``teacher_view`` and ``teacher_errors`` where they mean nothing.

    A term of which nothing is left where student and teacher agree is one of :data:`_ZERO_WHERE_EQUAL`.
    """
    from kdcli.tasks import TASKS

    provides = TASKS[task.name].provides
    if config.teacher_view == "plain":
        if "picture" not in provides and "features" not in provides and "text" not in provides:
            raise UsageError(
                f"teacher_view=plain: {task.name} is learned place by place, and a teacher would see others."
            )
        if placed := placed_taps(method, "teacher"):
            raise UsageError(
                f"teacher_view=plain: method {method.name} compares {', '.join(placed)} with the student's, "
                "place by place, and the teacher would see others. Take a method that compares answers."
            )
        if shown_whole(method, "teacher") == method:
            raise UsageError(
                f"teacher_view=plain is given, and method {method.name} shows its teacher no views that the "
                "student sees."
            )
        if config.optim.mixup or config.optim.cutmix:
            raise UsageError("teacher_view=plain: mixed pictures have no un-augmented cut: no mixup.")
    if config.teacher_errors == "keep":
        return
    given = f"teacher_errors={config.teacher_errors}"
    if "class" not in provides:
        raise UsageError(
            f"{given} compares answers with one class a picture, and these data are for {task.name}."
        )
    if config.optim.mixup or config.optim.cutmix:
        raise UsageError(f"{given}: mixed pictures have no one label that an answer could miss: no mixup.")
    changed = mended(method, "teacher", config.teacher_errors)
    if changed == method:
        raise UsageError(f"{given} is given, and method {method.name} teaches no answers.")
    other = [
        term.name
        for turn in method.turns
        for term in turn.terms
        if "~t.logits" in term.args and term.loss not in _ZERO_WHERE_EQUAL
    ]
    if config.teacher_errors == "leave-out" and other:
        raise UsageError(
            f"{given}: {', '.join(other)} of method {method.name} teaches something of every row. Take swap."
        )


_ZERO_WHERE_EQUAL = (logits.kl_divergence, logits.kl_elements, logits.dkd)


def refuse_weights(method: Method) -> None:
    """Raise UsageError for a turn without a term, or a term below 0 where its phase begins or ends."""
    for term in (term for turn in method.turns for term in turn.terms):
        weights = [term.weight(0.0), term.weight(1.0)] if callable(term.weight) else [term.weight]
        if min(weights) < 0:
            raise UsageError(f"term {term.name} would weigh {min(weights):g}: weights are 0 or more.")
    if empty := next((turn for turn in method.turns if not turn.terms), None):
        raise UsageError(f"every term of turn '{empty.name}' weighs 0: there is nothing to learn.")


def warn_of_warmups(method: Method, console: Console) -> None:
    """Warn of terms that are still weighed less than they should be when their phase ends."""
    if found := list(unfinished(method)):
        names, weight = ", ".join(term.name for term, _ in found), found[0][1]
        whose = "its weight" if len(found) == 1 else "their weights"
        console.warn(
            f"{names}: {whose} would be full after {weight.steps:,} steps, and the phase has "
            f"{weight.phase:,}: train longer, or lower method.warmup."
        )


def rows_of_a_norm(config: RunSection, optim: OptimSection) -> int:
    """Pictures that a batch norm sees at a time: a micro-batch of one process; on CUDA, of all of them."""
    alone = 1 if _on_cuda(config) else max(world_size(), config.processes)
    return optim.batch_size // (optim.accumulate * alone)


def _on_cuda(config: RunSection) -> bool:
    return config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())


def refuse_lone_values(where: str) -> None:
    """Raise UsageError for a batch norm, named, that would see one value of each channel; not for none."""
    if where:
        raise UsageError(
            f"batches come down to one picture at a time, and the batch norm {where} would see one value "
            "of each channel, and no variance: raise optim.batch_size, lower optim.accumulate, take fewer "
            "processes (on CPU each has norms of its own), or a larger input (--image-size)."
        )


def refuse_lone_rows(method: Method, assembly: Assembly, batch: Callable[[], dict[str, Any]]) -> None:
    """Raise UsageError where a batch norm that is trained would see one value of each channel.

    Args:
        method: whose turns are run once, in eval mode.
        assembly: its parties and states.
        batch: makes the columns of one picture.
    """
    trained = {p.name: assembly.parties[p.name] for p in method.parties if p.role == "trained"}
    norms = nn.modules.batchnorm._BatchNorm
    if not any(isinstance(module, norms) for party in trained.values() for module in party.modules()):
        return
    with torch.no_grad(), lone_values() as found:
        for turn in method.turns:
            dry_step(f"method {method.name}", turn, assembly.parties, assembly.states, batch())
    refuse_lone_values(named_in(found, trained))


def refuse_pyramid_pooling(config: StudentSection, method: Method, networks: Mapping[str, Model]) -> None:
    """Raise UsageError where an UPerNet head cannot be trained.

    It pools a map to one value for a batch norm, which one picture gives no variance; and torch has no
    deterministic backward of its pooling on CUDA.
    """
    trained = [party.name for party in method.parties if party.role == "trained"]
    heads = [networks[name].head for name in trained if name in networks]
    least = max((head.least_rows for head in heads if head is not None), default=1)
    if least == 1:
        return
    if rows_of_a_norm(config, config.optim) <= 1:
        raise UsageError(
            "an upernet head learns from two pictures or more in a micro-batch of each process, for its "
            "pyramid pooling: raise optim.batch_size or lower optim.accumulate."
        )
    if config.deterministic and _on_cuda(config):
        raise UsageError("torch has no deterministic gradient of an upernet head's pooling on CUDA.")


def refuse_unlike_inputs(method: Method, networks: Mapping[str, Model]) -> None:
    """Raise InputError where networks see pictures that are made normalised, and want them otherwise.

    A generator answers with what the teacher's normalisation would give; nothing resizes it or normalises it
    anew for a student, which would be evaluated on other numbers than it learned from.
    """
    built = {party.name for party in method.parties if party.build is not None}
    readers = []
    for turn in method.turns:
        makers = {call.name for call in turn.calls if call.party in built}
        for call in turn.calls:
            if call.party in networks and makers & {split_reference(name)[1] for name in call.inputs}:
                readers.append(networks[call.party])
    wanted = [(network.spec.size, network.spec.mean, network.spec.std) for network in readers]
    for network, own in zip(readers, wanted):
        if own != wanted[0]:
            raise InputError(
                f"method {method.name} shows the same generated pictures to {readers[0].name} and "
                f"{network.name}, whose inputs differ (size, mean, std: {wanted[0]} and {own}). Networks of "
                "one input can share them; kdcli synthesize --mixer dafl makes a dataset for any."
            )


def refuse_unlike(method: Method, networks: Mapping[str, Model]) -> None:
    """Raise InputError unless teacher and student are of one architecture, whatever their classifiers."""
    student, teacher = (networks[name].architecture for name in ("student", "teacher"))
    if student != teacher:
        raise InputError(
            f"method {method.name} has the student's own architecture teach it, and "
            f"{networks['teacher'].name} is another ({teacher}, not {student}). Take --method kd for that."
        )


def refuse_to_split(optim: OptimSection, method: Method, parties: Mapping[str, nn.Module]) -> None:
    """Raise UsageError where ``--auto-batch`` could not keep its promise: the same result however split."""
    terms = [term for turn in method.turns for term in turn.terms]
    why = next((f"{t.name} relates the rows of a micro-batch" for t in terms if t.scope == "batch"), "")
    for derive in (derive for turn in method.turns for derive in turn.derives):
        if derive.state is not None:
            why = f"{derive.out} updates the state '{derive.state.name}' with each micro-batch"
        elif derive.scope == "batch":
            why = f"{derive.out} relates the rows of a micro-batch"
    if optim.mixup or optim.cutmix:
        why = "mixup and CutMix pair the pictures of a micro-batch"
    for name in (party.name for party in method.parties if party.role == "trained"):
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in parties[name].modules()):
            who = getattr(parties[name], "name", name)
            why = f"{who} has batch norms, whose statistics are those of a micro-batch"
    if why:
        raise UsageError(f"--auto-batch: {why}. Set optim.accumulate yourself.")


def warn_of_points(method: Method, assembly: Assembly, console: Console) -> None:
    """Warn of losses over positions whose map has only one: they are constant."""
    for term in (term for turn in method.turns for term in turn.terms):
        shapes = [assembly.shapes.get(reference.removeprefix("~"), ()) for reference in term.args]
        if term.loss in (features.at, features.nst) and any(shape[1:] == (1, 1) for shape in shapes):
            console.warn(
                f"{term.name} compares maps of one position, which teaches nothing: larger views "
                "(views.size, --image-size) or shallower maps (method.student, method.teacher) help."
            )


def refuse_box_views(views: ViewSection, task: Task) -> None:
    """Raise UsageError for crops that keep boxes, of pictures that have none."""
    from kdcli.tasks import TASKS

    row = TASKS.get(task.name)
    if views.iou_crop and (row is None or "object" not in row.provides):
        raise UsageError(f"views.iou_crop keeps boxes, and these data are for {task.name}: leave it out.")


def warn_of_signs(method: Method, assembly: Assembly, console: Console) -> None:
    """Warn of regressors that end in a ReLU where the teacher's map has negative values."""
    for turn in method.turns:
        party = {call.name: assembly.parties[call.party] for call in turn.calls}
        for term in turn.terms:
            made = [party.get(split_reference(reference)[1]) for reference in term.args]
            positive = any(isinstance(module, Regressor) and module.relu for module in made)
            if positive and any(reference.removeprefix("~") in assembly.signed for reference in term.args):
                console.warn(
                    f"{term.name}: the teacher's map has negative values, which a regressor that ends in a "
                    "ReLU cannot give: relu=false leaves it out."
                )


def warn_of_long_queues(method: Method, assembly: Assembly, pictures: int, console: Console) -> None:
    """Warn of queues of features that hold pictures several times: they cost much and tell nothing more."""
    for name, state in states_of(method).items():
        rows = assembly.states[name].get("rows")
        if getattr(state.build, "func", None) is queue_state and rows is not None and len(rows) > pictures:
            console.warn(
                f"{name} holds features of {len(rows):,} pictures, and there are {pictures:,} to train on: "
                "each is in it several times. --set method.queue=N makes it shorter."
            )


def warn_of_one_seed(config: StudentSection, console: Console) -> None:
    """Warn of a teacher that is an earlier run of this seed: what it has to teach is what differs."""
    for name in config.teacher:
        facts = frame.model_facts(name)
        if "method" in facts and facts.get("seed") == config.seed:
            console.warn(f"{name} was trained with the same --seed, so the student begins as it did.")


def warn_of_milestones(
    optim: OptimSection, method: Method, steps: int, steps_per_epoch: float, console: Console
) -> None:
    """Warn of drops of the learning rate that lie behind the longest phase of a run of ``steps``."""
    epochs = max(span.length for span in method.spans(steps, steps)) / steps_per_epoch
    late = [f"{epoch:g}" for epoch in optim.milestones if epoch >= epochs]
    if optim.schedule == "multistep" and late:
        console.warn(
            f"optim.milestones: the learning rate is to drop after epoch {', '.join(late)}, and the training "
            f"ends after {epochs:.3g}."
        )
