"""The groups of fields that several stages share: data, views, optimiser, run."""

from __future__ import annotations

import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from kdcli.config import (
    Section,
    head_option,
    inputs,
    option,
    outputs,
    reading,
    running,
    training,
)
from kdcli.errors import nearest

LARGEST_SIDE = 4096  # of a view, or of the input that a network is asked to have, in pixels
LARGEST = 1e38  # of a rate or a weight: far beyond use, and yet a number of fp32
_MANY, _LONG = 1_000_000, 1_000_000_000  # pictures of a batch, epochs or minutes; pictures
MOST_STEPS = 100_000_000  # of a training
_NAME = 64  # characters of a head's name
_VIEWS, _MAGNITUDE = 10_000, 1000  # fixed views of a picture; numbers of a policy of timm

DETECTORS = ("rtdetr", "dfine", "light")  # :data:`kdcli.models.detectors.KINDS`, without torch
_DETECTOR = rf"({'|'.join(DETECTORS)})(,[^,=]{{1,40}}=[^,=]{{1,40}}){{0,40}}"  # with settings


def checked_head(value: str | None, others: str, shown: Sequence[str]) -> str | None:
    """A head's name, or a detector's with its settings.

    Args:
        value: what was written.
        others: the pattern of what else it may be.
        shown: names, for the message.

    Raises:
        ValueError: something else.
    """
    if value is None or re.fullmatch(rf"({others}|{_DETECTOR})", value):
        return value
    known = [*shown, *DETECTORS]
    hint = nearest(value.partition(",")[0][:_NAME], known)
    raise ValueError(
        f"no such head.{hint} There are: {', '.join(known)} (of boxes also light,num_queries=60)"
    )


Rate = Annotated[float, Field(gt=0, le=LARGEST)]
Amount = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Aspect = Annotated[float, Field(ge=0, le=1000)]
Epoch = Annotated[float, Field(ge=0, le=_MANY)]


class SourceSection(Section):
    """Where pictures come from and which of them are read."""

    principal: typing.ClassVar[str | None] = "source"
    source: str | None = inputs(None, "Folder, parquet, save_to_disk, hub id, example:NAME or -.", "--data")
    train: str = option("train", "Name of the training split.")
    image_column: str | None = option(None, "Column of the pictures (found by type).")
    on_bad_image: Literal["stop", "skip"] = reading(
        "stop", "What to do at a corrupt picture.", "--on-bad-image"
    )
    max_bad_fraction: float = option(0.01, "Skip at most this part of the pictures.", ge=0, le=1)
    max_pixels: int = option(50_000_000, "Refuse larger pictures (decompression bombs).", ge=1, le=89_478_485)


class DataSection(SourceSection):
    """Labelled pictures and how they are split."""

    validation: str | None = option(None, "Name of the validation split; carved from train if there is none.")
    test: str = option("test", "Name of the test split, never used for training or selection.")
    validation_fraction: float = option(0.1, "Part of train carved for validation.", gt=0, lt=1)
    duplicates: Literal["keep", "drop", "stop"] = option(
        "keep",
        "Pictures of train that are in validation or test too: keep and say so, drop from train, stop.",
    )
    split_seed: int = option(0, "Seed of the carving, independent of --seed.", ge=-(2**63), lt=2**63)
    group_by: str | None = option(None, "Column whose equal values stay in one split.")
    open_classes: str | None = option(
        None, "File that divides classes into seen (id) and unseen (ood) ones (kdcli classes split)."
    )
    shots: int | None = option(
        None, "Pictures of each unseen class that are learned from and never measured.", ge=1, le=_LONG
    )
    label_column: str | None = option(None, "Column of the labels (found by type).")
    label_columns: list[str] | None = option(None, "Columns of 0 and 1, one for each of several labels.")
    task: str = reading("auto", "By name (retrieval, …); auto: by the columns of the data.", "--task")
    mask_column: str | None = option(None, "Column of the masks (found by name).")
    box_column: str | None = option(None, "Column of the boxes (found by name).")
    box_format: Literal["xywh", "xyxy"] = option(
        "xywh", "What a box's four numbers are: a corner with width and height, or two corners."
    )
    class_names: list[str] | None = option(
        None, "Names of classes that the data number (masks, lists, boxes)."
    )
    captions: str | None = option(None, "Captions of training pictures by path, JSON (zeroshot).")
    camera_column: str | None = option(None, "Column of the cameras (retrieval; found by name).")
    per_identity: int = option(4, "Pictures of each identity in a batch (retrieval).", ge=2, le=1024)
    void: int = option(255, "Value of the masks' pixels that belong to no class.", ge=0, le=255)
    class_order: Literal["names", "same"] = option("names", "How labels of teacher and data match.")
    labels_per_class: int | None = reading(
        None, "Labels kept per class; the rest is hidden.", "--labels-per-class", ge=1, le=_LONG
    )
    labelled_fraction: float | None = option(
        None,
        "Share of labelled samples in a batch (default: half, where fewer are labelled and a teacher teaches "
        "the others; 0 draws all alike).",
        ge=0,
        le=1,
    )
    class_balance: Literal["none", "sampler", "loss"] = reading(
        "none", "Even out rare classes.", "--class-balance"
    )


