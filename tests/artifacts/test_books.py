"""Books of hashes: read back as written, never believed when damaged, never in a user's folder, bounded."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import numpy as np
import pytest

from kdcli.artifacts import books
from kdcli.artifacts.books import SHA_BYTES, STAMP, Book, read_book, write_book
from kdcli.artifacts.manifest import is_ours
from kdcli.errors import EnvironmentFault, InputError


def made(*paths: str) -> Book:
    stamps = np.array([(i, -i, i * i, 2**64 - 1 - i) for i in range(len(paths))], STAMP)
    shas = np.arange(len(paths) * SHA_BYTES).astype(np.uint8).reshape(-1, SHA_BYTES)
    return Book(paths, stamps, shas)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "picture-hashes" / "a.hashes"


def test_a_book_is_read_as_it_was_written(file: Path) -> None:
    book = made("a b.png", "ü/日.png", "c\n.png")
    write_book(file, book)
    found, _ = read_book(file)
    assert found.paths == list(book.paths)
    assert np.array_equal(found.stamps, book.stamps)
    assert np.array_equal(found.shas, book.shas)
    write_book(file, made("other.png"))
    assert read_book(file)[0].paths == ["other.png"]
    assert sorted(path.name for path in file.parent.iterdir()) == [".lock", "a.hashes"]
    assert is_ours(file.parents[1])  # no picture folder of the user's


def test_every_use_has_a_number_of_its_own(file: Path) -> None:
    write_book(file, made("a.png"))
    numbers = []
    for time in (1, 2, 3):
        os.utime(file, ns=(time, time))
        numbers.append(read_book(file)[1])
        assert os.stat(file).st_mtime_ns > 3  # it was used now
    assert len(set(numbers)) == 3


@pytest.mark.parametrize("place", [0, 30, 60, 70, 90, -1])
def test_a_flipped_bit_is_seen(file: Path, place: int) -> None:
    write_book(file, made("a.png", "b.png"))
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.hashes is damaged$"):
        read_book(file)


@pytest.mark.parametrize("data", [b"", b"{}", b"kdcli hashes of files 1\n"])
def test_what_is_no_book_is_refused(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        read_book(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match="no regular file"):
        read_book(file)


def test_a_folder_of_the_users_is_left_alone(file: Path) -> None:
    file.parent.mkdir(parents=True)
    (file.parent / "mine.png").touch()
    with pytest.raises(EnvironmentFault, match="picture-hashes holds something else"):
        write_book(file, made("a.png"))
    assert os.listdir(file.parent) == ["mine.png"]


def test_what_a_killed_process_left_is_swept(file: Path) -> None:
    write_book(file, made("a.png"))
    file.with_name("b.hashes.partial").touch()
    write_book(file, made("a.png"))
    assert not file.with_name("b.hashes.partial").exists()


def test_two_processes_take_turns(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_book(file, made("a.png"))
    monkeypatch.setattr(books, "_TRIES", 2)
    with open(file.parent / ".lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(EnvironmentFault, match="another process is writing there"):
            write_book(file, made("b.png"))
    assert read_book(file)[0].paths == ["a.png"]
    write_book(file, made("b.png"))
    assert read_book(file)[0].paths == ["b.png"]


def test_books_are_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate("abc"):
        write_book(file.with_name(f"{name}.hashes"), made("x.png"))
        os.utime(file.with_name(f"{name}.hashes"), (age, age))
    read_book(file)  # the oldest, but used
    size = file.stat().st_size
    monkeypatch.setattr(books, "_LARGEST", 3 * size)
    write_book(file.with_name("d.hashes"), made("x.png"))
    assert sorted(path.name for path in file.parent.glob("*.hashes")) == ["a.hashes", "c.hashes", "d.hashes"]
    monkeypatch.setattr(books, "_LARGEST", size - 1)
    with pytest.raises(EnvironmentFault, match="they take more than"):
        write_book(file, made("x.png"))
