"""One writer per output: races, dead holders, and directories that are renamed under a waiting process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdcli.artifacts import lock
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.store import open_output, write_bytes
from kdcli.errors import EnvironmentFault, InputError

IDENTITY = {"lr": 0.1}
RACERS = 20


def write(
    out: Path, identity: dict[str, Any] = IDENTITY, overwrite: bool = False, before: Any = None
) -> bool:
    """Whether this process wrote the artifact."""
    with open_output(out, identity, overwrite=overwrite) as output:
        if output is None:
            return False
        write_bytes(output.partial / "data", str(os.getpid()).encode())
        if before is not None:
            before()
        output.commit(Manifest("cache", "distill", identity), ["data"])
        return True


def whole(out: Path) -> str:
    manifest = manifests.read(out)
    manifests.verify(out, manifest)
    return (out / "data").read_text()


class Child:
    """A forked process that says when it is ready and goes on when told."""

    def __init__(self, work: Callable[[Child], Any]) -> None:
        self._ready, self._told = os.pipe(), os.pipe()
        self.id = os.fork()
        if self.id == 0:
            code = 99
            signal.alarm(60)  # a failed test leaves no one waiting
            try:
                work(self)
                code = 0
            finally:
                os._exit(code)

    def ready_and_wait(self) -> None:
        os.write(self._ready[1], b"r")
        os.read(self._told[0], 1)

    def wait_ready(self) -> None:
        assert os.read(self._ready[0], 1) == b"r"

    def go_on(self) -> None:
        os.write(self._told[1], b"g")

    def kill(self) -> None:
        os.kill(self.id, signal.SIGKILL)

    def join(self) -> int:
        code = os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])
        for fd in (*self._ready, *self._told):
            os.close(fd)
        return code


def holder(out: Path, **kwargs: Any) -> Child:
    """A child that holds the output with data in it, and commits when told."""
    child = Child(lambda me: write(out, before=me.ready_and_wait, **kwargs))
    child.wait_ready()
    return child


def race(out: Path, overwrite: bool, pause: float) -> list[tuple[int, str, str]]:
    """(process, outcome, message) of each racer."""
    start, results = os.pipe(), os.pipe()
    children = []
    for _ in range(RACERS):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                os.close(start[1])
                os.read(start[0], 1)  # all begin when the parent closes it
                try:
                    outcome = (
                        "wrote" if write(out, IDENTITY, overwrite, lambda: time.sleep(pause)) else "complete"
                    )
                    message = ""
                except Exception as error:
                    outcome, message = type(error).__name__, str(error)
                os.write(results[1], json.dumps([os.getpid(), outcome, message]).encode() + b"\n")
            finally:
                os._exit(0)
        children.append(child)
    os.close(start[0])
    os.close(start[1])
    for child in children:
        os.waitpid(child, 0)
    os.close(results[1])
    with os.fdopen(results[0]) as stream:
        found = [tuple(json.loads(line)) for line in stream]
    assert len(found) == RACERS
    return found


def assert_one_winner(out: Path, overwrite: bool, pause: float) -> None:
    found = race(out, overwrite, pause)
    wrote = [process for process, outcome, _ in found if outcome == "wrote"]
    assert {outcome for _, outcome, _ in found} <= {"wrote", "complete", "EnvironmentFault"}, found
    processes = {process for process, _, _ in found}
    for _, outcome, message in found:
        if outcome == "EnvironmentFault":
            named = re.match(rf"{out} is being written by process (\d+) on {socket.gethostname()}\.", message)
            assert named, message
            assert int(named[1]) in processes
    if overwrite:  # who comes after the commit starts anew
        assert wrote
        assert int(whole(out)) in wrote
    else:
        assert len(wrote) == 1
        assert int(whole(out)) == wrote[0]
    assert os.listdir(out.parent) == [out.name]
    assert sorted(os.listdir(out)) == ["data", "kdcli.json"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.long)])
def test_racers(tmp_path: Path, rounds: int, overwrite: bool) -> None:
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert_one_winner(folder / "out", overwrite, pause=(0.0, 0.02, 0.2)[number % 3])


def test_a_commit_between_opening_and_listing_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory is renamed and its lock dropped while a second writer looks into it."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    (partial / "data").touch()
    (partial / ".lock").touch()
    listdir = os.listdir

    def after_the_commit(folder: Any) -> list[str]:
        if isinstance(folder, int) and partial.exists() and not out.exists():
            os.rename(partial, out)
            os.unlink(out / ".lock")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", after_the_commit)
    with lock.locked(out, partial):
        assert listdir(out) == ["data"]
        assert listdir(partial) == [".lock"]


def test_racers_of_which_each_writes_nothing(tmp_path: Path) -> None:
    """Making and removing the directory under each other's feet never raises anything but the fault."""
    children = []
    for _ in range(8):

        def work(me: Child) -> None:
            for _ in range(60):
                try:
                    with open_output(tmp_path / "out", IDENTITY):
                        pass
                except EnvironmentFault as error:
                    assert "is being written by process" in str(error)  # noqa: PT017

        children.append(Child(work))
    assert [child.join() for child in children] == [0] * 8
    assert os.listdir(tmp_path) == []


