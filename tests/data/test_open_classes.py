"""A frozen division of classes: nothing leaks from what is measured to what is learned."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toolbox import class_folders, encode, tiny_picture

from kdcli.data.open_classes import OpenClasses, draw, read_open_classes, write_open_classes
from kdcli.data.pool import Pool
from kdcli.data.samples import Data
from kdcli.data.sources import open_pool, open_train
from kdcli.errors import InputError, UsageError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data
from kdcli.tasks.classification.target import LabelReader

datasets = pytest.importorskip("datasets")

COUNTS = {"auk": 20, "bee": 22, "cat": 30, "dog": 40, "eel": 24, "fox": 27, "gnu": 10, "hen": 8}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The library's own cache, away from the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf-cache"))


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight classes of pictures in folders."""
    return class_folders(tmp_path_factory.mktemp("animals") / "all", COUNTS)


@pytest.fixture(scope="module")
def file(animals: Path) -> Path:
    """A division of them."""
    found = animals.parent / "split.json"
    write_open_classes(found, divided(animals))
    return found


def pool(source: object, **options: Any) -> Pool:
    return open_pool(DataSection(source=str(source), **options), LabelReader)


def divided(source: object, **options: Any) -> OpenClasses:
    return draw(pool(source), str(source), **options)


def opened(source: object, file: object, *need: str, **options: Any) -> Data:
    return open_task_data(DataSection(source=str(source), open_classes=str(file), **options), *need)


def names(data: Data, split: str) -> Counter[str]:
    """How many pictures of each class."""
    assert data.classes is not None
    assert (data.split(split).labels >= 0).all()
    return Counter(data.classes[label] for label in data.split(split).labels)


def hexadecimal(ids: np.ndarray) -> set[str]:
    return {f"{value:016x}" for value in ids.tolist()}


def files_of(data: Data, split: str) -> set[str]:
    """Class folder and name of each picture's file."""
    samples = data.split(split)
    paths = [Path(samples.table[int(row)][samples.column]["path"]) for row in samples.rows]
    return {f"{path.parent.name}/{path.name}" for path in paths}


# -- drawing -------------------------------------------------------------------------------------------------


def test_classes_and_pictures_are_on_one_side_each(animals: Path) -> None:
    division = divided(animals)
    seen, unseen = division.classes["id"], division.classes["ood"]
    assert (len(seen), len(unseen)) == (4, 4)
    assert set(seen) | set(unseen) == set(COUNTS)
    assert not set(seen) & set(unseen)
    for one, other in itertools.combinations(division.splits.values(), 2):
        assert not set(one) & set(other)
    assert sum(map(len, division.splits.values())) == sum(COUNTS.values())


@pytest.mark.parametrize("seed", range(6))
def test_of_each_seen_class_seventy_percent_are_learned(animals: Path, seed: int) -> None:
    division = divided(animals, seed=seed)
    of = {one: path.split("/")[0] for one, path in division.files.items()}
    train, rest = (Counter(of[one] for one in division.splits[name]) for name in ("train", "id"))
    assert set(train) == set(rest) == set(division.classes["id"])
    for name, count in train.items():
        assert count == math.ceil(COUNTS[name] * 7 / 10)
        assert count + rest[name] == COUNTS[name]
        if COUNTS[name] >= 20:
            assert 0.70 <= count / COUNTS[name] <= 0.73
    unseen = Counter(of[one] for one in division.splits["ood"])
    assert unseen == {name: COUNTS[name] for name in division.classes["ood"]}


def test_the_seed_and_the_parts_count(animals: Path) -> None:
    assert divided(animals) == divided(animals)
    assert len({divided(animals, seed=seed).classes["ood"] for seed in range(6)}) > 3
    one, two = (divided(animals, seed=seed, ood=0.25) for seed in (0, 1))
    both = set(one.classes["id"]) & set(two.classes["id"])
    for name in both:  # other pictures of it are learned, not only of other classes
        learned = [{i for i in d.splits["train"] if d.files[i].startswith(f"{name}/")} for d in (one, two)]
        assert learned[0] != learned[1]
    assert both
    other = divided(animals, ood=0.25, train=0.5)
    assert (len(other.classes["id"]), len(other.classes["ood"])) == (6, 2)
    assert len(other.splits["train"]) == sum(math.ceil(COUNTS[n] / 2) for n in other.classes["id"])
    assert len(divided(animals, ood=0.49).classes["ood"]) == 3  # rounded down


