"""Running state as safetensors and JSON: weights, optimiser, scaler, EMA, best so far, length of the log."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.reading import read_object
from kdcli.artifacts.store import Output, write_bytes, write_tensors
from kdcli.errors import InputError

WEIGHTS, OPTIMIZER, EMA, PROGRESS = (
    "weights.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "progress.json",
)


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
    """

    step: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    best: dict[str, Any] | None = None
    last: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    accumulate: int = 0


def save(
    output: Output,
    progress: Progress,
    trained: dict[str, nn.Module],
    optimizers: dict[str, Any],
    ema: nn.Module | None,
    scaler: Any,
) -> None:
    """Commit the state of ``progress.step`` steps."""
    with output.new_state(progress.step) as folder:
        weights = {f"{party}/{k}": v for party, m in trained.items() for k, v in m.state_dict().items()}
        write_tensors(folder / WEIGHTS, weights)
        tensors, plain = _flatten_optimizers(optimizers)
        write_tensors(folder / OPTIMIZER, tensors)
        if ema is not None:
            write_tensors(folder / EMA, ema.state_dict())
        facts = {**vars(progress), "optimizers": plain, "scaler": scaler.state_dict() if scaler else None}
        write_bytes(folder / PROGRESS, json.dumps(facts).encode())


def load(
    folder: Path,
    trained: dict[str, nn.Module],
    optimizers: dict[str, Any],
    ema: nn.Module | None,
    scaler: Any,
) -> Progress:
    """Restore a committed state into modules and optimisers; raises InputError where it does not fit."""
    facts = read_object(folder / PROGRESS)
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
    return Progress(**facts)


def _flatten_optimizers(optimizers: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for turn, optimizer in optimizers.items():
        state = optimizer.state_dict()
        values: dict[str, Any] = {}
        for index, entries in state["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"{turn}/{index}/{name}"] = value
                else:
                    values[f"{index}/{name}"] = value
        groups = [
            {k: v for k, v in g.items() if k != "params" and _jsonable(v)} for g in state["param_groups"]
        ]
        plain[turn] = {"values": values, "groups": groups}
    return tensors, plain


def _restore_optimizers(
    optimizers: dict[str, Any], tensors: dict[str, Tensor], plain: dict[str, Any]
) -> None:
    for turn, optimizer in optimizers.items():
        state = optimizer.state_dict()
        entries: dict[int, dict[str, Any]] = {}
        for key, tensor in tensors.items():
            owner, index, name = key.split("/", 2)
            if owner == turn:
                entries.setdefault(int(index), {})[name] = tensor
        for key, value in plain[turn]["values"].items():
            index, name = key.split("/", 1)
            entries.setdefault(int(index), {})[name] = value
        for group, saved in zip(state["param_groups"], plain[turn]["groups"]):
            for key, value in saved.items():
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
        optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})


def _jsonable(value: Any) -> bool:
    return isinstance(value, (int, float, str, bool, type(None))) or (
        isinstance(value, (list, tuple)) and all(_jsonable(v) for v in value)
    )


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

    def sync(self) -> int:
        """Make all rows durable; returns the length."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()
