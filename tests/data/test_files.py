"""What is not read is said by kind and number, or refused; nothing that could be waited for is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toolbox import class_folders, tiny_picture

from kdcli.data.files import by_folder, kinds, look
from kdcli.data.samples import Data
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")


def opened(source: Path, *need: str) -> Data:
    return open_task_data(DataSection(source=str(source)), *(need or ("train",)))


def test_kinds_are_counted_by_suffix() -> None:
    assert kinds(["a.HEIC", "b/c.heic", "d.avif"]) == "2 .heic and 1 .avif"
    assert kinds(["README"]) == "1 without a suffix"
    assert kinds([f"{i}.{'abcdefg'[i]}" for i in range(7)]).endswith("1 .e and 2 of other kinds")


def test_documents_beside_pictures_are_passed_over(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 10, "dog": 10})
    for name in ("LICENSE", "README.md", "licence.txt", "CITATION.cff"):
        (tmp_path / name).write_text("words")
    assert opened(tmp_path).notes == ()
    (tmp_path / "labels").write_text("words")
    assert opened(tmp_path).notes == (f"{tmp_path}: files that are not read: 1 without a suffix",)


def test_paths_by_folder() -> None:
    paths = ["/d/a/1", "/d/a/b/2", "/d/3", "/dx/4"]
    assert by_folder("/d", paths) == (["/d/3"], {"a": ["/d/a/1", "/d/a/b/2"]})


@pytest.mark.parametrize("suffix", ["heic", "HEIF", "avif", "jxl", "jp2", "psd", "cr2", "svg", "tga"])
def test_pictures_of_other_kinds_are_said_or_refused(tmp_path: Path, suffix: str) -> None:
    class_folders(tmp_path / "train", {"cat": 10, "dog": 10})
    for i in range(4):
        (tmp_path / "train" / "cat" / f"x{i}.{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    data = opened(tmp_path)
    assert data.notes == (f"{tmp_path}: files that are not read: 4 .{suffix.lower()}",)
    for i in range(18):
        (tmp_path / "train" / "dog" / f"x{i}.{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(InputError, match=rf"train: 22 of 42 pictures are not read \(22 \.{suffix.lower()}\)"):
        opened(tmp_path)


def test_a_split_of_unread_pictures_does_not_vanish(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 10, "train/dog": 10, "Test/cat": 3, "Test/dog": 3})
    for file in (tmp_path / "Test").rglob("*.png"):
        file.rename(file.with_suffix(".avif"))
    with pytest.raises(InputError, match=r"Test: 6 of 6 pictures are not read \(6 \.avif\)\. Convert them"):
        opened(tmp_path)


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "1.heic").write_bytes(b"x")
    (tmp_path / "all.zip").write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no pictures, parquet .*dataset \(1 \.heic and 1 \.zip\)\."):
        opened(tmp_path)


def test_notes_beside_every_picture_are_no_reason_to_refuse(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 10, "dog": 10})
    for file in list(tmp_path.rglob("*.png")):
        for suffix in (".txt", ".xml"):
            file.with_suffix(suffix).write_text("x")
    assert opened(tmp_path).notes == (f"{tmp_path}: files that are not read: 20 .txt and 20 .xml",)


def test_links_that_lead_nowhere_are_said_or_refused(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 10, "dog": 10})
    (tmp_path / "train" / "cat" / "l.png").symlink_to("gone.png")
    (tmp_path / "train" / "cat" / "again.png").symlink_to("again.png")
    assert opened(tmp_path).notes == (f"{tmp_path}: 2 links lead nowhere, first train/cat/again.png",)
    for i in range(20):
        (tmp_path / "train" / "dog" / f"l{i}.png").symlink_to("gone.png")
    with pytest.raises(InputError, match="22 of 42 pictures are links that lead nowhere"):
        opened(tmp_path)


def test_a_link_to_a_picture_beside_it_is_that_picture(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 10, "dog": 10})
    (tmp_path / "cat" / "l.png").symlink_to("1.png")
    assert len(opened(tmp_path).split("train")) == 19


@pytest.mark.parametrize("what", ["fifo", "device", "link to a fifo"])
@pytest.mark.parametrize("name", ["x.jpg", "train.parquet", "metadata.jsonl"])
def test_what_may_never_end_is_not_opened(tmp_path: Path, name: str, what: str) -> None:
    class_folders(tmp_path / "d", {"cat": 10, "dog": 10})
    place = tmp_path / "d" / "cat" / name
    if what == "fifo":
        os.mkfifo(place)
    elif what == "device":
        place.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    for source in (tmp_path / "d", place):
        with pytest.raises(
            InputError, match=rf"cat/{name} is no regular file \(a FIFO, a socket, a device\?\)"
        ):
            opened(source)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 10, "dog": 10})
    (Path(os.fsdecode(bytes(tmp_path) + b"/cat/\xff.png"))).write_bytes(tiny_picture(77))
    with pytest.raises(InputError, match=r"cat holds a name that is not UTF-8: '\\udcff\.png'\. Rename it"):
        opened(tmp_path)


def test_every_kind_of_thing_is_found_once(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 1, ".hidden": 1})
    for name in ("t.parquet", "metadata.csv", "b.txt"):
        (tmp_path / name).write_text("x")
    found = look(tmp_path)
    short = {name: [found.short(p) for p in paths] for name, paths in vars(found).items() if name != "root"}
    assert short == {
        "pictures": ["a/0.png"],
        "tables": ["t.parquet"],
        "metadata": ["metadata.csv"],
        "others": ["b.txt"],
        "dangling": [],
        "folders": ["a"],
        "passed": [".hidden"],
        "ours": [],
    }
