"""The commit protocol: the resume rule, states, a crash or a full disk at every call, the order of fsyncs."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from kdcli.artifacts import files
from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.lock import BOOKKEEPING
from kdcli.artifacts.manifest import Manifest
from kdcli.artifacts.marks import MARK, trash_name
from kdcli.artifacts.model import read_tensors
from kdcli.artifacts.store import open_output, remove, write_bytes, write_tensors
from kdcli.errors import EnvironmentFault, InputError, Preempted

IDENTITY = {"stage": "distill", "config": {"lr": 0.1, "method": {"name": "kd"}}}
OLD = {"stage": "distill", "config": {"lr": 0.9, "method": {"name": "kd"}}}
FILES = {"kdcli.json", "model.safetensors", "config.json", "last"}
STEPS = 2


def run(
    out: Path,
    identity: dict[str, Any] = IDENTITY,
    overwrite: bool = False,
    committed: Callable[[int], None] = lambda step: None,
) -> int | None:
    """A stage in small: two states, a best file, the artifact. The step it began at, None if complete."""
    with open_output(out, identity, overwrite=overwrite) as output:
        if output is None:
            return None
        found = output.last_state()
        first = found[0] if found else 0
        value = read_tensors(found[1] / "weights.safetensors")["w"] if found else torch.zeros(3)
        for step in range(first + 1, STEPS + 1):
            value = value * 2 + step * identity["config"]["lr"]
            if step == 1:
                write_tensors(output.partial / "best-1.safetensors", {"w": value})
            with output.new_state(step) as folder:
                write_tensors(folder / "weights.safetensors", {"w": value})
                write_bytes(folder / "progress.json", b"{}")
            committed(step)
        best = read_tensors(output.partial / "best-1.safetensors")
        (output.partial / "last").mkdir(exist_ok=True)
        for folder, tensors in ((output.partial / "last", {"w": value}), (output.partial, best)):
            write_tensors(folder / "model.safetensors", tensors)
            write_bytes(folder / "config.json", b'{"architecture": "toy"}')
        output.commit(Manifest("model", "distill", identity), ["model.safetensors", "config.json", "last"])
        return first


def whole(out: Path) -> str:
    """Hash of an artifact that must be whole."""
    manifest = manifests.read(out)
    manifests.verify(out, manifest)
    on_disk = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert on_disk - {"kdcli.json", ".lock"} == set(manifest.files)
    return manifest.hash


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        p.relative_to(folder).as_posix(): None if p.is_dir() else p.read_bytes()
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes that undisturbed runs give."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder / "new")
    run(folder / "old", OLD)
    found = {name: whole(folder / name) for name in ("new", "old")}
    assert found["new"] != found["old"]
    return found


# -- the resume rule -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["out", "with space", "größe-数据-é", "a[1]*?", "'quoted' \"name\"", "x" * 200]
)
def test_fresh_then_complete(tmp_path: Path, name: str) -> None:
    neighbour = tmp_path / f"{name[:100]}2.trash-1"  # another output's
    neighbour.mkdir()
    out = tmp_path / "new folder" / "below" / name
    assert run(out) == 0
    assert {p.name for p in out.iterdir()} == FILES
    assert os.listdir(out.parent) == [name]
    before = tree(out)
    assert run(out) is None
    assert tree(out) == before
    assert neighbour.exists()


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("out"))
    whole(tmp_path / "out")


def test_partial_of_the_same_identity_continues(tmp_path: Path, hashes: dict[str, str]) -> None:
    out = tmp_path / "out"

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(out, committed=stop)
    assert not out.exists()
    assert run(out) == 1
    assert whole(out) == hashes["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_identity_is_compared_as_json(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", {"size": (3, 4), "path": Path("x"), "nan": float("nan")}) as output:
        write_bytes(output.partial / "a", b"1")
    with open_output(tmp_path / "out", {"size": [3, 4], "path": "x", "nan": float("nan")}) as output:
        assert (output.partial / "a").read_bytes() == b"1"


@pytest.mark.parametrize("finished", [False, True])
def test_other_identity_is_refused_by_name(tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "out"
    if finished:
        run(out, OLD)
    else:
        with open_output(out, OLD) as output:
            write_bytes(output.partial / "a", b"1")
    before = tree(tmp_path)
    place = re.escape(str(out if finished else f"{out}.partial"))
    with pytest.raises(
        InputError,
        match=rf"^{place} belongs to a run with other settings: config\.lr \(0\.9 then, 0\.1 now\)",
    ) as caught:
        run(out)
    assert "method" not in str(caught.value)
    assert "--overwrite" in str(caught.value)
    after = tree(tmp_path)
    assert {k: v for k, v in after.items() if ".lock" not in k} == {
        k: v for k, v in before.items() if ".lock" not in k
    }


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_no_artifact_is_left_alone(tmp_path: Path, kind: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("years of work")
    elif kind == "file":
        out.write_text("years of work")
    else:
        out.symlink_to(tmp_path / "nowhere")
    match = "--overwrite will not delete it" if overwrite else "Choose another --out"
    with pytest.raises(InputError, match=f"{out} exists and is not a kdcli artifact. {match}"):
        run(out, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["out"]
    if kind != "dangling link":
        assert (out / "thesis.tex" if kind == "folder" else out).read_text() == "years of work"


MANIFEST = {"schema": 1, "kind": "model", "stage": "x", "identity": {}, "parents": [], "files": {}}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "manifest", ["{}", "", "null", "not JSON", '{"name": "kdcli"}', json.dumps(MANIFEST)[:-9] + "}"]
)
def test_a_users_folder_with_a_file_of_that_name(tmp_path: Path, manifest: str, overwrite: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "kdcli.json").write_text(manifest)
    (out / "thesis.tex").write_text("years of work")
    (out / ".lock").touch()
    before = tree(tmp_path)
    match = "--overwrite will not delete it" if overwrite else "Choose another --out"
    with pytest.raises(
        InputError, match=rf"{out} exists and is not a kdcli artifact: .*kdcli manifest.*{match}"
    ):
        run(out, overwrite=overwrite)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["thesis.tex", "last/notes.txt", "model.safetensors.bak", ".hidden", "new/a/b"]
)
def test_what_a_user_put_into_an_artifact_is_not_deleted(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    run(out, OLD)
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    (out / name).write_text("years of work")
    before = tree(tmp_path)
    shown = re.escape("new/" if name.startswith("new") else name)
    with pytest.raises(
        InputError, match=rf"{out} holds {shown}, which its manifest does not name: --overwrite will not"
    ):
        run(out, overwrite=True)
    assert tree(tmp_path) == before
    with pytest.raises(InputError, match="other settings"):
        run(out)
    assert run(out, OLD) is None
    assert tree(tmp_path) == before


def test_links_and_folders_in_an_artifact_are_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for number, name in enumerate(("linked", "last", "model.safetensors", "empty")):
        out = tmp_path / str(number)
        run(out, OLD)
        if name == "last":
            shutil.rmtree(out / name)
        (out / name).unlink(missing_ok=True)
        if name == "empty":
            (out / name).mkdir()
        else:
            (out / name).symlink_to(tmp_path / "mine")
        with pytest.raises(InputError, match=rf"{out} holds {name}/, which its manifest does not name"):
            run(out, overwrite=True)
        assert (out / name).exists()
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_a_damaged_artifact_is_overwritten(tmp_path: Path, hashes: dict[str, str]) -> None:
    out = tmp_path / "out"
    run(out, OLD)
    (out / "model.safetensors").write_bytes(b"truncated")
    (out / "config.json").unlink()
    (out / ".lock").write_bytes(b"process 7 on here")  # of a run of 0.1 that was killed as it dropped it
    assert run(out, overwrite=True) == 0
    assert whole(out) == hashes["new"]


def test_a_file_put_into_the_old_artifact_meanwhile(tmp_path: Path, hashes: dict[str, str]) -> None:
    """Training took a week; its user kept notes beside the old weights. Neither is lost."""
    out = tmp_path / "out"
    run(out, OLD)

    def note(step: int) -> None:
        (out / "notes.txt").write_text("mine")

    message = r"holds notes\.txt, .* Move it away and run the same command again: its work is kept"
    with pytest.raises(InputError, match=message):
        run(out, overwrite=True, committed=note)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    assert whole(out) == hashes["old"]
    assert run(out, overwrite=True) == STEPS
    assert whole(out) == hashes["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_what_appeared_meanwhile_is_moved_away_and_nothing_is_lost(
    tmp_path: Path, hashes: dict[str, str]
) -> None:
    out = tmp_path / "out"
    for overwrite in (False, True):
        with pytest.raises(
            InputError, match=r"appeared while .* Move it away and run the same command again"
        ):
            run(out, overwrite=overwrite, committed=lambda step: out.mkdir(exist_ok=True))
        out.rmdir()
        assert run(out) is None
        assert whole(out) == hashes["new"]
        shutil.rmtree(out)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "lock", [None, b"", b"mine", b"process 1 on here", MARK[:-1], b"\n" + MARK, "pipe", "link"]
)
def test_foreign_partial_is_left_alone(tmp_path: Path, overwrite: bool, lock: Any) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("years of work")
    if lock == "pipe":
        os.mkfifo(partial / ".lock")
    elif lock == "link":
        (tmp_path / "marked").write_bytes(MARK)
        (partial / ".lock").symlink_to(tmp_path / "marked")
    elif lock is not None:
        (partial / ".lock").write_bytes(lock)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"out\.partial is needed .* holds something else\. Move it away"):
        run(tmp_path / "out", overwrite=overwrite)
    assert sorted(tmp_path.rglob("*")) == before
    assert (partial / "thesis.tex").read_text() == "years of work"
    assert lock in (None, "pipe", "link") or (partial / ".lock").read_bytes() == lock


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_unfinished_output_of_an_earlier_version(tmp_path: Path, overwrite: bool) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    write_bytes(partial / ".lock", b"process 1 on here")
    write_bytes(partial / "identity.json", json.dumps(IDENTITY).encode())
    (partial / "state-000000000001").mkdir()
    before = tree(tmp_path)
    with pytest.raises(
        InputError, match=rf"{partial} was begun by kdcli 0\.1, .* Delete it, or choose another"
    ):
        run(tmp_path / "out", overwrite=overwrite)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_partial_that_is_a_link_or_a_file(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "mine").mkdir()
    write_bytes(tmp_path / "mine" / ".lock", MARK)
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    (tmp_path / "out.partial").symlink_to("mine")
    with pytest.raises(InputError, match=r"out\.partial is needed for the unfinished output, and is a link"):
        run(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "dangling.partial").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"dangling\.partial is not a directory"):
        run(tmp_path / "dangling", overwrite=overwrite)
    (tmp_path / "file.partial").write_text("a file")
    with pytest.raises(InputError, match=r"file\.partial is not a directory"):
        run(tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "file.partial").read_text() == "a file"


def test_names_that_cannot_be_an_output(tmp_path: Path) -> None:
    trash = str(trash_name(tmp_path / "out"))
    for name in ("/", f"{tmp_path}/out.partial", f"{tmp_path}/a\x00b", trash):
        with pytest.raises(InputError, match="cannot name an artifact"):
            run(Path(name))
    (tmp_path / "file").write_text("a file")
    for below in ("file/out", "file/further/out"):
        with pytest.raises(InputError, match=r"is not a directory\. Choose another --out"):
            run(tmp_path / below)
    assert os.listdir(tmp_path) == ["file"]


def test_overwrite_keeps_the_old_until_the_new_is_committed(tmp_path: Path, hashes: dict[str, str]) -> None:
    out = tmp_path / "out"
    run(out, OLD)
    seen = []
    assert run(out, overwrite=True, committed=lambda step: seen.append(whole(out))) == 0
    assert seen == [hashes["old"]] * STEPS
    assert whole(out) == hashes["new"]
    assert os.listdir(tmp_path) == ["out"]


def test_overwrite_starts_a_partial_anew(tmp_path: Path, hashes: dict[str, str]) -> None:
    out = tmp_path / "out"
    with open_output(out, OLD) as output, output.new_state(1) as folder:
        write_bytes(folder / "a", b"1")
    assert run(out, overwrite=True) == 0
    assert whole(out) == hashes["new"]


def test_a_preempted_overwrite_goes_on(tmp_path: Path, hashes: dict[str, str]) -> None:
    """A requeued job repeats its command, --overwrite too; after a crash the option means what it says."""
    out, steps = tmp_path / "out", []
    run(out, OLD)
    for fault in (Preempted("SIGTERM"), ZeroDivisionError(), Preempted("SIGTERM")):

        def stop(step: int, fault: Exception = fault) -> None:
            assert whole(out) == hashes["old"]
            steps.append(step)
            raise fault

        with pytest.raises(type(fault)):
            run(out, overwrite=True, committed=stop)
    assert steps == [1, 2, 1]
    assert run(out, overwrite=True) == 1
    assert whole(out) == hashes["new"]


def test_a_preempted_run_of_other_settings_is_no_beginning(tmp_path: Path, hashes: dict[str, str]) -> None:
    """What --overwrite continues is its own: the same identity, and begun by --overwrite."""
    out = tmp_path / "out"

    def stop(step: int) -> None:
        raise Preempted("SIGTERM")

    with pytest.raises(Preempted):
        run(out, OLD, overwrite=True, committed=stop)
    assert run(out, overwrite=True) == 0
    with pytest.raises(Preempted):
        run(tmp_path / "other", committed=stop)
    assert run(tmp_path / "other", overwrite=True) == 0
    assert whole(tmp_path / "other") == hashes["new"]


def test_overwrite_of_a_link_leaves_its_target(tmp_path: Path, hashes: dict[str, str]) -> None:
    run(tmp_path / "target", OLD)
    (tmp_path / "out").symlink_to(tmp_path / "target")
    run(tmp_path / "out", overwrite=True)
    assert whole(tmp_path / "target") == hashes["old"]
    assert whole(tmp_path / "out") == hashes["new"]
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"

    def appear(step: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "thesis.tex").write_text("years of work")

    with pytest.raises(InputError, match="appeared while this run was writing it"):
        run(out, overwrite=overwrite, committed=appear)
    assert tree(out) == {"thesis.tex": b"years of work"}


def cut_before_rename(out: Path, identity: dict[str, Any] = IDENTITY) -> None:
    """Leave what a run leaves that is killed between its manifest and its rename."""
    run(out, identity)
    os.rename(out, f"{out}.partial")
    Path(f"{out}.partial", ".lock").write_bytes(MARK + b"process 1 on elsewhere")


@pytest.mark.parametrize("identity_file", [False, True])
def test_cut_between_manifest_and_rename(tmp_path: Path, hashes: dict[str, str], identity_file: bool) -> None:
    out = tmp_path / "out"
    cut_before_rename(out)
    if identity_file:  # it is dropped after the manifest is written
        write_bytes(tmp_path / "out.partial" / "identity.json", json.dumps(IDENTITY).encode())
    assert run(out) is None
    assert whole(out) == hashes["new"]
    assert {p.name for p in out.iterdir()} == FILES
    assert os.listdir(tmp_path) == ["out"]


def test_cut_before_rename_and_another_command(tmp_path: Path, hashes: dict[str, str]) -> None:
    out = tmp_path / "out"
    cut_before_rename(out, OLD)
    with pytest.raises(InputError, match=r"other settings: config\.lr"):
        run(out)
    assert whole(out) == hashes["old"]  # what was finished is not lost
    assert run(out, overwrite=True) == 0
    assert whole(out) == hashes["new"]


def test_cut_before_rename_and_damaged(tmp_path: Path, hashes: dict[str, str]) -> None:
    out = tmp_path / "out"
    cut_before_rename(out)
    (tmp_path / "out.partial" / "last" / "config.json").write_bytes(b"{}")
    with pytest.raises(InputError, match=r"last/config.json is damaged.* Start anew with --overwrite"):
        run(out)
    assert not out.exists()
    assert run(out, overwrite=True) == 0
    assert whole(out) == hashes["new"]


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[1]", b"\xff"])
def test_damaged_identity(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    with open_output(out, IDENTITY) as output:
        write_bytes(output.partial / "a", b"1")
    (tmp_path / "out.partial" / "identity.json").write_bytes(content)
    with pytest.raises(InputError, match=r"identity.json is damaged .* Start anew with --overwrite"):
        run(out)
    assert run(out, overwrite=True) == 0


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_written_leaves_nothing(tmp_path: Path, overwrite: bool) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no data"), open_output(out, IDENTITY, overwrite=overwrite):
        raise InputError("no data")
    assert os.listdir(tmp_path) == []
    run(out)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="no data"), open_output(out, IDENTITY, overwrite=True):
        raise InputError("no data")
    assert tree(tmp_path) == before


def test_no_descriptor_is_leaked(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd" if os.path.exists("/proc/self/fd") else "/dev/fd"))

    before = descriptors()
    (tmp_path / "foreign.partial").mkdir()
    (tmp_path / "foreign.partial" / "a").touch()
    for _ in range(3):
        run(tmp_path / "out", overwrite=True)
        run(tmp_path / "out")
        for place, identity in (("out", OLD), ("foreign", OLD)):
            with pytest.raises(InputError):
                run(tmp_path / place, identity)
        with open_output(tmp_path / "held", IDENTITY), pytest.raises(EnvironmentFault, match="written by"):
            run(tmp_path / "held")
        with pytest.raises(EnvironmentFault, match="No such file"):
            write_bytes(tmp_path / "missing" / "a", b"1")
    assert descriptors() == before


# -- what killed runs leave ----------------------------------------------------------------------------------
def test_trash_of_a_user_is_left_alone(tmp_path: Path) -> None:
    mine = [
        tmp_path / f"out{name}" for name in (".trash-123", ".partial.trash-7", ".trash-1752000000000000000")
    ]
    for folder in mine:
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
    for identity, overwrite in ((OLD, False), (IDENTITY, True), (IDENTITY, False)):
        run(tmp_path / "out", identity, overwrite=overwrite)
        assert [(folder / "thesis.tex").read_text() for folder in mine] == ["years of work"] * 3


def test_the_next_run_sweeps_what_is_left_of_a_finished_one(tmp_path: Path, hashes: dict[str, str]) -> None:
    out = tmp_path / "out"
    run(out)
    write_bytes(out / ".lock", MARK + b"process 1 on here")
    for name in ("out", "out.partial"):
        shutil.copytree(out, trash_name(tmp_path / name))
    other = trash_name(tmp_path / "other")
    other.mkdir()
    assert run(out) is None
    assert whole(out) == hashes["new"]
    assert not (out / ".lock").exists()
    assert sorted(os.listdir(tmp_path)) == sorted(["out", other.name])
    write_bytes(out / ".lock", b"mine")
    assert run(out) is None
    assert (out / ".lock").read_bytes() == b"mine"


def test_drafts_are_swept_when_a_run_goes_on(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_bytes(output.partial / "a", b"1")
        write_bytes(output.partial / "resting-000000001.draft", b"half")
        (output.partial / "folder.draft").mkdir()
    with open_output(tmp_path / "out", IDENTITY) as output:
        assert {p.name for p in output.partial.iterdir()} == {".lock", "identity.json", "a"}


def test_an_identity_that_is_a_pipe(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_bytes(output.partial / "a", b"1")
    (tmp_path / "out.partial" / "identity.json").unlink()
    os.mkfifo(tmp_path / "out.partial" / "identity.json")
    with pytest.raises(InputError, match=r"identity\.json is damaged .*no regular file.* --overwrite"):
        run(tmp_path / "out")
    assert run(tmp_path / "out", overwrite=True) == 0


# -- running state -------------------------------------------------------------------------------------------
def write_state(output: Any, step: int, text: bytes = b"weights") -> None:
    with output.new_state(step) as folder:
        write_bytes(folder / "weights", text)


def test_last_state_and_no_older(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        assert output.last_state() is None
        for step in (1, 2, 10):
            write_state(output, step)
            assert output.last_state() == (step, output.partial / f"state-{step:012d}")
            assert [s for s, _ in output.states()] == [step]
        assert not list(files.trash_of(output.partial))


def test_the_same_step_twice_keeps_the_second(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_state(output, 5, b"first")
        write_state(output, 5, b"second")
        step, folder = output.last_state()
    assert (step, (folder / "weights").read_bytes()) == (5, b"second")


def test_a_state_that_raises_is_not_committed(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_state(output, 1)
        with pytest.raises(EnvironmentFault, match="missing/weights"), output.new_state(2) as folder:
            write_bytes(folder / "missing" / "weights", b"half")
        assert output.last_state()[0] == 1
    with open_output(tmp_path / "out", IDENTITY) as output:
        assert {p.name for p in output.partial.iterdir()} == {".lock", "identity.json", "state-000000000001"}


def damage(folder: Path, how: str) -> None:
    if how == "flipped":
        (folder / "weights").write_bytes(b"weighta")
    elif how == "truncated":
        (folder / "weights").write_bytes(b"weight")
    elif how == "missing":
        (folder / "weights").unlink()
    elif how == "extra":
        (folder / "more").touch()
    elif how == "no hashes":
        (folder / "hashes.json").unlink()
    else:
        (folder / "hashes.json").write_text(how)


@pytest.mark.parametrize(
    "how",
    [
        "flipped",
        "truncated",
        "missing",
        "extra",
        "no hashes",
        "{",
        "[]",
        "null",
        '{"../../x": "0"}',
        "[" * 9999,
    ],
    ids=lambda how: how[:20],
)
def test_damaged_state_is_refused(tmp_path: Path, how: str) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_state(output, 7)
        damage(output.partial / "state-000000000007", how)
        with pytest.raises(
            InputError, match=r"running state .*state-000000000007 is damaged \(.+\).* --overwrite"
        ):
            output.last_state()


def test_cut_between_draft_and_rename(tmp_path: Path) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_state(output, 3, b"third")
        write_state(output, 4, b"fourth")
        os.rename(output.partial / "state-000000000004", output.partial / "state-000000000004.partial")
        half = output.partial / "state-000000000005.partial"
        half.mkdir()
        write_bytes(half / "weights", b"no hashes yet")
    with open_output(tmp_path / "out", IDENTITY) as output:
        assert not half.exists()
        step, folder = output.last_state()  # a whole draft counts: it may have replaced a state of its step
        assert (step, (folder / "weights").read_bytes()) == (4, b"fourth")


def test_a_half_written_tensor_file_never_enters_the_artifact(tmp_path: Path, hashes: dict[str, str]) -> None:
    with open_output(tmp_path / "out", IDENTITY) as output:
        (output.partial / "last").mkdir()
        write_bytes(output.partial / "last" / ".tmpA1b2C3", b"as safetensors leaves it when it is killed")
    assert run(tmp_path / "out") == 0
    assert whole(tmp_path / "out") == hashes["new"]


# -- files ---------------------------------------------------------------------------------------------------
def test_tensors_are_plain_copies(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    tensors = {
        "whole": base,
        "same": base,
        "tail": base[1:],
        "strided": base.reshape(3, 4).t(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2, dtype=torch.int64),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    write_tensors(tmp_path / "a.safetensors", tensors)
    found = read_tensors(tmp_path / "a.safetensors")
    assert set(found) == set(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_files_have_the_mode_that_the_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(2)})
        write_bytes(tmp_path / "b", b"1")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("a.safetensors", "b")] == [0o640, 0o640]


def test_remove(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("link", "dangling", "missing"):
        remove(tmp_path / name)
    assert tree(tmp_path) == {"folder": None, "folder/a": b""}
    remove(tmp_path / "folder" / "a")
    remove(tmp_path / "folder")
    assert os.listdir(tmp_path) == []


def test_a_file_system_that_syncs_no_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert run(tmp_path / "out") == 0
    whole(tmp_path / "out")


# -- faults at every call ------------------------------------------------------------------------------------
PLACES = [
    (os, name) for name in ("mkdir", "makedirs", "rename", "open", "write", "fsync", "unlink", "rmdir")
] + [
    (os, "chmod"),
    (os, "ftruncate"),
    (os, "pwrite"),
    (shutil, "rmtree"),
    (safetensors.torch, "save_file"),
]


@contextlib.contextmanager
def fault(at: int, act: Callable[..., Any]) -> Iterator[list[str]]:
    """Count the calls that touch the disk, and let ``act`` stand in for call number ``at``."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return act(name, real, args) if len(calls) == at else real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in PLACES:
            patch.setattr(module, name, counted(name, getattr(module, name)))
        yield calls


