"""Device, precision and processes of a run: accelerate's state, owned and reset here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdcli import errors
from kdcli.artifacts.store import Output, open_output
from kdcli.errors import EnvironmentFault, KdcliError, UsageError
from kdcli.launch import world_size
from kdcli.sections import RunSection

# What gloo, NCCL and the store say of a connection that broke off; other such errors have a type.
_LOST = re.compile(
    r"gloo/|ProcessGroup|NCCL|TCPStore|Connection (reset|closed|refused)|Broken pipe|Timed out waiting"
)


class Stop(Protocol):
    """Says whether a signal asked to stop: what has begun is finished, kept, and left off there.

    One with a method ``watching`` is told, as a context, where somebody looks at it (see :func:`watching`).
    """

    @property
    def requested(self) -> str | None:
        """Name of the signal that came, else None."""


class Runtime:
    """Accelerate for one run.

    Attributes:
        accelerator: prepared for this run's precision and device.
        device: of this process.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def prepare(self, part: Any, **how: Any) -> Any:
        """A turn or an optimiser as the processes use it together (accelerate's ``prepare``)."""
        return self.accelerator.prepare(part, **how)

    def release(self) -> None:
        """Let go of all that was prepared."""
        self.accelerator.free_memory()

    def alone(self) -> Runtime:
        """This process for itself: work of its own, in which it waits for no other."""
        return _Alone(self)

    def seed(self, seed: int) -> None:
        """Seed torch's generators, the device's among them."""
        if self.device.type == "cpu":  # torch would note who asked, for devices not used yet: a millisecond
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def largest(self, values: list[float]) -> list[float]:
        """Elementwise maximum over all processes."""
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        tensor = tensor.to(self.device)
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
        return tensor.tolist()

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean over all processes."""
        return tensor if self.world_size == 1 else self.accelerator.reduce(tensor, reduction="mean")

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of a CPU tensor over all processes."""
        if self.world_size == 1:
            return tensor
        total = tensor.to(self.device)
        torch.distributed.all_reduce(total)
        return total.cpu()

    def barrier(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()

    def describe(self) -> dict[str, Any]:
        """Facts for the manifest."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {"device": name, "threads": torch.get_num_threads(), "world_size": self.world_size}


class _Alone(Runtime):
    """One process of a job on work that no other shares: device and precision are the job's.

    It is the first process of one. Nothing is wrapped, and nothing is gathered, so processes may be at
    different steps.
    """

    def __init__(self, job: Runtime) -> None:
        super().__init__(job.accelerator)
        self.rank, self.world_size = 0, 1

    def prepare(self, part: Any, **how: Any) -> Any:
        """A module runs in the job's precision; an optimiser is as it is."""
        if not isinstance(part, nn.Module):
            return _Stepper(part)
        return part if self.accelerator.mixed_precision == "no" else _Autocast(part, self.accelerator)

    def release(self) -> None:
        """Nothing is kept."""

    def barrier(self) -> None:
        """Nobody is waited for."""


class _Stepper:
    """An optimiser with the face of accelerate's, without the searches that each of its steps makes."""

    step_was_skipped = False  # no scaler, no overflow

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.step, self.zero_grad = optimizer.step, optimizer.zero_grad

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups


class _Autocast(nn.Module):
    """A module that runs in a precision."""

    def __init__(self, module: nn.Module, accelerator: Any) -> None:
        super().__init__()
        self.module, self._accelerator = module, accelerator

    def forward(self, *inputs: Any) -> Any:
        with self._accelerator.autocast():
            return self.module(*inputs)


def device_of(config: RunSection) -> torch.device:
    """The device that a run asks for; ``auto`` is CUDA where there is some, else the CPU.

    Raises:
        EnvironmentFault: it is not there, there are fewer than processes, or it has not the precision.
        UsageError: one device for several processes.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    metal = torch.backends.mps.is_available()
    wanted = torch.device(("cuda" if gpus else "cpu") if config.device == "auto" else config.device)
    there = ["cpu", *(f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(gpus)), *["mps"] * metal]
    absent = wanted.type == "cuda" and (wanted.index or 0) >= gpus
    if absent or (wanted.type == "mps" and not metal):
        raise EnvironmentFault(
            f"--device {config.device}: no such device here. There is: {', '.join(there)}."
        )
    processes = config.processes
    if processes > 1 and (wanted.index is not None or wanted.type == "mps"):
        raise UsageError(f"--device {config.device} is one device, and {processes} processes need one each.")
    if wanted.type == "cuda" and processes > gpus:
        raise EnvironmentFault(f"{processes} processes need as many GPUs. There is: {', '.join(there)}.")
    if config.precision == "fp16" and wanted.type != "cuda":
        raise EnvironmentFault("--precision fp16 needs a CUDA device; use bf16 or no.")
    return wanted


def open_runtime(config: RunSection, *, find_unused: bool = False) -> Runtime:
    """Set device, threads, determinism and precision for a run.

    Raises:
        EnvironmentFault, UsageError: see :func:`device_of`.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs

    wanted = device_of(config)
    if wanted.index is not None and wanted.type == "cuda":
        torch.cuda.set_device(wanted)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if not torch.distributed.is_initialized():
        PartialState._reset_state()
    with accompanied(world_size()):
        accelerator = Accelerator(
            cpu=wanted.type == "cpu",
            mixed_precision=config.precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=find_unused)],
            step_scheduler_with_optimizer=False,
        )
    return Runtime(accelerator)


