"""One door for every name: aliases, timm names, ``hf-hub:``, ``local-dir:``, artifact paths."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.artifacts import model as artifacts
from kdcli.artifacts.manifest import digest, file_hash
from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError, UsageError, nearest
from kdcli.hub import reachable_hub
from kdcli.models import heads
from kdcli.models.heads import Head
from kdcli.models.legacy import first_line, read_weights
from kdcli.models.protocol import Model
from kdcli.models.timm import TimmModel, reset_classifier

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


def build(
    name: str,
    *,
    classes: list[str] | None = None,
    task: str = "classification",
    head: str = "",
    kind: str | None = None,
    pretrained: bool = True,
    weights: str | None = None,
    size: int | None = None,
    drop_path: float | None = None,
    seed: int = 0,
) -> Model:
    """Build a network by any of its names.

    Args:
        name: alias, timm name (with or without tag), ``hf-hub:…``, ``local-dir:…`` or the path of an
            artifact.
        classes: give it a fresh classifier for these, unless it already has one with exactly these names.
        task: what these are classes of; a head for another task gives way to a fresh one.
        head: a fresh head of :func:`kdcli.models.heads.fresh`; empty for timm's own classifier.
        kind: of the head wanted (``linear``, …): one of another kind gives way; None keeps any.
        pretrained: load weights; False for random ones.
        weights: the user's own checkpoint for a model name.
        size: input size in pixels, position embeddings resampled.
        drop_path: stochastic depth rate.
        seed: of random weights.

    Raises:
        InputError: no such model, no weights to be had, weights that do not fit.
        UsageError: ``weights`` beside an artifact.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs too
        path = Path(name)
        if artifacts.find(path) is not None or (
            path.is_dir() and not name.startswith(("hf-hub:", "local-dir:"))
        ):
            if weights:
                raise UsageError(
                    f"{name} is an artifact and has its weights; --weights goes with a model name."
                )
            network = _from_artifact(path, pretrained, size, drop_path)
        elif os.sep in name and not name.startswith(("hf-hub:", "local-dir:")):
            raise InputError(f"{name} does not exist (a hub model is named hf-hub:{name}).")
        else:
            network = _from_name(name, pretrained, weights, size, drop_path)
        other = network.task != task
        other |= network.head is not None and kind not in (None, network.head.kind)
        if classes is not None and (network.classes != classes or other):
            name = head if kind in (None, Head.kind) else kind
            made = heads.fresh(str(name), network.body, len(classes)) if head else None
            network.attach(made, classes, task)
    return network


def input_spec(body: Any) -> InputSpec:
    """timm's data configuration of a model, at the size it was built for."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(body)
    size = tuple(config["input_size"][1:])
    patch_embed = getattr(body, "patch_embed", None)
    fixed = getattr(patch_embed, "img_size", None)
    return InputSpec(
        size=tuple(fixed) if fixed is not None else size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )


# -- sources -------------------------------------------------------------------------------------------------


def _create(name: str, **options: Any) -> Any:
    import timm

    return timm.create_model(name, **{k: v for k, v in options.items() if v is not None})


def _from_name(
    name: str, pretrained: bool, weights: str | None, size: int | None, drop_path: float | None
) -> TimmModel:
    import timm

    timm_name, options = ALIASES.get(name, (name, {}))
    options = {**options, "drop_path_rate": drop_path}
    local = timm_name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
    if not local and not timm.is_model(timm_name):
        known = [*ALIASES, *timm.list_models()]
        raise InputError(
            f"no model named '{name}'.{nearest(name, known)} Use an alias ({', '.join(list(ALIASES)[:4])}, "
            "…), a timm name, hf-hub:OWNER/NAME, local-dir:PATH, or the path of an artifact."
        )
    if not local:
        _refuse_unknown_tag(timm_name)
    load = pretrained and weights is None
    remote = timm_name.startswith(("hf-hub:", "hf_hub:"))
    with reachable_hub() if load or remote else nullcontext(True) as reachable:
        try:
            options |= _size_option(timm_name, size or options.pop("img_size", None))
            body = _create(timm_name, pretrained=load, **options)
        except Exception as error:  # of many kinds; without weights none of them helps the user
            if not load and not remote:
                raise InputError(f"cannot build {name}: {first_line(error)}") from error
            reason = first_line(error)
            if not reachable and isinstance(error, OSError):
                reason = "the hub cannot be reached, the cache has no copy"
            raise InputError(
                f"no weights for {name} ({reason}). Ways out: --weights FILE with a checkpoint of your own; "
                "a filled hub cache (HF_HOME) with HF_HUB_OFFLINE=1; local-dir:PATH of a downloaded copy; or "
                "--from-scratch for a student. Gated models also need `hf auth login`."
            ) from error
    classified = True
    if weights is not None:
        classified = _load_strict(body, read_weights(weights), weights)
    source = (
        digest([file_hash(Path(weights)), size]) if weights else digest(_fingerprint(body)) if load else ""
    )
    classes = _trained_classes(body) if (load or weights) and classified else None
    spec = _with_size(input_spec(body), size, body)
    return TimmModel(
        body, spec, classes, name=name, source=source, trained="pretrained" if load or weights else "random"
    )


def _refuse_unknown_tag(timm_name: str) -> None:
    import timm
    from timm.models import get_pretrained_cfg

    try:
        get_pretrained_cfg(timm_name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{timm_name.partition('.')[0]}.*")
        raise InputError(f"no weights named '{timm_name}'.{nearest(timm_name, known)}") from error


def _from_artifact(path: Path, pretrained: bool, size: int | None, drop_path: float | None) -> TimmModel:
    files = artifacts.read(path)
    config = files.config
    head_config = config.get("kdcli_head")
    try:
        fixed = _fixed_size(str(config.get("architecture")), size)
        body = _create(f"local-dir:{path}", pretrained=False, drop_path_rate=drop_path, **fixed)
    except Exception as error:
        raise InputError(f"{path}: cannot build {config.get('architecture')}: {first_line(error)}") from error
    head = _head(path, body, head_config, files.tensors(artifacts.HEAD), pretrained) if head_config else None
    if pretrained:
        _load_strict(body, files.tensors(), str(path / artifacts.WEIGHTS))
    spec = _with_size(input_spec(body), size, body)
    kind = "artifact" if pretrained else "random"
    source = digest([files.hash, size]) if pretrained else ""
    task = files.manifest.facts.get("task") or (head.task if head is not None else Head.task)
    return TimmModel(
        body, spec, files.classes, name=str(path), head=head, source=source, trained=kind, task=task
    )


def _head(
    path: Path, body: Any, config: dict[str, Any], tensors: dict[str, Tensor], pretrained: bool
) -> Head:
    """The head of ``head.safetensors``. Raises InputError for one of another kind or shape."""
    head = heads.described(config, tensors, body)
    if head is None:
        raise InputError(f"{path}: its head is none that this kdcli knows.")
    if pretrained:
        head.load_state_dict(tensors)
    return head


def _size_option(timm_name: str, size: int | None) -> dict[str, Any]:
    """``img_size`` for models whose weights depend on it; convolutional ones take any size."""
    if size is None:
        return {}
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    kind, colon, place = timm_name.partition(":")
    if colon:
        read = load_model_config_from_path if kind == "local-dir" else load_model_config_from_hf
        timm_name = read(place)[1]
    return _fixed_size(timm_name, size)


def _fixed_size(architecture: str, size: int | None) -> dict[str, Any]:
    """The same by timm's table; the ``fixed_input_size`` that timm writes into config.json may be wrong."""
    from timm.models import get_pretrained_cfg

    fixed = getattr(get_pretrained_cfg(architecture), "fixed_input_size", False)
    return {"img_size": size} if fixed and size is not None else {}


