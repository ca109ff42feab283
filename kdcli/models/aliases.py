"""Short names of teachers, and the timm models that they stand for."""

from __future__ import annotations

from typing import Any

_PATCH14 = {"img_size": 224}  # timm's default input of DINOv2 is 518; position embeddings are resampled

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dinov2_vits": ("vit_small_patch14_dinov2.lvd142m", _PATCH14),
    "dinov2_vitb": ("vit_base_patch14_dinov2.lvd142m", _PATCH14),
    "dinov2_vitl": ("vit_large_patch14_dinov2.lvd142m", _PATCH14),
    "dinov2_vitg": ("vit_giant_patch14_dinov2.lvd142m", _PATCH14),
    "dinov2_vits_reg": ("vit_small_patch14_reg4_dinov2.lvd142m", _PATCH14),
    "dinov2_vitb_reg": ("vit_base_patch14_reg4_dinov2.lvd142m", _PATCH14),
    "dinov2_vitl_reg": ("vit_large_patch14_reg4_dinov2.lvd142m", _PATCH14),
    "dinov2_vitg_reg": ("vit_giant_patch14_reg4_dinov2.lvd142m", _PATCH14),
    "dinov3_vits": ("vit_small_patch16_dinov3.lvd1689m", {}),
    "dinov3_vitb": ("vit_base_patch16_dinov3.lvd1689m", {}),
    "dinov3_vitl": ("vit_large_patch16_dinov3.lvd1689m", {}),
    "dinov3_vit7b": ("vit_7b_patch16_dinov3.lvd1689m", {}),
    "mae_vitb": ("vit_base_patch16_224.mae", {}),
    "mae_vitl": ("vit_large_patch16_224.mae", {}),
    "mae_vith": ("vit_huge_patch14_224.mae", {}),
    "eva02_vitti": ("eva02_tiny_patch14_224.mim_in22k", {}),
    "eva02_vits": ("eva02_small_patch14_224.mim_in22k", {}),
    "eva02_vitb": ("eva02_base_patch14_224.mim_in22k", {}),
    "eva02_vitl": ("eva02_large_patch14_224.mim_m38m", {}),
    "clip_vitb32": ("vit_base_patch32_clip_224.openai", {}),
    "clip_vitb16": ("vit_base_patch16_clip_224.openai", {}),
    "clip_vitl14": ("vit_large_patch14_clip_224.openai", {}),
}

NAMED: dict[str, dict[str, Any]] = {
    "rtdetr_r18vd": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "rtdetr_r50vd": {},
}
"""RT-DETR by name: how the backbone differs from transformers' default, a ResNet-50 of variant D."""
