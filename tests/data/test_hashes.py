"""What is kept of picture files spares reading them, and never changes what a picture is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toolbox import class_folders, tiny_picture

from kdcli.artifacts.books import Book, read_book, write_book
from kdcli.data import hashes
from kdcli.data.samples import Data
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

pytest.importorskip("datasets")


class Desk:
    """A source of 60 pictures, the books kept of it, and the pictures that were read."""

    def __init__(self, root: Path) -> None:
        self.source, self.folder = class_folders(root / "cars", {"a": 30, "b": 30}), root / "cache" / "books"
        self.read: list[str] = []

    def open(self) -> Data:
        """The data, with the help of books."""
        self.read.clear()
        return open_task_data(DataSection(source=str(self.source)), "train", kept=lambda: self.folder)

    def check(self, *notes: str) -> int:
        """Open the data, compare them with those that are opened without books; how many files were read."""
        found = self.open()
        count = len(self.read)
        plain = open_task_data(DataSection(source=str(self.source)), "train")
        assert found.fingerprint == plain.fingerprint
        assert np.array_equal(found.split("train").ids, plain.split("train").ids)
        assert len(found.notes) == len(notes)
        assert all(part in note for part, note in zip(notes, found.notes))
        return count

    @property
    def book(self) -> Path:
        """The only book."""
        (file,) = self.folder.glob("*.hashes")
        return file


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    made = Desk(tmp_path)
    real = hashes.cell_bytes

    def cell_bytes(cell: Any, *rest: Any) -> bytes:
        made.read.append(str(cell))
        return real(cell, *rest)

    monkeypatch.setattr(hashes, "cell_bytes", cell_bytes)
    monkeypatch.setattr(hashes, "_FEWEST", 10)
    monkeypatch.setattr(hashes, "GRAIN_NS", 0)  # files are made here and hashed at once
    return made


def put_back(file: Path, change: Callable[[], object]) -> None:
    """Change a file, and put the time of its content back."""
    before = os.stat(file)
    change()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (os.stat(file).st_size, os.stat(file).st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_files_are_read_once_and_then_a_sample_of_them(desk: Desk) -> None:
    assert desk.check() == 60
    assert desk.check() == 16
    drawn = [set(desk.read) for _ in range(4) if desk.open()]
    assert len(set.union(*drawn)) > 16  # another sample each time


def test_few_files_are_not_worth_a_book(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_FEWEST", 61)
    assert desk.check() == 60
    assert not desk.folder.exists()


def test_a_file_rewritten_in_place_with_its_time_put_back_is_seen(desk: Desk) -> None:
    desk.check()
    file = desk.source / "a" / "3.png"
    other = bytearray(file.read_bytes())
    other[-1] ^= 1
    put_back(file, lambda: file.write_bytes(other))
    assert 1 <= desk.check() <= 17
    assert desk.check() == 16


@pytest.mark.parametrize("how", ["replaced", "swapped", "copied over", "linked", "new", "gone", "renamed"])
def test_other_changes_are_seen(desk: Desk, how: str) -> None:
    desk.check()
    file, other = desk.source / "a" / "3.png", desk.source / "b" / "4.png"
    aside = desk.source.parent / "aside.png"
    if how == "replaced":
        aside.write_bytes(tiny_picture(999))
        os.utime(aside, ns=(os.stat(file).st_atime_ns, os.stat(file).st_mtime_ns))
        os.replace(aside, file)
    elif how == "swapped":
        for one, two in ((file, aside), (other, file), (aside, other)):
            os.rename(one, two)
    elif how == "copied over":
        put_back(
            file,
            lambda: file.write_bytes(other.read_bytes().ljust(file.stat().st_size)[: file.stat().st_size]),
        )
    elif how == "linked":
        file.unlink()
        file.symlink_to(other)
    elif how == "new":
        (desk.source / "a" / "new.png").write_bytes(tiny_picture(998))
    elif how == "gone":
        file.unlink()
    else:
        (desk.source / "a").rename(desk.source / "c")
    desk.check()
    assert desk.check() == 16


def test_files_that_may_have_changed_within_the_grain_of_the_clock_are_not_kept(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "GRAIN_NS", 10**12)
    assert desk.check() == desk.check() == 60
    assert not desk.folder.exists()
    monkeypatch.setattr(hashes, "GRAIN_NS", 0)
    assert (desk.check(), desk.check()) == (60, 16)


def test_a_book_that_is_wrong_is_thrown_away_and_said(desk: Desk) -> None:
    desk.check()
    book, _ = read_book(desk.book)
    write_book(desk.book, Book(book.paths, book.stamps, book.shas ^ 1))
    wrong = "the hashes kept of its pictures are not used, and made anew: "
    assert desk.check(wrong) >= 60
    assert desk.check() == 16
    desk.book.write_bytes(desk.book.read_bytes()[:-1])
    assert desk.check(f"{wrong}{desk.book} is damaged") == 60
    assert desk.check() == 16


def test_without_a_place_to_write_all_is_read_and_that_is_said(desk: Desk) -> None:
    desk.folder.mkdir(parents=True)
    (desk.folder / "mine").touch()
    for _ in range(2):
        assert desk.check("hashes of its 60 pictures are not kept: ") == 60
    assert os.listdir(desk.folder) == ["mine"]
    desk.folder = desk.folder / "mine" / "below"
    assert desk.check(f"are not kept: {desk.folder}: Not a directory") == 60


def test_a_link_that_leads_out_is_refused_whatever_is_kept(desk: Desk, tmp_path: Path) -> None:
    desk.check()
    file = desk.source / "a" / "3.png"
    file.rename(tmp_path / "3.png")
    file.symlink_to(tmp_path / "3.png")
    with pytest.raises(InputError, match=r"train row 23: .*never opened"):
        desk.open()
    file.unlink()
    (desk.source / "a").rename(tmp_path / "a")
    (desk.source / "a").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="is a link to a folder"):
        desk.open()


def test_a_long_first_start_is_kept_as_far_as_it_came(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_SAVE_S", -1.0)
    (desk.source / "b" / "9.png").unlink()
    (desk.source / "b" / "9.png").symlink_to("/etc/hosts")  # the last row
    with pytest.raises(InputError, match="never opened"):
        desk.open()
    assert len(read_book(desk.book)[0].paths) == 59
    (desk.source / "b" / "9.png").unlink()
    assert desk.check() == 16