def crash(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Die in the middle of a write, before any other call."""
    if name in ("write", "pwrite"):
        real(args[0], bytes(args[1])[: len(args[1]) // 2], *args[2:])
    elif name == "save_file":
        Path(args[1]).with_name(".tmpA1b2C3").write_bytes(b"half")  # as safetensors leaves it
    os._exit(137)


def no_space(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
    text = os.strerror(errno.ENOSPC)
    if name == "save_file":
        raise SafetensorError(f"Error while serializing: I/O error: {text} (os error {errno.ENOSPC})")
    if isinstance(args[0], int):  # a descriptor
        raise OSError(errno.ENOSPC, text)
    raise OSError(errno.ENOSPC, text, str(args[0]))


def forked(work: Callable[[], Any]) -> int:
    """Exit code of ``work`` in a child."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def error_of(work: Callable[[], Any]) -> Exception | None:
    try:
        work()
    except Exception as error:
        return error
    return None


def calls_of(work: Callable[[], Any]) -> list[str]:
    with fault(0, no_space) as calls:
        work()
    return calls


class Scene:
    """A fresh folder for each point, and what must hold after it."""

    def __init__(self, folder: Path, overwrite: bool, hashes: dict[str, str]) -> None:
        self.overwrite, self.hashes, self.folder, self.number = overwrite, hashes, folder, 0
        self.template = folder / "template"
        self.template.mkdir()
        if overwrite:
            run(self.template / "out", OLD)
        self.steps = mmap.mmap(-1, 1)  # shared with the child: the last step whose commit returned

    def set(self) -> Path:
        self.number += 1
        home = self.folder / str(self.number)
        shutil.copytree(self.template, home)
        self.steps[0] = 0
        return home / "out"

    def tell(self, step: int) -> None:
        self.steps[0] = step

    def check_visible(self, out: Path) -> None:
        if out.exists():
            assert whole(out) in (self.hashes["old" if self.overwrite else "new"], self.hashes["new"])
        elif self.overwrite:  # between the two renames: the new one is whole, the next call finishes it
            partial = Path(f"{out}.partial")
            manifests.verify(partial, manifests.read(partial))
            assert len(files.trash_of(out.parent, "out")) == 1

    def check_rerun(self, out: Path) -> None:
        began = run(out, overwrite=self.overwrite)
        if not self.overwrite:
            assert began is None or began >= self.steps[0], "a committed step was lost"
        assert whole(out) == self.hashes["new"]
        run(out)
        assert {p.name for p in out.iterdir()} - {".lock"} == FILES
        assert os.listdir(out.parent) == ["out"]
        shutil.rmtree(out.parent)


@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.long)])
def test_crash_at_every_call(tmp_path: Path, hashes: dict[str, str], overwrite: bool, stride: int) -> None:
    scene = Scene(tmp_path, overwrite, hashes)
    home = scene.set()
    total = len(calls_of(lambda: run(home, overwrite=overwrite)))
    assert total > 100

    def die(out: Path, at: int) -> None:
        with fault(at, crash):
            run(out, overwrite=overwrite, committed=scene.tell)

    points, invisible = range(total, 0, -stride), 0
    for at in points:
        out = scene.set()
        assert forked(lambda out=out, at=at: die(out, at)) == 137, at
        scene.check_visible(out)
        invisible += not out.exists()
        scene.check_rerun(out)
    assert forked(lambda: die(scene.set(), total + 1)) == 0
    assert invisible <= 1 if overwrite else 0 < invisible < len(points)
    if stride == 1:
        assert invisible == 1 or not overwrite


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.long)])
def test_crash_of_overwrite_and_the_next_command_without_it(
    tmp_path: Path, hashes: dict[str, str], stride: int
) -> None:
    scene = Scene(tmp_path, True, hashes)
    home = scene.set()
    total = len(calls_of(lambda: run(home, overwrite=True)))
    outcomes = []

    def die(out: Path, at: int) -> None:
        with fault(at, crash):
            run(out, overwrite=True)

    for at in range(total, 0 if stride == 1 else total - 60, -stride):
        out = scene.set()
        assert forked(lambda out=out, at=at: die(out, at)) == 137
        error = error_of(lambda out=out: run(out))
        outcomes.append(type(error))
        if error is not None:
            assert "other settings: config.lr" in str(error)
            assert whole(out) == hashes["old"]  # it stands there yet
            run(out, overwrite=True)
        assert whole(out) == hashes["new"]
        assert os.listdir(out.parent) == ["out"]
    assert set(outcomes) == {InputError, type(None)}


