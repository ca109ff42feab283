"""transformers' detectors as models, backbone and all: RT-DETR and D-FINE as their authors published them.

Such a model is read from a folder or the hub in transformers' own layout (``local-dir:PATH``,
``hf-hub:PekingU/rtdetr_r50vd``), or built of a configuration that is known here by a name, and it is written
so that transformers loads it. It sees whole pictures, squashed, with values of 0 to 1 as its processor says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.model import InputSpec
from kdcli.artifacts.reading import read_object
from kdcli.artifacts.store import write_bytes, write_tensors
from kdcli.errors import InputError, nearest
from kdcli.models import detecting, detectors
from kdcli.models.aliases import NAMED
from kdcli.models.checks import LARGEST_SIDE, limited
from kdcli.models.detecting import Objects
from kdcli.models.detectors import KINDS
from kdcli.models.families import without_bars
from kdcli.models.heads.detection import TAPS, taps_of
from kdcli.models.legacy import first_line
from kdcli.models.protocol import Model

TYPES = tuple(dict.fromkeys(kind.model_type for kind in KINDS.values()))
"""Types of transformers' configurations that are read."""
SPEC = InputSpec((640, 640), (0.0,) * 3, (1.0,) * 3, "bilinear", 1.0, "squash")
"""What the authors trained on."""
_OF_BASIC = {"encoder_in_channels": [128, 256, 512], "decoder_layers": 3, "hidden_expansion": 0.5}


