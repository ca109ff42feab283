"""Run one command on several local processes, and know whether this process is one of them.

Why not ``torch.distributed.launcher.api.elastic_launch`` (read in torch 2.14.1): when a worker fails it waits
30 s of its own before SIGKILL (``shutdown_timeout`` reaches only the other path); a signal becomes an
exception that loses the workers' codes; it signals process groups, so SIGTERM kills the loader processes of a
worker that is to finish its step; and its handlers come seconds late, after torch's import and rendezvous.

So the ranks are plain `subprocess.Popen` with torchrun's environment, and the launcher imports no torch. Each
rank leads its own session: Ctrl-C reaches the launcher alone, which forwards it to the ranks, not to their
children. What a rank leaves behind dies with its group. Linux kills the ranks of a launcher that is SIGKILLed
(PR_SET_PDEATHSIG); macOS has no such call: there they stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO

from kdcli.errors import EnvironmentFault, Preempted

PREEMPTED, INTERRUPTED = Preempted.exit_code, 130
# What the launcher receives -> what it sends to the ranks. A closed terminal is a request to stop.
FORWARDED = {s: s for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)} | {signal.SIGHUP: signal.SIGTERM}
# A rank that dies of these had no handler yet, or no longer.
UNHANDLED = {-signal.SIGTERM: PREEMPTED, -signal.SIGUSR1: PREEMPTED, -signal.SIGINT: INTERRUPTED}
# What a rank may say only because another one vanished (a collective broke): other codes tell more.
ECHOES = (1, EnvironmentFault.exit_code, -signal.SIGABRT)
# What the signal that killed a rank mostly means.
_HINTS: dict[int, str] = {
    signal.SIGKILL: "It mostly means out of memory (see dmesg): use a smaller batch or fewer loader workers.",
    signal.SIGBUS: "It mostly means that shared memory (/dev/shm) or the disk is full: free some, or use "
    "fewer loader workers.",
}
_CRASH = (
    "Compiled code crashed, of a library, a decoder or a driver: PYTHONFAULTHANDLER=1 before the command "
    "shows where."
)
# Between looks at the ranks; for one that SIGKILL does not end at once (a hung driver), before giving it up.
POLL_S, REAP_S = 0.03, 4.0


def _slurm_tasks() -> int:
    """Return the tasks of this srun step. A batch script has PROCID and NTASKS too, but no step: 1."""
    if not {"SLURM_PROCID", "SLURM_STEP_ID"} <= os.environ.keys():
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1)


def is_worker() -> bool:
    """Tell whether this is a rank of a job: ours, torchrun's, accelerate's, or srun's with several tasks."""
    return "KDCLI_WORKER" in os.environ or {"RANK", "WORLD_SIZE"} <= os.environ.keys() or _slurm_tasks() > 1


def rank() -> int:
    """Return the rank of this process, 0 outside a job. Call `adopt_slurm` first."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Return the number of ranks of the job, 1 outside one. Call `adopt_slurm` first."""
    return int(os.environ.get("WORLD_SIZE", 1))


def adopt_slurm() -> None:
    """Under srun with several tasks, set what torch and accelerate read; elsewhere do nothing."""
    env, tasks = os.environ, _slurm_tasks()
    if tasks == 1 or "RANK" in env:
        return
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or "127.0.0.1"
    first = re.split(r",(?![^\[]*\])", nodes)[0]  # "gpu[07-08,11],cpu3" -> "gpu[07-08,11]"
    env.setdefault("MASTER_ADDR", re.sub(r"\[(\w+)[^]]*\]", r"\1", first))  # -> "gpu07"
    # All ranks must agree on a port without talking, and two steps of a job must not meet.
    port = 15000 + (31 * int(env.get("SLURM_JOB_ID", 0)) + int(env["SLURM_STEP_ID"])) % 15000
    env.setdefault("MASTER_PORT", str(port))
    env.setdefault("OMP_NUM_THREADS", env.get("SLURM_CPUS_PER_TASK", "1"))
    env |= {"RANK": env["SLURM_PROCID"], "LOCAL_RANK": env["SLURM_LOCALID"], "WORLD_SIZE": str(tasks)}


def share_slurm_gpus() -> None:
    """Under srun with several tasks, each a run of its own, leave this one its own GPU of those named."""
    gpus = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if _slurm_tasks() > 1 and "RANK" not in os.environ and len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(os.environ["SLURM_LOCALID"]) % len(gpus)]


class StopSignal:
    """Notes SIGTERM and SIGUSR1 for the engine, which finishes its step. Ctrl-C raises KeyboardInterrupt.

    Where nobody watches (imports, planning: nothing could be lost) the process ends at once.
    """

    requested: str | None = None
    watched: bool = True

    def install(self) -> None:
        """Set the handlers; call it in the main thread before anything slow is imported."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A block that looks at ``requested`` often enough."""
        before, self.watched = self.watched, True
        try:
            yield
        finally:
            self.watched = before

    def _note(self, number: int, frame: object) -> None:
        self.requested = signal.Signals(number).name
        if not self.watched:
            _say(f"{self.requested}: stopped; run the same command again.")
            os._exit(PREEMPTED)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a closed stderr must not cost the ranks their time to commit
        print(f"kdcli: {text}", file=sys.stderr, flush=True)


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    """Run in a rank before exec: ask the kernel for SIGKILL at the launcher's death."""
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died between fork and prctl
        os._exit(1)