class TextSection(Section):
    """What is said of classes, and who reads it."""

    principal: typing.ClassVar[str | None] = "file"
    file: str | None = inputs(
        None, "What classes are told apart by: JSON, label2text.txt, or names, one a line.", "--texts"
    )
    descriptions: str | None = option(
        None, "Sentences about the classes of label2text.txt, in their order (chatgpt.txt)."
    )
    templates: list[str] = option(
        ["photo"], "photo, photo-a, clip7, or templates of your own with {} for the name.", max_length=1000
    )
    described: bool | None = option(
        None, "Whether descriptions are put behind names (default: where the file has some)."
    )
    tower: str | None = option(None, "Folder or hub id of the text tower (default: the model's own).")
    scale: float | None = option(
        None, "Factor of cosines in logits (default: the model's own; of a student 1/0.07).", gt=0, le=10_000
    )


class ViewSection(Section):
    """How a training view is cut from a picture: a function of (seed, view number, sample id)."""

    principal: typing.ClassVar[str | None] = "count"
    count: str = reading("auto", "K fixed views (teacher cached), live, or auto.", "--views")
    size: int | None = option(
        None, "Side of a view in pixels (default: the largest network input).", ge=8, le=LARGEST_SIDE
    )
    scale: tuple[Fraction, Fraction] = option(
        (0.35, 1.0), "Area range of RandomResizedCrop; [1, 1] for none."
    )
    ratio: tuple[Aspect, Aspect] = option((0.75, 1.3333), "Aspect range of RandomResizedCrop.")
    fit: Literal["crop", "squash"] = option(
        "crop",
        "What a whole picture becomes where scale is [1, 1]: its largest square, or all of it, squashed.",
    )
    zoom_out: float = option(
        0.0, "Probability of a larger black canvas, of one to four times the sides.", ge=0, le=1
    )
    iou_crop: float = option(0.0, "Probability of a crop chosen by the boxes beside the picture.", ge=0, le=1)
    hflip: float = option(0.5, "Probability of a horizontal flip.", ge=0, le=1)
    vflip: float = option(0.0, "Probability of a vertical flip.", ge=0, le=1)
    color_jitter: float = option(0.0, "Strength of brightness, contrast and saturation jitter.", ge=0, le=100)
    auto_augment: str | None = option(None, "timm's policy, for example rand-m9-mstd0.5-inc1.")
    erase: float = option(0.0, "Probability of random erasing.", ge=0, le=1)
    store: str = option("fp16", "How the cache keeps teacher outputs: fp16, fp32, logits topK (top20).")
    interpolation: Literal["bilinear", "bicubic", "random"] = option("bicubic", "Resampling of the crop.")

    @field_validator("auto_augment")
    @classmethod
    def _is_a_policy(cls, value: str | None) -> str | None:
        numbers = re.findall(r"[0-9]+", (value or "").replace(".", " "))
        if any(len(number) > len(str(_MAGNITUDE)) or int(number) > _MAGNITUDE for number in numbers):
            raise ValueError(f"a policy whose numbers are {_MAGNITUDE} or less is wanted")
        return value

    @field_validator("count")
    @classmethod
    def _is_a_count(cls, value: str) -> str:
        number = value.isascii() and value.isdecimal() and len(value) <= len(str(_VIEWS))
        if value not in ("auto", "live") and not (number and 1 <= int(value) <= _VIEWS):
            raise ValueError(f"a number above 0, live or auto is wanted, and no more than {_VIEWS:,}")
        return value


