"""Views: one augmented crop of a picture, fully determined by (seed, view number, sample id).

All parties of a step see the same view; each normalises and resizes it for itself
(:class:`kdcli.models.timm`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from kdcli.artifacts.model import InputSpec
from kdcli.errors import UsageError
from kdcli.sections import ViewSection
from kdcli.seeds import seed_of, seeded, torch_seeded

_LATER = ("fit", "zoom_out", "iou_crop")  # no part of a recipe by default: caches keep their keys
_LARGEST_CANVAS = 4.0  # times the sides of a picture that is zoomed out
_NO_CLASS = 255  # of a mask's pixels, where a larger canvas has none of the picture
_SMALLEST_SIDE = 4  # pixels: torchvision divides by 0.3 of a side, rounded down


class TrainingView:
    """Cuts training views of ``size`` pixels after the recipe of a view section.

    Raises:
        UsageError: a range that is none, or a policy that timm does not know.
    """

    def __init__(self, section: ViewSection, size: int, seed: int) -> None:
        self.section, self.size, self.seed = section, size, seed
        self._transforms: tuple[Callable[..., Any], Callable[[Any], Any]] | None = None
        (smallest, largest), (narrow, wide) = section.scale, section.ratio
        if not 0 < smallest <= largest <= 1:
            raise UsageError(
                f"views.scale: two parts of the area, 0 < low <= high <= 1, got {section.scale}."
            )
        if not 0 < narrow <= wide:
            raise UsageError(f"views.ratio: two aspect ratios, 0 < low <= high, got {section.ratio}.")
        if section.auto_augment:
            self._policy(section.auto_augment)

    def recipe(self) -> dict[str, Any]:
        """What decides the pixels of a view, for cache keys (not the count of views)."""
        fields = type(self.section).model_fields
        later = {name for name in _LATER if getattr(self.section, name) == fields[name].default}
        return {
            **self.section.model_dump(exclude={"count", "size", "store", *later}),
            "size": self.size,
            "seed": self.seed,
        }

    def __call__(self, picture: Any, view: int, sample_id: int, beside: Any = None) -> Any:
        """The view number ``view`` of an RGB picture: uint8 [3, size, size].

        Args:
            picture: to be cut.
            view: its number.
            sample_id: of the picture.
            beside: what is cut with it, the same crop and flips: ``tv_tensors`` (of a mask, nearest
                neighbours), in lists and dictionaries or alone. With it, the answer is the view and what
                became of this; the picture's pixels are those without it.

        Raises:
            UsageError: a policy, which moves the picture alone, and something beside it; crops by boxes, and
                none beside it.
        """
        if self._transforms is None:
            self._transforms = self._build()
        moved, painted = self._transforms
        if self.section.iou_crop and _boxes_of(beside) is None:
            raise UsageError(
                "views.iou_crop is chosen by the boxes beside a picture, and none are read here: it is for "
                "views that are cut with them (--views live), not for those of pictures alone."
            )
        if beside is not None and self.section.auto_augment:
            raise UsageError("views.auto_augment moves the picture without its mask or boxes.")
        # torchvision draws from torch alone, timm's policies from random and numpy too
        scope = seeded if self.section.auto_augment else torch_seeded
        with scope(seed_of(self.seed, view, sample_id)):
            if beside is None:
                return painted(moved(picture))
            cut, followed = moved(picture, beside)
            return painted(cut), followed

    def _build(self) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
        """What moves pixels and all that belongs to them, and what then changes the picture alone."""
        from torchvision.transforms import InterpolationMode, v2

        s, modes = self.section, InterpolationMode
        mode = modes.BILINEAR if s.interpolation == "bilinear" else modes.BICUBIC
        steps: list[Any] = []
        paint: list[Any] = []
        if s.zoom_out:
            steps.append(_zoom_out(s.zoom_out))
        if s.iou_crop:
            steps.append(v2.RandomApply([_crop_by_boxes], s.iou_crop))
        if tuple(s.scale) == (1.0, 1.0) and s.fit == "squash":
            steps.append(v2.Resize((self.size, self.size), mode))
        elif tuple(s.scale) == (1.0, 1.0):
            steps += [v2.Resize(self.size, mode), v2.CenterCrop(self.size)]
        elif s.interpolation == "random":
            crops = [
                v2.RandomResizedCrop(self.size, s.scale, s.ratio, m) for m in (modes.BILINEAR, modes.BICUBIC)
            ]
            steps.append(v2.RandomChoice(crops))
        else:
            steps.append(v2.RandomResizedCrop(self.size, s.scale, s.ratio, mode))
        if s.hflip:
            steps.append(v2.RandomHorizontalFlip(s.hflip))
        if s.vflip:
            steps.append(v2.RandomVerticalFlip(s.vflip))
        if s.auto_augment:
            paint.append(self._policy(s.auto_augment))
        if s.color_jitter:
            paint.append(v2.ColorJitter(s.color_jitter, s.color_jitter, s.color_jitter))
        paint.append(v2.PILToTensor())
        if s.erase:
            paint.append(v2.RandomErasing(s.erase))
        return v2.Compose(steps), v2.Compose(paint)

    def _policy(self, text: str) -> Callable[[Any], Any]:
        """One of timm's policies, as its own training transform sets it up."""
        from timm.data import auto_augment as policies

        hparams = {"translate_const": int(self.size * 0.45), "img_mean": (124, 116, 104)}
        make = policies.rand_augment_transform if text.startswith("rand") else policies.auto_augment_transform
        try:
            return make(text, hparams)
        except (AssertionError, KeyError, ValueError) as error:
            raise UsageError(
                f"views.auto_augment: timm knows no policy '{text}' (for example rand-m9-mstd0.5-inc1)."
            ) from error


