"""What is kdcli's own, and what only looks like it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdcli.artifacts import marks
from kdcli.artifacts.manifest import Manifest, is_ours, strangers
from kdcli.artifacts.store import open_output, write_bytes


def commit(out: Path) -> Path:
    """A small finished artifact."""
    with open_output(out, {}) as output:
        assert output is not None
        (output.partial / "last").mkdir()
        write_bytes(output.partial / "last" / "b", b"2")
        write_bytes(output.partial / "a", b"1")
        output.commit(Manifest("report", "eval", {}), ["a", "last"])
    return out


def lock(folder: Path, text: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").write_bytes(text)
    return folder


def picture(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0.png").write_bytes(b"picture")
    return folder


# -- ours ----------------------------------------------------------------------------------------------------
def test_artifacts_caches_and_unfinished_outputs_are_ours(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    commit(runs / "student")
    commit(runs / "cache" / "0123456789abcdef01234567" / "segment-0")
    lock(runs / "cache" / "0123456789abcdef01234567", b"")  # as 0.1 has it
    lock(runs / "half.partial", marks.MARK + b"process 7 on here")
    lock(runs / "old.partial", b"process 7 on here")
    picture(marks.trash_name(runs / "gone"))
    (runs / "empty").mkdir()
    for place in (runs, *runs.iterdir()):
        assert is_ours(place) == (place.name != "empty"), place
        assert is_ours(str(place)) == is_ours(place)
    (tmp_path / "link").symlink_to(runs / "student")
    assert is_ours(tmp_path / "link")
    (runs / "notes.txt").write_text("mine")
    assert not is_ours(runs)


def test_what_a_user_made_is_not(tmp_path: Path) -> None:
    picture(tmp_path / "pictures")
    (tmp_path / "pictures" / "kdcli.json").write_text("{}")
    picture(tmp_path / "deep" / "er")
    commit(picture(tmp_path / "mixed") / "out")
    for name in ("locked", "locked.partial"):
        lock(picture(tmp_path / name), b"" if name == "locked" else b"my own lock")
    for name in ("x.trash-123", "x.trash-0123abcd-0123456789ab", "x.partial"):
        picture(tmp_path / name)
    trash = marks.trash_name(tmp_path / "x")
    picture(tmp_path / trash.name.replace("x.", "y."))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "student").symlink_to(commit(tmp_path / "student"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    chain = tmp_path / "chain"
    chain.joinpath(*["d"] * 800).mkdir(parents=True)
    for place in tmp_path.iterdir():
        assert is_ours(place) == (place.name == "student"), place
    for nothing in (tmp_path / "missing", tmp_path / "a\x00b", tmp_path / ("x" * 300)):
        assert not is_ours(nothing)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    for number, name in enumerate(("kdcli.json", ".lock")):
        for kind in ("pipe", "device", "folder"):
            place = tmp_path / f"{number}-{kind}.partial"
            place.mkdir()
            if kind == "pipe":
                os.mkfifo(place / name)
            elif kind == "device":
                (place / name).symlink_to("/dev/zero")
            else:
                (place / name).mkdir()
            assert not is_ours(place), place


def test_looking_does_not_change_anything(tmp_path: Path) -> None:
    commit(tmp_path / "runs" / "student")
    before = sorted(tmp_path.rglob("*"))
    is_ours(tmp_path / "runs")
    assert sorted(tmp_path.rglob("*")) == before


# -- names of what is deleted --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["x", "größe", "a.trash-1", "x" * 200, "a\nb", "\udcff", "x.partial"])
def test_trash_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    trash = marks.trash_name(tmp_path / name)
    assert trash.parent == tmp_path
    assert marks.is_trash(trash.name)
    assert marks.is_trash(trash.name, name)
    assert not marks.is_trash(trash.name, f"{name}2")
    assert not marks.is_trash(f"2{trash.name}")
    assert not marks.is_trash(trash.name + "0")
    assert trash != marks.trash_name(tmp_path / name)


@pytest.mark.parametrize("name", ["x.trash-123", "x.trash-", "x.trash-1752000000000000000", "trash"])
def test_a_users_trash_is_none(name: str) -> None:
    assert not marks.is_trash(name)
    assert not marks.is_trash(name, "x")


# -- what a manifest does not name ---------------------------------------------------------------------------
def test_strangers(tmp_path: Path) -> None:
    out = commit(tmp_path / "out")
    manifest = Manifest("report", "eval", {}, files={"a": {}, "last/b": {}})
    assert list(strangers(out, manifest)) == []
    lock(out, marks.MARK)
    assert list(strangers(out, manifest)) == []
    lock(out, b"mine")
    (out / "notes.txt").touch()
    (out / "last" / "c").symlink_to("b")
    (out / "mine").mkdir()
    (out / "linked").symlink_to(tmp_path)
    os.mkfifo(out / "pipe")
    found = {".lock", "notes.txt", "last/c", "mine/", "linked/", "pipe"}
    assert set(strangers(out, manifest)) == found
    (out / "a").unlink()
    picture(out / "a")
    assert set(strangers(out, manifest)) == {*found, "a/", "a/0.png"}