def _with_size(spec: InputSpec, size: int | None, body: nn.Module) -> InputSpec:
    if size is None or spec.size == (size, size):
        return spec
    if getattr(getattr(body, "patch_embed", None), "img_size", None) is not None:
        return spec
    return InputSpec((size, size), spec.mean, spec.std, spec.interpolation, spec.crop, spec.crop_mode)


def _load_strict(body: Any, tensors: dict[str, Tensor], where: str) -> bool:
    """Load a state dict with strict keys and shapes; only the classifier may be missing.

    Returns:
        Whether the classifier, if the model has one, came along.
    """
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    own = body.state_dict()
    fits = set(tensors) == set(own) and all(tensors[n].shape == t.shape for n, t in own.items())
    if convert is not None and not fits:
        try:
            tensors = convert(tensors, body)
        except Exception as error:  # it meets keys and shapes that it was not written for
            raise InputError(f"{where} does not fit {type(body).__name__}: {first_line(error)}") from error
    classifier = body.get_classifier()
    owned = (
        {id(t) for t in (*classifier.parameters(), *classifier.buffers())}
        if isinstance(classifier, nn.Module)
        else set()
    )
    names = {name for name, t in (*body.named_parameters(), *body.named_buffers()) if id(t) in owned}
    shapes = [n for n in own if n in tensors and tensors[n].shape != own[n].shape]
    if shapes and set(shapes) <= names:  # another number of classes: take the checkpoint's
        reset_classifier(body, tensors[sorted(shapes)[0]].shape[0])
        own, shapes = body.state_dict(), []
    missing = [n for n in own if n not in tensors and n not in names]
    unexpected = [n for n in tensors if n not in own]
    if bad := missing + unexpected + shapes:
        kind = "misses" if missing else "has the unknown" if unexpected else "has another shape of"
        raise InputError(
            f"{where} does not fit {type(body).__name__}: it {kind} {bad[0]} ({len(bad)} differences)."
        )
    floating = [n for n, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if floating:
        raise InputError(f"{where} holds NaN or Inf in {floating[0]}.")
    body.load_state_dict({**own, **tensors}, strict=True)
    return names <= set(tensors)


def _trained_classes(body: Any) -> list[str] | None:
    """Names of a pretrained classifier's logits, where timm knows them; None for a headless backbone."""
    count = getattr(body, "num_classes", 0)
    if not count:
        return None
    names = (getattr(body, "pretrained_cfg", None) or {}).get("label_names")
    if names and len(names) == count:
        return list(names)
    if count == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        names = [info.index_to_description(i) for i in range(count)]
        return [n if names.count(n) == 1 else f"{n} ({i})" for i, n in enumerate(names)]
    architecture = (getattr(body, "pretrained_cfg", None) or {}).get("architecture") or ""
    if "clip" in architecture:  # the projection into the space of texts, not a classifier
        return None
    return [str(i) for i in range(count)]


def _fingerprint(body: nn.Module) -> list[Any]:
    """Cheap but sure enough identity of hub weights: exact sums of every tensor."""
    return [
        (n, tuple(t.shape), float(t.double().sum()), float(t.double().abs().sum()))
        for n, t in body.state_dict().items()
    ]
