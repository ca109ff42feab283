"""The launcher runs for real, in a process of its own; the ranks are toy scripts that the tests write.

SLURM is mocked: only its environment variables are set, as srun and sbatch set them; no SLURM is here.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kdcli import launch
from kdcli.errors import EnvironmentFault

ROOT = Path(__file__).parents[1]
LAUNCHER = """
import sys
from kdcli.errors import KdcliError
from kdcli.launch import StopSignal, launch
stop = StopSignal()
stop.install()
assert "torch" not in sys.modules
try:
    code = launch(sys.argv[3:], int(sys.argv[1]), module="toyworker", grace_s=float(sys.argv[2]), stop=stop)
except KdcliError as error:
    print(error, file=sys.stderr)
    code = error.exit_code
assert "torch" not in sys.modules
sys.exit(code)
"""
# Each rank does what its own argument says; `say` is how the tests learn that a rank is that far.
WORKER = """
import sys
from kdcli.launch import StopSignal, rank
stop = StopSignal()
what = sys.argv[1 + rank()]
if not what.startswith("default"):
    stop.install()
import os, signal, time
def say(text):
    with open(os.path.join(os.path.dirname(__file__), f"{text}-{rank()}"), "w") as file:
        file.write(str(os.getpid()))
def until_stopped(code):
    end = time.monotonic() + 60
    try:
        while time.monotonic() < end and not stop.requested:
            time.sleep(0.01)
    except KeyboardInterrupt:
        sys.exit(130)
    say(stop.requested)
    sys.exit(code)
say("ready")
name, _, value = what.partition(":")
if name in ("exit", "after", "die"):
    peer = os.path.join(os.path.dirname(__file__), f"ready-{1 - rank()}")
    while name != "exit" and not os.path.exists(peer):
        time.sleep(0.01)  # until the other one can answer SIGTERM
    if name == "die":
        os.kill(os.getpid(), int(value))
    sys.exit(int(value))
if name == "late":  # fails a little later than the others
    time.sleep(0.4)
    sys.exit(int(value))
if name == "stop":
    until_stopped(int(value))
if name == "site":  # what Python makes of Ctrl-C while it imports site
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(1)
if name == "slow":  # as if it imported torch before it looks at the signal
    time.sleep(0.5)
    until_stopped(int(value))
if name == "deaf":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    say("deaf")
    time.sleep(60)
if name == "default":
    time.sleep(60)
if name == "parent":  # a loader process, which no signal may reach while the rank finishes its step
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        say("child")
        time.sleep(60)
        os._exit(0)
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(0.2)
    sys.exit(9 if os.waitpid(child, os.WNOHANG)[0] else 75)
if name == "print":
    line = f"line of rank {rank()} stdin {sys.stdin.read()!r} {os.environ['OMP_NUM_THREADS']}\\n"
    os.write(1, line.encode())  # in one piece, whatever PYTHONUNBUFFERED is
    os.write(2, f"error of rank {rank()}\\n".encode())
if name == "reduce":
    import torch
    from accelerate import PartialState
    state = PartialState(cpu=True)
    total = torch.tensor([float(state.process_index + 1)])
    torch.distributed.all_reduce(total)
    print(state.num_processes, torch.distributed.get_backend(), total.item())
    torch.distributed.destroy_process_group()