def test_crash_at_every_call_of_a_second_commit_of_a_step(tmp_path: Path) -> None:
    def again(out: Path, at: int) -> list[str]:
        with open_output(out, IDENTITY) as output, fault(at, crash) as calls:
            write_state(output, 5, b"second")
            return calls

    def fresh(name: str) -> Path:
        with open_output(tmp_path / name, IDENTITY) as output:
            write_state(output, 5, b"first")
        return tmp_path / name

    total = len(again(fresh("count"), 0))
    seen = []
    for at in range(1, total + 1):
        out = fresh(str(at))
        assert forked(lambda out=out, at=at: again(out, at)) == 137
        with open_output(out, IDENTITY) as output:
            step, folder = output.last_state()
            assert step == 5
            seen.append((folder / "weights").read_bytes())
    assert set(seen) == {b"first", b"second"}
    assert seen == sorted(seen)  # from one call on it is the second


def test_crash_while_overwrite_empties_a_partial(tmp_path: Path, hashes: dict[str, str]) -> None:
    """Whatever half of the earlier run is left, the command without --overwrite comes to the same end."""

    def fresh(name: str) -> Path:
        with open_output(tmp_path / name, IDENTITY) as output:
            value = torch.full((3,), 0.1)
            write_tensors(output.partial / "best-1.safetensors", {"w": value})
            with output.new_state(1) as folder:
                write_tensors(folder / "weights.safetensors", {"w": value})
        return tmp_path / name

    def empty(out: Path, at: int) -> list[str]:
        with fault(at, crash) as calls, open_output(out, IDENTITY, overwrite=True):
            return list(calls)

    total, began = len(empty(fresh("count"), 0)), set()
    for at in range(1, total + 1):
        out = fresh(str(at))
        assert forked(lambda out=out, at=at: empty(out, at)) == 137
        began.add(run(out))
        assert whole(out) == hashes["new"]
    assert began == {0, 1}


