"""timm's networks as models: input, class names, taps, and what heads read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError, nearest
from kdcli.models.autoencoder import Decoder
from kdcli.models.headed import Headed
from kdcli.models.heads.base import Head
from kdcli.models.heads.dense import GRIDS, assembled_grid, feature_maps, is_vit
from kdcli.models.heads.linear import FEATURES
from kdcli.models.masked import patch_grid, seeing
from kdcli.models.save import write
from kdcli.models.taps import DECODED, Recorder, as_map, block_names, block_path, decoder_block

_LAYOUT = torch.channels_last  # a tenth to a third faster for CNNs on a CPU, nothing for ViTs
_LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601, as Pillow's grey pictures have it
LAST = 4  # blocks or stages whose outputs a probe may concatenate (DINOv2's largest n)


class TimmModel(Headed):
    """A timm model with everything that makes its output reproducible.

    Args:
        body: the timm model.
        spec: what it wants to see.
        classes: names of its logits; None for a backbone without a trained classifier.
        head: replaces the timm classifier where given.
        operations: by which the body differs from its architecture; see :mod:`kdcli.models.surgery`.
        decoder: of a masked autoencoder, whose encoder the body is.
        facts: further arguments of :class:`kdcli.models.protocol.Model`, by name.
    """

    def __init__(
        self,
        body: nn.Module,
        spec: InputSpec,
        classes: list[str] | None,
        *,
        head: Head | None = None,
        operations: Sequence[Mapping[str, Any]] = (),
        decoder: Decoder | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(spec, classes, **facts)
        self.operations = tuple(operations)
        self._frozen = False
        self.decoder = decoder
        self.body, self.head = body.to(memory_format=_LAYOUT), head
        self.register_buffer("_mean", torch.tensor(spec.mean).view(1, -1, 1, 1) * 255, persistent=False)
        self.register_buffer("_std", torch.tensor(spec.std).view(1, -1, 1, 1) * 255, persistent=False)

    def prepare(self, x: Tensor) -> Tensor:
        """Resize and normalise views for this network.

        Args:
            x: uint8 [B, 3, H, W]; float tensors are taken as prepared and returned as they are. A network of
                one channel sees the luminance of either.
        """
        mean: Any = self._mean
        views = x.dtype == torch.uint8
        x = x.to(mean.dtype) if views else x
        if self.spec.channels == 1 and x.shape[1] == len(_LUMINANCE):
            x = (x * x.new_tensor(_LUMINANCE).view(1, -1, 1, 1)).sum(dim=1, keepdim=True)
        if not views:
            return x
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
        """What it answers to views (uint8) or prepared pictures (float).

        Logits [B, C] or [B, C, h, w], or an embedding [B, E].
        """
        x = self.prepare(x)
        if self.head is None:
            return self.body(x)
        return self.head.answer(self.head.read(self, x)[1])

    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        """Named tensors of one call on one batch of pictures, or on some patches of each.

        Args:
            inputs: pictures; perhaps which of their patches are seen too, bool [B, N], of a plain ViT;
                perhaps a token [B, D] that stands for those that are not, which are else left out. Or
                pictures, and what a head in training is given beside them.
            taps: see :mod:`kdcli.models.taps`.
        """
        if len(inputs) in (2, 3) and isinstance(inputs[1], Tensor) and inputs[1].dtype == torch.bool:
            with seeing(self, *inputs[1:]):
                return self._call(self.prepare(inputs[0]), taps, inputs[1])
        if len(inputs) > 1 and self.head is not None and self.head.gives:
            return self._call(self.prepare(inputs[0]), taps, beside=inputs[1:])
        return self._call(self.prepare(self._single(inputs)), taps)

    def _call(
        self,
        x: Tensor,
        taps: Sequence[str],
        visible: Tensor | None = None,
        beside: Sequence[Any] = (),
    ) -> dict[str, Any]:
        head: Any = self.head
        if tuple(taps) == ("logits",) and not beside:
            return {"logits": self.body(x) if head is None else head(head.read(self, x)[1])}
        body: Any = self.body
        given = [tap for tap in taps if head is not None and tap in head.gives]
        decoded = [tap for tap in taps if DECODED.fullmatch(tap)]
        with Recorder(self, [tap for tap in taps if tap not in (*given, *decoded)]) as recorder:
            if head is None:
                features = body.forward_features(x)
                named = {"logits": body.forward_head(features)}
            else:
                features, taken = head.read(self, x)
                named = head.named(taken, given, beside)
        found = recorder.result(x, features, named["logits"])
        return found | {tap: named[tap] for tap in given} | self._decoded(features, visible, decoded)

    def _decoded(self, tokens: Tensor, visible: Tensor | None, taps: Sequence[str]) -> dict[str, Tensor]:
        """Blocks of the decoder of a masked autoencoder, by their taps."""
        if not taps:
            return {}
        if self.decoder is None:
            raise InputError(
                f"{self.name} has no decoder, and '{taps[0]}' is a block of one: kdcli distill --method mae "
                "makes a model with one, and kdcli probe --head decoder reads one of MAE's files."
            )
        if visible is None:
            raise InputError(f"{self.name}: '{taps[0]}' is of a call that sees some of the patches.")
        depth = self.decoder.depth
        blocks = {tap: decoder_block(tap) for tap in taps}
        for tap, block in blocks.items():
            if not 1 <= block <= depth:
                raise InputError(f"no '{tap}': the decoder of {self.name} has blocks 1 to {depth}.")
        return {tap: self.decoder.hidden(tokens, visible, block) for tap, block in blocks.items()}

    def traceable(self) -> AbstractContextManager[None]:
        """A block in which a graph of any batch can be traced."""
        return nullcontext() if self.head is None else self.head.traceable()

    def tappable(self) -> dict[str, nn.Module]:
        """Modules of the timm model by their paths."""
        return dict(self.body.named_modules())

    def block_taps(self) -> list[str]:
        """``block1`` and so on, as far as timm says what its blocks or stages are."""
        return block_names(self.body)

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer of the timm model by its name.

        ``classifier`` is the classifier's rows, ``patches`` numbers [h, w] of the patches of a picture.
        """
        if name == "classifier":
            return self.linear.weight
        if name == "patches":
            rows, columns = patch_grid(self)
            return torch.arange(rows * columns, device=next(self.parameters()).device).view(rows, columns)
        for find in (self.body.get_parameter, self.body.get_buffer):
            with suppress(AttributeError):  # found by its path: a walk over all would cost every step
                return find(name)
        known = [*dict(self.body.named_parameters()), *dict(self.body.named_buffers())]
        raise InputError(f"{self.name} has no parameter or buffer '{name}'.{nearest(name, known)}")

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
    def map_count(self, feature: str) -> int:
        """Number of maps that a feature of ``GRIDS`` is made of."""
        body: Any = self.body
        return min(GRIDS[feature], len(body.feature_info))

    def maps(self, x: Tensor, feature: str) -> tuple[Tensor, ...]:
        """Maps [B, D_i, h_i, w_i] of views that a feature of ``GRIDS`` is made of."""
        return feature_maps(self.body, self.prepare(x), feature)

    def map_module(self, name: str) -> nn.Module:
        """The module behind ``mapK``, ``stageK`` or ``a.b.c.map``. Raises InputError if there is none."""
        path = block_path(self.body, name) or name.removesuffix(".map")
        module = self.tappable().get(path)
        if module is None:
            raise InputError(f"{self.name} has no module '{path}' to tap.")
        return module

    def as_map(self, output: Tensor) -> Tensor:
        """What a block or stage returns, as a map [B, D, H, W]. Raises InputError if it is none."""
        return as_map(self.body, output)

    def assembled(self, maps: Sequence[Tensor]) -> Tensor:
        """A feature grid [B, D, h, w] of its maps."""
        return assembled_grid(maps, self.spec.size[1])

    def freeze_body(self) -> None:
        """Let nothing learn but the head: the body stays in eval mode, whatever mode the network is in."""
        self.body.requires_grad_(False)
        self._frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> TimmModel:
        """Train or eval mode; of a frozen body always eval mode."""
        super().train(mode)
        if self._frozen:
            self.body.eval()
        return self

    def synchronise(self) -> None:
        """Let the head's batch norms see the batches of all processes; CUDA only, torch has none for CPUs."""
        if self.head is not None:
            self.head = nn.SyncBatchNorm.convert_sync_batchnorm(self.head)

    @property
    def logit_shape(self) -> tuple[int, ...]:
        """Shape of the logits of one picture: [C], [C, h, w], or [Q, C] of a detector's queries."""
        return (self.outputs,) if self.head is None else self.head.logit_shape(self)

    @property
    def architecture(self) -> str:
        """Its name in timm."""
        body: Any = self.body
        return str((getattr(body, "pretrained_cfg", None) or {}).get("architecture", type(body).__name__))

    @property
    def layout(self) -> str:
        """``timm`` if plain timm loads the artifact with the same logits, else ``kdcli``."""
        return "timm" if self.head is None and not self.operations else "kdcli"

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        """Write it as a model directory; see :mod:`kdcli.models.save`."""
        return write(self, folder, dict(self.state_dict()) if tensors is None else tensors)

    # -- training --------------------------------------------------------------------------------------------
    def undecayed(self) -> set[str]:
        """What the timm model never decays beside biases and norms: position embeddings, class tokens."""
        return {f"body.{name}" for name in self._spared()}

    def layer_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """timm's groups of the body, by block; a head of ours stands above the last block."""
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(
            self.body, weight_decay, no_weight_decay_list=self._spared(), layer_decay=layer_decay
        )
        scale = 1.0 if self.head is None else layer_decay
        return [{**group, "lr_scale": group["lr_scale"] * scale} for group in groups]

    def _spared(self) -> set[str]:
        return set(getattr(self.body, "no_weight_decay", set)())


def _spatial_mean(x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3)) if x.ndim == 4 else x.mean(dim=1)