def test_one_picture_at_least_is_left_to_measure(tmp_path: Path) -> None:
    division = divided(class_folders(tmp_path, dict.fromkeys("abcd", 2)), train=0.99)
    assert [len(found) for found in division.splits.values()] == [2, 2, 4]


@pytest.fixture(params=["other order", "other names", "parquet", "saved splits"])
def again(request: pytest.FixtureRequest, animals: Path, tmp_path: Path) -> Path:
    """The same pictures and classes as another kind of source."""
    paths = sorted(animals.rglob("*.png"), key=lambda path: (path.stat().st_size, path.name, path.parent))
    if request.param == "other names":
        for number, path in enumerate(paths):
            (tmp_path / "d" / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "d" / path.parent.name / f"{len(paths) - number}.png")
        return tmp_path / "d"
    order = sorted(COUNTS, reverse=True)
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "label": [order.index(path.parent.name) for path in paths],
    }
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=order)})
    table = datasets.Dataset.from_dict(rows, features=kinds)
    if request.param == "parquet":
        table.to_parquet(tmp_path / "all.parquet")
        return tmp_path / "all.parquet"
    if request.param == "other order":
        table.select(range(len(table) - 1, -1, -1)).flatten_indices().save_to_disk(tmp_path / "d")
        return tmp_path / "d"
    parts = {"train": table.select(range(100)), "test": table.select(range(100, len(table)))}
    datasets.DatasetDict(parts).flatten_indices().save_to_disk(tmp_path / "d")
    return tmp_path / "d"


def test_the_same_pictures_are_divided_alike_in_any_source(animals: Path, file: Path, again: Path) -> None:
    assert divided(again) == divided(animals)
    for need in (("train", "validation"), ("id",), ("ood",)):
        data, other = opened(animals, file, *need), opened(again, file, *need)
        assert other.fingerprint == data.fingerprint
        for name in need:
            assert set(other.split(name).ids.tolist()) == set(data.split(name).ids.tolist())


def test_equal_pictures_count_once_in_their_first_class(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "d", dict.fromkeys(["a", "b", "c", "d"], 5))
    shutil.copy(source / "a" / "0.png", source / "a" / "again.png")
    shutil.copy(source / "a" / "1.png", source / "d" / "again.png")
    shutil.copy(source / "c" / "1.png", source / "b" / "again.png")
    found = pool(source)
    assert len(found.samples) == 20
    assert found.notes == (
        f"{source}: 3 pictures are there before, 2 of them in another class: each counts once, in its first "
        "class",
    )
    counts = Counter(found.classes[label] for label in found.samples.labels)
    assert counts == {"a": 5, "b": 6, "c": 4, "d": 5}
    assert {"a/0.png", "a/1.png", "b/again.png"} <= set(found.files)
    assert not {"a/again.png", "d/again.png", "c/1.png"} & set(found.files)
    division = draw(found, "d")
    assert len({one for ids in division.splits.values() for one in ids}) == 20
    write_open_classes(tmp_path / "s.json", division)
    data = opened(
        source, tmp_path / "s.json", "train", "id", "ood", duplicates="stop", validation_fraction=0.5
    )
    pictures = np.concatenate([s.pictures for s in data.splits.values()])
    assert len(np.unique(pictures)) == len(pictures)
    assert "d: data.duplicates=stop changes nothing" in "\n".join(data.notes)


def test_which_of_equal_pictures_is_the_first_does_not_hang_on_rows(tmp_path: Path) -> None:
    rows = [(0, "d", "z"), (0, "a", "y"), (0, "a", "x")]
    rows += [(1 + i, "abcd"[i % 4], str(i)) for i in range(12)]
    whole = {
        "image": [{"bytes": tiny_picture(number), "path": f"{path}.png"} for number, _, path in rows],
        "label": [label for _, label, _ in rows],
    }
    table = datasets.Dataset.from_dict(whole).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "one")
    halves = datasets.DatasetDict({"train": table.select([0, *range(5, 15)]), "test": table.select(range(5))})
    halves.flatten_indices().save_to_disk(tmp_path / "two")
    found, other = pool(tmp_path / "one"), pool(tmp_path / "two")
    assert found.files == ["x.png", *(f"{i}.png" for i in range(12))]
    assert sorted(other.files) == sorted(found.files)
    assert set(other.samples.ids.tolist()) == set(found.samples.ids.tolist())
    sha = hashlib.sha256(hashlib.sha256(tiny_picture(0)).digest() + bytes(8)).hexdigest()
    assert f"{int(found.samples.ids[0]):016x}" == sha[:16]  # as if it were there once
    assert divided(tmp_path / "one") == divided(tmp_path / "two")


