"""Splits are found whatever users call them, and no pictures meant for a test are trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from toolbox import class_folders, tiny_picture

from kdcli.data.loading import load
from kdcli.data.sources import open_train, open_unlabelled
from kdcli.data.splits import find, folder_splits, lone, resembles, role, side, word
from kdcli.errors import InputError
from kdcli.sections import DataSection, SourceSection
from kdcli.tasks import open_task_data

datasets = pytest.importorskip("datasets")


def table(count: int, start: int = 0) -> datasets.Dataset:
    cells = [{"bytes": tiny_picture(start + i), "path": None} for i in range(count)]
    found = datasets.Dataset.from_dict({"image": cells, "label": [i % 2 for i in range(count)]})
    return found.cast_column("image", datasets.Image())


def sizes(source: Path, *need: str, **options: str) -> dict[str, int]:
    data = open_task_data(DataSection(source=str(source), **options), *need)  # type: ignore[arg-type]
    return {name: len(samples) for name, samples in data.splits.items()}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "train Train TRAIN training TrainSet train2017 train_1 train-images trainval train.old",
            "train",
        ),
        ("validation valid Val VAL dev val-small Validation_2 validate development", "validation"),
        (
            "test Test TESTING test_set TestImages eval2017 evaluation test-b",
            "test",
        ),
        ("cat holdout hold-out fold1 train_test test-val bullet_train latest protest trainees invalid", None),
        ("unlabeled train_unlabelled été 2017 cars_test", None),
        ("bounding_box_train BoundingBoxTrain bounding-boxes-train", "train"),
        ("bounding_box_test", "test"),
        ("query Query QUERIES query_images image_query query-00000", "query"),
        ("gallery Gallery gallery_2 GalleryImages", "gallery"),
        ("gt_query multi-query art_gallery query_gallery galleries bounding_box gt_bbox querying", None),
    ],
)
def test_what_a_name_plainly_means(names: str, expected: str | None) -> None:
    assert {name: role(name) for name in names.split()} == dict.fromkeys(names.split(), expected)


def test_names_that_speak_of_splits_are_known_from_others() -> None:
    speaking = "unseen unseen_2 entrainement prueba Teste treino "
    speaking += "Holdout hold_out held-out fold1 fold_2 split3 train_test bullet_train cars_test unlabeled"
    assert [name for name in speaking.split() if not resembles(name)] == []
    others = "tester testament unseenly cat scaffold folder latest splitter protest trainees household"
    assert [name for name in others.split() if resembles(name)] == []
    assert (word("Train_2"), word("train_val"), word("eval"), word("cat")) == (
        "train",
        "trainval",
        "eval",
        None,
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("query image_query test_query query-test Queries", ("test", "query")),
        ("gallery TestGallery gallery_1 test.gallery", ("test", "gallery")),
        ("val_query ValidationQueries query_dev", ("validation", "query")),
        ("val-gallery dev_gallery", ("validation", "gallery")),
        ("train test gt_query query_gallery train_query art_gallery query_fold query_val_test images", None),
    ],
)
def test_halves_of_a_search(names: str, expected: tuple[str, str] | None) -> None:
    assert {name: side(name) for name in names.split()} == dict.fromkeys(names.split(), expected)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("train query gallery", {"train": "train", "query": "query", "gallery": "gallery"}),
        (
            "bounding_box_test bounding_box_train gt_bbox gt_query query",
            {"bounding_box_train": "train", "bounding_box_test": "test", "query": "query"},
        ),
        ("Query Gallery", {"Query": "query", "Gallery": "gallery"}),
        ("train query", {"train": "train", "query": "query"}),
        ("train gallery", {"train": "train", "gallery": "gallery"}),
        (
            "train val_query val_gallery",
            {"train": "train", "val_query": "validation_query", "val_gallery": "validation_gallery"},
        ),
        ("query", {}),
        ("cat gallery", {}),
        ("cat gallery query", {}),
        ("train test gallery", {"train": "train", "test": "test"}),
    ],
)
def test_which_folders_side_by_side_are_splits(folders: str, expected: dict[str, str]) -> None:
    assert folder_splits(folders.split()) == expected


def test_the_folders_of_market_1501_are_splits(tmp_path: Path) -> None:
    base = tmp_path / "Market-1501-v15.09.15"
    counts = {"bounding_box_train": 6, "bounding_box_test": 4, "query": 2, "gt_bbox": 3}
    class_folders(base, counts)
    (base / "gt_query").mkdir()
    (base / "gt_query" / "0001_c1s1_001051_00_good.mat").write_bytes(b"MATLAB 5.0")
    (base / "words.txt").write_text("Market-1501")
    raw = load(str(tmp_path))
    assert {name: len(t) for name, t in raw.tables.items()} == {"test": 4, "train": 6, "query": 2}
    assert raw.notes == [
        f"{tmp_path}: files that are not read: 1 .mat and 1 .txt",
        f"{base}: 3 pictures beside the split folders are not read, first "
        "Market-1501-v15.09.15/gt_bbox/0.png",
    ]


def test_query_and_gallery_are_splits_of_any_task(tmp_path: Path) -> None:
    for start, (name, count) in enumerate({"train": 10, "query": 2, "gallery": 3}.items()):
        class_folders(tmp_path / name, {"a": count, "b": count}, start=100 * start)
    assert sizes(tmp_path, "train", "query", "gallery") == {"train": 18, "query": 4, "gallery": 6}
    assert sizes(tmp_path, "test", test="gallery") == {"test": 6}
    with pytest.raises(InputError, match=r"has no split 'test'; it has: gallery, query, train\."):
        sizes(tmp_path, "test")
    (extra,) = open_unlabelled(str(tmp_path), SourceSection()).splits.values()
    assert len(extra) == 20
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(InputError, match="has only gallery and query, which are never trained on"):
        open_unlabelled(str(tmp_path), SourceSection())


def test_a_gallery_alone_may_stand_for_train(tmp_path: Path) -> None:
    assert (lone(["gallery"]), lone(["Query"]), lone(["gallery", "query"])) == ("gallery", "Query", None)
    table(20).to_parquet(tmp_path / "gallery.parquet")
    assert sizes(tmp_path / "gallery.parquet", "train") == {"train": 18}
    (extra,) = open_unlabelled(str(tmp_path / "gallery.parquet"), SourceSection()).splits.values()
    assert len(extra) == 20
    class_folders(tmp_path / "x" / "gallery", {"a": 10, "b": 10})
    assert open_task_data(DataSection(source=str(tmp_path / "x")), "train").classes == ["a", "b"]


def test_a_split_is_found_by_its_name_before_its_role() -> None:
    assert find(["Train", "train"], "train", "d", "data.train") == "train"
    assert find(["Train", "other"], "training", "d", "data.train") == "Train"
    assert find(["other"], "train", "d", "data.train") is None
    with pytest.raises(
        InputError, match=r"d has no split 'train' but Train and training\. Name one: --set data\.train=Train"
    ):
        find(["Train", "training"], "train", "d", "data.train")


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Val", "Test"),
        ("TRAINING", "VALID", "TESTING"),
        ("training_set", "dev", "eval"),
        ("TrainImages", "Validation", "TestImages"),
        ("train 1", "val.2", "test-3"),
        ("seg_train", "seg_val", "seg_test"),
    ],
)
def test_split_folders_of_any_name_are_never_merged(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for start, (name, count) in enumerate(zip(names, (6, 3, 2))):
        class_folders(tmp_path / name, {"a": count, "b": count}, start=100 * start)
    assert sizes(tmp_path, "train", "validation", "test") == {"train": 12, "validation": 6, "test": 4}


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("TRAIN-0", "TEST-00000-of-00001"), ("training", "eval"), ("d/Train/x", "d/Test/x")],
)
def test_parquet_files_of_any_name_are_never_merged(tmp_path: Path, names: tuple[str, str]) -> None:
    for start, (name, count) in enumerate(zip(names, (20, 6))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        table(count, 100 * start).to_parquet(tmp_path / f"{name}.parquet")
    assert sizes(tmp_path, "train", "test") == {"train": 18, "test": 6}


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for start, name in enumerate(("train", "holdout", "test")):
        (tmp_path / name).mkdir()
        table(20 - start, 100 * start).to_parquet(tmp_path / name / "part-00000.parquet")
    assert sizes(tmp_path, "train", "test") == {"train": 18, "test": 18}
    assert sizes(tmp_path, "test", test="holdout") == {"test": 19}


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "Testing"), ("train", "eval")])
def test_saved_splits_of_any_name(tmp_path: Path, names: tuple[str, str]) -> None:
    parts = {names[0]: table(20), names[1]: table(6, 100)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert sizes(tmp_path / "d", "train", "test") == {"train": 18, "test": 6}
    section = SourceSection(source=str(tmp_path / "d"))
    assert len(open_train(section).split("train")) == 20
    (extra,) = open_unlabelled(str(tmp_path / "d"), section).splits.values()
    assert len(extra) == 20


@pytest.mark.parametrize("name", ["test", "Test", "validation", "holdout_test", "eval"])
def test_a_test_split_alone_is_no_training_set(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path / "folders" / name, {"a": 10, "b": 10})
    (tmp_path / "tables").mkdir()
    table(20).to_parquet(tmp_path / "tables" / f"{name}.parquet")
    kinds = {"folders": "is it a split or a class"} if name == "holdout_test" else {}
    for source in ("folders", "tables") if name != "holdout_test" else ("folders",):
        message = kinds.get(source, r"has no split 'train'; it has: \w+\. Name one: --set data\.train=…")
        with pytest.raises(InputError, match=message):
            sizes(tmp_path / source, "train")
        with pytest.raises(InputError, match=message):
            open_train(SourceSection(source=str(tmp_path / source)))
        with pytest.raises(InputError, match=kinds.get(source, "has only .*, which are never trained on")):
            open_unlabelled(str(tmp_path / source), SourceSection())


def test_a_test_split_alone_is_tested_on_or_named(tmp_path: Path) -> None:
    class_folders(tmp_path / "test", {"a": 10, "b": 10})
    assert sizes(tmp_path, "test") == {"test": 20}
    assert sizes(tmp_path, "train", train="test") == {"train": 18}


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (("train/a", "train/b", "holdout/a", "holdout/b"), "holdout"),
        (("train/a", "train/b", "train_test/a", "train_test/b"), "train_test"),
        (("fold1/a", "fold1/b", "fold2/a", "fold2/b"), "fold1"),
        (("learn/a", "learn/b", "unlabeled/a", "unlabeled/b"), "unlabeled"),
        (("cars/a", "cars/b", "cars_test/a", "cars_test/b"), "cars_test"),
        (("cars_train", "cars_test"), "cars_test"),
        (("cat", "dog", "test"), "test"),
        (("cat", "dog", "Test_Images"), "Test_Images"),
        (("cat", "dog", "Val"), "Val"),
        (("cat", "dog", "hold-out"), "hold-out"),
        (("cars", "cars_test"), "cars_test"),
    ],
)
def test_what_looks_like_a_split_and_is_not_understood_is_refused(
    tmp_path: Path, folders: tuple[str, ...], named: str
) -> None:
    class_folders(tmp_path, dict.fromkeys(folders, 10))
    with pytest.raises(
        InputError, match=rf"/{named} beside .*: is it a split or a class\? Call split folders"
    ):
        sizes(tmp_path, "train")
    if not any("/" in folder for folder in folders):  # the way out
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "train").mkdir()
        for folder in folders:
            (tmp_path / folder).rename(tmp_path / "new" / "train" / folder)
        assert open_task_data(DataSection(source=str(tmp_path / "new")), "train").classes == sorted(folders)


@pytest.mark.parametrize(
    "folders",
    [
        ("car", "plane", "train"),
        ("valid", "invalid"),
        ("bullet_train", "tram"),
        ("castle", "gallery"),
        ("castle", "gallery", "query"),
        ("art_gallery", "gallery", "train"),
        ("castle/x", "castle/y", "gallery/x", "gallery/y", "query/x", "query/y"),
    ],
)
def test_classes_may_be_called_like_splits(tmp_path: Path, folders: tuple[str, ...]) -> None:
    class_folders(tmp_path, dict.fromkeys(folders, 10))
    outer = {folder.split("/")[0] for folder in folders}
    assert open_task_data(DataSection(source=str(tmp_path)), "train").classes == sorted(outer)


@pytest.mark.parametrize("inner", ["test", "TEST", "Validation"])
def test_splits_inside_of_classes_are_refused(tmp_path: Path, inner: str) -> None:
    things, parts = ("bottle", "cable"), ("train", inner)
    class_folders(
        tmp_path, {f"{thing}/{part}/{look}": 10 for thing in things for part in parts for look in "ab"}
    )
    with pytest.raises(
        InputError, match=rf"bottle/{inner}: a split folder inside of bottle\. Put .*outside \(train, "
    ):
        sizes(tmp_path, "train")
    assert sizes(tmp_path / "bottle", "train") == {"train": 18 if inner.lower() == "test" else 20}


def test_a_split_folder_alone_in_another_is_refused_unless_it_is_the_same(tmp_path: Path) -> None:
    class_folders(
        tmp_path, {f"a/{split}/{split.lower()}/{c}": 10 for split in ("Train", "Test") for c in "xy"}
    )
    assert sizes(tmp_path / "a", "test") == {"test": 20}
    class_folders(tmp_path / "b" / "train", {"Test": 10})
    with pytest.raises(InputError, match="train/Test: a split folder inside of train"):
        open_train(SourceSection(source=str(tmp_path / "b")))
    class_folders(tmp_path / "c", {"cars_test": 10})
    with pytest.raises(InputError, match="cars_test: is it a split or a class"):
        open_train(SourceSection(source=str(tmp_path / "c")))


def test_two_words_for_one_split_are_refused(tmp_path: Path) -> None:
    for start, name in enumerate(("train", "eval", "Test")):
        class_folders(tmp_path / name, {"a": 3, "b": 3}, start=100 * start)
    with pytest.raises(InputError, match="Test and eval both name the test split"):
        sizes(tmp_path, "train")
    parts = {name: table(6, 50 * i) for i, name in enumerate(("train", "Val", "Dev"))}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(
        InputError, match=r"no split 'validation' but Val and Dev\. Name one: --set data\.valid"
    ):
        sizes(tmp_path / "d", "train", "validation")
    assert sizes(tmp_path / "d", "train", "validation", validation="Dev") == {"train": 6, "validation": 6}


def test_several_test_splits_stop_no_training(tmp_path: Path) -> None:
    parts = {"train": table(20), "test-clean": table(6, 50), "test-other": table(6, 90)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    assert sizes(tmp_path / "d", "train") == {"train": 18}
    assert sizes(tmp_path / "d", "test-other") == {"test-other": 6}
    with pytest.raises(InputError, match="has no split 'test' but test-clean and test-other"):
        sizes(tmp_path / "d", "test")
    parts = {"train": table(20), "val_a": table(6, 50), "val_b": table(6, 90), "test": table(6, 60)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "e"))
    assert sizes(tmp_path / "e", "test") == {"test": 6}
    with pytest.raises(InputError, match="has no split 'validation' but val_a and val_b"):
        sizes(tmp_path / "e", "train")


def test_a_validation_split_that_was_named_is_not_replaced_by_train(tmp_path: Path) -> None:
    table(20).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(InputError, match="no split 'mine'; it has: train"):
        sizes(tmp_path / "d", "train", "validation", validation="mine")


def test_what_lies_beside_split_folders_is_said(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 2, "docs/figures": 3})
    (tmp_path / "preview.png").write_bytes(tiny_picture(5000))
    data = open_task_data(DataSection(source=str(tmp_path)), "train")
    assert data.classes == ["a", "b"]
    assert data.notes == (f"{tmp_path}: 4 pictures beside the split folders are not read, first preview.png",)


def test_short_names_are_splits_where_they_stand_for_themselves(tmp_path: Path) -> None:
    assert folder_splits(["tr", "te"]) == {"tr": "train", "te": "test"}
    assert folder_splits(["TR", "va", "te"]) == {"TR": "train", "te": "test", "va": "validation"}
    assert (
        folder_splits(["tr", "te", "de", "fr"]) == folder_splits(["tr"]) == folder_splits(["tr", "TR"]) == {}
    )
    class_folders(tmp_path, {f"{split}/{name}": 5 for split in ("tr", "te") for name in "ab"})
    assert sizes(tmp_path, "test") == {"test": 10}


@pytest.mark.parametrize(
    "inner", [("train", "holdout"), ("a", "unseen"), ("training_images", "heldout_images"), ("x", "TST")]
)
def test_pictures_held_out_inside_of_classes_are_not_trained_on(
    tmp_path: Path, inner: tuple[str, str]
) -> None:
    class_folders(tmp_path, {f"cat/{inner[0]}": 4, f"cat/{inner[1]}": 4, "dog": 4})
    with pytest.raises(InputError, match=f"{inner[1]}: a split folder inside of cat"):
        sizes(tmp_path, "train")


def test_tst_alone_is_no_training_set(tmp_path: Path) -> None:
    class_folders(tmp_path, {"tst/a": 4, "tst/b": 4})
    with pytest.raises(InputError, match="train"):
        sizes(tmp_path, "train")


def test_a_folder_around_the_pictures_of_a_split_is_said_to_be_none(tmp_path: Path) -> None:
    """Tiny ImageNet as it is published: train/n01/images, val/images, test/images."""
    class_folders(tmp_path, {"train/n01/images": 6, "train/n02/images": 6, "val/images": 4, "test/images": 4})
    with pytest.raises(InputError, match=r"'images' is a folder around a split's pictures \(test/images\)"):
        sizes(tmp_path, "train", "validation")


@pytest.mark.parametrize("source", ["nowhere.parquet", "some/where.parquet", "data.csv", "x.tar.gz"])
def test_names_of_files_are_asked_of_no_hub(source: str) -> None:
    with pytest.raises(InputError, match=f"{source} does not exist"):
        load(source)