"""


class Toy:
    """Starts launchers and sees to it that none of their processes survives the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        (folder / "toyworker.py").write_text(WORKER)

    def start(self, *what: str, grace: float = 20.0, **env: str) -> subprocess.Popen[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "SLURM_"))}
        path = f"{self.folder}{os.pathsep}{ROOT}"
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", LAUNCHER, str(len(what)), str(grace), *what],
            env={**clean, "PYTHONPATH": path, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test may run in the background of a script, where Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )
        self.started.append(process)
        return process

    def run(self, *what: str, **keywords: object) -> tuple[int, str, str]:
        return self.end(self.start(*what, **keywords))  # type: ignore[arg-type]

    def end(self, process: subprocess.Popen[str], timeout: float = 30) -> tuple[int, str, str]:
        out, err = process.communicate(timeout=timeout)
        assert self.alive() == []
        return process.returncode, out, err

    def alive(self) -> list[psutil.Process]:
        """Processes of this test that still run: they all have its folder in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                mine = str(self.folder) in process.environ().get("PYTHONPATH", "")
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def pid(self, mark: str) -> int:
        """Wait until a rank has said `mark`, and return the process id that it wrote."""
        wait_for(lambda: (self.folder / mark).is_file() and (self.folder / mark).read_text() != "")
        return int((self.folder / mark).read_text())

    def said(self, mark: str) -> bool:
        return (self.folder / mark).exists()


def wait_for(condition: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    toy = Toy(tmp_path)
    yield toy
    for process in [*toy.alive(), *toy.started]:
        process.kill()
    for process in toy.started:
        process.communicate()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (("exit:0", "exit:0"), 0),
        (("stop:0", "exit:3"), 3),
        (("exit:75", "exit:75"), 75),
        (("stop:75", "exit:3"), 3),  # rank 0 answers the launcher's SIGTERM: no preemption
        (("exit:75", "stop:75"), 75),  # only rank 0 got the scheduler's signal
        (("after:75", "late:1"), 75),  # and rank 1 lost its peer
        (("after:1", "late:6"), 6),  # rank 0 lost its peer, which tells why when its interpreter is done
        (("after:1", "late:4"), 1),
        (("exit:77", "exit:0"), 1),  # no code of ours
        (("exit:0", "late:5"), 5),  # the end of a rank that is done stops nobody
    ],
)
def test_code(toy: Toy, what: tuple[str, ...], code: int) -> None:
    assert toy.run(*what)[0] == code


def test_siblings_are_asked_before_they_are_killed(toy: Toy) -> None:
    code, _, err = toy.run("stop:75", "after:3")
    assert code == 3
    assert toy.said("SIGTERM-0")
    assert "rank 1 ended with code 3" in err


def test_only_rank_0_has_stdout_and_none_has_stdin(toy: Toy) -> None:
    code, out, err = toy.run("print", "print")
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert (code, out) == (0, f"line of rank 0 stdin '' {threads}\n")
    assert f"line of rank 1 stdin '' {threads}\n" in err
    assert "error of rank 0" in err
    assert "error of rank 1" in err
    assert toy.run("print", OMP_NUM_THREADS="7")[1].endswith(" 7\n")


@pytest.mark.parametrize("peer", ["stop:75", "deaf"])
def test_killed_rank_is_named(toy: Toy, peer: str) -> None:
    process = toy.start(peer, "stop:0", grace=1.0)
    victim = toy.pid("ready-1")
    toy.pid("deaf-0" if peer == "deaf" else "ready-0")
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    code, _, err = toy.end(process)
    assert code == 4
    assert "rank 1 was killed by SIGKILL; the job was stopped. It mostly means out of memory" in err
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("number", "hint"),
    [(signal.SIGSEGV, "Compiled code crashed"), (signal.SIGBUS, "shared memory (/dev/shm)")],
)
def test_a_crash_has_another_hint_than_a_kill(toy: Toy, number: signal.Signals, hint: str) -> None:
    code, _, err = toy.run(f"die:{number}", "late:0")
    assert code == 4
    assert f"was killed by {number.name}; the job was stopped. " in err
    assert hint in err
    assert "out of memory" not in err


def test_an_abort_that_follows_a_failure_does_not_hide_it(toy: Toy) -> None:
    assert toy.run(f"die:{signal.SIGABRT}", "late:3")[0] == 3
    code, _, err = toy.run("stop:75", f"die:{signal.SIGABRT}")
    assert code == 4
    assert "rank 1 was killed by SIGABRT" in err


@pytest.mark.parametrize(
    ("number", "seen", "code"),
    [("SIGTERM", "SIGTERM", 75), ("SIGUSR1", "SIGUSR1", 75), ("SIGHUP", "SIGTERM", 75), ("SIGINT", "", 130)],
)
def test_signal_is_forwarded_once_all_are_up(toy: Toy, number: str, seen: str, code: int) -> None:
    if signal.getsignal(signal.Signals[number]) is signal.SIG_IGN:
        pytest.skip(f"these tests run with {number} ignored, as under nohup, and so would what they start")
    process = toy.start("stop:75", "stop:75")
    toy.pid("ready-0")
    toy.pid("ready-1")
    process.send_signal(signal.Signals[number])
    assert toy.end(process)[0] == code
    if seen:
        assert toy.said(f"{seen}-0")
        assert toy.said(f"{seen}-1")


def test_ctrl_c_that_meets_pythons_start_up_is_no_bug(toy: Toy) -> None:
    process = toy.start("site", "site")
    toy.pid("ready-0")
    toy.pid("ready-1")
    process.send_signal(signal.SIGINT)
    assert toy.end(process)[0] == 130


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signal_before_the_ranks_are_up(toy: Toy, number: str) -> None:
    process = toy.start("slow:75", "slow:75")
    wait_for(lambda: len(psutil.Process(process.pid).children()) > 0)
    process.send_signal(signal.Signals[number])
    began = time.monotonic()
    assert toy.end(process)[0] == (130 if number == "SIGINT" else 75)
    assert time.monotonic() - began < 5


def random_signals(toy: Toy, times: int, seed: int) -> None:
    """Signals at any time from the launcher's handler to the ranks' waiting, and again while they stop."""
    rng = random.Random(seed)
    for _ in range(times):
        number = rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
        process = toy.start("slow:75", "slow:75")
        # Python's own start-up belongs to nobody: wait until the launcher's handler stands.
        wait_for(lambda process=process: handles(process.pid, signal.SIGUSR1))
        time.sleep(rng.uniform(0, 1.2))
        process.send_signal(number)
        if rng.random() < 0.3:
            time.sleep(rng.uniform(0, 0.05))
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        code = toy.end(process)[0]
        assert code in ((75, 130) if number is signal.SIGINT else (75,)), number


def handles(pid: int, number: signal.Signals) -> bool:
    """Tell whether the process has a handler for the signal (Linux)."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_signal_at_random_times(toy: Toy) -> None:
    random_signals(toy, 3, seed=0)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 5))