class Detr(Model):
    """A detector of transformers.

    Its taps are ``logits`` [B, Q, C], those of :data:`kdcli.models.heads.detection.TAPS`, and outputs of
    modules by their paths.

    Args:
        body: ``RTDetrForObjectDetection`` or ``DFineForObjectDetection``.
        spec: what it wants to see.
        classes: names of its logits.
        facts: further arguments of :class:`kdcli.models.protocol.Model`, by name.
    """

    def __init__(self, body: Any, spec: InputSpec, classes: list[str] | None, **facts: Any) -> None:
        super().__init__(spec, classes, **facts)
        self.body: Any = detectors.with_right_gradients(body)
        self._frozen = False

    def prepare(self, x: Tensor) -> Tensor:
        """Resize and normalise views uint8 [B, 3, H, W]; float tensors are taken as prepared."""
        if x.dtype != torch.uint8:
            return x
        found = x.float()
        if tuple(x.shape[-2:]) != self.spec.size:
            mode = self.spec.interpolation
            found = F.interpolate(found, self.spec.size, mode=mode, antialias=True, align_corners=False)
        mean, std = self._normalisation(found)
        return (found.clamp(0, 255) / 255 - mean) / std

    def restore(self, x: Tensor) -> Tensor:
        """Pictures uint8 of prepared ones."""
        mean, std = self._normalisation(x)
        return ((x.detach() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _normalisation(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.new_tensor(value)[:, None, None] for value in (self.spec.mean, self.spec.std))

    def forward(self, x: Tensor) -> Tensor:
        """The best detections [B, K, 6]; see :func:`kdcli.models.detecting.detections`."""
        outputs = detecting.run(self.body, self.prepare(x), None, None)
        return detecting.detections(*detecting.answers(outputs))

    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        """Named tensors of a call on pictures, perhaps with the objects on them."""
        beside: Sequence[Any] = inputs[1:]
        objects = Objects(*beside) if beside else None
        modules, seen, handles = self.tappable(), dict[str, Any](), []
        own = [tap for tap in taps if tap in TAPS]
        for tap in (tap for tap in taps if tap not in (*own, "logits")):
            if tap not in modules:
                raise InputError(f"{self.name} has no tap '{tap}'.{nearest(tap, (*TAPS, *modules))}")
            handles.append(modules[tap].register_forward_hook(lambda _m, _i, o, t=tap: seen.update({t: o})))
        try:
            outputs = detecting.run(self.body, self.prepare(inputs[0]), None, objects)
        finally:
            for handle in handles:
                handle.remove()
        found = taps_of(self.body, outputs, own, objects) | seen
        return {tap: found[tap] for tap in taps}

    def traceable(self) -> AbstractContextManager[None]:
        """A block in which a graph of any batch can be traced."""
        return detectors.symbolic_lengths(self.body)

    def tappable(self) -> dict[str, nn.Module]:
        """Modules of the network by their paths."""
        return {name: module for name, module in self.body.named_modules() if name}

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its name; ``classifier`` is the rows of the last classifier."""
        if name == "classifier":
            return self.linear.weight
        known = {**dict(self.body.named_parameters()), **dict(self.body.named_buffers())}
        if name not in known:
            raise InputError(f"{self.name} has no parameter or buffer '{name}'.{nearest(name, known)}")
        return known[name]

    @property
    def architecture(self) -> str:
        """Its type in transformers."""
        return str(self.body.config.model_type)

    @property
    def layout(self) -> str:
        """transformers loads its files with the same answers."""
        return "transformers"

    @property
    def logit_shape(self) -> tuple[int, ...]:
        """(queries, classes)."""
        return (int(self.body.config.num_queries), self.outputs)

    @property
    def linear(self) -> Any:
        """The layer that gives the logits of the last refinement."""
        return self.body.model.decoder.class_embed[-1]

    @property
    def class_layers(self) -> list[Any]:
        """All layers that know classes."""
        return detectors.class_layers(self.body)

    def attach(self, head: Any, classes: list[str], task: str) -> None:
        """Fresh layers for other classes; all else stays."""
        if head is not None:
            self._refuse("place for another head than its own")
        self.body = detectors.for_classes(self.body, len(classes))
        self.classes, self.task, self.unnamed, self.fresh = list(classes), task, 0, True

    def fresh_head(self, name: str, classes: int) -> Any:
        """None: its own, whatever kind a task would give a backbone."""
        return None

    def freeze_body(self) -> None:
        """Let nothing of its backbone learn."""
        self._frozen = True
        self.body.model.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Detr:
        """Train or eval mode; of a frozen backbone always eval mode."""
        super().train(mode)
        if self._frozen:
            self.body.model.backbone.eval()
        return self

    def synchronise(self) -> None:
        """Let batch norms see the batches of all processes; CUDA only, torch has none for CPUs."""
        self.body = nn.SyncBatchNorm.convert_sync_batchnorm(self.body)

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        """Write it as transformers does, with a description of its input beside it."""
        state = dict(self.state_dict()) if tensors is None else tensors
        write_tensors(
            folder / artifacts.WEIGHTS, _once({n.removeprefix("body."): t for n, t in state.items()})
        )
        config = self.body.config
        names = dict(enumerate(self.classes or []))
        config.id2label, config.label2id = names, {name: i for i, name in names.items()}
        config.architectures = [type(self.body).__name__]
        write_bytes(folder / artifacts.CONFIG, config.to_json_string(use_diff=False).encode())
        described = json.dumps(_processor(self.spec), indent=1) + "\n"
        write_bytes(folder / artifacts.PROCESSOR, described.encode())
        return [artifacts.WEIGHTS, artifacts.CONFIG, artifacts.PROCESSOR]


def _once(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies: D-FINE's layers share some of theirs, and a file holds each name by itself."""
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def _processor(spec: InputSpec) -> dict[str, Any]:
    """What transformers' processor reads of an input."""
    plain = spec.mean == (0.0, 0.0, 0.0) and spec.std == (1.0, 1.0, 1.0)
    return {
        "image_processor_type": "RTDetrImageProcessor",
        "do_resize": True,
        "size": {"height": spec.size[0], "width": spec.size[1]},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": not plain,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_pad": False,
    }


def read_spec(folder: Path) -> InputSpec:
    """The input that a processor's file describes; the authors' where there is none.

    Raises:
        InputError: another kind of input.
    """
    spec, file = SPEC, folder / artifacts.PROCESSOR
    if not file.is_file():
        return spec
    found = read_object(file)
    size = found.get("size") or {}
    try:
        sides = int(size.get("height", SPEC.size[0])), int(size.get("width", SPEC.size[1]))
        if found.get("do_normalize"):
            mean, std = (tuple(float(v) for v in found[key]) for key in ("image_mean", "image_std"))
            spec = replace(spec, mean=mean, std=std)
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{file} describes no input: {first_line(error)}.") from error
    if sides[0] != sides[1] or not 1 <= sides[0] <= LARGEST_SIDE:
        raise InputError(f"{file}: an input of {sides[0]} x {sides[1]} pixels; a square one is wanted.")
    return replace(spec, size=sides)


def is_detr(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is one of transformers' detectors that are read here."""
    return config.get("model_type") in TYPES


def from_configuration(config: dict[str, Any], where: str, weights: Path | None = None) -> Any:
    """The network of a ``config.json``, with random weights.

    Raises:
        InputError: a configuration that transformers cannot build, or one beyond all measure.
    """
    from transformers import AutoConfig, AutoModelForObjectDetection

    try:
        made = AutoConfig.for_model(**{**config, "model_type": config["model_type"]})
        with limited(where, weights):
            return AutoModelForObjectDetection.from_config(made)
    except InputError:
        raise
    except Exception as error:  # of many kinds: no such configuration
        raise InputError(f"{where}: transformers cannot build it: {first_line(error)}.") from error


def named(name: str) -> Any:
    """The network that a name of :data:`kdcli.models.aliases.NAMED` stands for, with random weights."""
    from transformers import AutoModelForObjectDetection, RTDetrConfig, RTDetrResNetConfig

    backbone = NAMED[name]
    own = RTDetrResNetConfig(**backbone, out_indices=[2, 3, 4])
    more = _OF_BASIC if backbone.get("layer_type") == "basic" else {}
    network = AutoModelForObjectDetection.from_config(RTDetrConfig(backbone_config=own, **more))
    detectors.begin(network)
    return network


def class_names(config: dict[str, Any], count: int) -> list[str] | None:
    """Names of the logits that a configuration tells; None where it has transformers' placeholders."""
    labels = config.get("id2label") or {}
    names = [str(labels.get(str(i), labels.get(i, ""))) for i in range(count)]
    told = all(names) and names != [f"LABEL_{i}" for i in range(count)]
    return names if told and len(set(names)) == count else None


def pretrained(source: str, where: str, config: Any = None, tensors: dict[str, Tensor] | None = None) -> Any:
    """A network with weights, of a folder or the hub in transformers' layout, or of tensors.

    Args:
        source: folder or hub id.
        where: names it in messages.
        config: of tensors, the configuration that they are of.
        tensors: in the place of those of ``source``.

    Raises:
        InputError: missing, unexpected or misshapen tensors.
    """
    from transformers import AutoModelForObjectDetection

    kind = (
        AutoModelForObjectDetection
        if config is None
        else AutoModelForObjectDetection._model_mapping[type(config)]
    )
    more: dict[str, Any] = {} if config is None else {"config": config, "state_dict": tensors}
    with without_bars():
        made, told = kind.from_pretrained(
            source if config is None else None,
            use_safetensors=True,
            output_loading_info=True,
            **({"trust_remote_code": False} if config is None else {}),
            **more,
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(map(str, told.get(what) or ())):
            raise InputError(
                f"{where}: {what.replace('_', ' ')} for {made.config.model_type}, first {found[0]}."
            )
    return made
