"""Structure that no named architecture has: operations in ``config.json``, replayed before a strict load.

``kdcli_operations`` is a list of objects, each with the name of an operation, ``op``, and its arguments:

    {"op": "remove channels", "modules": {"layer1.0.conv1": {"out": 40}, "layer1.0.bn1": {"out": 40}, …}}
    {"op": "replace head", "feature": "last4"}

Widths are what is left, never more than the architecture has. Convolutions (also grouped and depthwise),
linear layers and the parts of squeeze-and-excitation, which are such, take ``in`` and ``out``; batch, layer
and group norms ``out``; a parameter by its path (``pos_embed``, ``blocks.0.ls1.gamma``) the ``out`` of its
last dimension; an attention ``heads``, and timm's own ``keys`` and ``values`` too, channels of each head.
``groups`` says how many groups are left where it is not as many as before. A depthwise convolution has one
for each of its inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.errors import InputError, nearest
from kdcli.metrics.efficiency import evaluating
from kdcli.models.attention import NarrowAttention, dimensions
from kdcli.models.chains import ATTENTIONS, IDLE, kind_of
from kdcli.models.legacy import first_line
from kdcli.models.taps import as_map

FIELD, HEAD_FIELD = "kdcli_operations", "kdcli_head"  # the second of artifacts of 0.1
REPLACE_HEAD = "replace head"
_MOST = 100  # operations of an artifact
_WIDTHS = ("in", "out", "groups", "heads", "keys", "values")

Widths = Mapping[str, int]


def remove_channels(body: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The body with narrower modules, whose weights are yet to be loaded.

    Args:
        body: left as it is.
        arguments: ``modules``, widths by path.

    Raises:
        ValueError: no such path, or widths that such a module cannot have.
    """
    modules = arguments.get("modules")
    if not isinstance(modules, dict):
        raise ValueError("modules is no object of paths and their widths")
    body = copy.deepcopy(body)
    for path, widths in modules.items():
        _narrow(body, path, _checked(path, widths))
    return body


