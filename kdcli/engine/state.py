"""Running state as safetensors and JSON: weights, optimiser, scaler, EMA, states, best, length of the log."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.reading import read_object
from kdcli.artifacts.store import Output, write_bytes, write_tensors
from kdcli.engine.clipping import Clipped
from kdcli.engine.machines import Machine, goes_on
from kdcli.engine.states import States
from kdcli.errors import InputError

WEIGHTS, OPTIMIZER, EMA, STATES, PROGRESS = (
    "weights.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "states.safetensors",
    "progress.json",
)
FORMAT = 3  # 0.1 wrote none


@dataclass
class Progress:
    """What a run knows of itself beside tensors.

    Attributes:
        step: steps done.
        seconds: wall time so far.
        log_bytes: length of ``metrics.jsonl`` that belongs to this state.
        best: ``{"step", "value", "metrics", "file"}`` of the best evaluation, or None.
        last: metrics of the latest evaluation.
        skipped: fp16 overflow steps in a row.
        accumulate: micro-batches per step where they were found by trial, else 0.
        averaged: updates of the moving average.
        clipping: of each network whose gradients may be clipped.
        machines: what the steps were made on, each with the first step on it (:meth:`goes_on`).
        observed: sums of what is watched beside the terms, by name.
        ended: why the training ended before its last step, empty where it did not.
        format: of the state that it is written with.
    """

    step: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    best: dict[str, Any] | None = None
    last: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    accumulate: int = 0
    averaged: int = 0
    clipping: dict[str, Clipped] = field(default_factory=dict)
    machines: list[dict[str, Any]] = field(default_factory=list)
    observed: dict[str, float] = field(default_factory=dict)
    ended: str = ""
    format: int = FORMAT

    def goes_on(self, machine: Machine) -> str:
        """Note what the next steps are made on; returns what is to be said where it is another."""
        return goes_on(self.machines, machine, {"from_step": self.step})


def save(
    output: Output,
    progress: Progress,
    trained: dict[str, nn.Module],
    optimizers: dict[str, Any],
    ema: nn.Module | None,
    scaler: Any,
    states: States | None = None,
) -> None:
    """Commit the state of ``progress.step`` steps."""
    with output.new_state(progress.step) as folder:
        weights = {f"{party}/{k}": v for party, m in trained.items() for k, v in m.state_dict().items()}
        write_tensors(folder / WEIGHTS, weights)
        tensors, plain = _flatten_optimizers(optimizers)
        write_tensors(folder / OPTIMIZER, tensors)
        if ema is not None:
            write_tensors(folder / EMA, ema.state_dict())
        held = {f"{state}/{name}": t for state, own in (states or {}).items() for name, t in own.items()}
        if held:
            write_tensors(folder / STATES, held)
        facts = {
            **asdict(progress),
            "optimizers": plain,
            "scaler": scaler.state_dict() if scaler else None,
            "states": strides(held),
        }
        write_bytes(folder / PROGRESS, json.dumps(facts).encode())


def load(
    folder: Path,
    trained: dict[str, nn.Module],
    optimizers: dict[str, Any],
    ema: nn.Module | None,
    scaler: Any,
    states: States | None = None,
) -> Progress:
    """Restore a committed state into modules, optimisers and states.

    Raises:
        InputError: it does not fit.
    """
    facts = read_object(folder / PROGRESS)
    if facts.get("format") != FORMAT:
        raise InputError(
            f"{folder} was written by another version of kdcli, in a form that is no longer read. Start anew "
            "with --overwrite."
        )
    weights = read_tensors(folder / WEIGHTS)
    try:
        for party, module in trained.items():
            prefix = f"{party}/"
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            )
        if ema is not None:
            ema.load_state_dict(read_tensors(folder / EMA))
    except RuntimeError as error:
        raise InputError(f"{folder} does not fit this run: {error}") from error
    _restore_optimizers(optimizers, read_tensors(folder / OPTIMIZER), facts.pop("optimizers"))
    if scaler_state := facts.pop("scaler"):
        scaler.load_state_dict(scaler_state)
    laid = facts.pop("states", {})
    if states:
        for key, tensor in strided(read_tensors(folder / STATES), laid).items():
            state, name = key.split("/", 1)
            states[state][name] = tensor.to(states[state][name].device)
    facts["clipping"] = {name: Clipped(**own) for name, own in facts["clipping"].items()}
    return Progress(**facts)


def _flatten_optimizers(optimizers: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors named ``turn/group/parameter/name``, with no parameter for those of a group, and what is plain.

    Plain are, by turn, all other values, the strides of tensors that a file would lose, and which tensors
    stay on the host where their parameters do not (counts of steps).
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for turn, optimizer in optimizers.items():
        kept: dict[str, Any] = {}
        for g, group in enumerate(optimizer.param_groups):
            kept |= {f"{g}//{name}": value for name, value in group.items() if _changes(name, value)}
            for p, parameter in enumerate(group["params"]):
                entries = optimizer.state.get(parameter, {})
                kept |= {f"{g}/{p}/{name}": value for name, value in entries.items()}
        own = {key: value for key, value in kept.items() if isinstance(value, Tensor)}
        device = _device(optimizer)
        plain[turn] = {
            "values": {key: value for key, value in kept.items() if key not in own},
            "strides": strides(own),
            "host": [key for key, tensor in own.items() if tensor.device != device],
        }
        tensors |= {f"{turn}/{key}": tensor for key, tensor in own.items()}
    return tensors, plain


def _restore_optimizers(
    optimizers: dict[str, Any], tensors: dict[str, Tensor], plain: dict[str, Any]
) -> None:
    """Put back what was flattened, as it was.

    ``load_state_dict`` would make every tensor one of its parameter's type.
    """
    for turn, optimizer in optimizers.items():
        facts, groups, prefix = plain[turn], optimizer.param_groups, f"{turn}/"
        own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        device = _device(optimizer)
        own = {key: t if key in facts["host"] else t.to(device) for key, t in own.items()}
        optimizer.state.clear()
        for key, value in [*facts["values"].items(), *strided(own, facts["strides"]).items()]:
            g, p, name = key.split("/", 2)
            group = groups[int(g)]
            entry = optimizer.state[group["params"][int(p)]] if p else group
            entry[name] = tuple(value) if isinstance(entry.get(name), tuple) else value


def _changes(name: str, value: Any) -> bool:
    """Whether a group's field may be another one after a step: a type or a function is as it was made."""
    return name != "params" and not isinstance(value, torch.dtype) and not callable(value)