def test_pictures_without_a_label_are_left_out(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "d", {f"train/{name}": 4 for name in "abcd"})
    class_folders(source / "test", {"": 3}, start=200)
    found = pool(source)
    assert len(found.samples) == 16
    assert found.notes[0].endswith("test has no class folders: its 3 pictures are unlabelled")
    assert f"{source}: 3 pictures without a label are left out" in found.notes


def test_the_source_s_own_splits_are_laid_together_unless_some_are_named(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "d", {f"train/{name}": 4 for name in "abcd"})
    class_folders(source / "test", dict.fromkeys("abcd", 3), start=100)
    found = pool(source)
    assert len(found.samples) == 28
    assert f"{source}: its own splits test, train are laid together" in found.notes
    assert sum(file.startswith("test/") for file in found.files) == 12
    config = DataSection(source=str(source))
    assert len(open_pool(config, LabelReader, ["train"]).samples) == 16
    with pytest.raises(InputError, match=r"has no split 'val'; it has: test, train\."):
        open_pool(config, LabelReader, ["val"])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 4, "b": 4, "c": 4}, "has 3 classes, of which 1 would be unseen and 2 seen: each half needs 2"),
        (dict.fromkeys("abcd", 1), "of a, c there is one picture only"),
    ],
)
def test_data_that_cannot_be_divided(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("a, c", "[a-d], [a-d]")):
        divided(class_folders(tmp_path / "d", counts))


def test_data_without_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no labels to divide its pictures by: no column of them"):
        divided(class_folders(tmp_path / "d", {"": 4}))


# -- files ---------------------------------------------------------------------------------------------------


def test_a_file_says_what_was_drawn(animals: Path, file: Path) -> None:
    division = divided(animals)
    assert read_open_classes(file) == division
    assert read_open_classes(file).files == division.files
    found = json.loads(file.read_text())
    assert list(found) == ["schema", "seed", "parts", "classes", "splits"]
    assert (found["schema"], found["seed"], found["parts"]) == (1, 0, {"ood": 0.5, "train": 0.7})
    one, name = found["splits"]["train"][0].split(" ")
    samples = pool(animals)
    assert name == samples.files[hexadecimal_row(samples, one)]
    assert (animals / name).exists()


def hexadecimal_row(found: Pool, one: str) -> int:
    return found.samples.ids.tolist().index(int(one, 16))


def test_a_file_is_kept_unless_another_is_asked_for(animals: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "split.json"
    assert write_open_classes(file, divided(animals))
    before = file.stat().st_mtime_ns
    assert not write_open_classes(file, divided(animals), overwrite=True)
    assert file.stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"holds another division of classes\. Choose another --out, or re"):
        write_open_classes(file, divided(animals, seed=1))
    assert write_open_classes(file, divided(animals, seed=1), overwrite=True)
    assert read_open_classes(file).seed == 1
    assert [path.name for path in file.parent.iterdir()] == ["split.json"]
    file.write_text("my notes")
    with pytest.raises(InputError, match=r"exists and is not replaced\. .* is not valid JSON"):
        write_open_classes(file, divided(animals), overwrite=True)
    assert file.read_text() == "my notes"


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda found: found.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(schema=2), r"has schema 2, this kdcli reads 1\. Update kdcli\."),
        (without("classes"), r"no whole division of classes: it has no 'classes'\. Write it again: kdcli"),
        (without("seed"), "it has no 'seed'"),
        (lambda f: f["splits"].pop("id"), "it has no 'id'"),
        (lambda f: f["splits"].update(ood=[]), "its pictures of ood are no list of texts"),
        (lambda f: f["classes"].update(id="auk"), "its classes of id are no list of texts"),
        (lambda f: f["splits"]["id"].append("0123"), r"'0123' is no id of a picture \(16 hexadecimal"),
        (lambda f: f["splits"]["id"].append(7), "its pictures of id are no list of texts"),
        (lambda f: f["splits"]["id"].append(f["splits"]["train"][0]), "names the picture '[0-9a-f]{16}' tw"),
        (lambda f: f["classes"]["id"].append(f["classes"]["ood"][0]), "names the class '[a-z]{3}' twice"),
        (lambda f: f.update(parts=3), "is no whole division of classes"),
    ],
)
def test_a_damaged_file(
    animals: Path, file: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    found = json.loads(file.read_text())
    change(found)
    (tmp_path / "bad.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match=message):
        opened(animals, tmp_path / "bad.json", "train")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "is not a JSON object"), (None, "cannot read")]
)
def test_a_file_that_is_none(animals: Path, tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "bad.json").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(animals, tmp_path / "bad.json", "train")