class OptimSection(Section):
    """How trained parties learn."""

    opt: str = training("adamw", "Any of timm's; gradients clipped (optim.clip_grad=1).", "--opt")
    lr: float = training(5e-4, "Learning rate at the global batch size.", "--lr", gt=0, le=LARGEST)
    weight_decay: float = training(
        0.05,
        "Weight decay; none on biases, norms, positions.",
        "--weight-decay",
        listed=False,
        ge=0,
        le=LARGEST,
    )
    decay_all: bool = option(
        False, "Weight decay on biases, norms and positions too, as plain PyTorch has it."
    )
    momentum: float = option(0.9, "Momentum, where the optimiser has one.", ge=0, lt=1)
    betas: tuple[Share, Share] | None = option(None, "Adam's betas (default: the optimiser's).")
    layer_decay: float | None = option(None, "Learning-rate factor per block from the head down.", gt=0, le=1)
    schedule: Literal["cosine", "step", "multistep", "poly", "constant"] = option(
        "cosine", "Course of the learning rate."
    )
    warmup: float = option(0.05, "Part of the steps of linear warm-up.", ge=0, lt=1)
    warmup_from: float = option(
        0.0, "Part of the rate that warm-up begins at; 0 for a tenth of its first step.", ge=0, le=1
    )
    hold: float = option(0.0, "Part of the steps after which cosine and poly begin to fall.", ge=0, lt=1)
    min_lr: float = option(0.0, "Learning rate at the end of cosine and poly.", ge=0, le=LARGEST)
    milestones: list[Epoch] = option([], "Epochs of multistep's drops.")
    drops: list[Annotated[float, Field(gt=0, lt=1)]] = option(
        [], "Parts of the training after which multistep drops, beside milestones."
    )
    decay_epochs: float = option(30, "Epochs between step's drops.", gt=0, le=_MANY)
    decay_rate: float = option(0.1, "Factor of a drop; the power of poly.", gt=0, le=10)
    epochs: float = training(20, "Passes over the training pictures.", "--epochs", gt=0, le=_MANY)
    stop_epoch: float | None = option(
        None, "Stop after so many epochs, with the schedule of them all (a truncated run).", gt=0, le=_MANY
    )
    max_steps: int | None = training(
        None, "Stop after so many steps, the schedule too.", "--max-steps", ge=1, le=MOST_STEPS
    )
    batch_size: int = training(128, "Over all processes and micro-batches.", "--batch-size", ge=1, le=_MANY)
    accumulate: int = option(1, "Micro-batches per step.", ge=1, le=_MANY)
    auto_batch: bool = training(False, "Split batches further until a step fits into memory.", "--auto-batch")
    clip_grad: float | None = option(
        1.0,
        "Largest norm of each network's gradient, which is scaled down to it; null for none, as published "
        "codes mostly have it (--recipe paper).",
        gt=0,
        le=LARGEST,
    )
    ema: float = option(
        0.0, "Decay of the moving average of weights, warmed up over the first steps; 0 for none.", ge=0, lt=1
    )
    label_smoothing: float = option(0.0, "Of the supervised loss.", ge=0, lt=1)
    mixup: float = option(0.0, "Alpha of mixup, seen by every party.", ge=0, le=LARGEST)
    cutmix: float = option(0.0, "Alpha of CutMix, seen by every party.", ge=0, le=LARGEST)


class RunSection(Section):
    """Fields that every stage has: output, machine, reproducibility."""

    out: str | None = outputs(None, "Artifact to write [runs/<stage>-<hash>]", "--out", runtime=True)
    overwrite: bool = outputs(False, "Start anew even if the output exists.", "--overwrite", runtime=True)
    cache: str = outputs("runs/cache", "Teacher outputs, shared between runs.", "--cache", runtime=True)
    seed: int = running(0, "Of everything random but the split.", "--seed", ge=0, lt=2**63)
    processes: int = running(1, "Processes (GPUs).", "-n,--num-processes", runtime=True, ge=1, le=1024)
    device: str = running("auto", "auto, cpu, cuda, cuda:1, mps.", "--device", runtime=True)
    precision: Literal["no", "bf16", "fp16"] = running("no", "Autocast to half precision.", "--precision")
    workers: int = running(
        0, "Loader processes; 0 loads in process.", "--workers", runtime=True, ge=0, le=1024
    )
    worker_timeout: float = option(
        300, "Seconds after which a loader that hangs is an error.", runtime=True, gt=0, le=_MANY
    )
    deterministic: bool = option(False, "Bit-equal results on CUDA too (slower).")
    threads: int | None = running(
        None, "CPU threads; only equal numbers give equal results.", "--threads", runtime=True, ge=1, le=1024
    )
    track: list[str] = running(
        [], "tensorboard, wandb, … (repeatable).", "--track", runtime=True, listed=False
    )

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?|mps", value):
            raise ValueError("one of auto, cpu, cuda, cuda:0, cuda:1, …, mps is wanted")
        return value


