"""Parameters of the methods that make pictures from a teacher alone; importable without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kdcli.config import Section, option
from kdcli.errors import UsageError, nearest
from kdcli.sections import LARGEST, LARGEST_SIDE, Share

_MINE = "(default: the mixer's)."
_STEPS = 1_000_000_000
_Level = Annotated[float, Field(ge=-100, le=100)]  # of a pixel, whose range is 0 to 1


class InversionSection(Section):
    """Weights and optimiser of the mixers that read no pictures.

    A field without a value takes the mixer's default, of :data:`DEFAULTS`; a mixer heeds those fields only.
    ImageNet settings of DeepInversion's README and code (ResNet-50): batch 84, lr 0.25, statistics 0.01,
    first_statistics 10, tv_l2 1e-4, l2 1e-5 with l2_over image, betas [0.5, 0.9], schedule cosine with warmup
    100, jitter 30, flip 0.5, clip true, and half_steps 2000 with steps 1000; adaptive: competition 0.2.
    DAFL's code on MNIST: batch 512, steps 24000, lr 0.2, latent 100, one_hot 1, activation 0.1; on CIFAR-100:
    one_hot 0.5, entropy 20, activation 0.1.
    """

    batch: int | None = option(
        None, f"Pictures optimised, or generated, together {_MINE}", ge=1, le=1_000_000
    )
    steps: int | None = option(
        None, f"Steps of Adam for each batch, or for the generator {_MINE}", ge=1, le=_STEPS
    )
    half_steps: int | None = option(
        None, "Steps before them, on pictures pooled to half size [0].", ge=0, le=_STEPS
    )
    lr: float | None = option(None, f"Learning rate of Adam {_MINE}", gt=0, le=LARGEST)
    betas: tuple[Share, Share] | None = option(None, f"Adam's betas {_MINE}")
    schedule: Literal["constant", "cosine"] | None = option(None, f"Of the learning rate {_MINE}")
    warmup: int | None = option(None, "Steps of linear warm-up [0].", ge=0, le=_STEPS)
    start: tuple[_Level, _Level] | None = option(
        None, "Mean and deviation of the first pixels in [0, 1] (DeepInversion: standard once normalised)."
    )
    jitter: int | None = option(
        None, f"Largest shift of a step, in pixels; half of it at half size {_MINE}", ge=0, le=LARGEST_SIDE
    )
    flip: float | None = option(None, f"Probability that a step sees the batch mirrored {_MINE}", ge=0, le=1)
    clip: bool | None = option(None, "Keep pixels in range after each step (ImageNet code) [false].")
    label: float | None = option(
        None, f"Weight of the cross-entropy with the target class {_MINE}", ge=0, le=LARGEST
    )
    statistics: float | None = option(
        None, f"a_f, weight of the batch norm statistics {_MINE}", ge=0, le=LARGEST
    )
    first_statistics: float | None = option(
        None, "Factor of the first layer's (the code's, later than the paper) [1].", ge=0, le=LARGEST
    )
    tv_l2: float | None = option(
        None, f"Weight of total variation, norms over the batch {_MINE}", ge=0, le=LARGEST
    )
    tv_l1: float | None = option(
        None, f"Weight of total variation, mean differences {_MINE}", ge=0, le=LARGEST
    )
    l2: float | None = option(None, f"Weight of the pictures' norm {_MINE}", ge=0, le=LARGEST)
    l2_over: Literal["batch", "image"] | None = option(
        None, "The norm is the batch's (CIFAR code) or the mean of each picture's (ImageNet code) [batch]."
    )
    competition: float | None = option(
        None, f"a_c, weight of 1 - JS(student, teacher) {_MINE}", ge=0, le=LARGEST
    )
    latent: int | None = option(None, f"Dimension of the generator's noise {_MINE}", ge=1, le=65_536)
    one_hot: float | None = option(
        None, f"DAFL: weight of the pseudo-labels' cross-entropy {_MINE}", ge=0, le=LARGEST
    )
    entropy: float | None = option(None, f"DAFL: weight of the class balance {_MINE}", ge=0, le=LARGEST)
    activation: float | None = option(None, f"DAFL: weight of the features' size {_MINE}", ge=0, le=LARGEST)
    base: float | None = option(None, "DAFL: base of the class balance's logarithm [10].", gt=1, le=LARGEST)
    reduction: Literal["mean", "sum"] | None = option(
        None, "DAFL: over a picture's features; the paper prints a sum [mean]."
    )
    temperature: float | None = option(
        None, f"Lopes: divides the logits, recorded and seen {_MINE}", gt=0, le=LARGEST
    )
    min_count: int | None = option(
        None,
        "Lopes: least pictures of a class behind its record, for their privacy [20].",
        ge=2,
        le=1_000_000_000,
    )
    small_classes: Literal["refuse", "skip"] | None = option(
        None, "Lopes: refuse to run where a class has fewer, or leave it out [refuse]."
    )


_OPTIMISED = {
    "half_steps": 0,
    "betas": (0.9, 0.999),
    "schedule": "constant",
    "warmup": 0,
    "start": None,
    "jitter": 2,
    "flip": 0.0,
    "clip": False,
    "tv_l2": 2.5e-5,
    "tv_l1": 0.0,
    "l2": 0.0,
    "l2_over": "batch",
}
# "paper parameters" of DeepInversion's CIFAR-10 README, with a ResNet-34
_DEEPINVERSION: dict[str, Any] = {
    "batch": 256,
    "steps": 2000,
    "lr": 0.05,
    "label": 1.0,
    "statistics": 10.0,
    "first_statistics": 1.0,
    **_OPTIMISED,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "deepinversion": _DEEPINVERSION,
    # the competition's weight "was used in the paper" by the README, on ImageNet; both scripts have it off
    "adaptive-deepinversion": {**_DEEPINVERSION, "competition": 0.2},
    # the code's, with the first noise of its CelebA script (MNIST: [0.15, 0.1])
    "lopes": {
        **{k: _OPTIMISED[k] for k in ("betas", "schedule", "warmup", "clip")},
        "batch": 64,
        "steps": 1000,
        "lr": 0.07,
        "start": (0.44, 0.29),
        "temperature": 8.0,
        "jitter": 0,
        "flip": 0.0,
        "min_count": 20,
        "small_classes": "refuse",
    },
    # DAFL's code on CIFAR-10, where a student is trained beside the generator (2000 epochs of 120 steps)
    "dafl": {
        "batch": 1024,
        "steps": 240_000,
        "lr": 0.02,
        "betas": (0.9, 0.999),
        "schedule": "constant",
        "warmup": 0,
        "latent": 1000,
        "one_hot": 0.05,
        "entropy": 5.0,
        "activation": 0.01,
        "base": None,  # these two stand for the method's own, as in runs from before one could set them
        "reduction": None,
    },
}


def resolved(section: InversionSection, mixer: str) -> InversionSection:
    """The section with the mixer's defaults.

    Raises:
        UsageError: a field that the mixer does not heed.
    """
    defaults = DEFAULTS[mixer]
    given = {name: value for name, value in section if value is not None}
    for name in given:
        if name not in defaults:
            raise UsageError(
                f"--mixer {mixer} has no use for inversion.{name}.{nearest(name, defaults)} It heeds: "
                f"{', '.join(defaults)}."
            )
    return section.model_copy(update={**defaults, **given})