def _device(optimizer: Any) -> torch.device:
    return next(p.device for group in optimizer.param_groups for p in group["params"])


def strides(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Strides of the tensors that have others than those which a file gives them.

    A CNN in channels-last layout has such weights, gradients and moments, and a sum over the same numbers in
    another order is another sum. (``is_contiguous`` is no measure: it overlooks sides of length 1.)
    """
    return {
        name: list(tensor.stride())
        for name, tensor in tensors.items()
        if tensor.stride() != torch.empty(tensor.shape, device="meta").stride()
    }


def strided(tensors: Mapping[str, Tensor], found: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """The tensors with the strides that they had; those that share memory with themselves stay copies."""
    return {
        name: torch.empty_strided(t.shape, found[name], dtype=t.dtype, device=t.device).copy_(t)
        if name in found and 0 not in found[name]
        else t
        for name, t in tensors.items()
    }


def clone_to_cpu(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a state dict that later steps do not change."""
    return {k: v.detach().to("cpu", copy=True) for k, v in module.state_dict().items()}


class Log:
    """``metrics.jsonl``: rows after a resumed step are dropped before new ones are written."""

    def __init__(self, path: Path, length: int, writes: bool) -> None:
        self.path, self._length, self._writes = path, length, writes

    def __enter__(self) -> Log:
        if self._writes:
            self._file = open(self.path, "ab")
            if self._file.tell() < self._length:
                raise InputError(f"{self.path} is shorter than its state says. Start anew with --overwrite.")
            self._file.truncate(self._length)
            self._file.seek(self._length)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        """Add a row and hand it to the operating system."""
        if self._writes:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()

    @property
    def length(self) -> int:
        """Bytes of all rows, where they are written."""
        return self._file.tell() if self._writes else 0

    def sync(self) -> int:
        """Make all rows durable; returns the length."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()