@dataclass
class _Job:
    """The ranks of one launch and how they ended."""

    grace_s: float
    received: list[signal.Signals] = field(default_factory=list)  # the handler appends to it
    ranks: list[subprocess.Popen[str]] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)  # rank -> code, in the order of the ends
    asked: signal.Signals | None = None  # the user's first signal, unless a rank had failed before it
    failed: bool = False  # a rank failed before any signal, and the others were told to end
    deadline: float = float("inf")
    killed: bool = False  # the deadline has passed

    def running(self) -> list[int]:
        return [rank for rank in range(len(self.ranks)) if rank not in self.codes]

    def wait(self) -> int:
        """Forward signals, stop all ranks when one fails, kill those that do not stop; return the code."""
        while self.running() and time.monotonic() < self.deadline + REAP_S:
            while self.received:
                number = self.received.pop(0)
                self.asked = self.asked or (None if self.failed else number)
                self._stop(FORWARDED[number])
            for rank in self.running():
                if (status := self.ranks[rank].poll()) is not None:
                    self._ended(rank, status)
            if any(self.codes.values()) and not self.failed and not self.asked:
                self.failed = True
                self._stop(signal.SIGTERM)
            if time.monotonic() > self.deadline and not self.killed:
                self.killed = True
                for rank in self.running():
                    _say(f"rank {rank} did not end in time; killed.")
                    self.kill(rank)
            time.sleep(POLL_S)
        return self._verdict()

    def kill(self, rank: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no group left; macOS: only zombies
            os.killpg(self.ranks[rank].pid, signal.SIGKILL)

    def _stop(self, number: signal.Signals) -> None:
        for rank in self.running():
            self.ranks[rank].send_signal(number)
        self.deadline = min(self.deadline, time.monotonic() + self.grace_s)

    def _ended(self, rank: int, status: int) -> None:
        """Note what the end of a rank means: 0 if it was only told to end because another one failed."""
        code = UNHANDLED.get(status, status)
        if self.asked is signal.SIGINT and code == 1:  # so ends Python when Ctrl-C meets its start-up
            code = INTERRUPTED
        if self.killed and status == -signal.SIGKILL:
            code = INTERRUPTED if self.asked is signal.SIGINT else PREEMPTED
        if self.failed and code in (PREEMPTED, INTERRUPTED):
            code = 0
        elif code and not self.failed and not self.asked:
            _say(f"rank {rank} ended with code {status}; stopping the others.")
        if self.asked and UNHANDLED.get(status) == PREEMPTED:
            self.deadline = time.monotonic()  # it never joined the others: they hold nothing, and would wait
        self.codes[rank] = code if code < 0 or code in (*range(7), PREEMPTED, INTERRUPTED) else 1
        self.kill(rank)

    def _verdict(self) -> int:
        if self.running() and self.asked:  # given up
            return PREEMPTED
        ends = [(rank, code) for rank, code in self.codes.items() if code]
        # The first in time, but a preemption first of all and an echo last.
        rank, code = min(ends, key=lambda end: (end[1] != PREEMPTED, end[1] in ECHOES), default=(0, 0))
        if code >= 0:
            return code
        raise EnvironmentFault(
            f"worker process of rank {rank} was killed by {signal.Signals(-code).name}; the job was stopped. "
            f"{_HINTS.get(-code, _CRASH)} The same command again continues from the last committed step."
        )


def launch(
    arguments: Sequence[str],
    processes: int,
    *,
    module: str = "kdcli",
    grace_s: float = 20.0,
    stop: StopSignal | None = None,
    stdout: IO[str] | None = None,
) -> int:
    """Run ``python -m module arguments`` as `processes` ranks on this machine. Main thread only.

    Stdout of rank 0 (to `stdout` if given) and stderr of all pass through, stdout of the others goes to
    stderr, stdin is empty. SIGTERM, SIGINT and SIGUSR1 are forwarded, SIGHUP as SIGTERM. `grace_s` seconds
    after a signal, or after a rank failed, those left are killed. If `stop` has noted a signal before this
    call, nothing is started.

    Returns:
        0 if all ranks returned 0; 75 if one was preempted (130 for Ctrl-C), or was killed for not stopping;
        else the code of the first that failed, whatever the others answer when stopped for that.

    Raises:
        EnvironmentFault: a rank was killed by a signal (it is named), or could not be started.
    """
    job = _Job(grace_s)
    before = {number: signal.getsignal(number) for number in FORWARDED}
    # `python -m` would put the working directory on the path, where a user's datasets.py hides the library.
    safe = [] if os.getcwd() in map(os.path.abspath, sys.path) else ["-P"]
    die = functools.partial(_die_with, os.getpid(), ctypes.CDLL(None)) if sys.platform == "linux" else None
    command, null = [sys.executable, *safe, "-m", module, *arguments], subprocess.DEVNULL
    start = functools.partial(subprocess.Popen, command, stdin=null, start_new_session=True, preexec_fn=die)
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup, or what a script runs with `&`
                signal.signal(number, lambda number, frame: job.received.append(signal.Signals(number)))
        if stop is not None and stop.requested:
            return PREEMPTED
        with socket.socket() as port:  # bound but not listening: reserved for rank 0 to listen on
            port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port.bind(("127.0.0.1", 0))
            size, threads = str(processes), str(max(1, (os.cpu_count() or 1) // processes))
            env = {"OMP_NUM_THREADS": threads, **os.environ, "KDCLI_WORKER": "1", "MASTER_ADDR": "127.0.0.1"}
            env |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": str(port.getsockname()[1])}
            for rank in map(str, range(processes)):
                own = env | {"RANK": rank, "LOCAL_RANK": rank}
                job.ranks.append(start(env=own, stdout=stdout if rank == "0" else 2))
            return job.wait()
    except OSError as error:
        raise EnvironmentFault(f"cannot run {processes} processes: {error}. Use a smaller -n.") from error
    finally:
        for left in job.running():
            job.kill(left)
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