def test_the_loser_names_the_holder(tmp_path: Path) -> None:
    child = holder(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(
            EnvironmentFault, match=rf"out is being written by process {child.id} on .*\. Wait for it"
        ) as caught:
            write(tmp_path / "out", overwrite=overwrite)
        assert caught.value.exit_code == 4
    child.go_on()
    assert child.join() == 0
    assert write(tmp_path / "out") is False
    assert whole(tmp_path / "out") == str(child.id)


def test_a_killed_holder_releases(tmp_path: Path) -> None:
    child = holder(tmp_path / "out")
    child.kill()
    assert child.join() == -signal.SIGKILL
    assert write(tmp_path / "out") is True
    assert whole(tmp_path / "out") == str(os.getpid())


def test_workers_of_a_killed_holder_are_waited_for(tmp_path: Path) -> None:
    """A loader worker has the lock's descriptor too, and lives on for a moment."""

    def work(me: Child) -> None:
        with open_output(tmp_path / "out", IDENTITY) as output:
            write_bytes(output.partial / "data", b"1")
            if os.fork() == 0:
                time.sleep(0.5)
                os._exit(0)
            me.ready_and_wait()

    child = Child(work)
    child.wait_ready()
    child.kill()
    child.join()
    begun = time.monotonic()
    assert write(tmp_path / "out") is True
    assert time.monotonic() - begun > 0.1


def test_a_worker_that_outlives_the_wait_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_ORPHANS_S", 0.1)
    (tmp_path / "out.partial").mkdir()
    gone = Child(lambda me: None)
    gone.join()
    with open(tmp_path / "out.partial" / ".lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        for text, named in (
            (f"process {gone.id} on {socket.gethostname()}", f"process {gone.id}"),
            ("", "another process"),
            ("process 1 on elsewhere", "process 1 on elsewhere"),
        ):
            stream.truncate(0)
            os.pwrite(stream.fileno(), text.encode(), 0)
            with pytest.raises(EnvironmentFault, match=f"is being written by {named}"):
                write(tmp_path / "out")


def test_a_live_worker_does_not_keep_the_lock_of_a_finished_run(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_bytes(output.partial / "data", b"1")
        worker = Child(lambda me: me.ready_and_wait())
        worker.wait_ready()
    assert write(tmp_path / "out") is True
    worker.go_on()
    assert worker.join() == 0


def test_a_forked_child_that_unwinds_leaves_the_parents_lock(tmp_path: Path) -> None:
    context = open_output(tmp_path / "out", IDENTITY)
    context.__enter__()
    child = Child(lambda me: context.__exit__(None, None, None))
    assert child.join() == 0
    other = Child(lambda me: write(tmp_path / "out"))
    assert other.join() == 99  # refused: the parent has the lock yet
    context.__exit__(None, None, None)
    assert os.listdir(tmp_path) == []


def while_waiting(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Any]) -> None:
    """Let something happen after this process opened the lock file and before it takes the lock."""
    take, calls = lock._take, []

    def slow(fd: int, path: Path) -> None:
        calls.append(fd)
        if len(calls) == 1:
            happens()
        take(fd, path)

    monkeypatch.setattr(lock, "_take", slow)


def commit_of(child: Child) -> Callable[[], None]:
    def happens() -> None:
        child.go_on()
        assert child.join() == 0

    return happens


def test_the_directory_is_renamed_while_the_loser_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = holder(tmp_path / "out")
    while_waiting(monkeypatch, commit_of(child))
    assert write(tmp_path / "out") is False
    assert whole(tmp_path / "out") == str(child.id)
    assert os.listdir(tmp_path) == ["out"]


def test_the_one_who_waited_compares_identities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = holder(tmp_path / "out", identity={"lr": 0.7})
    while_waiting(monkeypatch, commit_of(child))
    with pytest.raises(InputError, match=r"other settings: lr \(0\.7 then, 0\.1 now\)"):
        write(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_the_one_who_waited_overwrites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = holder(tmp_path / "out")
    while_waiting(monkeypatch, commit_of(child))
    assert write(tmp_path / "out", overwrite=True) is True
    assert whole(tmp_path / "out") == str(os.getpid())


def test_the_directory_is_removed_while_the_loser_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def idle(me: Child) -> None:
        with open_output(tmp_path / "out", IDENTITY):
            me.ready_and_wait()

    child = Child(idle)
    child.wait_ready()
    while_waiting(monkeypatch, commit_of(child))
    assert write(tmp_path / "out") is True
    assert whole(tmp_path / "out") == str(os.getpid())


def test_the_next_ones_directory_is_not_removed(tmp_path: Path) -> None:
    """After the commit another run may hold a directory of the same name that has nothing in it yet."""
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_bytes(output.partial / "data", b"1")
        output.commit(Manifest("cache", "distill", IDENTITY), ["data"])

        def idle(me: Child) -> None:
            with open_output(tmp_path / "out", IDENTITY, overwrite=True):
                me.ready_and_wait()

        child = Child(idle)
        child.wait_ready()
    assert (tmp_path / "out.partial" / ".lock").exists()
    with pytest.raises(EnvironmentFault, match=f"process {child.id}"):
        write(tmp_path / "out", overwrite=True)
    child.go_on()
    assert child.join() == 0


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(EnvironmentFault, match=r"cannot lock .*out: Operation not supported"):
        write(tmp_path / "out")


def test_a_parent_that_makes_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As procfs and automounters answer: the parent is there, and mkdir says that it is not."""

    def mkdir(path: str, mode: int = 0o777) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    message = f"cannot make a directory in {tmp_path}: No such file or directory. Choose another --out."
    with (
        pytest.raises(EnvironmentFault, match=message),
        lock.locked(tmp_path / "out", tmp_path / "out.partial"),
    ):
        pass
