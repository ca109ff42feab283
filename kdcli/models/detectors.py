"""RT-DETR and D-FINE, transformers' own modules: built, run, and read by names.

RT-DETR (Zhao et al. 2023, arXiv 2304.08069) mixes three maps of a backbone by attention on the last one and
by pyramids down and up, scores every place of them, and lets a decoder refine the best places to boxes.
D-FINE (Peng et al. 2024, arXiv 2410.13842) refines distributions of a box's edges. Both learn by the
assignment of boxes to objects, and by queries made of the objects with noise (contrastive denoising).
transformers is imported where one is built.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError, UsageError, nearest

LEVELS = 3  # maps that both read, each half as large as the one before it
LARGEST_SIDE = 8192  # of an input, in pixels
MOST = 100  # detections of a picture: as many as COCO counts
_DERIVED = (  # of a configuration: what the maps, the classes or the house say
    *("backbone_config", "encoder_in_channels", "decoder_in_channels", "feat_strides", "num_feature_levels"),
    *("encode_proj_layers", "anchor_image_size", "eval_size", "use_focal_loss", "with_box_refine"),
    *(
        "freeze_backbone_batch_norms",
        "is_encoder_decoder",
        "tie_word_embeddings",
        "auxiliary_loss",
        "eval_idx",
    ),
    *("disable_custom_kernels", "output_attentions", "output_hidden_states", "return_dict"),
)
_LARGEST = 65_536  # number of a configuration


@dataclass(frozen=True)
class Kind:
    """A kind of detector: transformers' name of it, and what differs from its configuration there."""

    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "rtdetr": Kind("rt_detr"),
    "dfine": Kind("d_fine"),
    "light": Kind(
        "rt_detr",
        {
            "d_model": 64,
            "encoder_hidden_dim": 64,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "hidden_expansion": 0.5,
            "decoder_layers": 1,
            "num_queries": 40,
            "num_denoising": 20,
        },
    ),
}


def parsed(text: str) -> tuple[str, dict[str, Any]]:
    """A kind and its settings: ``light,num_queries=60``.

    Raises:
        UsageError: no such kind or setting, one that is given twice, or a value that it cannot have.
    """
    name, *items = text.split(",")
    if name not in KINDS:
        raise UsageError(
            f"head={text}: no detector '{name}'.{nearest(name, KINDS)} There are: {', '.join(KINDS)}."
        )
    known = _settings(KINDS[name].model_type)
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if key not in known or not equals:
            raise UsageError(
                f"head={text}: no setting '{item}'.{nearest(key, known)} It has: {', '.join(known)}."
            )
        if key in found:
            raise UsageError(f"head={text}: {key} is given a second time.")
        found[key] = _value(text, key, value, known[key])
    return name, found


def _settings(model_type: str) -> dict[str, Any]:
    """The defaults of a configuration's numbers and switches, without those that follow from others."""
    config = _config_class(model_type)()
    names = [name for name in type(config).__dataclass_fields__ if name not in _DERIVED]
    own = {name: getattr(config, name) for name in names if name in type(config).__annotations__}
    return {name: value for name, value in own.items() if isinstance(value, bool | int | float)}


def _value(text: str, key: str, written: str, default: Any) -> Any:
    """A number or a switch as the default is one. Raises UsageError."""
    if isinstance(default, bool):
        if written not in ("true", "false"):
            raise UsageError(f"head={text}: {key} is true or false.")
        return written == "true"
    try:
        value = int(written) if isinstance(default, int) else float(written)
    except ValueError:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise UsageError(f"head={text}: {key} is {kind}, got '{written}'.") from None
    if not 0 <= value <= _LARGEST:
        raise UsageError(f"head={text}: {key} is between 0 and {_LARGEST:,}.")
    return value


def _config_class(model_type: str) -> Any:
    from transformers import AutoConfig

    return type(AutoConfig.for_model(model_type))


class GivenMaps(nn.Module):
    """Stands where a detector has its backbone, and hands on the maps that it is given for a mask."""

    def forward(self, _: Tensor, maps: Sequence[Tensor]) -> list[tuple[Tensor, None]]:
        """Maps, and no masks of them."""
        return [(found, None) for found in maps]


