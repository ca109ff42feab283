"""The list of splits of In-Shop Clothes Retrieval: read whole, or refused by its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from toolbox import class_folders, tiny_picture

from kdcli.data import lists
from kdcli.data.loading import load
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")

HEADER = "image_name item_id evaluation_status"
ROWS = [
    (f"img/WOMEN/Dresses/id_0000000{item}/{n:02}_1_front.jpg", f"id_0000000{item}", split)
    for item, split in ((1, "train"), (2, "query"), (2, "gallery"), (3, "train"))
    for n in ((1, 2) if split == "train" else (3,) if split == "query" else (4, 5))
]


def in_shop(root: Path, pictures: str = ".", place: str = ".") -> Path:
    """The data set in small; the list, which is returned, in a folder of its own."""
    for number, (path, _, _) in enumerate(ROWS):
        file = root / pictures / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_picture(number, "JPEG"))
    (root / place).mkdir(exist_ok=True)
    return written(root / place / "list_eval_partition.txt")


def written(file: Path, rows: list[str] | None = None, count: int | None = None) -> Path:
    lines = [f"{path}          {item}    {split}" for path, item, split in ROWS] if rows is None else rows
    file.write_text("\n".join([str(len(lines) if count is None else count), HEADER, *lines, ""]))
    return file


@pytest.mark.parametrize(
    ("pictures", "place"), [(".", "."), (".", "Eval"), ("Img", "Anno"), ("In-shop/Img", "Eval")]
)
def test_splits_and_items_are_those_of_the_list(tmp_path: Path, pictures: str, place: str) -> None:
    in_shop(tmp_path, pictures, place)
    raw = load(str(tmp_path))
    assert (list(raw.tables), raw.notes) == (["train", "query", "gallery"], [])
    for split, table in raw.tables.items():
        table = table.cast_column("image", datasets.Image(decode=False))
        found = list(zip([cell["path"] for cell in table["image"]], table["item_id"][:]))
        assert found == [(os.path.normpath(tmp_path / pictures / p), i) for p, i, s in ROWS if s == split]


def test_pictures_that_are_not_named_are_said(tmp_path: Path) -> None:
    in_shop(tmp_path)
    (tmp_path / "img" / "extra.png").write_bytes(tiny_picture(99))
    (tmp_path / "words.txt").write_text("In-shop")
    assert load(str(tmp_path)).notes == [
        f"{tmp_path}: files that are not read: 1 .txt",
        f"{tmp_path}: 1 pictures are not named in list_eval_partition.txt and not read, first img/extra.png",
    ]


def test_a_path_may_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "c.png").write_bytes(tiny_picture(0))
    written(tmp_path / "list_eval_partition.txt", ["a b/c.png id_1 query"])
    assert load(str(tmp_path)).tables["query"]["item_id"][:] == ["id_1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("img/none.jpg id_1 train", r"line 10: there is no picture .*/img/none\.jpg\."),
        ("../out.jpg id_1 train", r"line 10: '\.\./out\.jpg' is no path to a file below the folder of the"),
        ("/etc/passwd id_1 train", r"line 10: '/etc/passwd' is no path.*Files elsewhere and URLs are never"),
        ("http://x/y.jpg id_1 train", r"line 10: 'http://x/y\.jpg' is no path"),
        ("img/x.jpg id_1 val", r"line 10: 'img/x\.jpg id_1 val' where a path, an item and one of train, que"),
        ("img/x.jpg", r"line 10: 'img/x\.jpg' where a path"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_by_its_line(tmp_path: Path, row: str, message: str) -> None:
    file = in_shop(tmp_path)
    (tmp_path.parent / "out.jpg").write_bytes(tiny_picture(0))
    written(file, [" ".join(r) for r in ROWS] + [row])
    with pytest.raises(InputError, match=rf"list_eval_partition\.txt {message}"):
        load(str(tmp_path))


def test_lists_that_are_damaged_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = in_shop(tmp_path)
    written(file, count=52712)
    with pytest.raises(InputError, match=r"says that it has 52,712 rows, and has 7: is a part of it missing"):
        load(str(tmp_path))
    written(file, [])
    with pytest.raises(InputError, match="says that it has 0 rows, and has 0"):
        load(str(tmp_path))
    written(file, ["none/x.jpg id_1 train"])
    with pytest.raises(InputError, match=r"line 3: there is no picture none/x\.jpg anywhere below"):
        load(str(tmp_path))
    file.write_bytes(f"1\n{HEADER}\nimg/\xff.jpg id_1 train\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"cannot read data from .*list_eval_partition\.txt: 'utf-8' codec"):
        load(str(tmp_path))
    monkeypatch.setattr(lists, "_LARGEST", 100)
    written(file)
    with pytest.raises(InputError, match=r"has [0-9]+ bytes, more than 100\. Write a metadata\.csv of it"):
        load(str(tmp_path))


def test_two_lists_or_two_places_of_the_pictures_are_refused(tmp_path: Path) -> None:
    file = in_shop(tmp_path, "Img", "Eval")
    in_shop(tmp_path, "high")
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(InputError, match=r"may be Img/img/.*_front\.jpg or high/img/.*Move one of these"):
        load(str(tmp_path))
    (tmp_path / "list_eval_partition.txt").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"Eval/list_eval_partition\.txt and .*which of them says the"):
        load(str(tmp_path))


def test_a_list_that_is_no_file_is_refused(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/a": 3, "train/b": 3})
    os.mkfifo(tmp_path / "list_eval_partition.txt")
    with pytest.raises(InputError, match="is no regular file"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "000001.jpg 0\n000002.jpg 1\n",
        "2\nimage_name evaluation_status\nimg/a.jpg train\n",
        "1\nimage_pair_name_1 image_pair_name_2 item_id evaluation_status\na b c train\n",
        "",
    ],
)
def test_other_lists_of_that_name_are_not_read(tmp_path: Path, text: str) -> None:
    class_folders(tmp_path, {"train/a": 10, "train/b": 10})
    (tmp_path / "list_eval_partition.txt").write_text(text)
    data = open_task_data(DataSection(source=str(tmp_path)), "train")
    assert data.classes == ["a", "b"]
    assert data.notes == (f"{tmp_path}: files that are not read: 1 .txt",)


def test_metadata_are_read_before_a_list(tmp_path: Path) -> None:
    in_shop(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n{ROWS[0][0]},a\n{ROWS[1][0]},b\n")
    assert load(str(tmp_path)).tables["train"].column_names == ["image", "label"]