def test_signal_at_random_times_often(toy: Toy, seed: int) -> None:
    random_signals(toy, 20, seed)


def test_second_signal_does_not_break_off_the_first(toy: Toy) -> None:
    process = toy.start("slow:75", "slow:75")
    toy.pid("ready-0")
    toy.pid("ready-1")
    for _ in range(5):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.03)
    assert toy.end(process)[0] == 75


def test_rank_without_handler_counts_as_preempted(toy: Toy) -> None:
    process = toy.start("default", "deaf")
    toy.pid("ready-0")
    toy.pid("deaf-1")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert toy.end(process)[0] == 75
    assert time.monotonic() - began < 3, "rank 0 never joined, rank 1 has nothing to finish"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_rank_that_does_not_stop_is_killed_after_the_grace_time(
    toy: Toy, number: signal.Signals, code: int
) -> None:
    process = toy.start("deaf", "deaf", grace=1.0)
    toy.pid("deaf-0")
    toy.pid("deaf-1")
    began = time.monotonic()
    process.send_signal(number)
    ended, _, err = toy.end(process)
    assert ended == code
    assert "rank 1 did not end in time" in err
    assert 1.0 <= time.monotonic() - began < 4


def test_signal_spares_the_children_and_the_end_does_not(toy: Toy) -> None:
    process = toy.start("parent", "parent")
    child, _ = toy.pid("child-0"), toy.pid("child-1")
    process.send_signal(signal.SIGTERM)
    assert toy.end(process)[0] == 75  # 9 if the child had been signalled too
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_killed_launcher_takes_its_ranks_along(toy: Toy) -> None:
    process = toy.start("deaf", "deaf")
    toy.pid("deaf-0")
    toy.pid("deaf-1")
    process.kill()
    process.wait()
    wait_for(lambda: not toy.alive(), seconds=5)


@pytest.mark.long
def test_killed_launcher_at_any_time(toy: Toy) -> None:
    rng = random.Random(0)
    for _ in range(20):
        process = toy.start("deaf", "deaf")
        time.sleep(rng.uniform(0.05, 0.6))
        process.kill()
        process.communicate()
        wait_for(lambda: not toy.alive(), seconds=5)


@pytest.mark.long
def test_killed_rank_often(toy: Toy) -> None:
    rng = random.Random(0)
    for _ in range(10):
        for mark in toy.folder.glob("ready-*"):
            mark.unlink()
        process = toy.start("stop:75", "stop:75", "stop:75")
        rank = rng.randrange(3)
        victim = toy.pid(f"ready-{rank}")
        time.sleep(rng.uniform(0, 0.3))
        os.kill(victim, signal.SIGKILL)
        code, _, err = toy.end(process)
        assert code == 4
        assert f"rank {rank} was killed by SIGKILL" in err