def make(kind: str, settings: Mapping[str, Any], widths: Sequence[int], classes: int) -> Any:
    """A detector on three given maps, with its initial weights; see :func:`begin`.

    Args:
        kind: a name of :data:`KINDS`.
        settings: fields of transformers' configuration that differ from the kind's.
        widths: channels of the maps, finest first.
        classes: C.

    Raises:
        InputError: settings that contradict one another.
    """
    from transformers import AutoModelForObjectDetection, RTDetrResNetConfig

    row = KINDS[kind]
    given = {**row.settings, **settings}
    stub = RTDetrResNetConfig(  # never run: its channels are all that is asked of it
        embedding_size=8,
        hidden_sizes=list(widths),
        depths=[1] * len(widths),
        layer_type="bottleneck",
        out_indices=list(range(1, len(widths) + 1)),
    )
    config_class = _config_class(row.model_type)
    hidden = given.get("encoder_hidden_dim", config_class().encoder_hidden_dim)
    try:
        config = config_class(
            backbone_config=stub,
            encoder_in_channels=list(widths),
            decoder_in_channels=[hidden] * len(widths),
            freeze_backbone_batch_norms=False,
            num_labels=classes,
            **given,
        )
        detector = AutoModelForObjectDetection.from_config(config)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError, AssertionError) as error:
        raise InputError(f"head={described(kind, settings)}: {str(error).splitlines()[0]}") from error
    detector.model.backbone = GivenMaps()
    begin(detector)
    return detector


def begin(detector: nn.Module) -> None:
    """Give a detector the initial weights that its authors' code has, where transformers' differ.

    Convolutions and batch norms have torch's own, not weights and scales around 0 (normal, 0.01), from where
    a short training has far to go; of RT-DETR the layers that give boxes too, and the first boxes are the
    anchors. A backbone is left as it is.
    """
    boxes = (
        ("bbox_embed", "enc_bbox_head", "query_pos_head")
        if type(detector).__name__.startswith("RTDetr")
        else ()
    )
    for name, module in detector.named_modules():
        if ".backbone." in name:
            continue
        about_boxes = isinstance(module, nn.Linear) and any(part in name for part in boxes)
        if about_boxes or isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    if boxes:
        model: Any = detector.model
        for head in (model.enc_bbox_head, *model.decoder.bbox_embed):
            nn.init.zeros_(head.layers[-1].weight)
            nn.init.zeros_(head.layers[-1].bias)


def class_layers(detector: Any) -> list[Any]:
    """All layers that know classes: of places, of every refinement, of queries made of objects."""
    model = detector.model
    found = [
        model.enc_score_head,
        *model.decoder.class_embed,
        *(getattr(detector, "class_embed", None) or ()),
    ]
    found += [model.denoising_class_embed] if hasattr(model, "denoising_class_embed") else []
    return list({id(layer.weight): layer for layer in found}.values())  # D-FINE shares them


def for_classes(detector: Any, classes: int) -> Any:
    """The same detector with fresh layers for other classes; all is kept that knows none."""
    config = copy.deepcopy(detector.config)
    config.num_labels = classes
    made = type(detector)(config)
    if isinstance(detector.model.backbone, GivenMaps):
        made.model.backbone = GivenMaps()
    known = {id(p) for layer in class_layers(detector) for p in layer.parameters()}
    parameters = dict(detector.named_parameters(remove_duplicate=False))
    kept = {n: t for n, t in detector.state_dict().items() if id(parameters.get(n)) not in known}
    made.load_state_dict(kept, strict=False)
    return made.to(next(detector.parameters()).device)


def described(kind: str, settings: Mapping[str, Any]) -> str:
    """``light,num_queries=60``, as :func:`parsed` takes it."""
    return ",".join([kind, *(f"{key}={str(value).lower()}" for key, value in settings.items())])


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
        detector: of :func:`make`, or a whole one of transformers.
        pixels: [B, 3, H, W] for a whole one.
        maps: three maps [B, D_i, h_i, w_i] for one of :func:`make`.
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


@contextmanager
def symbolic_lengths(detector: Any) -> Iterator[None]:
    """A block in which a graph of any batch can be traced of a detector.

    transformers asks for the batch by ``len``, which fixes it for ever where its size should stay a symbol.
    """
    module: Any = sys.modules[type(detector).__module__]
    module.len = lambda value: value.shape[0] if isinstance(value, Tensor) else len(value)
    try:
        yield
    finally:
        del module.len