@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
def test_no_space_at_every_call(tmp_path: Path, hashes: dict[str, str], overwrite: bool) -> None:
    scene = Scene(tmp_path, overwrite, hashes)
    home = scene.set()
    total = len(calls_of(lambda: run(home, overwrite=overwrite)))
    forgiven = []
    for at in range(1, total + 1):
        out = scene.set()
        with fault(at, no_space) as calls:
            error = error_of(lambda out=out: run(out, overwrite=overwrite, committed=scene.tell))
        failed = calls[at - 1]
        if error is None:
            assert whole(out) == hashes["new"]  # only the deletion of what is no longer needed failed
            forgiven.append(failed)
        else:
            assert type(error) is EnvironmentFault
            assert error.exit_code == 4
            where = re.escape(str(out.parent))
            assert re.match(f"no space left on the disk while writing {where}", str(error)), failed
            assert failed not in ("write", "save_file") or re.search(r"\([\d,]+ bytes wanted\)", str(error))
            assert out.exists() or not overwrite, "the earlier artifact is gone"
            left = Path(f"{out}.partial")
            assert not left.exists() or {p.name for p in left.iterdir()} - BOOKKEEPING, (
                "an empty partial is left"
            )
        scene.check_visible(out)
        scene.check_rerun(out)
    allowed = {"unlink", "rmtree", "rmdir", "open", "mkdir"}  # mkdir: of a folder that was there already
    assert set(forgiven) <= allowed
    assert 0 < len(forgiven) < 15