def _zoom_out(probability: float) -> Any:
    """SSD's expansion (Liu et al. 2016, section 3.6), on black to four times the sides, as RT-DETR has it."""
    from PIL import Image
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    fill = {Image.Image: 0, tv_tensors.Mask: _NO_CLASS, "others": 0}
    return v2.RandomZoomOut(fill, (1.0, _LARGEST_CANVAS), probability)


def _crop_by_boxes(picture: Any, beside: Any) -> Any:
    """SSD's crop of a least overlap with a box (Liu et al. 2016, section 2.2), and what belongs to it.

    A box whose centre is cut off has no area then. Pictures without boxes, or too small for the draws of
    torchvision, stay as they are.
    """
    from torchvision.transforms import v2

    boxes = _boxes_of(beside)
    if boxes is None or not len(boxes) or min(picture.size) < _SMALLEST_SIDE:
        return picture, beside
    return v2.RandomIoUCrop()(picture, beside)


def _boxes_of(beside: Any) -> Any:
    """The boxes among what belongs to a picture, or None."""
    from torchvision.tv_tensors import BoundingBoxes

    return next((part for part in tree_leaves(beside) if isinstance(part, BoundingBoxes)), None)


class EvaluationCut:
    """The un-augmented view, called like a training view."""

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec

    def recipe(self) -> dict[str, Any]:
        """What decides its pixels."""
        return {"evaluation": self.spec.to_json()}

    def __call__(self, picture: Any, view: int, sample_id: int) -> torch.Tensor:
        """The view of an RGB picture, whatever its number: uint8 [3, H, W]."""
        return evaluation_view(picture, self.spec)


class WholeCut:
    """The whole picture and what belongs to it, squashed to a network's input; places are judged on it."""

    def __init__(self, spec: InputSpec) -> None:
        self.spec = replace(spec, crop=1.0, crop_mode="squash")

    def recipe(self) -> dict[str, Any]:
        """What decides its pixels."""
        return {"evaluation": self.spec.to_json()}

    def __call__(self, picture: Any, view: int, sample_id: int, beside: Any = None) -> Any:
        """The view of an RGB picture: uint8 [3, H, W]; with ``beside`` also what became of that.

        See :meth:`TrainingView.__call__`.
        """
        x = evaluation_view(picture, self.spec)
        return x if beside is None else (x, tree_map(partial(_squashed, size=self.spec.size), beside))


def _squashed(part: Any, size: tuple[int, int]) -> Any:
    """A tensor that belongs to a picture, brought to ``size``; others, and what is none, stay as they are."""
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import InterpolationMode, functional

    if isinstance(part, tv_tensors.Mask):  # nearest-exact, where resize() would take nearest
        values = functional.resize_image(
            part.as_subclass(torch.Tensor)[None], list(size), InterpolationMode.NEAREST_EXACT
        )
        return tv_tensors.wrap(values[0], like=part)
    return functional.resize(part, list(size)) if isinstance(part, tv_tensors.TVTensor) else part


def evaluation_view(picture: Any, spec: InputSpec) -> torch.Tensor:
    """timm's evaluation preprocessing before normalisation: uint8 [3, H, W] of ``spec.size``."""
    return _evaluation_transform(spec)(picture)


@lru_cache(maxsize=16)
def _evaluation_transform(spec: InputSpec) -> Callable[[Any], torch.Tensor]:
    from timm.data import create_transform

    transform = create_transform(
        input_size=(3, *spec.size),
        is_training=False,
        use_prefetcher=True,  # ends in uint8 CHW, without normalisation
        interpolation=spec.interpolation,
        crop_pct=spec.crop,
        crop_mode=spec.crop_mode,
    )
    return lambda picture: torch.from_numpy(np.array(transform(picture)))