def test_a_file_of_other_data(animals: Path, file: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(animals, fewer)
    division = read_open_classes(file)
    gone = division.classes["ood"][0]
    shutil.rmtree(fewer / gone)
    with pytest.raises(
        InputError, match=rf"split\.json divides 8 classes, 1 of which {fewer} has not, first '{gone}'"
    ):
        opened(fewer, file, "train")
    shutil.copytree(animals / gone, fewer / gone)
    class_folders(fewer, {"yak": 2}, start=900)
    with pytest.raises(InputError, match=r"has 9 classes, 1 of which .*json does not divide, first 'yak'"):
        opened(fewer, file, "train")
    shutil.rmtree(fewer / "yak")
    one, two = sorted((fewer / division.classes["id"][0]).iterdir())[:2]
    one.unlink()
    two.write_bytes(tiny_picture(990))
    with pytest.raises(
        InputError, match=r"2 of the 181 pictures that it divides are not in .*It was made of other data"
    ):
        opened(fewer, file, "ood")


def test_pictures_that_came_later_are_not_used(animals: Path, file: Path, tmp_path: Path) -> None:
    more = shutil.copytree(animals, tmp_path / "more")
    (more / "auk" / "late.png").write_bytes(tiny_picture(990))
    data, before = opened(more, file, "train", "id", "ood"), opened(animals, file, "train", "id", "ood")
    assert data.fingerprint == before.fingerprint
    assert f"{more}: 1 labelled pictures are not in {file} and not used" in data.notes


def test_a_picture_that_went_to_the_other_half(animals: Path, file: Path, tmp_path: Path) -> None:
    division = read_open_classes(file)
    moved = shutil.copytree(animals, tmp_path / "moved")
    name = division.classes["ood"][0]
    shutil.move(moved / name / "0.png", moved / division.classes["id"][0] / "moved.png")
    with pytest.raises(InputError, match=r"1 of the \d+ pictures of ood are of classes of the other half in"):
        opened(moved, file, "train")


# -- opening -------------------------------------------------------------------------------------------------


def test_candidates_never_include_classes_of_the_other_split(animals: Path, file: Path) -> None:
    division = read_open_classes(file)
    seen, unseen = (list(division.classes[half]) for half in ("id", "ood"))
    for need in (("train",), ("validation",), ("train", "validation"), ("id",), ("train", "id")):
        data = opened(animals, file, *need)
        assert data.classes == seen
        assert set(data.splits) == set(need)
        for name in need:
            assert set(names(data, name)) <= set(seen)
    data = opened(animals, file, "ood")
    assert data.classes == unseen
    assert names(data, "ood") == {name: COUNTS[name] for name in unseen}
    assert hexadecimal(data.split("ood").ids) == set(division.splits["ood"])
    assert hexadecimal(opened(animals, file, "id").split("id").ids) == set(division.splits["id"])


def test_of_both_kinds_at_once_classes_are_those_of_both(animals: Path, file: Path) -> None:
    division = read_open_classes(file)
    data = opened(animals, file, "train", "ood")
    assert data.classes == [*division.classes["id"], *division.classes["ood"]]
    assert set(names(data, "train")) == set(division.classes["id"])
    assert set(names(data, "ood")) == set(division.classes["ood"])


def test_validation_is_carved_from_train(animals: Path, file: Path) -> None:
    division = read_open_classes(file)
    data = opened(animals, file, "train", "validation")
    train, validation = (hexadecimal(data.split(name).ids) for name in ("train", "validation"))
    assert train | validation == set(division.splits["train"])
    assert not train & validation
    assert 0.05 < len(validation) / len(division.splits["train"]) < 0.15
    alone = opened(animals, file, "train")
    assert alone.split("train").fingerprint == data.split("train").fingerprint
    other = opened(animals, file, "train", split_seed=1, validation_fraction=0.3)
    assert len(other.split("train")) < len(train)


def test_what_is_held_from_extra_pictures(animals: Path, file: Path) -> None:
    data = opened(animals, file, "train", "validation", shots=2)
    held = opened(animals, file, "id", "ood", "validation", shots=2)
    assert set(data.held) == {"id", "ood", "validation"}
    for name, pictures in data.held.items():
        assert set(pictures.tolist()) == set(held.split(name).pictures.tolist())
        assert not np.isin(pictures, data.split("train").pictures).any()


def test_few_shot_pictures_are_learned_and_never_measured(animals: Path, file: Path) -> None:
    division = read_open_classes(file)
    seen, unseen = division.classes["id"], division.classes["ood"]
    data = opened(animals, file, "train", "validation", shots=3, validation_fraction=0.5)
    assert data.classes == [*seen, *unseen]
    few = names(data, "train")
    assert {name: few[name] for name in unseen} == dict.fromkeys(unseen, 3)
    assert len(data.shots) == 3 * len(unseen)
    assert data.shots.dtype == np.uint64
    assert np.isin(data.shots, data.split("train").ids).all()
    assert (data.split("train").ids[-len(data.shots) :] == data.shots).all()  # behind the others
    assert set(names(data, "validation")) <= set(seen)
    assert hexadecimal(data.shots) < set(division.splits["ood"])
    measured = opened(animals, file, "ood", shots=3)
    assert measured.classes == list(unseen)
    assert not np.isin(measured.split("ood").pictures, data.split("train").pictures).any()
    assert names(measured, "ood") == {name: COUNTS[name] - 3 for name in unseen}
    assert set(measured.shots.tolist()) == set(data.shots.tolist())
    assert opened(animals, file, "id", shots=3).classes == list(seen)
    with_ood = opened(animals, file, "train", "ood", shots=3)
    assert not np.isin(with_ood.split("ood").ids, with_ood.shots).any()
    plain = opened(animals, file, "train", "validation", validation_fraction=0.5)
    assert len(plain.shots) == 0
    assert plain.split("validation").fingerprint == data.split("validation").fingerprint


def test_few_shot_pictures_are_the_first_by_name(animals: Path, file: Path) -> None:
    unseen = read_open_classes(file).classes["ood"]
    data = opened(animals, file, "train", shots=3)
    first = {f"{name}/{path.name}" for name in unseen for path in sorted((animals / name).iterdir())[:3]}
    assert {path for path in files_of(data, "train") if path.split("/")[0] in unseen} == first
    assert any(path.endswith("/10.png") for path in first)  # as text, before 2.png


@pytest.mark.parametrize("named", [True, False])
def test_of_a_table_few_shot_pictures_are_the_first_by_name_or_else_by_row(
    tmp_path: Path, named: bool
) -> None:
    rows = {
        "image": [{"bytes": tiny_picture(i), "path": f"{99 - i}.png" if named else None} for i in range(32)],
        "label": ["abcd"[i % 4] for i in range(32)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "d")
    division = divided(tmp_path / "d")
    assert len(division.files) == 32 * named
    write_open_classes(tmp_path / "s.json", division)
    data = opened(tmp_path / "d", tmp_path / "s.json", "train", shots=2)
    train = data.split("train")
    found = {int(row) for row, one in zip(train.rows, train.ids) if one in data.shots}
    steps = (24, 28) if named else (0, 4)
    assert found == {"abcd".index(name) + step for name in division.classes["ood"] for step in steps}


def test_too_many_shots(animals: Path, file: Path) -> None:
    unseen = read_open_classes(file).classes["ood"]
    name = min(unseen, key=lambda one: COUNTS[one])
    most = COUNTS[name] - 1
    assert names(opened(animals, file, "ood", shots=most), "ood")[name] == 1
    with pytest.raises(
        InputError, match=rf"class '\w+' there are {most + 1} pictures, .* Give data\.shots={most} or less"
    ):
        opened(animals, file, "ood", shots=most + 1)


def test_labels_of_few_shot_pictures_are_not_hidden(animals: Path, file: Path) -> None:
    division = read_open_classes(file)
    data = opened(animals, file, "train", shots=3, labels_per_class=1)
    train = data.split("train")
    known = Counter(data.classes[label] for label in train.labels[train.labelled()])  # type: ignore[index]
    assert known == {
        **dict.fromkeys(division.classes["id"], 1),
        **dict.fromkeys(division.classes["ood"], 3),
    }


def test_the_fingerprint_covers_the_division(animals: Path, file: Path, tmp_path: Path) -> None:
    write_open_classes(tmp_path / "other.json", divided(animals, seed=1))
    text = file.read_text().replace("/", "/renamed/")
    (tmp_path / "same.json").write_text(text)
    assert read_open_classes(tmp_path / "same.json").files != read_open_classes(file).files
    for need in (("train", "validation"), ("id",), ("ood",)):
        own = opened(animals, file, *need).fingerprint
        assert opened(animals, tmp_path / "same.json", *need).fingerprint == own
        assert opened(animals, tmp_path / "other.json", *need).fingerprint != own
        if need != ("id",):
            assert opened(animals, file, *need, shots=1).fingerprint != own


@pytest.mark.parametrize(
    ("need", "options", "message"),
    [
        ("test", {}, r"no split 'test' where .*json divides its classes\. Give --split id .* or --split ood"),
        ("query", {}, "no split 'query' where"),
        ("train", {"group_by": "bird"}, r"data\.group_by=bird is of the source's own splits"),
        ("train", {"validation": "ood"}, r"data\.validation=ood is of the source's own splits"),
        ("ood", {"test": "ood"}, r"data\.test=ood is of the source's own splits"),
        ("train", {"train": "all"}, r"data\.train=all is of the source's own splits"),
    ],
)
def test_what_makes_no_sense_beside_it(
    animals: Path, file: Path, need: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        opened(animals, file, need, **options)


def test_shots_without_a_division(animals: Path) -> None:
    for open_it in (lambda config: open_task_data(config, "train"), open_train):
        with pytest.raises(UsageError, match=r"data\.shots=5 takes pictures of unseen classes, and without"):
            open_it(DataSection(source=str(animals), shots=5))


def test_tasks_that_read_more_than_one_class(file: Path, tmp_path: Path) -> None:
    rows = {
        "image": [{"bytes": tiny_picture(i), "path": None} for i in range(8)],
        "label": [[i % 4, 3] for i in range(8)],
    }
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "d")
    with pytest.raises(
        UsageError, match=r"divides pictures of one class each, and .* is opened for multi-label"
    ):
        opened(tmp_path / "d", file, "train", task="multi-label")


@pytest.mark.parametrize("task", ["classification", "zeroshot", "representation"])
def test_tasks_that_read_one_class(animals: Path, file: Path, task: str) -> None:
    data = opened(animals, file, "train", "validation", task=task)
    assert data.task == task
    assert data.classes == list(read_open_classes(file).classes["id"])


def test_pictures_alone_are_those_of_train(animals: Path, file: Path) -> None:
    data = open_train(DataSection(source=str(animals), open_classes=str(file), shots=2))
    assert hexadecimal(data.split("train").ids) == set(read_open_classes(file).splits["train"])
    assert not data.split("train").labelled().any()


def test_corrupt_pictures(animals: Path, tmp_path: Path) -> None:
    source = shutil.copytree(animals, tmp_path / "d")
    file = tmp_path / "s.json"
    whole = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in COUNTS:
        (source / name / "0.png").write_bytes(
            whole[:500] + name.encode() + whole[503:]
        )  # seen by decoding alone
    division = divided(source)
    write_open_classes(file, division)
    unseen = division.classes["ood"]
    options = {"on_bad_image": "skip", "max_bad_fraction": 0.5, "shots": 1}
    data = opened(source, file, "ood", **options)
    assert data.skipped == ()  # they are the first by name, and so not measured
    with pytest.raises(InputError, match=rf"class '{unseen[0]}' and 3 more has no labelled picture in train"):
        opened(source, file, "train", **options)
    data = opened(source, file, "train", **{**options, "shots": 2})
    assert len(data.shots) == len(unseen)
    assert np.isin(data.shots, data.split("train").ids).all()


def test_files_are_hashed_once_and_remembered_by_the_source_s_own_splits(
    animals: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcli.data import sources

    asked: list[str] = []
    real = sources.cell_hashes

    def counted(raw: Any, split: str, *rest: Any, **more: Any) -> list[bytes]:
        asked.append(split)
        return real(raw, split, *rest, **more)

    monkeypatch.setattr(sources, "cell_hashes", counted)
    opened(animals, file, "train", "validation", "id", "ood", shots=1)
    assert asked == ["train"]