class TrainingData(DataSection):
    """Labelled pictures as every stage has them, and more without labels."""

    extra: list[str] = inputs([], "More pictures, or -, for the teacher term only (repeatable).", "--extra")
    extra_ratio: float | None = reading(
        None,
        "Extra pictures per real one (default: as many as there are).",
        "--extra-ratio",
        listed=False,
        ge=0,
        le=_MANY,
    )


class StudentSection(RunSection):
    """What a student is made of and learns from."""

    teacher: list[str] = inputs(
        [], "Model, mostly of kdcli probe, or - (repeatable).", "--teacher", max_length=64
    )
    teacher_mean: Literal["logits", "probabilities"] = option("logits", "Mean of several teachers.")
    teacher_temperature: Literal["fit", "raw"] = option(
        "fit", "Divide a teacher's logits by the temperature that probe fitted, or take them raw."
    )
    teacher_view: Literal["same", "plain"] = option(
        "same", "What a teacher sees: the student's views, or each picture's un-augmented cut."
    )
    teacher_errors: Literal["keep", "leave-out", "swap"] = option(
        "keep",
        "Answers that are wrong about a label: taught as they are, left out, or with the true class swapped "
        "to their top (Wen et al. 2019).",
    )
    student: str | None = inputs(
        None, "Alias, timm name[,depth=6], hf-hub:…, local-dir:…, artifact.", "--student"
    )
    weights: str | None = inputs(None, "The student's own checkpoint, FILE or FILE:ENTRY.", "--weights")
    from_scratch: bool = inputs(False, "Random weights for the student.", "--from-scratch")
    image_size: int | None = inputs(None, "The student's input size.", "--image-size", ge=8, le=LARGEST_SIDE)
    head: str | None = option(
        None,
        "The student's head: of masks linear, segformer or upernet, of retrieval plain, bnneck or bnneckN, "
        "of boxes rtdetr, dfine or light[,num_queries=60] (default: its own if that fits, else the first, "
        "or bnneck).",
    )
    drop_path: float | None = option(None, "The student's stochastic depth.", ge=0, lt=1)
    data: TrainingData = TrainingData()
    views: ViewSection = ViewSection()
    optim: OptimSection = OptimSection()
    evaluate_every: float = option(1.0, "Epochs between evaluations on the validation split.", gt=0, le=_MANY)
    evaluate_steps: int | None = option(None, "Steps between them instead.", ge=1, le=MOST_STEPS)
    save_steps: int | None = option(
        None, "Commit state every so many steps (beside save_minutes).", runtime=True, ge=1, le=MOST_STEPS
    )
    save_minutes: float = option(5.0, "Commit state so often.", runtime=True, gt=0, le=_MANY)
    log_every: int = option(10, "Steps between rows of metrics.jsonl.", ge=1, le=MOST_STEPS)

    @field_validator("head")
    @classmethod
    def _is_a_head(cls, value: str | None) -> str | None:
        shown = ("linear", "segformer", "upernet", "plain", "bnneck", "bnneckN")
        return checked_head(value, r"linear|segformer|upernet|plain|bnneck\d{0,5}", shown)

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value or []


class GridSection(Section):
    """The heads that are tried, and how each is trained."""

    lr: list[Rate] | None = option(None, "Learning rates of SGD at a batch of 256, or of AdamW (masks).")
    weight_decay: list[Amount] = option([0.0], "Weight decays of SGD or AdamW.")
    l2: list[Amount] = option([1e-1, 1e-2, 1e-3, 1e-4], "L2 strengths of the L-BFGS path.")
    solver: Literal["both", "sgd", "lbfgs"] = option("both", "SGD grid, L-BFGS path, or both.")
    epochs: int = training(30, "Passes over the features.", "--epochs", ge=1, le=_MANY)
    batch_size: int = training(128, "Batch of SGD.", "--batch-size", ge=1, le=_MANY)
    momentum: float = option(0.9, "Momentum of SGD.", ge=0, lt=1)
    patience: int | None = option(5, "Epochs without gain after which a head stops.", ge=1, le=_MANY)


class StatisticsSection(Section):
    """What is recorded of the finished model's activations, for pictures without data."""

    principal: typing.ClassVar[str | None] = "record"
    record: bool = head_option(
        False, "Record activations by class, for synthesize --mixer lopes.", "--statistics"
    )
    taps: list[str] = option(
        ["logits"], "Of what: logits, and of hidden layers what enters the ReLU (layer4.1.act2.in)."
    )
    min_count: int = option(20, "Record no class of fewer pictures, for their privacy.", ge=2, le=_LONG)
    max_gigabytes: float = option(2.0, "Deviations where covariances would take more.", ge=0, le=_MANY)