@pytest.mark.long
def test_torch_and_accelerate_meet(toy: Toy) -> None:
    code, out, err = toy.run("reduce", "reduce")
    assert (code, out) == (0, "2 gloo 3.0\n"), err


def test_signal_noted_before_the_launch_starts_nothing(tmp_path: Path) -> None:
    stop = launch.StopSignal()
    before = {number: signal.getsignal(number) for number in (*launch.FORWARDED, signal.SIGINT)}
    try:
        stop.install()
        assert stop.requested is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested == "SIGUSR1"
        assert launch.launch([str(tmp_path)], 2, module="no_such_module", stop=stop) == 75
        assert signal.getsignal(signal.SIGTERM) == stop._note, "the caller's handlers are back"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_rank_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(EnvironmentFault, match=r"cannot run 2 processes.*/no/such/python"):
        launch.launch([], 2)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Give a process that nobody launched; what `adopt_slurm` sets is undone too."""
    outside = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "KDCLI_", "MASTER_", "OMP_"))
    }
    for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        outside.pop(key, None)
    monkeypatch.setattr(os, "environ", outside)
    return monkeypatch


SBATCH = {"SLURM_JOB_ID": "4242", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "6"}
SRUN = {
    **SBATCH,
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_CPUS_PER_TASK": "8",
}


@pytest.mark.parametrize(
    ("env", "worker"),
    [
        ({}, False),
        ({"KDCLI_WORKER": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, True),
        (SRUN, True),
        (SBATCH, False),  # the batch script itself: `kdcli -n 6` there must launch
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, False),  # `srun -n 1 kdcli -n 6`
    ],
)
def test_is_worker(environment: pytest.MonkeyPatch, env: dict[str, str], worker: bool) -> None:
    os.environ.update(env)
    assert launch.is_worker() is worker
    if not worker:
        launch.adopt_slurm()
        assert (launch.rank(), launch.world_size()) == (0, 1)


@pytest.mark.parametrize(
    ("nodes", "address"),
    [("gpu07", "gpu07"), ("gpu[07-08,11],cpu3", "gpu07"), ("a1,b2", "a1"), ("r[2,4]n[1-3]", "r2n1")],
)
def test_adopt_slurm(environment: pytest.MonkeyPatch, nodes: str, address: str) -> None:
    os.environ.update({**SRUN, "SLURM_STEP_NODELIST": nodes})
    launch.adopt_slurm()
    assert (launch.rank(), launch.world_size()) == (5, 6)
    assert os.environ["LOCAL_RANK"] == "1"
    assert os.environ["MASTER_ADDR"] == address
    assert 15000 <= int(os.environ["MASTER_PORT"]) < 30000
    assert os.environ["OMP_NUM_THREADS"] == "8"
    launch.adopt_slurm()
    assert launch.rank() == 5


@pytest.mark.parametrize(
    ("visible", "wanted"), [("0,1,2,3", "1"), ("GPU-a,GPU-b", "GPU-b"), ("3", "3"), (None, None)]
)
def test_each_task_of_a_search_has_a_gpu(
    environment: pytest.MonkeyPatch, visible: str | None, wanted: str | None
) -> None:
    os.environ.update(SRUN)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    launch.share_slurm_gpus()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == wanted
    assert "RANK" not in os.environ
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)


def test_torchrun_under_slurm_keeps_torchruns_ranks(environment: pytest.MonkeyPatch) -> None:
    os.environ.update({**SRUN, "RANK": "2", "WORLD_SIZE": "4", "MASTER_PORT": "1"})
    launch.adopt_slurm()
    assert (launch.rank(), launch.world_size(), os.environ["MASTER_PORT"]) == (2, 4, "1")


def test_import_needs_no_torch() -> None:
    code = "import sys, kdcli.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_signal_where_nobody_watches_ends_the_process_at_once() -> None:
    script = (
        "import os, signal, time; from kdcli.launch import StopSignal; stop = StopSignal(); stop.install()\n"
        "with stop.watching(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert stop.requested == 'SIGTERM'; stop.watched = False\n"
        "os.kill(os.getpid(), signal.SIGUSR1); time.sleep(60)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 75
    assert ended.stderr == "kdcli: SIGUSR1: stopped; run the same command again.\n"
