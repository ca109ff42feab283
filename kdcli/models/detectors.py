"""RT-DETR and D-FINE, transformers' own modules: their kinds and settings, made and begun.

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
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError, UsageError, nearest

LEVELS = 3  # maps that both read, each half as large as the one before it
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
    "learn_initial_query",  # transformers' own code fails with it
)
_ANY = (0, 65_536)  # of numbers that are not among those below
_BOUNDS = {  # of settings whose names end so; the authors' largest are 384 wide, 6 deep, with 300 queries
    **dict.fromkeys(("d_model", "hidden_dim"), (8, 2048)),
    "ffn_dim": (8, 8192),
    "encoder_layers": (0, 24),
    "layers": (1, 24),
    "heads": (1, 64),
    "points": (1, 64),
    "num_queries": (1, 10_000),
    "num_denoising": (0, 10_000),
    "dropout": (0, 0.99),
    "ratio": (0, 1),
    "max_num_bins": (4, 256),
    "hidden_expansion": (0.1, 4),
    "depth_mult": (0.1, 4),
    "layer_scale": (0.1, 4),
    "eps": (1e-12, 0.1),
    "initializer_range": (1e-6, 1),
    "temperature": (1, 65_536),
}


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
    low, high = next((bounds for ending, bounds in _BOUNDS.items() if key.endswith(ending)), _ANY)
    if not low <= value <= high:
        raise UsageError(f"head={text}: {key} is between {low:,} and {high:,}.")
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
    return with_right_gradients(detector)


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


def _plain(gradient: Tensor) -> Tensor:
    """A gradient in plain layout where it is of one picture."""
    return gradient if len(gradient) > 1 else gradient.clone(memory_format=torch.contiguous_format)


def _in_plain(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    if output.requires_grad and not torch.compiler.is_compiling():
        output.register_hook(_plain)


def with_right_gradients(detector: nn.Module) -> nn.Module:
    """A detector whose batch norms learn from a batch of one picture too.

    torch 2.14 gives a batch norm on a CPU a wrong gradient of its input and weights where that of its output
    is of one picture and transposed, as it is behind maps that are flattened to places.
    """
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(_in_plain)
    return detector


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
    with_right_gradients(made)
    return made.to(next(detector.parameters()).device)


def described(kind: str, settings: Mapping[str, Any]) -> str:
    """``light,num_queries=60``, as :func:`parsed` takes it."""
    return ",".join([kind, *(f"{key}={str(value).lower()}" for key, value in settings.items())])


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
