"""What a detector of transformers does with pictures: run, read by names, its losses, finished detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from kdcli.errors import InputError

MOST = 100  # detections of a picture: as many as COCO counts


@dataclass(frozen=True)
class Objects:
    """What is on the pictures of a batch.

    Attributes:
        boxes: of each picture, [n, 4] centre, width and height as fractions of it.
        classes: of each picture, [n] class numbers.
        labelled: [B] which pictures have been looked through.
    """

    boxes: Sequence[Tensor]
    classes: Sequence[Tensor]
    labelled: Tensor

    def targets(self) -> list[dict[str, Tensor]]:
        """As transformers takes them."""
        return [{"class_labels": c, "boxes": b} for c, b in zip(self.classes, self.boxes)]

    def known(self) -> list[dict[str, Tensor]]:
        """Those of the pictures that have been looked through."""
        return [target for target, kept in zip(self.targets(), self.labelled.tolist()) if kept]


def run(detector: Any, pixels: Tensor, maps: Sequence[Tensor] | None, objects: Objects | None) -> Any:
    """transformers' outputs of the parts below its heads.

    Args:
        detector: of :func:`kdcli.models.detectors.make`, or a whole one of transformers.
        pixels: [B, 3, H, W] for a whole one.
        maps: three maps [B, D_i, h_i, w_i] for one of :func:`kdcli.models.detectors.make`.
        objects: of which a detector in training makes some of its queries.

    Raises:
        InputError: maps that do not halve from one to the next, or fewer places than queries.
    """
    if maps is not None:
        refuse_maps([tuple(m.shape[-2:]) for m in maps], detector.config.num_queries)
    labels = None if objects is None else objects.targets()
    return detector.model(pixels if maps is None else maps[0], pixel_mask=maps, labels=labels)


def refuse_maps(sizes: Sequence[tuple[int, ...]], queries: int) -> None:
    """Raise InputError for maps that such a detector cannot read."""
    fits = all(tuple(2 * n for n in small) == large for large, small in pairwise(sizes))
    if not fits:
        shown = ", ".join(f"{h}x{w}" for h, w in sizes)
        raise InputError(
            "a detector reads maps of which each is half as large as the one before it, and these are "
            f"{shown}: take pictures whose side the last map's stride divides (--image-size)."
        )
    places = sum(h * w for h, w in sizes)
    if places < queries:
        raise InputError(
            f"a detector of {queries} queries has only {places} places to begin at: larger pictures "
            f"(--image-size), or fewer queries (head=…,num_queries={places})."
        )


def answers(outputs: Any) -> tuple[Tensor, Tensor]:
    """Logits [B, Q, C] and boxes [B, Q, 4] of the last layer, of the queries that are no denoising."""
    logits, boxes = outputs.intermediate_logits[:, -1], outputs.intermediate_reference_points[:, -1]
    meta = outputs.denoising_meta_values
    first = 0 if meta is None else meta["dn_num_split"][0]
    return logits[:, first:], boxes[:, first:]


def scored_places(outputs: Any) -> list[Tensor]:
    """Of each level, the largest class logit [B, h, w] that the encoder gives at a place."""
    sizes = [tuple(m.shape[-2:]) for m in outputs.encoder_last_hidden_state]
    best = outputs.enc_outputs_class.amax(dim=2).split([h * w for h, w in sizes], dim=1)
    return [part.unflatten(1, size) for part, size in zip(best, sizes)]


def losses(detector: Any, outputs: Any, objects: Objects) -> dict[str, Tensor]:
    """The detector's own losses, summed over objects: of classes, and of boxes, [B] each.

    The sum over all objects of the pictures that have been looked through, of all layers, of the places that
    the encoder chose and of denoising, weighted as the configuration says. Each of these pictures has the
    same part of it, so that a mean over them is the sum over their number; the others have 0. What is not a
    sum over objects (D-FINE's distillation between its layers) is taken times their number.
    """
    labelled = objects.labelled
    known = objects.known()
    found = _rows(outputs, labelled)
    count = max(sum(len(target["class_labels"]) for target in known), 1)
    logits, boxes = found["intermediate_logits"][:, -1], found["intermediate_reference_points"][:, -1]
    if not known or not bool(logits.isfinite().all() and boxes.isfinite().all()):
        nothing = (outputs.intermediate_logits.sum() + outputs.intermediate_reference_points.sum()) * 0.0
        return dict.fromkeys(("loss_class", "loss_box"), nothing.expand(len(labelled)))
    _, parts, _ = detector.loss_function(
        logits,
        known,
        logits.device,
        boxes,
        detector.config,
        found["intermediate_logits"],
        found["intermediate_reference_points"],
        enc_topk_logits=found["enc_topk_logits"],
        enc_topk_bboxes=found["enc_topk_bboxes"],
        denoising_meta_values=found["denoising_meta_values"],
        predicted_corners=found["intermediate_predicted_corners"],
        initial_reference_points=found["initial_reference_points"],
    )
    share = labelled.to(logits.dtype) * (count / len(known))
    about_classes = [value for name, value in parts.items() if name.startswith("loss_vfl")]
    about_boxes = [value for name, value in parts.items() if not name.startswith("loss_vfl")]
    return {"loss_class": sum(about_classes) * share, "loss_box": sum(about_boxes) * share}


_READ = (
    *("intermediate_logits", "intermediate_reference_points", "intermediate_predicted_corners"),
    *("initial_reference_points", "enc_topk_logits", "enc_topk_bboxes"),
)


def _rows(outputs: Any, labelled: Tensor) -> dict[str, Any]:
    """What the losses read, in fp32, of the pictures that have been looked through."""
    whole = bool(labelled.all())
    found: dict[str, Any] = {}
    for name in _READ:
        value = getattr(outputs, name, None)
        if isinstance(value, Tensor):
            found[name] = (value if whole else value[labelled]).float()
        else:
            found[name] = None
    meta = outputs.denoising_meta_values
    if meta is not None and not whole:
        kept = [rows for rows, k in zip(meta["dn_positive_idx"], labelled.tolist()) if k]
        meta = {**meta, "dn_positive_idx": tuple(kept)}
    return found | {"denoising_meta_values": meta}


def detections(logits: Tensor, boxes: Tensor, most: int = MOST) -> Tensor:
    """[B, K, 6]: corners x1, y1, x2, y2 as fractions of the picture, score, class; the best first.

    A query may answer with several classes, as in transformers' and the authors' post-processing.

    Args:
        logits: [B, Q, C], of a sigmoid for each class.
        boxes: [B, Q, 4] centre, width and height.
        most: detections of a picture; K is this or Q·C.
    """
    classes = logits.shape[2]
    scores, places = logits.float().sigmoid().flatten(1).topk(min(most, logits[0].numel()), dim=1)
    queries, labels = places // classes, places % classes
    centre, size = boxes.float().split(2, dim=2)
    corners = torch.cat([centre - size / 2, centre + size / 2], dim=2)
    chosen = corners.gather(1, queries[..., None].expand(-1, -1, 4))
    return torch.cat([chosen, scores[..., None], labels[..., None].to(scores.dtype)], dim=2)
