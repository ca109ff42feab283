"""Options that were given and that a run would not heed: each is refused, with the reason.

A rule names keys, says whether a run leaves them idle, and why. ``section.*`` stands for all keys of a
section. What a manifest's configuration says by default is not given (:func:`kdcli.config.asked`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any

from kdcli import methods
from kdcli.config import Section, asked, leaves, origins
from kdcli.console import Console
from kdcli.errors import UsageError
from kdcli.sections import OptimSection, StudentSection, ViewSection
from kdcli.words.analysis import taps_used, without_zero_terms

if TYPE_CHECKING:
    from kdcli.runs.material import Material
    from kdcli.words import Method

Rule = tuple[str, bool, str]
"""Keys, whether they are idle, and why."""

_CAPTIONS = "only kdcli distill reads captions"
_CUT = "size scale ratio fit zoom_out iou_crop hflip vflip color_jitter auto_augment erase interpolation"


def idle_keys(config: Section, rules: Iterable[Rule]) -> Iterator[str]:
    """What to say of each key that was given and that a rule calls idle."""
    written = origins(config)
    for keys, idle, why in rules:
        for key in written if idle else ():
            if any(fnmatchcase(key, pattern) for pattern in keys.split()) and asked(config, key):
                flag = written[key]
                shown = flag if flag.startswith("--") and flag != "--set" else key
                yield f"{shown} is given, and {why}."


def refuse_idle(config: Section, rules: Iterable[Rule]) -> None:
    """Raise UsageError for a key that was given and that a rule calls idle."""
    for fault in idle_keys(config, rules):
        raise UsageError(fault)


def warn_of_idle(config: StudentSection, console: Console) -> None:
    """Warn of what stands beside something that is documented to take its place."""
    rules: list[Rule] = [
        ("optim.epochs", config.optim.max_steps is not None, "--max-steps says how long the training is"),
        ("evaluate_every", config.evaluate_steps is not None, "evaluate_steps stands in its place"),
    ]
    for text in idle_keys(config, rules):
        console.warn(text)


def of_pictures(config: Any) -> Iterator[Rule]:
    """How pictures are read, in every stage."""
    data = config.data
    yield "data.max_bad_fraction", data.on_bad_image != "skip", "pictures are left out by --on-bad-image skip"


def of_training(optim: OptimSection, views: ViewSection) -> Iterator[Rule]:
    """How networks learn, by distill or by ``probe --finetune``."""
    schedule = optim.schedule
    other = f"optim.schedule={schedule} has none"
    yield "optim.milestones", schedule != "multistep", other
    yield "optim.decay_epochs", schedule != "step", other
    yield "optim.decay_rate", schedule not in ("step", "multistep", "poly"), other
    yield "optim.min_lr optim.hold", schedule not in ("cosine", "poly"), other
    yield "optim.warmup_from", not optim.warmup, "optim.warmup=0 leaves out warm-up"
    whole = tuple(views.scale) == (1.0, 1.0)
    yield "views.ratio", whole, "views.scale=[1, 1] cuts no part of a picture by its aspect"
    yield "views.fit", not whole, "views.scale cuts parts of a picture: it is for views.scale=[1, 1]"
    yield "views.interpolation", whole and views.interpolation == "random", "views.scale=[1, 1] has one kind"


def of_optimizer(optim: OptimSection) -> Iterator[Rule]:
    """What an optimiser has not; imports timm. Raises UsageError for one that there is not."""
    from timm.optim import get_optimizer_info

    from kdcli.engine.optim import known_optimizer

    known_optimizer(optim.opt)
    momentum = get_optimizer_info(optim.opt.lower()).has_momentum
    yield (
        "optim.momentum",
        not momentum,
        f"--opt {optim.opt} has no momentum (of Adam's kind it is optim.betas)",
    )


def of_material(material: Material) -> Iterator[Rule]:
    """What shows once pictures and networks are there."""
    everything = bool((material.pool.labels >= 0).all())
    yield "views.store", not material.cached, "no outputs of a teacher are kept in this run"
    kept = material.caching.calls
    taps = {
        tap
        for turn in material.method.turns
        for call, read in taps_used(turn).items()
        if call in kept
        for tap in read
    }
    top = material.lesson.config.views.store.startswith("top")
    yield "views.store", top and "logits" not in taps, "topK keeps logits, and none are kept in this run"
    yield "data.labelled_fraction", everything, "every picture to train on has a label"
    yield from of_optimizer(material.lesson.config.optim)


def of_probe(config: Any, steps: bool = False) -> Iterator[Rule]:
    """``probe``: a head that is kept needs no heads, cached features no new views, and so on.

    Args:
        config: of the stage.
        steps: whether the head learns step by step, as students do.
    """
    keep, tune, grid = config.head in ("keep", "decoder"), config.finetune, config.grid
    live, fixed = config.protocol == "dinov2", config.views.count == "1"
    yield from of_pictures(config)
    yield "data.per_identity", True, "a probe draws no batches of identities"
    yield "data.captions", True, _CAPTIONS
    texts = config.head == "texts"
    no_head = f"--head {config.head} fits no head"
    yield "features protocol grid.* views.* statistics.*", keep or texts, no_head
    yield from _of_texts(config) if texts else ()
    yield "data.*", config.head == "decoder", "--head decoder reads no pictures"
    yield "features grid.*", config.head == "none", "--head none takes what the backbone answers"
    yield "optim.*", not tune, "only --finetune trains by it"
    yield from of_training(config.optim, config.views) if tune else ()
    if steps:
        yield from _of_steps(tune)
    new = "--protocol dinov2 sees a new view of each picture in each epoch"
    yield "views.count", live, new
    yield "views.store", live and not tune, f"{new}, and keeps none"
    yield "grid.patience", live, "--protocol dinov2 trains every head to the end"
    yield "grid.solver grid.l2", live and grid.solver != "sgd", "--protocol dinov2 trains by SGD alone"
    yield "grid.l2", grid.solver == "sgd", "grid.solver=sgd has no L-BFGS path"
    sgd = "grid.lr grid.weight_decay grid.epochs grid.momentum grid.patience"
    yield sgd, grid.solver == "lbfgs", "grid.solver=lbfgs has no such setting"
    cut = " ".join(f"views.{key}" for key in _CUT.split())
    yield (
        cut,
        fixed and not (live or tune or keep or steps),
        "one view is the un-augmented one: take --views 2 or more",
    )
    yield "statistics.*", not config.statistics.record, "only --statistics records activations"
    alone = "heads are fitted on all labelled pictures alike"
    yield "data.class_balance data.labelled_fraction", not (tune or steps), alone
    yield "data.class_order", not (keep or texts), "a head that is fitted stands in the order of the data"
    yield "track", True, "only distill writes to trackers"


def _of_texts(config: Any) -> Iterator[Rule]:
    """Texts for a vision-language model: of data, if there are any, the names of classes alone are read."""
    others = [name for name in type(config.data).model_fields if name not in ("source", "task")]
    every = " ".join(f"data.{name}" for name in others)
    yield every, not config.data.source, "there is no --data: the classes are those of --texts"
    yield "data.class_order", True, "texts go by the names of their classes"
    names = "--head texts reads names of classes, and no pictures"
    parts = "data.validation* data.test data.group_by data.split_seed data.labels_per_class"
    yield f"{parts} data.class_balance data.labelled_fraction", True, names


def _of_steps(tune: bool) -> Iterator[Rule]:
    """A head that learns step by step: one, of new views; by ``optim.*`` where the backbone learns too."""
    one = "one detector is trained, step by step"
    yield "features grid.solver grid.l2 grid.momentum grid.patience", True, one
    yield "grid.*", tune, "with --finetune head and backbone learn together, by optim.*"
    yield "views.count views.store", True, "every view is new: nothing of them is kept"


def of_distill(config: Any) -> Iterator[Rule]:
    """``distill``: several teachers have a mean, random weights are in no file."""
    yield from of_pictures(config)
    yield "teacher_mean", len(config.teacher) < 2, "there is one teacher at most"
    name = config.method.name
    several = name in methods.METHODS and methods.entry(name).several
    yield "teacher_mean", several, f"method {name} matches each teacher by itself"
    alone = name in methods.METHODS and not methods.entry(name).teacher and not config.terms
    yield "teacher_view teacher_errors teacher_temperature", alone, f"method {name} has no teacher"
    yield "weights", config.from_scratch, "--from-scratch begins with random weights: give one"
    of_search = [key for key in origins(config) if key.startswith("search.") and key != "search.trials"]
    auto = name == methods.AUTO
    yield "pilot.*", not auto, "--method auto alone makes short runs first"
    of_search = [key for key in of_search if not (auto and key == "search.study")]
    yield " ".join(of_search), not config.search.trials, "nothing is searched: --search says how many trials"


def of_pictures_alone(config: Any) -> Iterator[Rule]:
    """A method of ``distill`` that learns from pictures alone."""
    why = f"method {config.method.name} learns from pictures alone, and reads no label"
    yield "data.class_balance data.labelled_fraction data.class_order optim.label_smoothing", True, why
    yield (
        "teacher_temperature teacher_errors",
        True,
        f"method {config.method.name} reads no answers of a teacher",
    )


def of_export(config: Any) -> Iterator[Rule]:
    """``compress --method none``: nothing is trained."""
    yield from of_pictures(config)
    yield "data.captions", True, _CAPTIONS
    why = "--method none trains nothing"
    yield "optim.* views.* evaluate_* save_* log_every recipe target threshold teacher*", True, why
    yield "data.class_balance data.label* data.extra* from_scratch head drop_path track", True, why
    splits = "data.validation* data.test data.group_by data.split_seed data.duplicates data.task"
    yield (
        f"{splits} data.per_identity data.camera_column precision",
        True,
        "--method none reads pictures alone",
    )


def of_compress(config: Any) -> Iterator[Rule]:
    """``compress``: one teacher at most, labelled pictures, no average of weights."""
    yield from of_pictures(config)
    name = config.method.name
    yield "threshold", bool(methods.entry(name).before), f"method {name} removes channels before the training"
    yield "teacher_mean", True, "there is one teacher at most"
    lessons = "teacher_temperature teacher_view teacher_errors"
    yield lessons, not config.teacher, "there is no teacher"
    yield "weights", config.from_scratch, "--from-scratch begins with random weights: give one"
    yield "data.extra data.extra_ratio", True, "compress learns from the data alone"
    yield "data.captions", True, _CAPTIONS
    yield "optim.ema", True, "an average of weights keeps rows that have shrunk"
    yield "optim.auto_batch", True, "rows are chosen from whole batches"


def of_eval(config: Any) -> Iterator[Rule]:
    """``eval``: nothing is trained."""
    yield from of_pictures(config)
    yield "repeats", not config.cost, "--no-cost measures no time"
    yield "occlusion_grid", not config.occlusion, "nothing is hidden without occlusion=true"
    yield "data.class_balance data.labelled_fraction data.per_identity", True, "nothing is trained here"
    yield "data.captions", True, _CAPTIONS
    yield "data.labels_per_class", config.split != "train", "labels are hidden in the training split alone"
    yield "track", True, "only distill writes to trackers"


def of_synthesize(config: Any) -> Iterator[Rule]:
    """``synthesize``: what joins shards makes nothing."""
    yield from of_pictures(config)
    yield "track", True, "only distill writes to trackers"
    if config.merge:
        settings = " ".join(key for key, _, extra in leaves(type(config)) if not extra.get("runtime"))
        yield settings, True, "--merge joins what is made: the shards say how"


# -- parameters of a method ----------------------------------------------------------------------------------

_OF_THE_STAGE = ("method.name", "method.generations")


def refuse_idle_parameters(
    config: Any,
    make: Callable[..., Method],
    method: Method,
    arguments: dict[str, Any],
    heeded: Collection[str] = (),
) -> None:
    """Raise UsageError for a parameter of a method that was given and changes nothing of what it returns.

    A method is data: one made with the parameter's default instead is compared with it.

    Args:
        config: of distill or compress.
        make: the method, of its parameters.
        method: made with ``arguments``.
        arguments: all parameters of the method.
        heeded: those of them that are heeded elsewhere.
    """
    name, written = config.method.name, origins(config)
    for key, parameter in methods.parameters(name).items():
        dotted = f"method.{key}"
        if key in heeded or dotted in _OF_THE_STAGE or dotted not in written:
            continue
        if arguments[key] == parameter.default:
            continue
        try:
            other = make(**{**arguments, key: parameter.default})
        except UsageError:  # it was needed
            continue
        if _alike(_objective(other), _objective(method)):
            raise UsageError(
                f"{dotted}={arguments[key]} is given, and changes nothing in method {name} with its other "
                "parameters as they are."
            )


def _objective(method: Method) -> Method:
    """What a method trains: its recipes are no part of it."""
    return without_zero_terms(replace(method, recipes=()))


def _alike(one: Any, other: Any) -> bool:
    """Whether data are equal, partial functions of equal parts included, which Python says are not."""
    if one is other:
        return True
    if type(one) is not type(other):
        return bool(one == other)
    if isinstance(one, partial):
        return all(_alike(getattr(one, p), getattr(other, p)) for p in ("func", "args", "keywords"))
    if is_dataclass(one):
        return all(_alike(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_alike(part, other[key]) for key, part in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other)
