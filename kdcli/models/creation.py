"""timm's models by name, repository or directory: checked, at a size, within limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcli.artifacts import model as artifacts
from kdcli.errors import InputError, nearest
from kdcli.hub import cache_fault, reachable_hub
from kdcli.models import checks, surgery
from kdcli.models.aliases import ALIASES, NAMED
from kdcli.models.legacy import first_line

LOCAL, REMOTE = "local-dir:", ("hf-hub:", "hf_hub:")
_LARGEST_CONFIGURATION = 1 << 24  # bytes


@dataclass(frozen=True)
class Options:
    """How a network of some name is built; see :func:`kdcli.models.build.build`."""

    pretrained: bool
    weights: str | None
    size: int | None
    drop_path: float | None
    decoder: bool


def create(timm_name: str, pretrained: bool, **keywords: Any) -> Any:
    """A model of timm; keywords of None are left out. Raises ValueError for one without a classifier."""
    import timm

    keywords = {k: v for k, v in keywords.items() if v is not None}
    body = timm.create_model(timm_name, pretrained=pretrained, **keywords)
    if not hasattr(body, "get_classifier") or not hasattr(body, "forward_features"):
        raise ValueError(f"{type(body).__name__} is no classifier")
    return body


def creator(
    timm_name: str, drop_path: float | None, arguments: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """What makes a model of a name for a side in pixels or None, with weights or without.

    Raises:
        InputError: the configuration of a directory or repository is one that nothing can be built of.
    """
    kind, colon, place = timm_name.partition(":")
    architecture, weights = timm_name, None
    if colon:
        file = Path(place, artifacts.CONFIG)
        if kind != LOCAL.removesuffix(":"):
            from timm.models._hub import download_from_hf

            file = Path(download_from_hf(place, artifacts.CONFIG))
        config = _read_configuration(file)
        architecture, weights = config["architecture"], file.parent / artifacts.WEIGHTS

    def made(side: int | None, pretrained: bool = False) -> Any:
        keywords = {"drop_path_rate": drop_path, **fixed_size(architecture, side), **(arguments or {})}
        with checks.limited(timm_name, weights):
            return create(timm_name, pretrained, **keywords)

    return made


def _read_configuration(file: Path) -> dict[str, Any]:
    """A ``config.json`` of timm's. Raises InputError for another, and for one that timm cannot build."""
    try:
        if file.stat().st_size > _LARGEST_CONFIGURATION or not file.is_file():
            raise InputError(f"{file} is no configuration: it is too large, or no file.")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not readable: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} is not a JSON object.")
    checks.refuse_configuration(config, str(file))
    if surgery.read(config, str(file)):
        raise InputError(f"{file.parent} has structure that timm has not: leave out local-dir: or hf-hub:.")
    return config


def sized(build: Callable[..., Any], name: str, size: int | None, load: bool) -> Any:
    """A model for that size. Raises InputError, with the next sizes, where the size alone is at fault."""
    try:
        return build(size, load)
    except Exception as error:
        if size is None or isinstance(error, InputError) or _made(build, size) is not None:
            raise
        if (other := _made(build, None)) is None:
            raise
        raise checks.wrong_size(name, size, first_line(error), other, build) from error


def _made(build: Callable[..., Any], size: int | None) -> Any:
    """A model of random weights, None where none can be made."""
    try:
        return build(size)
    except Exception:
        return None


@contextmanager
def explained(name: str, load: bool, *, hub: bool) -> Iterator[None]:
    """Say what a fault of timm or the hub means to the user."""
    with reachable_hub() if hub else nullcontext(True) as reachable:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # of many kinds; without weights none of them helps the user
            if fault := cache_fault(error):
                raise fault from error
            if not hub and not load:
                raise InputError(f"cannot build {name}: {first_line(error)}") from error
            reason = first_line(error)
            if not reachable and isinstance(error, OSError):
                reason = "the hub cannot be reached, the cache has no copy"
            raise InputError(
                f"no weights for {name} ({reason}). Ways out: --weights FILE with a checkpoint of your own; "
                "a filled hub cache (HF_HOME) with HF_HUB_OFFLINE=1; local-dir:PATH of a downloaded copy; or "
                "--from-scratch for a student. Gated models also need `hf auth login`."
            ) from error


def refuse_unknown(name: str, timm_name: str) -> None:
    """Raise InputError for a name, or a tag of weights, that timm has not."""
    import timm
    from timm.models import get_pretrained_cfg

    if not timm.is_model(timm_name):
        known = [*ALIASES, *NAMED, *timm.list_models()]
        raise InputError(
            f"no model named '{name}'.{nearest(name, known)} Use an alias ({', '.join(list(ALIASES)[:4])}, "
            "…), a timm name, hf-hub:OWNER/NAME, local-dir:PATH, or the path of an artifact."
        )
    try:
        get_pretrained_cfg(timm_name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{timm_name.partition('.')[0]}.*")
        raise InputError(f"no weights named '{timm_name}'.{nearest(timm_name, known)}") from error


def fixed_size(architecture: str, size: int | None) -> dict[str, Any]:
    """``img_size`` for models whose weights depend on it, by timm's table; others take any size.

    The ``fixed_input_size`` that timm writes into ``config.json`` may be wrong.
    """
    from timm.models import get_pretrained_cfg

    if size is None:
        return {}
    return {"img_size": size} if getattr(get_pretrained_cfg(architecture), "fixed_input_size", False) else {}
