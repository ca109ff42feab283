"""transformers' networks as models: picture towers of vision-language models, as CLIP (arXiv 2103.00020)."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from kdcli.models.banks import TextBank
from kdcli.models.checks import LARGEST_SIDE
from kdcli.models.families import FAMILIES
from kdcli.models.heads.texts import BankHead
from kdcli.models.legacy import first_line
from kdcli.models.protocol import Model
from kdcli.models.save import below
from kdcli.models.surgery import FIELD, REPLACE_HEAD
from kdcli.models.taps import grid

TAPS = ("embedding", "pooled", "backbone", "tokens", "grid")
CLIP_SPEC = InputSpec(
    (224, 224), (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic"
)
"""What OpenAI's CLIP wants to see; of other sizes with the same normalisation."""
_MODES = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # of Pillow's numbers


class PictureTower(Model):
    """The network that embeds pictures in the space that they share with texts.

    Its taps are ``embedding`` [B, D], projected and not normalised to length 1; ``pooled`` or ``backbone``
    [B, W], what the projection takes (of SigLIP, which has none, the embedding); ``tokens`` [B, N, W], all
    before CLIP's last norm; ``grid`` [B, W, h, w], those of patches; and ``logits`` [B, C] where it has a
    bank of texts.

    Args:
        body: the network of transformers.
        spec: what it wants to see; the size is that of its configuration.
        family: of :data:`kdcli.models.families.FAMILIES`.
        head: a bank of texts, if it has one.
        facts: further arguments of :class:`kdcli.models.protocol.Model`, by name.
    """

    def __init__(
        self,
        body: nn.Module,
        spec: InputSpec,
        *,
        family: str = "clip",
        head: BankHead | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(spec, None if head is None else list(head.bank.classes), **facts)
        self.body, self.family, self.head = body, family, head

    def prepare(self, x: Tensor) -> Tensor:
        """Resize and normalise views uint8 [B, 3, H, W]; float tensors are taken as prepared."""
        if x.dtype != torch.uint8:
            return x
        found = x.float()
        if tuple(x.shape[-2:]) != self.spec.size:
            mode = self.spec.interpolation if self.spec.interpolation != "nearest" else "bicubic"
            found = F.interpolate(found, self.spec.size, mode=mode, antialias=True, align_corners=False)
            found = found.clamp(0, 255)
        return self.normalise(found.div(255))

    def normalise(self, x: Tensor) -> Tensor:
        """Prepared pictures of float ones, which an interpolation may have left beyond 0 to 1."""
        mean, std = self._normalisation(x)
        return (x - mean) / std

    def restore(self, x: Tensor) -> Tensor:
        """Pictures uint8 of prepared ones."""
        mean, std = self._normalisation(x)
        return ((x.detach() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _normalisation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (x.new_tensor(value)[:, None, None] for value in (self.spec.mean, self.spec.std))
        return mean, std

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings [B, D] of views (uint8) or prepared pictures (float); logits [B, C] with a bank."""
        tap = "embedding" if self.head is None else "logits"
        return self.call([x], [tap])[tap]

    def call(self, inputs: Sequence[Tensor], taps: Sequence[str]) -> dict[str, Any]:
        """Named tensors of one call on one batch of pictures."""
        known = TAPS if self.head is None else (*TAPS, "logits")
        if unknown := next((tap for tap in taps if tap not in known), None):
            raise InputError(f"{self.name} has no tap '{unknown}': a picture tower gives {', '.join(known)}.")
        pooled: list[Tensor] = []
        body: Any = self.body
        projection = getattr(body, "visual_projection", None)
        handle = None
        if projection is not None:
            handle = projection.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
        try:
            found = body(pixel_values=self.prepare(self._single(inputs)))
        finally:
            if handle is not None:
                handle.remove()
        family = FAMILIES[self.family]
        embedding = getattr(found, family.answers["picture"])
        below = pooled[0] if pooled else embedding
        tokens = found.last_hidden_state
        tensors: dict[str, Tensor] = {"embedding": embedding, "pooled": below, "backbone": below}
        tensors["tokens"] = tokens
        if "grid" in taps:
            tensors["grid"] = grid(tokens, family.prefix)
        if "logits" in taps and self.head is not None:
            tensors["logits"] = self.head(embedding)
        return {tap: tensors[tap] for tap in taps}

    def tappable(self) -> dict[str, nn.Module]:
        """None: its taps have names of their own."""
        return {}

    def tensor(self, name: str) -> Tensor:
        """A parameter by its name in transformers; ``classifier`` is the bank [C, D] of texts.

        Raises InputError if there is none.
        """
        if name == "classifier":
            return self.linear.weight
        known = dict(self.body.named_parameters())
        if name not in known:
            raise InputError(f"{self.name} has no parameter '{name}'.{nearest(name, known)}")
        return known[name]

    @property
    def architecture(self) -> str:
        """Its class in transformers."""
        return type(self.body).__name__

    @property
    def layout(self) -> str:
        """``transformers`` loads its files; with a bank behind it kdcli alone has the same answers."""
        return "transformers" if self.head is None else "kdcli"

    @property
    def text_width(self) -> int:
        """D of the space that it shares with texts."""
        config: Any = self.body.config
        return int(config.hidden_size if self.family == "siglip" else config.projection_dim)

    def feature_names(self) -> list[str]:
        """What CLIP's own projection takes."""
        return ["pooled"]

    def features(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The part ``pooled`` [B, W]."""
        return self.call([x], ["pooled"])

    @property
    def linear(self) -> Any:
        """The bank of texts. Raises InputError where there is none."""
        if self.head is None:
            self._refuse("classifier")
        return self.head.linear

    def attach_bank(self, bank: TextBank, *, projected: bool) -> None:
        """Compare its embeddings with a bank of texts of the same space.

        Args:
            bank: the texts.
            projected: True: it answers in that space already; a fresh projection it has no place for.

        Raises:
            InputError: a bank of another width, or of a fresh space.
        """
        if not projected:
            self._refuse("place for a new projection")
        if bank.width != self.text_width:
            raise InputError(
                f"{self.name} embeds pictures in {self.text_width} numbers, and the texts are "
                f"embedded in {bank.width} ({bank.tower}): they are of another model."
            )
        like = next(self.body.parameters())
        self.head = BankHead(bank).to(device=like.device)
        self.classes, self.task, self.unnamed = list(bank.classes), BankHead.task, 0

    def save(self, folder: Path, tensors: dict[str, Tensor] | None = None) -> list[str]:
        """Write it as ``from_pretrained`` of its class reads it, with its input and its texts beside it."""
        body: Any = self.body
        own = dict(self.state_dict()) if tensors is None else tensors
        write_tensors(folder / artifacts.WEIGHTS, below(own, "body."))
        config = json.loads(body.config.to_json_string(use_diff=False))
        config.pop(FIELD, None)
        names = [artifacts.WEIGHTS, artifacts.CONFIG, artifacts.PROCESSOR]
        if self.head is not None:
            config[FIELD] = [{"op": REPLACE_HEAD, **self.head.to_json()}]
            write_tensors(folder / artifacts.HEAD, below(own, "head."))
            names += [artifacts.HEAD, *self.head.write_beside(folder)]
        write_bytes(folder / artifacts.CONFIG, (json.dumps(config, indent=1) + "\n").encode())
        described = json.dumps(_processor(self.spec), indent=1) + "\n"
        write_bytes(folder / artifacts.PROCESSOR, described.encode())
        return names


def _processor(spec: InputSpec) -> dict[str, Any]:
    """What transformers' processor of CLIP reads of an input."""
    height, width = spec.size
    squashed = spec.crop_mode == "squash"
    shorter = round(height / spec.crop)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width} if squashed else {"shortest_edge": shorter},
        "do_center_crop": not squashed,
        "crop_size": {"height": height, "width": width},
        "resample": next(n for n, mode in _MODES.items() if mode == spec.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "do_convert_rgb": True,
    }


def read_spec(folder: Path, side: int, family: str) -> InputSpec:
    """The input that a processor's file describes; CLIP's normalisation, or SigLIP's, where there is none.

    Args:
        folder: of the files.
        side: of the pictures that the network takes.
        family: of the network.

    Raises:
        InputError: another kind of input, or another size than the network's.
    """
    file = folder / artifacts.PROCESSOR
    if not file.is_file():
        half = ((0.5,) * 3, (0.5,) * 3)
        mean, std = half if family == "siglip" else (CLIP_SPEC.mean, CLIP_SPEC.std)
        mode = "squash" if family == "siglip" else "center"
        return InputSpec((side, side), mean, std, "bicubic", 1.0, mode)
    found = read_object(file)
    try:
        mean, std = (tuple(float(v) for v in found[key]) for key in ("image_mean", "image_std"))
        size, crop = found.get("size", side), found.get("crop_size", side)
        cropped = bool(found.get("do_center_crop", False))
        height, width = _sides(crop if cropped else size)
        shorter = _sides(size)[0]
        mode = _MODES[int(found.get("resample", 3))]
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{file} describes no input: {first_line(error)}.") from error
    squashed = not cropped and isinstance(size, dict) and "height" in size
    if (height, width) != (side, side) or not 1 <= side <= LARGEST_SIDE or len(mean) != 3 or len(std) != 3:
        raise InputError(
            f"{file}: an input of {height} x {width} pixels of {len(mean)} channels, and the network takes "
            f"{side} x {side} of three."
        )
    spec = InputSpec((side, side), mean, std, mode, side / max(shorter, side))
    return replace(spec, crop_mode="squash") if squashed else spec


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of what a processor says of a size."""
    if not isinstance(size, dict):
        return int(size), int(size)
    if "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return int(size["height"]), int(size["width"])
