"""The one type of network that stages and engine see: a timm model with input, class names and taps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError
from kdcli.models.heads.base import Head
from kdcli.models.heads.dense import assembled_grid, feature_maps, is_vit
from kdcli.models.heads.linear import FEATURES, FeatureHead
from kdcli.models.taps import Recorder

_LAYOUT = torch.channels_last  # a tenth to a third faster for CNNs on a CPU, nothing for ViTs
LAST = 4  # blocks or stages whose outputs a probe may concatenate (DINOv2's largest n)


class Network(nn.Module):
    """A timm model with everything that makes its output reproducible.

    Args:
        body: the timm model.
        spec: what it wants to see.
        classes: names of its logits; None for a backbone without a trained classifier.
        name: for messages.
        head: replaces the timm classifier where given.
        source: hash of the weights it was built from, for cache keys.
        trained: the state of its weights: ``random``, ``pretrained`` or ``artifact``.
        task: what its logits answer, a name of :data:`kdcli.tasks.TASKS`.
    """

    def __init__(
        self,
        body: nn.Module,
        spec: InputSpec,
        classes: list[str] | None,
        *,
        name: str,
        head: Head | None = None,
        source: str = "",
        trained: str = "random",
        task: str = "classification",
    ) -> None:
        super().__init__()
        self.body, self.head = body.to(memory_format=_LAYOUT), head
        self.spec, self.classes, self.name, self.source, self.trained = spec, classes, name, source, trained
        self.task = task
        self.register_buffer("_mean", torch.tensor(spec.mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("_std", torch.tensor(spec.std).view(1, -1, 1, 1) * 255, persistent=False)

    def prepare(self, x: Tensor) -> Tensor:
        """Resize and normalise views for this network.

        Args:
            x: uint8 [B, 3, H, W]; float tensors are taken as prepared and returned as they are.
        """
        if x.dtype != torch.uint8:
            return x
        mean: Any = self._mean
        x = x.to(mean.dtype)
        if tuple(x.shape[-2:]) != self.spec.size:
            mode = (
                self.spec.interpolation if self.spec.interpolation in ("bilinear", "bicubic") else "bicubic"
            )
            x = F.interpolate(x, self.spec.size, mode=mode, antialias=True, align_corners=False).clamp(0, 255)
        return ((x - mean) / self._std).contiguous(memory_format=_LAYOUT)

    def restore(self, x: Tensor) -> Tensor:
        """Pictures uint8 [B, 3, H, W] of prepared ones (float): what :meth:`prepare` normalises to them."""
        mean: Any = self._mean
        std: Any = self._std
        return (x.detach().to(mean.dtype) * std + mean).round().clamp(0, 255).to(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C], or [B, C, h, w], of views (uint8) or prepared pictures (float)."""
        x = self.prepare(x)
        if self.head is None:
            return self.body(x)
        return self.head(self.head.read(self, x)[1])

    def taps(self, x: Tensor, names: Sequence[str]) -> dict[str, Any]:
        """Named tensors of one call; see :mod:`kdcli.models.taps` for the names.

        Returns:
            ``{name: tensor}``, or a list of tensors for a pattern.
        """
        if tuple(names) == ("logits",):
            return {"logits": self(x)}
        x = self.prepare(x)
        body: Any = self.body
        with Recorder(self, names) as recorder:
            if self.head is None:
                features = body.forward_features(x)
                logits = body.forward_head(features)
            else:
                features, taken = self.head.read(self, x)
                logits = self.head(taken)
        return recorder.result(features, logits)

    # -- features for probing --------------------------------------------------------------------------------
    @property
    def has_class_token(self) -> bool:
        """Whether this is a plain ViT with a class token, whose blocks can be read one by one."""
        return getattr(self.body, "cls_token", None) is not None and is_vit(self.body)

    def feature_names(self) -> list[str]:
        """Features a linear classifier can read here: DINOv2's four on a ViT, pooled stages on others."""
        return list(FEATURES) if self.has_class_token else ["pooled", "last4"]

    def features(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Parts [B, D_i] that the named features are made of."""
        parts = dict.fromkeys(part for name in names for part in FEATURES[name])
        return self.run(self.prepare(x), tuple(parts))[1]

    def run(self, x: Tensor, wanted: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the body's head takes (unpooled), and the wanted parts of features, from one pass.

        Args:
            x: prepared pictures.
            wanted: parts of ``FEATURES``, each [B, D_i] in the answer.
        """
        body: Any = self.body
        if set(wanted) == {"pooled"}:
            final = body.forward_features(x)
            return final, {"pooled": body.forward_head(final, pre_logits=True)}
        parts: dict[str, Tensor] = {}
        depth = min(LAST, len(body.feature_info))
        if self.has_class_token:
            final, layers = body.forward_intermediates(
                x, indices=depth, norm=True, output_fmt="NLC", return_prefix_tokens=True
            )
            back = [prefix[:, 0] for _, prefix in layers]
            parts["avg"] = layers[-1][0].mean(dim=1)
        else:
            final, maps = body.forward_intermediates(x, indices=depth)
            back = [_spatial_mean(m) for m in maps]
        # timm's own head may pool otherwise than by the class token (MAE's fc_norm): keep its definition
        parts["pooled"] = body.forward_head(final, pre_logits=True)
        parts |= {f"back{i}": back[-min(i, depth)] for i in range(2, LAST + 1)}
        return final, {name: parts[name] for name in wanted}

    # -- heads -----------------------------------------------------------------------------------------------
    def maps(self, x: Tensor, feature: str) -> tuple[Tensor, ...]:
        """Maps [B, D_i, h_i, w_i] of views that a feature of ``GRIDS`` is made of."""
        return feature_maps(self.body, self.prepare(x), feature)

    def assembled(self, maps: Sequence[Tensor]) -> Tensor:
        """A feature grid [B, D, h, w] of its maps."""
        return assembled_grid(maps, self.spec.size[1])

    def attach(self, head: Head | None, classes: list[str], task: str) -> None:
        """Make a head the network's; None stands for a fresh classifier of timm's own."""
        reset_classifier(self.body, len(classes) if head is None else 0)
        like = next(self.body.parameters())
        self.head = None if head is None else head.to(device=like.device, dtype=like.dtype)
        self.classes, self.task = list(classes), task

    def synchronise(self) -> None:
        """Let the head's batch norms see the batches of all processes; CUDA only, torch has none for CPUs."""
        if self.head is not None:
            self.head = nn.SyncBatchNorm.convert_sync_batchnorm(self.head)

    @property
    def logit_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one picture: [C], or [C, h, w]."""
        cells = () if self.head is None else self.head.cells(self)
        return (len(self.classes or ()), *cells)

    @property
    def logit_count(self) -> int:
        """Numbers in the logits of one picture."""
        return math.prod(self.logit_shape)

    def attach_linear(
        self, feature: str, weight: Tensor, bias: Tensor, classes: list[str], task: str = "classification"
    ) -> None:
        """Make a linear classifier over ``feature`` the head, in timm's own layout where it fits."""
        own = feature == "pooled"
        self.attach(None if own else FeatureHead(feature, weight.shape[1], len(classes)), classes, task)
        linear = self.linear
        with torch.no_grad():
            linear.weight.copy_(weight.to(linear.weight))
            linear.bias.copy_(bias.to(linear.bias))

    @property
    def architecture(self) -> str:
        """Its name in timm."""
        body: Any = self.body
        return str((getattr(body, "pretrained_cfg", None) or {}).get("architecture", type(body).__name__))

    @property
    def linear(self) -> Any:
        """The layer that gives the logits. Raises InputError if the timm model has no single linear one."""
        return self.head.linear if self.head is not None else classifier(self.body)

    def reorder(self, order: Sequence[int] | None, classes: list[str]) -> None:
        """Put the classifier's rows into the order of ``classes``; ``order[i]`` is the old row of class i."""
        self.classes = list(classes)
        if order is None:
            return
        linear = self.linear
        rows = torch.tensor(list(order))
        with torch.no_grad():
            linear.weight.copy_(linear.weight[rows].clone())
            if linear.bias is not None:
                linear.bias.copy_(linear.bias[rows].clone())

    def class_rows(self) -> Tensor | None:
        """Weight [C, D] of its linear classifier, None where it ends otherwise."""
        try:
            linear = self.linear
        except InputError:
            return None
        return linear.weight if isinstance(linear, nn.Linear) else None

    @property
    def layout(self) -> str:
        """``timm`` if plain timm loads the artifact with the same logits, else ``kdcli``."""
        return "timm" if self.head is None else "kdcli"


def classifier(body: Any) -> nn.Linear:
    """The final linear layer of a timm model. Raises InputError if it ends otherwise."""
    found = body.get_classifier()
    if not isinstance(found, nn.Linear):
        raise InputError(f"{type(body).__name__} ends in {type(found).__name__}, not in a linear classifier.")
    return found


def reset_classifier(body: Any, classes: int) -> None:
    """Give a timm model a fresh classifier, on the device and in the type of its weights."""
    like = next(body.parameters())
    body.reset_classifier(classes)
    body.to(device=like.device, dtype=like.dtype)


def _spatial_mean(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3)) if x.ndim == 4 else x.mean(dim=1)