def without_classifier(body: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The body without its own classifier, in whose place a head stands that ``arguments`` describe.

    Args:
        body: left as it is.
        arguments: of :func:`kdcli.models.heads.described`, which reads them.
    """
    own: Any = body
    if own.num_classes == 0:
        return body
    own = copy.deepcopy(own)
    own.reset_classifier(0)
    return own


OPERATIONS: dict[str, Callable[[nn.Module, Mapping[str, Any]], nn.Module]] = {
    "remove channels": remove_channels,
    REPLACE_HEAD: without_classifier,
}


def read(config: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The operations of a ``config.json``, also of 0.1, which knew one.

    Raises:
        InputError: another type than a list of operations that are known here.
    """
    if HEAD_FIELD in config and FIELD in config:
        raise InputError(f"{where} has both {HEAD_FIELD} and {FIELD}: no kdcli wrote that.")
    if HEAD_FIELD in config:
        if not isinstance(config[HEAD_FIELD], dict):
            kind = type(config[HEAD_FIELD]).__name__
            raise InputError(f"{where}: {HEAD_FIELD} is a {kind}, not an object that describes a head.")
        return [{"op": REPLACE_HEAD, **config[HEAD_FIELD]}]
    found = config.get(FIELD, [])
    if not isinstance(found, list) or len(found) > _MOST:
        raise InputError(f"{where}: {FIELD} is no list of at most {_MOST} operations.")
    for number, operation in enumerate(found, 1):
        name = operation.get("op") if isinstance(operation, dict) else None
        if not isinstance(name, str) or name not in OPERATIONS:
            hint = nearest(str(name), OPERATIONS)
            raise InputError(f"{where}: operation {number}: this kdcli knows no '{name}'.{hint}")
        if name == REPLACE_HEAD and number < len(found):
            raise InputError(f"{where}: operation {number}: '{name}' is the last operation of a network.")
    return found


def replay(body: nn.Module, operations: Sequence[Mapping[str, Any]], where: str) -> nn.Module:
    """The body after all operations.

    Raises:
        InputError: arguments that do not fit it, naming file and operation.
    """
    for number, operation in enumerate(operations, 1):
        arguments = {key: value for key, value in operation.items() if key != "op"}
        try:
            body = OPERATIONS[operation["op"]](body, arguments)
        except ValueError as error:
            raise InputError(f"{where}: operation {number} ({operation['op']}): {error}.") from error
    return body


def settle(body: Any, spec: InputSpec, where: str) -> None:
    """Bring a narrowed model's classifier, and what it says of its stages, to their widths, by one picture.

    Raises:
        InputError: the widths do not fit together.
    """
    found: dict[int, Tensor] = {}

    def hook(index: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: found.update({index: output})

    entries = [dict(entry) for entry in body.feature_info]
    handles = [body.get_submodule(e["module"]).register_forward_hook(hook(i)) for i, e in enumerate(entries)]
    try:
        fit_classifier(body, pooled_width(body, spec))
    except RuntimeError as error:
        raise InputError(f"{where}: its widths do not fit together ({first_line(error)}).") from error
    finally:
        for handle in handles:
            handle.remove()
    for index, output in found.items():
        entries[index]["num_chs"] = as_map(body, output).shape[1]
    body.feature_info = entries


def pooled_width(body: Any, spec: InputSpec) -> int:
    """Width of what a model's classifier takes."""
    like = next(body.parameters())
    with evaluating(body), torch.no_grad():
        picture = like.new_zeros(1, spec.channels, *spec.size)
        return int(body.forward_head(body.forward_features(picture), pre_logits=True).shape[-1])


def fit_classifier(body: Any, width: int) -> None:
    """Give a classifier that is yet to be trained or loaded the width of a narrowed model's features."""
    fresh = body.get_classifier()
    if not isinstance(fresh, nn.Linear) or fresh.in_features == width:
        return
    parent, _, name = _classifier_path(body).rpartition(".")
    fitting = nn.Linear(width, fresh.out_features, fresh.bias is not None)
    setattr(body.get_submodule(parent), name, fitting.to(fresh.weight.device, fresh.weight.dtype))


def without_widths_of_classifier(
    operations: Sequence[Mapping[str, Any]], body: nn.Module
) -> tuple[Mapping[str, Any], ...]:
    """Operations for a model whose classifier is about to be another, which :func:`settle` fits."""
    path, kept = _classifier_path(body), []
    for operation in operations:
        modules = {name: widths for name, widths in operation.get("modules", {}).items() if name != path}
        kept.append({**operation, "modules": modules})
    return tuple(kept)


def _classifier_path(body: Any) -> str:
    found = body.get_classifier()
    return next((name for name, module in body.named_modules() if module is found), "")


# -- one module ----------------------------------------------------------------------------------------------


def _checked(path: str, widths: Any) -> Widths:
    if not isinstance(widths, dict) or not widths or set(widths) - set(_WIDTHS):
        raise ValueError(f"{path}: its widths are no object of {', '.join(_WIDTHS)}")
    for name, width in widths.items():
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"{path}: {name} is {width!r}, not a number of 1 or more")
    return widths


def _narrow(body: nn.Module, path: str, widths: Widths) -> None:
    """Narrow one module, or one parameter, in its place."""
    parent, _, name = path.rpartition(".")
    modules = dict(body.named_modules())
    module = modules.get(path)
    if module is None and parent in modules and modules[parent]._parameters.get(name) is not None:
        parameter = modules[parent].get_parameter(name)
        width = _width(path, "last dimension", parameter.shape[-1], _same(path, widths))
        _replace(modules[parent], name, (*parameter.shape[:-1], width))
        return
    if not path or module is None:
        raise ValueError(f"there is no module '{path}'.{nearest(path, modules)}".removesuffix("."))
    for kind, narrow in _KINDS:
        if isinstance(module, kind):
            narrow(path, module, widths)
            return
    if kind_of(module) in ATTENTIONS and set(widths) <= {"heads", "keys", "values"}:
        body.set_submodule(path, _narrow_attention(path, module, widths))
        return
    if hasattr(module, "num_heads") and set(widths) == {"heads"}:
        _attention(path, module, widths)
        return
    raise ValueError(f"{path} is a {type(module).__name__}, whose channels cannot be removed")


def _conv(path: str, conv: nn.Conv2d, widths: Widths) -> None:
    _refuse_others(path, conv, "weight", "bias")
    inputs = _width(path, "in", conv.in_channels, widths.get("in"))
    outputs = _width(path, "out", conv.out_channels, widths.get("out"))
    depthwise = conv.groups == conv.in_channels
    groups = _width(path, "groups", conv.groups, widths.get("groups", inputs if depthwise else conv.groups))
    if inputs % groups or outputs % groups or inputs // groups > conv.in_channels // conv.groups:
        raise ValueError(f"{path}: {inputs} inputs and {outputs} outputs do not divide into {groups} groups")
    conv.in_channels, conv.out_channels, conv.groups = inputs, outputs, groups
    _replace(conv, "weight", (outputs, inputs // groups, *conv.kernel_size))
    _replace(conv, "bias", (outputs,))


def _linear(path: str, linear: nn.Linear, widths: Widths) -> None:
    _refuse_others(path, linear, "weight", "bias")
    linear.in_features = _width(path, "in", linear.in_features, widths.get("in"))
    linear.out_features = _width(path, "out", linear.out_features, widths.get("out"))
    _replace(linear, "weight", (linear.out_features, linear.in_features))
    _replace(linear, "bias", (linear.out_features,))


def _batch_norm(path: str, norm: nn.BatchNorm2d, widths: Widths) -> None:
    norm.num_features = _width(path, "out", norm.num_features, _same(path, widths))
    for name in ("weight", "bias", "running_mean", "running_var"):
        _replace(norm, name, (norm.num_features,))


def _layer_norm(path: str, norm: nn.LayerNorm, widths: Widths) -> None:
    if len(norm.normalized_shape) != 1:
        raise ValueError(f"{path} normalises over {len(norm.normalized_shape)} dimensions, not over channels")
    width = _width(path, "out", norm.normalized_shape[0], _same(path, widths))
    norm.normalized_shape = (width,)
    for name in ("weight", "bias"):
        _replace(norm, name, (width,))


def _group_norm(path: str, norm: nn.GroupNorm, widths: Widths) -> None:
    own = {name: width for name, width in widths.items() if name != "groups"}
    norm.num_channels = _width(path, "out", norm.num_channels, _same(path, own))
    norm.num_groups = _width(path, "groups", norm.num_groups, widths.get("groups"))
    if norm.num_channels % norm.num_groups:
        raise ValueError(f"{path}: {norm.num_channels} channels do not divide into {norm.num_groups} groups")
    for name in ("weight", "bias"):
        _replace(norm, name, (norm.num_channels,))


def _narrow_attention(path: str, attention: Any, widths: Widths) -> nn.Module:
    """timm's attention with fewer heads as it is; with fewer channels of keys or values one of ours."""
    own = dict(zip(("heads", "keys", "values"), dimensions(attention)))
    heads, keys, values = (_width(path, name, width, widths.get(name)) for name, width in own.items())
    if keys == values == attention.head_dim and not isinstance(attention, NarrowAttention):
        _attention(path, attention, {"heads": heads})
        return cast(nn.Module, attention)
    idle = (attention.q_norm, attention.k_norm, attention.norm)
    if attention.gate is not None or not all(kind_of(norm) in IDLE for norm in idle):
        raise ValueError(f"{path} normalises or scales its channels, which are not removed then")
    return NarrowAttention(attention, heads, keys, values)


def _attention(path: str, attention: Any, widths: Widths) -> None:
    attention.num_heads = _width(path, "heads", attention.num_heads, widths["heads"])
    if hasattr(attention, "attn_dim"):
        attention.attn_dim = attention.num_heads * attention.head_dim


_KINDS: tuple[tuple[type[nn.Module], Callable[[str, Any, Widths], None]], ...] = (
    (nn.Conv2d, _conv),
    (nn.Linear, _linear),
    (nn.BatchNorm2d, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
)


def _width(path: str, name: str, own: int, wanted: int | None) -> int:
    if wanted is not None and wanted > own:
        raise ValueError(f"{path}: {name} is {own} in the architecture, not {wanted}")
    return own if wanted is None else wanted


def _same(path: str, widths: Widths) -> int:
    """The one width of what has as many outputs as inputs."""
    found = set(widths.values())
    if set(widths) - {"in", "out"} or len(found) != 1:
        raise ValueError(f"{path} has one width, 'out'")
    return found.pop()


def _refuse_others(path: str, module: nn.Module, *known: str) -> None:
    own = {n for part in (module._parameters, module._buffers) for n, t in part.items() if t is not None}
    if odd := own - set(known):
        raise ValueError(f"{path} is a {type(module).__name__} with {odd.pop()}, which is not known here")


def _replace(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """An empty tensor of that shape in the place of a parameter or buffer, if there is one."""
    own = getattr(module, name)
    if own is None:
        return
    tensor = own.new_empty(shape)
    setattr(module, name, nn.Parameter(tensor, own.requires_grad) if name in module._parameters else tensor)
