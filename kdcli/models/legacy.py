"""The only reader of ``.pth``: other people's checkpoints, read with ``weights_only=True``."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdcli.artifacts.model import read_tensors
from kdcli.errors import InputError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "student")
_PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` or ``.pth``/``.pt``/``.bin`` file, wrappers and prefixes stripped.

    Raises:
        InputError: no such file, a pickle with anything but tensors and plain containers, a damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"--weights {path} does not exist.")
    if path.suffix == ".safetensors":
        return _strip(read_tensors(path))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds pickled code or objects, not just tensors (or is damaged); kdcli never runs "
            "those. Save its state_dict as safetensors and pass that."
        ) from error
    except Exception as error:  # damaged bytes make the reader fail in many ways
        raise InputError(f"{path} is not a readable checkpoint: {first_line(error)}") from error
    for wrapper in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not any(isinstance(v, Tensor) for v in loaded.values()):
        raise InputError(f"{path} holds no state_dict (it is a {type(loaded).__name__}).")
    return _strip({k: v for k, v in loaded.items() if isinstance(v, Tensor)})


def _strip(tensors: dict[str, Any]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if tensors and all(n.startswith(p) for n in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def first_line(error: Exception) -> str:
    """What an exception of another library says, in one line."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
