"""The only reader of ``.pth``: other people's checkpoints, read with ``weights_only=True``."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcli.artifacts.model import read_tensors, split_weights
from kdcli.errors import InputError, nearest

# Entries of a checkpoint that hold a state dict, the first that is there is read: averages over training
# before the weights of its last step, as timm has it, and teachers of self-distillation before students.
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema", "teacher")
_ENTRIES = (
    *_AVERAGES,
    *("state_dict", "model", "model_state_dict", "student", "net", "network", "module", "weights", "params"),
    *("encoder", "target_encoder"),
)
_TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)  # that torch computes with on a CPU
_DEPTH = 4  # of entries within entries
_SHOWN = 8  # names in a message


def _plain(*_given: Any) -> dict[Any, Any]:
    """What stands for a ``defaultdict``, and for the ``list`` that makes its values."""
    return {}


# Harmless classes that training scripts leave beside the tensors: values without behaviour, each under the
# names that files give it. Paths become pure ones, which touch no disk, dictionaries plain ones.
_HARMLESS: list[Any] = [
    *(argparse.Namespace, np.dtype, np.ndarray),
    *((_plain, name) for name in ("collections.defaultdict", "builtins.list")),
    *{type(np.dtype(kind)) for kind in (*np.typecodes["AllInteger"], *np.typecodes["Float"], *"?US")},
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((np.zeros(0).__reduce__()[0], f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((PurePosixPath, f"pathlib.{name}") for name in ("PosixPath", "_local.PosixPath", "PurePosixPath")),
    *(
        (PureWindowsPath, f"pathlib.{name}")
        for name in ("WindowsPath", "_local.WindowsPath", "PureWindowsPath")
    ),
    *(
        (dict, f"{module}.AttributeDict")  # Lightning's hyperparameters
        for module in (
            *("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"),
            *("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"),
        )
    ),
]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file.

    Attributes:
        tensors: by name, wrappers and prefixes of training stripped.
        notes: what was chosen among several, a sentence each.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_weights(weights: Path | str) -> Checkpoint:
    """The state dict of a ``.safetensors`` or ``.pth``/``.pt``/``.ckpt``/``.bin`` file.

    Args:
        weights: ``FILE``, or ``FILE:KEY`` for one entry of several, or for the tensors of one prefix.

    Raises:
        InputError: no such file or key, a pickle with more than tensors and plain values, a damaged file.
    """
    path, key = split_weights(weights)
    if not path.is_file():
        there = "is no regular file" if path.exists() else "does not exist"
        raise InputError(f"--weights {path} {there}.")
    loaded = read_tensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    notes: list[str] = []
    if key and isinstance(loaded, Mapping):
        loaded = _entry(loaded, key, path)
    for _ in range(_DEPTH):
        found = [n for n in _ENTRIES if isinstance(loaded, Mapping) and isinstance(loaded.get(n), Mapping)]
        if not found:
            break
        if len(found) > 1:
            notes.append(_choice(found, path))
        loaded = loaded[found[0]]
    if not isinstance(loaded, Mapping) or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise InputError(f"{path} holds no state_dict (it is a {type(loaded).__name__}).")
    return Checkpoint(
        _stripped({k: v for k, v in loaded.items() if isinstance(v, Tensor)}, path), tuple(notes)
    )


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled code or objects{_foreign(path)}, not just tensors (or is damaged); kdcli "
            "never runs those. Save its state_dict as safetensors and pass that."
        ) from error
    except Exception as error:  # damaged bytes make the reader fail in many ways
        raise InputError(f"{path} is not a readable checkpoint: {first_line(error)}") from error


def _foreign(path: Path) -> str:
    """Names of the classes that are not allowed, found without making one of them."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # only archives of new torch can be asked
        return ""
    return f" ({', '.join(sorted(map(str, names))[:_SHOWN])})" if names else ""


def _entry(loaded: Mapping[Any, Any], key: str, path: Path) -> Any:
    """The entry of that name, or the tensors whose names begin with it."""
    if key in loaded:
        return loaded[key]
    if key.isdecimal() and int(key) in loaded:
        return loaded[int(key)]
    inside = next((loaded[n] for n in _ENTRIES if isinstance(loaded.get(n), Mapping)), loaded)
    found = {n[len(key) + 1 :]: t for n, t in inside.items() if str(n).startswith(f"{key}.")}
    if not found:
        known = list(dict.fromkeys([*map(str, loaded), *(str(n).partition(".")[0] for n in inside)]))
        shown = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
        raise InputError(f"{path} has no '{key}'.{nearest(key, known)} It has {shown}.")
    return found


def _choice(found: list[str], path: Path) -> str:
    taken, others = found[0], found[1:]
    what = ", an average over its training," if taken in _AVERAGES[:-1] else ""
    return (
        f"{path} holds {' and '.join(found)}: {taken}{what} is read. --weights {path}:{others[0]} takes the "
        "other."
    )


def _stripped(tensors: Mapping[Any, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors without what DDP, ``torch.compile`` and ``AveragedModel`` put before their names."""
    if odd := [name for name in tensors if not isinstance(name, str)]:
        raise InputError(f"{path} names its tensors {odd[0]!r} and so on: names of parameters are wanted.")
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    found.pop("n_averaged", None)
    while found and all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def refuse_unlike(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError for a tensor without numbers, or of a kind that torch does not compute with here."""
    for name, tensor in tensors.items():
        nested = tensor.is_meta or tensor.is_nested or tensor.is_quantized
        if nested or tensor.dtype not in _TYPES or tensor.layout != torch.strided:
            what = "meta" if tensor.is_meta else "nested" if tensor.is_nested else str(tensor.dtype)
            raise InputError(
                f"{where} holds {name} in a form that is no plain tensor ({what.removeprefix('torch.')}: "
                "quantised, sparse, without numbers, …)."
            )


def first_line(error: Exception) -> str:
    """What an exception of another library says, in one line."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