def watching(stop: Stop | None) -> AbstractContextManager[None]:
    """A block in which a signal is noted for ``stop`` instead of ending the process."""
    watch = getattr(stop, "watching", None)
    return nullcontext() if watch is None else watch()


@contextmanager
def accompanied(processes: int) -> Iterator[None]:
    """A block in which the loss of another process of the job is one message.

    Torch's own is a trace of a hundred lines, and a joke.

    Args:
        processes: of the job.

    Raises:
        EnvironmentFault: it is gone, and nothing can be exchanged with it.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not (isinstance(error, torch.distributed.DistError) or _LOST.search(str(error))):
            raise
        cause = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0]).split(". This is")[0]
        raise EnvironmentFault(
            "another process of this job has ended or hangs, and this one cannot go on without it "
            f"({cause}). What that one said, or its exit code, tells why; the same command again continues "
            "from the last committed step."
        ) from error


@contextmanager
def shared_output(
    path: Path, identity: Mapping[str, Any], overwrite: bool, runtime: Runtime
) -> Iterator[Output | None]:
    """:func:`kdcli.artifacts.store.open_output` for a job; the first process holds the lock.

    Raises:
        KdcliError: on every process, what the first one met.
        EnvironmentFault: another process of the job is gone.
    """
    with accompanied(runtime.world_size), _opened(path, identity, overwrite, runtime) as output:
        yield output


@contextmanager
def _opened(
    path: Path, identity: Mapping[str, Any], overwrite: bool, runtime: Runtime
) -> Iterator[Output | None]:
    """:func:`kdcli.artifacts.store.open_output` for a job; the first process holds the lock.

    Raises:
        KdcliError: on every process, what the first one met.
    """
    if runtime.world_size == 1:
        with open_output(path, identity, overwrite=overwrite) as output:
            yield output
        return
    if not runtime.main:
        kind, text = _told(runtime, None)
        if kind == "error":
            name, _, message = text.partition("|")
            raise getattr(errors, name)(message)
        yield None if kind == "complete" else Output(Path(path), Path(text), replace=overwrite)
        return
    with ExitStack() as stack:
        try:
            output = stack.enter_context(open_output(path, identity, overwrite=overwrite))
        except KdcliError as error:
            _told(runtime, ("error", f"{type(error).__name__}|{error}"))
            raise
        _told(runtime, ("complete", "") if output is None else ("open", str(output.partial)))
        yield output


def _told(runtime: Runtime, news: tuple[str, str] | None) -> tuple[str, str]:
    """What the first process says, on every process."""
    box = [news]
    torch.distributed.broadcast_object_list(box, src=0)
    assert box[0] is not None
    return box[0]
