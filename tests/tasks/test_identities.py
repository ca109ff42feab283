"""Identities: columns, folders and file names; cameras, query and gallery, carving by identity."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toolbox import class_folders, tiny_picture

from kdcli.data.loading import load
from kdcli.data.samples import Data
from kdcli.data.sources import open_data
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks.retrieval.target import BOTH, GALLERY, QUERY, Identities, IdentityReader


def table(columns: dict[str, list[Any]], start: int = 0, paths: list[str] | None = None) -> datasets.Dataset:
    count = len(next(iter(columns.values()))) if columns else len(paths or [])
    cells = [{"bytes": tiny_picture(start + i), "path": paths[i] if paths else None} for i in range(count)]
    found = datasets.Dataset.from_dict({"image": cells, **columns})
    return found.cast_column("image", datasets.Image())


def saved(folder: Path, **splits: datasets.Dataset) -> str:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def opened(source: object, *need: str, **options: Any) -> Data:
    config = DataSection(source=str(source), **{"task": "retrieval", **options})
    return open_data(config, IdentityReader, need=need or ("train", "validation"))


def named(data: Data, split: str) -> list[str | None]:
    """Names of the identities of a split, by row."""
    assert data.classes is not None
    return [data.classes[i] if i >= 0 else None for i in data.split(split).labels]


def market(folder: Path, **splits: list[str]) -> Path:
    """Pictures of these names in flat folders."""
    number = 0
    for split, files in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / split / file).write_bytes(tiny_picture(number))
            number += 1
    return folder


TRAIN = [f"{pid:04}_c{cam}s1_{n:06}_01.jpg" for pid in (2, 7, 10) for cam in (1, 2) for n in (1, 2)]
TEST = [
    *(
        "-1_c3s2_000001_00.jpg",
        "0000_c1s1_000151_01.jpg",
        "0001_c1s1_000001_01.jpg",
        "0001_c2s1_000002_01.jpg",
    ),
    "0003_c4s1_000003_01.jpg",
]
ASKED = ["0001_c1s1_000009_00.jpg", "0003_c4s2_000008_00.jpg", "0011_c1s1_000005_00.jpg"]


# -- where identities stand ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["identity", "pid", "item_id", "instance"])
@pytest.mark.parametrize("kind", ["text", "numbers", "classes"])
def test_a_column_that_is_named_for_identities(tmp_path: Path, name: str, kind: str) -> None:
    values: list[Any] = [f"p{i % 4}" if kind == "text" else 10 * (i % 4) for i in range(40)]
    train = table({name: values, "colour": ["red"] * 40})
    if kind == "classes":
        train = table({name: [i % 4 for i in range(40)], "colour": ["red"] * 40}).cast_column(
            name, datasets.ClassLabel(names=["d", "a", "c", "b"])
        )
    source = saved(tmp_path / "d", train=train)
    assert IdentityReader.claims(train, DataSection())
    data = opened(source, task="auto", validation_fraction=0.5)
    assert data.task == "retrieval"
    expected = {"text": ["p0", "p1", "p2", "p3"], "numbers": ["0", "10", "20", "30"], "classes": [*"abcd"]}
    assert data.classes == expected[kind]
    rows = {int(r): n for s in data.splits for r, n in zip(data.split(s).rows, named(data, s))}
    words = ["d", "a", "c", "b"] * 10 if kind == "classes" else [str(v) for v in values]
    assert [rows[i] for i in range(40)] == words
    targets = data.split("train").targets
    assert isinstance(targets, Identities)
    assert (targets.cameras == -1).all()
    assert (targets.roles == BOTH).all()
    assert targets.columns(np.array([0]), []) == {}


def test_what_is_claimed_without_a_name(tmp_path: Path) -> None:
    def claims(columns: dict[str, list[Any]], **options: Any) -> bool:
        return IdentityReader.claims(table(columns), DataSection(**options))

    assert claims({"pid": [1, 2]})
    assert claims({"item_id": ["a", "b"], "category": ["x", "y"]})
    assert claims({"item_id": ["a", "b"], "label": ["x", "y"]}, label_column="item_id")
    assert not claims({"label": [1, 2]})
    assert not claims({"item_id": ["a", "b"], "label": ["x", "y"]})
    assert not claims({"pid": [1, 2], "kind": ["x", "y"]}, label_column="kind")
    assert not claims({"pid": [[1], [2]]})
    assert not claims({"Person": [1, 2]})
    pictures = table({}, paths=["a", "b"]).rename_column("image", "instance")
    assert not IdentityReader.claims(pictures, DataSection())


def test_the_first_name_and_a_named_column_win(tmp_path: Path) -> None:
    rows = {"instance": [*"aabb"] * 2, "pid": [*"xyxy"] * 2, "shop": [*"mnop"] * 2}
    source = saved(tmp_path / "d", train=table(rows), validation=table(rows, 50))
    assert opened(source).classes == ["x", "y"]
    assert opened(source, label_column="shop").classes == ["m", "n", "o", "p"]
    with pytest.raises(InputError, match="has no column 'shopp'; it has: image, instance, pid, shop"):
        opened(source, label_column="shopp")


def test_class_folders_are_identities_where_the_task_is_named(tmp_path: Path) -> None:
    for start, (split, names) in enumerate({"train": "ab", "query": "cd", "gallery": "dce"}.items()):
        class_folders(tmp_path / split, dict.fromkeys(names, 3), start=100 * start)
    assert not IdentityReader.claims(load(str(tmp_path)).tables["train"], DataSection())
    data = opened(tmp_path, "train", "test", validation="train")
    assert data.classes == [*"abcde"]
    assert named(data, "test") == [*"cccddd", *"cccdddeee"]
    assert data.split("test").targets.roles.tolist() == [QUERY] * 6 + [GALLERY] * 9  # type: ignore[attr-defined]
    assert data.notes == ()


def test_identities_are_compared_as_text_and_numbers_sorted_as_numbers(tmp_path: Path) -> None:
    train, test = table({"pid": [2, 2, 10, 10]}), table({"pid": ["10", "9", "9", "10"]}, 50)
    source = saved(tmp_path / "a", train=train, test=test)
    data = opened(source, "train", "test", validation="test")
    assert data.classes == ["2", "9", "10"]
    assert (named(data, "train"), named(data, "test")) == (["2", "2", "10", "10"], ["10", "9", "9", "10"])
    mixed = table({"pid": ["10", "10", "9", "9", "x", "x"]})
    assert opened(saved(tmp_path / "b", train=mixed), "train", validation="train").classes == ["10", "9", "x"]


def test_pictures_without_an_identity_are_unlabelled(tmp_path: Path) -> None:
    for start, values in enumerate(([1, 1, 2, 2, None, -1], ["1", "1", "2", "2", "", "-1"])):
        source = saved(tmp_path / str(start), train=table({"pid": values}))
        data = opened(source, "train", validation="train")
        assert (data.classes, data.split("train").labels.tolist()) == (["1", "2"], [0, 0, 1, 1, -1, -1])
        assert data.notes == (
            f"{source}: 1 of 6 pictures of train have the identity -1, junk: they count as unlabelled, "
            "neither right nor wrong",
        )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pid": [1, 1, -2]}, r"train row 2: -2 in column 'pid'; numbers count from 0, and -1 says"),
        ({"shop": [0.5, 1.5]}, r"column 'shop' of train is Value\('float64'\); names or numbers are wanted"),
    ],
)
def test_columns_that_hold_no_identities(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    source = saved(tmp_path / "d", train=table(columns))
    with pytest.raises(InputError, match=message):
        opened(source, label_column=next(iter(columns)))


# -- file names ----------------------------------------------------------------------------------------------


def test_market_1501(tmp_path: Path) -> None:
    root = market(
        tmp_path / "m", bounding_box_train=TRAIN, bounding_box_test=TEST, query=ASKED, gt_bbox=ASKED
    )
    data = opened(root, "train", "test", validation="bounding_box_train")
    assert data.classes == ["0000", "0001", "0002", "0003", "0007", "0010", "0011"]
    assert named(data, "train") == [file[:4] for file in TRAIN]
    assert named(data, "test") == ["0001", "0003", "0011", None, "0000", "0001", "0001", "0003"]
    test = data.split("test").targets
    assert isinstance(test, Identities)
    assert test.cameras.tolist() == [1, 4, 1, 3, 1, 1, 2, 4]
    assert test.roles.tolist() == [QUERY] * 3 + [GALLERY] * 5
    assert data.split("test").where(0) == f"test row 0 (query/{ASKED[0]})"
    assert data.notes == (
        f"{root}: 3 pictures beside the split folders are not read, first gt_bbox/{ASKED[0]}",
        f"{root}: 1 of 8 pictures of test have the identity -1, junk: they count as unlabelled, neither "
        "right nor wrong",
        f"{root}: 2 of 3 queries of test have no match from another camera to be found",
    )


def test_other_names_of_that_kind(tmp_path: Path) -> None:
    names = ["0001_c001_00016450_0.jpg", "0001_c002_1.jpg", "00007_c12.jpg", "00007_c3s2.jpg"]
    root = market(tmp_path / "v", image_train=names, image_test=names[:2], image_query=names[1:3])
    data = opened(root, "train", "test", validation="train")
    assert (data.classes, data.split("train").targets.cameras.tolist()) == (["0001", "00007"], [12, 3, 1, 2])  # type: ignore[attr-defined]
    embedded = table({}, paths=names)
    data = opened(saved(tmp_path / "d", train=embedded), "train", validation="train")
    assert named(data, "train") == ["0001", "0001", "00007", "00007"]


@pytest.mark.parametrize(
    "name",
    ["0000_000_01_0303morning_0008_0.jpg", "0001_cat.jpg", "0001c1.jpg", "x_c1.jpg", "0001_c1x.jpg", None],
)
def test_other_file_names_are_refused(tmp_path: Path, name: str | None) -> None:
    message = (
        r"no column of identities \(identity, .*, instance, label\) among image, and train row 1 "
        rf"\({name or 'no file'}\) has no name like 0002_c1s1_000451_03\.jpg \(identity 0002, camera 1\)\. "
        "Name the column"
    )
    paths: list[Any] = ["0001_c1.jpg", name]
    with pytest.raises(InputError, match=message):
        opened(saved(tmp_path / "d", train=table({}, paths=paths)))


def test_a_query_of_distractors_is_said(tmp_path: Path) -> None:
    query = ["0000_c1s1_1.jpg", "0001_c1s1_1.jpg"]
    root = market(tmp_path / "m", train=TRAIN, test=["0000_c2s1_1.jpg", "0001_c2s1_1.jpg"], query=query)
    meaning = "which Market-1501 has for distractors: here it is an identity like any other"
    data = opened(root, "test")
    assert data.notes == (f"{root}: 1 of 2 queries of test have the identity 0000, {meaning}",)
    root = market(tmp_path / "n", train=[*TRAIN, *query, "0001_c2.jpg"], val=TRAIN[:4])
    data = opened(root, "train")
    assert f"{root}: 1 of 15 pictures of train have the identity 0000, {meaning}" in data.notes
    plain = saved(tmp_path / "d", train=table({"pid": ["0000", "0000", "1", "1"]}))
    assert opened(plain, "train", validation="train").notes == ()


# -- cameras -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 7, None, -1], [3, 7, -1, -1]),
        (["3", "07", "", None], [3, 7, -1, -1]),
        (["west", "east", "west", None], [1, 0, 1, -1]),
        ([10**17, 0, 5, 5], [10**17, 0, 5, 5]),
    ],
)
@pytest.mark.parametrize("name", ["camera", "camera_id", "camid", "cam", "lens"])
def test_cameras_of_a_column(tmp_path: Path, name: str, values: list[Any], expected: list[int]) -> None:
    source = saved(tmp_path / "d", train=table({"pid": [1, 1, 2, 2], name: values}))
    options = {"camera_column": "lens"} if name == "lens" else {}
    data = opened(source, "train", validation="train", **options)
    assert data.split("train").targets.cameras.tolist() == expected  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="has no column 'lense'"):
        opened(source, camera_column="lense")


def test_cameras_of_file_names_are_those_of_all_or_of_none(tmp_path: Path) -> None:
    rows = {"pid": [1, 1, 2, 2]}
    names = ["0001_c1.jpg", "0001_c2.jpg", "0002_c1.jpg", "0002_c5.jpg"]
    source = saved(tmp_path / "a", train=table(rows, paths=names))
    data = opened(source, "train", validation="train")
    assert data.split("train").targets.cameras.tolist() == [1, 2, 1, 5]  # type: ignore[attr-defined]
    like = "0002_c1s1_000451_03.jpg (identity 0002, camera 1)"
    assert data.notes == (f"{source}: cameras are those of file names like {like}",)
    source = saved(tmp_path / "b", train=table(rows, paths=[*names[:3], "x.jpg"]))
    data = opened(source, "train", validation="train")
    assert data.split("train").targets.cameras.tolist() == [-1] * 4  # type: ignore[attr-defined]
    said = f"3 of 4 file names say a camera as {like} does, and so none is taken for known"
    assert data.notes == (f"{source}: {said}",)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-1, 3), st.integers(-1, 2), st.sampled_from([BOTH, QUERY, GALLERY])),
        max_size=14,
    )
)
def test_what_has_no_match_by_loops(rows: list[tuple[int, int, int]]) -> None:
    expected = []
    for i, (identity, camera, role) in enumerate(rows):
        found = [
            j
            for j, (other, seen, part) in enumerate(rows)
            if i != j and part != QUERY and other == identity and (camera == -1 or seen != camera)
        ]
        expected.append(role != GALLERY and identity >= 0 and not found)
    labels, cameras, roles = np.array(rows, np.int64).reshape(-1, 3).T
    found = Identities(labels, cameras, roles.astype(np.int8)).unmatched()
    assert found.tolist() == expected


# -- query and gallery ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("query", "gallery"), ("Queries", "Gallery_1"), ("test_query", "test-gallery")]
)
def test_query_and_gallery_are_the_test_split(tmp_path: Path, names: tuple[str, str]) -> None:
    parts = {
        names[1]: table({"pid": [1, 1, 2]}, 50),
        names[0]: table({"pid": [2, 3], "note": ["x", "y"]}, 80),
        "train": table({"pid": [5, 5, 6, 6]}),
    }
    source = saved(tmp_path / "d", **parts)
    data = opened(source, "train", "test", validation="train", task="auto")
    assert (sorted(data.splits), data.classes) == (["test", "train"], ["1", "2", "3", "5", "6"])
    assert named(data, "test") == ["2", "3", "1", "1", "2"]
    assert data.split("test").targets.roles.tolist() == [1, 1, 2, 2, 2]  # type: ignore[attr-defined]
    assert data.notes == (f"{source}: 1 of 2 queries of test have no match to be found",)
    colours = [int(np.asarray(data.split("test").picture(i, 100))[0, 0, 0]) for i in range(5)]
    assert colours == [80, 81, 50, 51, 52]


def test_a_validation_may_have_both_too(tmp_path: Path) -> None:
    parts = {
        "train": table({"pid": [5, 5, 6, 6]}),
        "val_query": table({"pid": [1]}, 20),
        "val_gallery": table({"pid": [1, 2]}, 30),
        "query": table({"pid": [3]}, 40),
        "test": table({"pid": [3, 3]}, 50),
    }
    data = opened(saved(tmp_path / "d", **parts), "train", "validation", "test")
    roles = {name: data.split(name).targets.roles.tolist() for name in data.splits}  # type: ignore[attr-defined]
    assert roles == {"train": [0] * 4, "validation": [1, 2, 2], "test": [1, 2, 2]}
    for start, name in enumerate(("train", "val_query", "val_gallery")):
        class_folders(tmp_path / "f" / name, {"a": 2, "b": 2}, start=100 * start)
    data = opened(tmp_path / "f")
    assert data.split("validation").targets.roles.tolist() == [1] * 4 + [2] * 4  # type: ignore[attr-defined]


def test_without_both_every_picture_asks_and_is_searched(tmp_path: Path) -> None:
    parts = {"train": table({"pid": [5, 5, 6, 6]}), "test": table({"pid": [1, 1, 2]}, 50)}
    source = saved(tmp_path / "d", **parts)
    data = opened(source, "test")
    assert data.split("test").targets.roles.tolist() == [BOTH] * 3  # type: ignore[attr-defined]
    assert data.notes == (f"{source}: 1 of 3 queries of test have no match to be found",)
    assert opened(source, "train", validation="train").notes == ()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (
            ("train", "query"),
            r"has a split 'query' and no gallery beside it; it has: train, query\. Give the gal",
        ),
        (
            ("train", "gallery"),
            r"has a split 'gallery' and no query beside it; it has: train, gallery\. Give",
        ),
        (("train", "gallery", "test"), "has a split 'gallery' and no query beside it"),
        (("train", "val_query"), "has a split 'val_query' and no gallery beside it"),
        (
            ("train", "query", "gallery", "test"),
            "has the splits query and gallery, and test beside them: which",
        ),
        (("train", "query", "queries", "gallery"), "query and queries both name the query of the test split"),
    ],
)
def test_half_a_search_is_refused(tmp_path: Path, splits: tuple[str, ...], message: str) -> None:
    parts = {name: table({"pid": [1, 1, 2, 2]}, 10 * i) for i, name in enumerate(splits)}
    with pytest.raises(InputError, match=message):
        opened(saved(tmp_path / "d", **parts), "train")


def test_unlike_halves_are_refused(tmp_path: Path) -> None:
    parts = {"query": table({"pid": [1, 2]}), "gallery": table({"pid": ["1", "2"]}, 50)}
    with pytest.raises(InputError, match=r"query and gallery have unlike columns: 'pid'\. Save them alike"):
        opened(saved(tmp_path / "d", **parts), "test")


def test_in_shop(tmp_path: Path) -> None:
    rows = [
        ("train", 1),
        ("train", 1),
        ("train", 2),
        ("train", 2),
        ("query", 3),
        ("gallery", 3),
        ("gallery", 4),
    ]
    lines = [f"img/WOMEN/id_{item:08}/{n}.jpg id_{item:08} {split}" for n, (split, item) in enumerate(rows)]
    for number, line in enumerate(lines):
        file = tmp_path / "Img" / line.split()[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tiny_picture(number))
    (tmp_path / "Eval").mkdir()
    header = f"{len(lines)}\nimage_name item_id evaluation_status\n"
    (tmp_path / "Eval" / "list_eval_partition.txt").write_text(header + "\n".join(lines))
    data = opened(tmp_path, "train", "test", validation="train", task="auto")
    assert data.classes == [f"id_{item:08}" for item in (1, 2, 3, 4)]
    assert data.split("train").labels.tolist() == [0, 0, 1, 1]
    assert data.split("test").labels.tolist() == [2, 2, 3]
    assert data.split("test").targets.roles.tolist() == [1, 2, 2]  # type: ignore[attr-defined]
    assert data.notes == ()


# -- learning from them --------------------------------------------------------------------------------------


def test_whole_identities_are_held_out(tmp_path: Path) -> None:
    values = [i % 30 for i in range(150)] + [-1] * 10
    source = saved(tmp_path / "a", train=table({"pid": values}))
    data = opened(source, validation_fraction=0.2)
    train, validation = (set(named(data, split)) for split in ("train", "validation"))
    assert len(validation) == 6
    assert train - {None} == {str(i) for i in range(30)} - validation  # type: ignore[operator]
    assert (len(data.split("validation")), None in train) == (30, True)
    order = np.random.default_rng(0).permutation(160)
    again = table({"pid": values}).select(order).flatten_indices()
    other = opened(saved(tmp_path / "b", train=again), validation_fraction=0.2)
    assert other.fingerprint == data.fingerprint
    assert opened(source, validation_fraction=0.2, split_seed=1).fingerprint != data.fingerprint


def test_too_few_identities_to_hold_out(tmp_path: Path) -> None:
    source = saved(tmp_path / "a", train=table({"pid": [i % 10 for i in range(40)]}))
    message = (
        "train: 10% of 40 pictures of 10 identities, whole identities held out for validation, hold 1 with "
        r"two pictures, and two such are wanted\. Give a validation split, or raise --set data\.validation_f"
    )
    with pytest.raises(InputError, match=message):
        opened(source)
    assert len(opened(source, validation_fraction=0.2).split("validation")) == 8
    rows = {"pid": [i % 10 for i in range(40)], "cam": [i % 10 for i in range(40)]}
    source = saved(tmp_path / "b", train=table(rows))
    with pytest.raises(InputError, match="hold 0 with two pictures from two cameras, and two such are"):
        opened(source, validation_fraction=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [1, 1, 1, -1],
            r"the 3 pictures of train with an identity show 1, and two are wanted to tell apart\. Add",
        ),
        ([-1, -1, None], "the 0 pictures of train with an identity show 0"),
        (
            [1, 2, 3],
            r"each of the 3 identities of train has one picture only, and nothing is learned .*Add pict",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path: Path, values: list[Any], message: str) -> None:
    parts = {"train": table({"pid": values}), "validation": table({"pid": [1, 1, 2, 2]}, 50)}
    with pytest.raises(InputError, match=message):
        opened(saved(tmp_path / "d", **parts), "train")


def test_identities_of_one_picture_are_said(tmp_path: Path) -> None:
    parts = {"train": table({"pid": [1, 1, 2, 3]}), "validation": table({"pid": [1, 1, 2, 2]}, 50)}
    source = saved(tmp_path / "d", **parts)
    assert opened(source, "train").notes == (
        f"{source}: 2 of 3 identities of train have one picture, and so no other to be drawn to",
    )


def test_the_fingerprint_covers_what_is_known(tmp_path: Path) -> None:
    labels = np.array([0, 0, 1, -1])
    cameras, roles = np.array([1, 2, 1, 1]), np.array([1, 2, 2, 2], np.int8)
    nothing, both = np.full(4, -1), np.zeros(4, np.int8)
    assert Identities(labels, nothing, both).hashes == ()
    assert [h.tolist() for h in Identities(labels, cameras, roles).hashes] == [[1, 2, 1, 1], [1, 2, 2, 2]]
    samples = opened(saved(tmp_path / "d", test=table({"pid": [5, 5, 6, -1]})), "test").split("test")
    found = set()
    for targets in (
        Identities(labels, nothing, both),
        Identities(labels, cameras, both),
        Identities(labels, nothing, roles),
        Identities(labels, cameras, roles),
        Identities(labels, roles.astype(np.int64), both),
    ):
        found.add(type(samples)(**{**vars(samples), "targets": targets}).fingerprint)
    assert len(found) == 5
    assert samples.fingerprint in found


def test_identities_are_taken_hidden_and_blank() -> None:
    own = Identities(np.array([0, 1, 2]), np.array([4, 5, 6]), np.array([0, 1, 2], np.int8))
    taken = own.take(np.array([2, 0]))
    assert [v.tolist() for v in (taken.labels, taken.cameras, taken.roles)] == [[2, 0], [6, 4], [2, 0]]
    hidden = own.hidden(np.array([1]))
    assert [v.tolist() for v in (hidden.labels, hidden.cameras, hidden.roles)] == [
        [0, -1, 2],
        [4, 5, 6],
        [0, 1, 2],
    ]
    blank = own.blank(2)
    assert [v.tolist() for v in (blank.labels, blank.cameras, blank.roles)] == [[-1, -1], [-1, -1], [0, 0]]
    assert blank.cameras is not blank.labels
    assert blank.unmatched().tolist() == [False, False]


def test_the_reader_imports_without_torch() -> None:
    code = "import sys, kdcli.tasks.retrieval.target; sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr
