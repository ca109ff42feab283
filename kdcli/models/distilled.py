"""A distillation token and a second classifier for a ViT: Touvron et al. 2021, arXiv 2012.12877 (DeiT).

G2SD (arXiv 2302.14771) appends the token behind the patches, without a position embedding. A transformer does
not know the order of its tokens but by their position embeddings: so timm's distilled ViT, whose token comes
second, is the same network where that token's position embedding is zero, and plain timm loads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models.timm import TimmModel

_ALIKE = ("act_layer", "norm_layer")  # arguments that timm keeps and weights do not tell
_BY_WIDTH = {192: "tiny", 384: "small", 768: "base"}
STD = 2e-5  # of new classifiers, in G2SD's code
PLACE = 1  # of the token among those with a position embedding


def is_distilled(network: TimmModel) -> bool:
    """Whether it has a distillation token already."""
    return isinstance(getattr(network.body, "dist_token", None), Tensor)


def give_token(network: TimmModel, *, std: float = STD) -> None:
    """Make a ViT one with a distillation token and a second classifier for the teacher's answers.

    Both classifiers begin near zero, but for one that the network has learned before, which the labels go on
    with. A network that has a token keeps what it has.

    Args:
        network: a plain ViT.
        std: of the weights of new classifiers.

    Raises:
        InputError: no plain ViT with a class token, for which timm has such a network.
    """
    body: Any = network.body
    if is_distilled(network):
        if network.fresh:
            _begin(std, body.head, body.head_dist)
        return
    made = _twin(network)
    own, table = dict(body.state_dict()), body.pos_embed
    zero = table.new_zeros(1, 1, table.shape[2])
    own["pos_embed"] = torch.cat([table[:, :PLACE], zero, table[:, PLACE:]], dim=1).detach()
    rest = {"dist_token", "head_dist.weight", "head_dist.bias"}
    unlike = (own.keys() ^ made.state_dict().keys()) ^ rest
    if unlike:
        raise InputError(
            f"{network.name} ({network.architecture}) {_NONE}: {sorted(unlike)[0]} has no place."
        )
    made.load_state_dict(own, strict=False)
    _refuse_unlike(network, made)
    _begin(std, *((made.head, made.head_dist) if network.fresh else (made.head_dist,)))
    made.pos_embed.requires_grad_(table.requires_grad)
    network.body = made.to(table.device)
    network.notes += (
        "a distillation token and a second classifier are added; the mean of both classifiers is the answer",
    )


def _begin(std: float, *classifiers: Any) -> None:
    """Give new classifiers small random weights, and no bias."""
    for linear in classifiers:
        nn.init.trunc_normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)


def _refuse_unlike(network: TimmModel, made: Any) -> None:
    """Raise InputError where a part without weights, an activation or a dropout, differs."""
    ours, theirs = (dict(body.named_modules()) for body in (network.body, made))
    for name, part in ours.items():
        twin = theirs.get(name)
        same = type(twin) is type(part) and getattr(twin, "p", None) == getattr(part, "p", None)
        if name and not same:
            raise InputError(f"{network.name} ({network.architecture}) {_NONE}: its {name} is another there.")


_NONE = "is no ViT that timm has with a distillation token"


def _twin(network: TimmModel) -> Any:
    """timm's distilled ViT of the same sizes, random. Raises InputError where there is none."""
    import timm
    from timm.models._input import get_model_args

    body: Any = network.body
    plain = type(body).__name__ == "VisionTransformer" and not network.operations and network.head is None
    if (
        not plain
        or body.no_embed_class
        or body.cls_token is None
        or body.num_prefix_tokens != 1
        or body.global_pool != "token"
    ):
        raise InputError(
            f"{network.name} ({network.architecture}) {_NONE}: take a plain ViT with a class token, which "
            "its classifier reads."
        )
    block = body.blocks[0]
    side, patch = body.patch_embed.img_size, body.patch_embed.patch_size
    scale = getattr(block.ls1, "gamma", None)
    arguments = {
        **{name: value for name, value in get_model_args(body).items() if name in _ALIKE},
        "img_size": tuple(side),
        "patch_size": patch[0],
        "embed_dim": body.embed_dim,
        "depth": len(body.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / body.embed_dim,
        "qkv_bias": block.attn.qkv.bias is not None,
        "init_values": None if scale is None else float(scale.detach().flatten()[0]),
        "num_classes": body.num_classes,
        **({"dynamic_img_size": True} if body.dynamic_img_size else {}),
    }
    name = f"deit_{_BY_WIDTH.get(body.embed_dim, 'tiny')}_distilled_patch16_224"
    made = timm.create_model(name, **arguments)
    for place, part in body.named_modules():  # what only training has, and timm keeps no record of
        if type(part).__name__ in ("Dropout", "DropPath"):
            made.set_submodule(place, part)
    for key in ("mean", "std", "interpolation", "crop_pct", "label_names"):
        if key in body.pretrained_cfg:
            made.pretrained_cfg[key] = body.pretrained_cfg[key]
    return made


def without_position(gradients: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of position embeddings [1, P, D] with none for a distillation token that has no position.

    One that has learned its own, as DeiT's have, goes on learning it.
    """
    found = {}
    for name, gradient in gradients.items():
        if not weights[name][:, PLACE].any():
            found[name] = gradient.clone()
            found[name][:, PLACE] = 0
    return found