def test_read_only_folder() -> None:
    home = Path(tempfile.mkdtemp(prefix="kdcli-read-only-"))
    try:
        (home / "full").mkdir()
        run(home / "full" / "out")
        for folder in (home, home / "full"):
            folder.chmod(0o555)

        def unprivileged() -> None:
            if os.geteuid() == 0:
                os.setegid(65534)
                os.seteuid(65534)
            assert run(home / "full" / "out") is None  # reading what is complete needs no right to write
            for out in (home / "out", home / "missing" / "out", home / "full" / "other"):
                with pytest.raises(
                    EnvironmentFault, match=rf"cannot access {home}.*: Permission denied"
                ) as caught:
                    run(out)
                assert caught.value.exit_code == 4

        assert forked(unprivileged) == 0
        assert sorted(os.listdir(home)) == ["full"]
        assert os.listdir(home / "full") == ["out"]
    finally:
        for folder in (home, home / "full"):
            folder.chmod(0o755)
        shutil.rmtree(home)


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[Path]:
    """A disk of one megabyte at ``place``."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    try:
        mount = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if mount.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mount.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk") as disk:
        yield disk


def test_a_real_full_disk(small_disk: Path) -> None:
    out, ballast = small_disk / "out", small_disk / "ballast"
    value = torch.arange(100_000.0)

    def write(overwrite: bool = False) -> None:
        with open_output(out, IDENTITY, overwrite=overwrite) as output:
            write_tensors(output.partial / "model.safetensors", {"w": value})
            write_bytes(output.partial / "log", b"x" * 300_000)
            output.commit(Manifest("model", "distill", IDENTITY), ["model.safetensors", "log"])

    ballast.write_bytes(bytes(800_000))
    with pytest.raises(
        EnvironmentFault,
        match=rf"no space left on the disk while writing {out}\.partial/model\.safetensors "
        r"\(400,000 bytes wanted\)",
    ):
        write()
    assert not out.exists()
    ballast.write_bytes(bytes(500_000))
    with pytest.raises(EnvironmentFault, match=rf"{out}\.partial/log \(300,000 bytes wanted\)"):
        write()
    assert not out.exists()
    ballast.unlink()
    write()
    first = whole(out)
    with pytest.raises(EnvironmentFault, match="bytes wanted"):
        write(overwrite=True)  # two do not fit
    assert whole(out) == first


def test_mount_points_are_refused_at_once(tmp_path: Path) -> None:
    """They cannot be renamed, which a run would find out at its end."""
    run(tmp_path / "old", OLD)
    started: list[int] = []
    with mounted(tmp_path / "out") as out, mounted(tmp_path / "new.partial"):
        shutil.copytree(tmp_path / "old", out, dirs_exist_ok=True)
        with pytest.raises(InputError, match=rf"{out} is a mount point, which cannot be replaced"):
            run(out, overwrite=True, committed=started.append)
        with pytest.raises(InputError, match=r"new\.partial is needed .*, and is a mount point\. Move it"):
            run(tmp_path / "new", committed=started.append)
        assert started == []
        whole(out)


# -- the order that survives a loss of power -----------------------------------------------------------------
@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, str]]]:
    """Calls in their order as (call, path); for a rename the path is ``from -> to``."""
    events: list[tuple[str, str]] = []
    open_files: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "rename", "mkdir", "unlink")}
    save = safetensors.torch.save_file

    def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        fd = real["open"](path, flags, *args, **kwargs)
        open_files[fd] = str(path)
        return fd

    def by_descriptor(name: str) -> Callable[..., Any]:
        def call(fd: int, *args: Any) -> Any:
            events.append((name, open_files[fd]))
            return real[name](fd, *args)

        return call

    def by_path(name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            events.append((name, f"{path} -> {args[0]}" if name == "rename" else str(path)))
            return real[name](path, *args, **kwargs)

        return call

    def saved(tensors: Any, path: str, metadata: Any) -> None:
        events.append(("write", path))
        save(tensors, path, metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", opened)
        patch.setattr(safetensors.torch, "save_file", saved)
        for name in ("write", "fsync"):
            patch.setattr(os, name, by_descriptor(name))
        for name in ("rename", "mkdir", "unlink"):
            patch.setattr(os, name, by_path(name))
        yield events


def assert_order(events: list[tuple[str, str]], *wanted: tuple[str, str]) -> None:
    """Each wanted event comes after the one before it."""
    at = -1
    for event in wanted:
        assert event in events[at + 1 :], f"{event} is missing after {wanted[: wanted.index(event)]}"
        at = events.index(event, at + 1)


def last(events: list[tuple[str, str]], event: tuple[str, str]) -> int:
    return max(i for i, e in enumerate(events) if e == event)


def test_order_of_a_state_commit(tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    draft, final = partial / "state-000000000002.partial", partial / "state-000000000002"
    with open_output(tmp_path / "out", IDENTITY) as output:
        write_state(output, 1)
        with recorded() as events:
            write_tensors(partial / "best-2.safetensors", {"w": torch.ones(2)})
            with output.new_state(2) as folder:
                write_tensors(folder / "weights.safetensors", {"w": torch.ones(2)})
                write_bytes(folder / "progress.json", b"{}")
    rename = ("rename", f"{draft} -> {final}")
    for name in ("weights.safetensors", "progress.json", "hashes.json"):
        file = str(draft / name)
        assert_order(
            events,
            ("mkdir", str(draft)),
            ("write", file),
            ("fsync", file),
            ("fsync", str(draft)),
            rename,
            ("fsync", str(partial)),
        )
        assert last(events, ("write", file)) < events.index(rename)
    beside = str(partial / "best-2.safetensors")
    assert_order(events, ("write", beside), ("fsync", beside), ("fsync", str(partial)), rename)
    done = events.index(("fsync", str(partial)), events.index(rename))
    older = [i for i, (n, p) in enumerate(events) if n == "rename" and "state-000000000001 ->" in p]
    assert older
    assert older[0] > done


def test_order_of_an_artifact_commit(tmp_path: Path) -> None:
    parent = tmp_path / "new folder"
    out, partial = parent / "out", parent / "out.partial"
    with recorded() as events:
        run(out)
    identity = str(partial / "identity.json")
    assert_order(  # an output that holds a state is itself held by its folder
        events,
        ("mkdir", str(parent)),
        ("fsync", str(tmp_path)),
        ("mkdir", str(partial)),
        ("write", f"{identity}.partial"),
        ("fsync", f"{identity}.partial"),
        ("rename", f"{identity}.partial -> {identity}"),
        ("fsync", str(partial)),
        ("fsync", str(parent)),
        ("mkdir", str(partial / "state-000000000001.partial")),
    )
    manifest = str(partial / "kdcli.json")
    commit = [
        ("write", f"{manifest}.partial"),
        ("fsync", f"{manifest}.partial"),
        ("rename", f"{manifest}.partial -> {manifest}"),
        ("fsync", str(partial)),
        ("rename", f"{partial} -> {out}"),
        ("fsync", str(parent)),
    ]
    for folder in (partial / "last", partial):
        for name in ("model.safetensors", "config.json"):
            file = str(folder / name)
            folders = [("fsync", str(folder))] + [("fsync", str(partial))] * (folder != partial)
            assert_order(events, ("write", file), ("fsync", file), *folders, *commit)
            assert last(events, ("write", file)) < last(events, ("fsync", str(folder)))
    named = events.index(("rename", f"{manifest}.partial -> {manifest}"))
    durable = events.index(("fsync", str(partial)), named)
    dropped = [i for i, (n, p) in enumerate(events) if n == "rename" and "state-000000000002 ->" in p]
    assert dropped
    assert durable < dropped[0], "the last state is dropped before the manifest is durable"


def test_order_of_an_overwrite(tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    run(out, OLD)
    with recorded() as events:
        run(out, overwrite=True)
    away = next(p for n, p in events if n == "rename" and p.startswith(f"{out} -> "))
    trash = Path(away.partition(" -> ")[2]).name
    assert_order(events, ("rename", away), ("rename", f"{partial} -> {out}"), ("fsync", str(tmp_path)))
    durable = last(events, ("fsync", str(tmp_path)))
    deleted = [i for i, (n, p) in enumerate(events) if n == "unlink" and p == "kdcli.json"] or [
        i for i, (n, p) in enumerate(events) if n == "unlink" and trash in p
    ]
    assert deleted
    assert durable < deleted[0]


# -- kills ---------------------------------------------------------------------------------------------------
def kill_at_random(folder: Path, kills: int, wanted: str) -> tuple[int, int]:
    """Kill a run at uniform times; how many kills met a run, how many runs finished."""
    random_times, met, finished = random.Random(0), 0, 0
    shared = mmap.mmap(-1, 1)

    def tell(step: int) -> None:
        shared[0] = step

    def work(out: Path) -> None:
        began = run(out, committed=tell)
        assert began is None or began >= before

    begun = time.monotonic()
    assert forked(lambda: run(folder / "undisturbed")) == 0
    took = time.monotonic() - begun
    out, number = folder / "0", 0
    while met < kills:
        before = shared[0]
        child = os.fork()
        if child == 0:
            code = 99
            try:
                work(out)
                code = 0
            finally:
                os._exit(code)
        time.sleep(random_times.uniform(0, took * 1.2))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        if out.exists():
            assert whole(out) == wanted
        if code == 0:
            finished, number = finished + 1, number + 1
            out = folder / str(number)
            shared[0] = 0
        else:
            met += 1
    return met, finished


def test_kills(tmp_path: Path, hashes: dict[str, str]) -> None:
    met, _ = kill_at_random(tmp_path, 4, hashes["new"])
    assert met == 4


@pytest.mark.long
def test_many_kills(tmp_path: Path, hashes: dict[str, str]) -> None:
    met, finished = kill_at_random(tmp_path, 400, hashes["new"])
    assert met == 400
    assert finished >= 25
