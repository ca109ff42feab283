"""A branch: what follows one block of a network, fed with that block's output of another network."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.errors import InputError
from kdcli.models.headed import classifier
from kdcli.models.protocol import Model
from kdcli.models.taps import block_path
from kdcli.models.timm import TimmModel


class Tail(nn.Module):
    """The part of a timm model behind a block, with its weights.

    Args:
        network: whose part.
        tap: of the block, for example ``block-2``.

    Raises:
        InputError: no such block, or what follows it is no sequence of modules.
    """

    def __init__(self, network: Model, tap: str) -> None:
        super().__init__()
        body: Any = None
        if isinstance(network, TimmModel) and network.head is None:
            body = copy.deepcopy(network.body).eval()
        path = None if body is None else block_path(body, tap)
        if path is None:
            raise InputError(f"{network.name} has no '{tap}' that timm's own head follows.")
        shape = (2, network.spec.channels, *network.spec.size)
        picture = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        following = _following(body, path)
        ran = _ran(body, picture)
        with torch.no_grad():
            expected = TimmModel(body, network.spec, None, name=network.name).call([picture], [tap, "logits"])
        self.layers = nn.Sequential(*(module for module in following.values() if module in ran))
        self._paths = [path for path, module in following.items() if module in ran]
        self.body = _head_of(body, path, list(self.layers))
        try:
            with torch.no_grad():
                same = torch.allclose(self.eval()(expected[tap])["logits"], expected["logits"], atol=1e-4)
        except RuntimeError:  # shapes: what lies between the modules is no module
            same = False
        except (TypeError, AttributeError) as error:
            if not _is_foreign(error):
                raise
            same = False
        if not same:
            raise InputError(f"{network.name} cannot be divided behind '{tap}': use whole networks.")
        self.train(network.training)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """``logits`` [B, C] and ``pooled`` [B, D], what the classifier takes, of a block's output."""
        body: Any = self.body
        pooled = body.forward_head(self.layers(x), pre_logits=True)
        return {"logits": classifier(body)(pooled), "pooled": pooled}

    def grafted(self, network: TimmModel) -> TimmModel:
        """A whole network: the trunk of ``network``, of the same architecture, and this part behind it."""
        whole = copy.deepcopy(network)
        for path, layer in zip(self._paths, self.layers):
            whole.body.get_submodule(path).load_state_dict(layer.state_dict())
        whole.body.load_state_dict(self.body.state_dict(), strict=False)
        return whole


def _is_foreign(error: Exception) -> bool:
    """Whether code of timm or torch raised it: a module that wants more than one tensor, or what was cut off.

    An error of our own stays one.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] in ("timm", "torch")


def _following(body: nn.Module, path: str) -> dict[str, nn.Module]:
    """Modules behind ``path``, as registered: its later siblings, then those of its parents, by path."""
    found: dict[str, nn.Module] = {}
    while path:
        parent, _, name = path.rpartition(".")
        siblings = list(body.get_submodule(parent).named_children())
        behind = siblings[[n for n, _ in siblings].index(name) + 1 :]
        found |= {f"{parent}.{n}" if parent else n: module for n, module in behind}
        path = parent
    return found


def _ran(body: Any, picture: Tensor) -> set[nn.Module]:
    """Modules that the body runs before its head."""
    ran: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, *_: ran.add(module)) for m in body.modules()]
    try:
        with torch.no_grad():
            body.forward_features(picture)
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _head_of(body: nn.Module, path: str, layers: Collection[nn.Module]) -> nn.Module:
    """The body with nothing in the places of ``layers``, of the block, and of what comes before it."""
    innermost = True
    while path:
        parent, _, name = path.rpartition(".")
        holder, behind = body.get_submodule(parent), False
        for sibling, module in list(holder.named_children()):
            way_in = sibling == name and not innermost
            if not way_in and not (behind and module not in layers):
                setattr(holder, sibling, nn.Identity())
            behind |= sibling == name
        path, innermost = parent, False
    for name in body._parameters:
        body._parameters[name] = None
    return body
