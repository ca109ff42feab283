"""The class is the folder below the split, whatever lies in it; what tells no class is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from toolbox import class_folders, tiny_picture

from kdcli.data.loading import load
from kdcli.data.samples import Data
from kdcli.data.sources import open_unlabelled
from kdcli.errors import InputError
from kdcli.sections import DataSection, SourceSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")


def opened(source: Path, *need: str) -> Data:
    return open_task_data(DataSection(source=str(source)), *(need or ("train",)))


def labels(data: Data, split: str = "train") -> dict[str, int]:
    """Pictures by the name of their class."""
    assert data.classes is not None
    counts = np.bincount(data.split(split).labels, minlength=len(data.classes))
    return dict(zip(data.classes, counts.tolist()))


def test_rows_are_in_the_order_of_their_paths(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a b": 11, "a": 11, "a.b": 1, "B": 1})
    table = load(str(tmp_path)).tables["train"].cast_column("image", datasets.Image(decode=False))
    paths = [cell["path"] for cell in table["image"]]
    assert paths == sorted(str(path) for path in tmp_path.rglob("*.png"))
    assert table.features["label"] == datasets.ClassLabel(names=["B", "a", "a b", "a.b"])
    number = table.features["label"].str2int
    assert table["label"][:] == [number(os.path.basename(os.path.dirname(path))) for path in paths]


@pytest.mark.parametrize("inner", [("front", "back"), ("2019/jan", "2020")])
def test_folders_inside_classes_are_no_classes(tmp_path: Path, inner: tuple[str, ...]) -> None:
    for start, split in enumerate(("train", "test")):
        counts = {f"{car}/{view}": 6 for car in ("audi", "bmw", "fiat", "opel") for view in inner}
        class_folders(tmp_path / split, counts, start=1000 * start)
    data = opened(tmp_path, "train", "test")
    assert data.classes == ["audi", "bmw", "fiat", "opel"]
    assert labels(data, "test") == dict.fromkeys(data.classes, 12)
    (note,) = data.notes
    assert f"classes are the outer folders (audi, bmw, fiat); '{min(p.split('/')[0] for p in inner)}'" in note


def test_equal_names_inside_of_two_classes_are_not_merged(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"animal/other": 10, "animal/dog": 10, "thing/other": 10})
    assert labels(opened(tmp_path)) == {"animal": 18, "thing": 9}


def test_one_more_level_in_every_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"n01/images": 10, "n02/images": 10}, suffix="JPEG")
    (tmp_path / "train" / "n01" / "n01_boxes.txt").write_text("0 0 1 1")
    data = opened(tmp_path)
    assert data.classes == ["n01", "n02"]
    assert data.notes == (f"{tmp_path}: files that are not read: 1 .txt",)


def test_pictures_at_several_depths_of_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 10, "dog": 10, "cat/old": 5, "cat/old/older": 5})
    assert labels(opened(tmp_path)) == {"cat": 18, "dog": 9}


def test_covers_are_looked_into(tmp_path: Path) -> None:
    for start, split in enumerate(("Train", "Test")):
        counts = {f"archive/data/{split}/images/{car}": 10 for car in ("audi", "bmw")}
        class_folders(tmp_path, counts, start=100 * start)
    data = opened(tmp_path, "train", "test")
    assert (data.classes, len(data.split("test"))) == (["audi", "bmw"], 20)
    covers = "archive/data/Test/images, archive/data/Train/images"
    assert data.notes == (f"{tmp_path}: the folders in {covers} are taken for the classes",)


def test_a_split_of_one_class_makes_its_folder_no_cover(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat/front": 5, "cat/back": 5, "dog/front": 10})
    class_folders(tmp_path / "test", {"cat/front": 2, "cat/back": 2}, start=100)
    data = opened(tmp_path, "train", "test")
    assert (data.classes, labels(data, "test")) == (["cat", "dog"], {"cat": 4, "dog": 0})


@pytest.mark.parametrize("name", ["a::b", "a*[1]", "a?b", "a%20b", "ä ö", "-a", "_a", "a\nb", "~a", "{a,b}"])
def test_any_name_of_a_class(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "my::data", {name: 10, "plain": 10})
    assert labels(opened(tmp_path / "my::data")) == {name: 9, "plain": 9}


def test_a_loose_picture_beside_classes_is_refused_by_name(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 5, "dog": 5})
    for name in ("z.png", "loose.jpg"):
        (tmp_path / "train" / name).write_bytes(tiny_picture(99))
    message = r"train/loose\.jpg lies beside class folders and so has no class \(2 such\)\. Move it into one"
    with pytest.raises(InputError, match=message):
        opened(tmp_path)
    (extra,) = open_unlabelled(str(tmp_path), SourceSection()).splits.values()  # needs no classes
    assert len(extra) == 12


def test_an_empty_class_folder_is_refused_and_says_what_it_holds(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 10, "dog": 10, "cat/empty": 0})
    assert labels(opened(tmp_path)) == {"cat": 9, "dog": 9}
    for name in ("1.heic", "2.heic", "notes.txt"):
        (tmp_path / "train" / "emu").mkdir(exist_ok=True)
        (tmp_path / "train" / "emu" / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"class folder 'emu' holds no picture, only 2 \.heic and 1 \.txt\."):
        opened(tmp_path)


def test_a_split_without_class_folders_is_unlabelled_beside_one_with_them(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/cat": 10, "train/dog": 10, "test": 5})
    data = opened(tmp_path, "train", "test")
    assert (labels(data), data.split("test").labelled().any()) == ({"cat": 9, "dog": 9}, False)
    assert data.notes == (f"{tmp_path}: test has no class folders: its 5 pictures are unlabelled",)


def test_one_class_folder_tells_no_classes_and_says_so(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", {"cat": 10})
    data = opened(tmp_path)
    assert data.classes is None
    assert data.notes == (f"{tmp_path}: one class folder only, cat: its pictures count as unlabelled",)


@pytest.mark.parametrize("name", ["train.csv", "labels.TSV"])
def test_a_list_of_paths_says_what_to_do(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path, {"images": 20})
    (tmp_path / name).write_text(
        "image_path,label\n" + "".join(f"images/{i}.png,{i % 2}\n" for i in range(20))
    )
    message = rf"{name}: a list of pictures is read under the name metadata\.csv only.*file_name.*label"
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=message):
            opened(source)
    text = (tmp_path / name).read_text().replace("image_path", "file_name")
    (tmp_path / "metadata.csv").write_text(text)
    assert opened(tmp_path).classes == ["0", "1"]


def test_what_kdcli_wrote_below_the_data_is_no_class(tmp_path: Path) -> None:
    from kdcli.artifacts.manifest import Manifest
    from kdcli.artifacts.store import open_output

    class_folders(tmp_path, {"cat": 10, "dog": 10})
    for name in ("runs/distill-1", "out"):
        with open_output(tmp_path / name, {}) as output:
            assert output is not None
            (output.partial / "plot.png").write_bytes(tiny_picture(500))
            output.commit(Manifest("report", "eval", {}), ["plot.png"])
    data = opened(tmp_path)
    assert labels(data) == {"cat": 9, "dog": 9}
    assert data.notes == (f"{tmp_path}: passed over as kdcli's own output: out, runs",)


def test_hidden_folders_and_what_a_mac_leaves_are_passed_over_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path, {"cat": 10, "dog": 10, "__MACOSX/cat": 3, ".cache": 2})
    (tmp_path / "cat" / "._0.png").write_bytes(tiny_picture(600))
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    data = opened(tmp_path)
    assert labels(data) == {"cat": 9, "dog": 9}
    assert data.notes == (f"{tmp_path}: passed over as hidden: .cache, __MACOSX, cat/._0.png",)


def test_a_folder_that_also_holds_what_kdcli_wrote_is_no_class(tmp_path: Path) -> None:
    """``runs/`` with notes of the user's in it, or ``exp/7/out``."""
    from kdcli.artifacts.manifest import Manifest
    from kdcli.artifacts.store import open_output

    class_folders(tmp_path, {"cat": 10, "dog": 10})
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("better than before")
    for name in ("runs/distill-1", "exp/7/out"):
        with open_output(tmp_path / name, {}) as output:
            assert output is not None
            (output.partial / "plot.png").write_bytes(tiny_picture(500))
            output.commit(Manifest("report", "eval", {}), ["plot.png"])
    data = opened(tmp_path)
    assert labels(data) == {"cat": 9, "dog": 9}
    assert data.notes == (
        f"{tmp_path}: files that are not read: 1 .txt",
        f"{tmp_path}: passed over as kdcli's own output: exp, runs/distill-1",
    )
