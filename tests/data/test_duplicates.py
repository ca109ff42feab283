"""A picture that is trained on and tested on is counted, said, and left out where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toolbox import class_folders, tiny_picture

from kdcli.data.duplicates import duplicates
from kdcli.data.samples import Data
from kdcli.errors import InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data


def opened(source: Path, *need: str, **options: Any) -> Data:
    return open_task_data(DataSection(source=str(source), **options), *(need or ("train", "validation")))


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """Twenty pictures in train, four of which are in test too, and two of these in validation."""
    class_folders(tmp_path, {"train/a": 10, "train/b": 10})
    for split, numbers in {"test": (0, 1, 10, 11, 50, 51), "val": (0, 10, 60, 61)}.items():
        for number in numbers:
            folder = tmp_path / split / ("b" if number % 50 >= 10 or number % 2 else "a")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(tiny_picture(number))
    return tmp_path


def test_pictures_are_counted_by_pairs_of_splits() -> None:
    splits = {"test": np.array([1, 2, 3]), "train": np.array([1, 1, 2, 9]), "validation": np.array([3, 9])}
    expected = {("train", "validation"): 1, ("train", "test"): 3, ("validation", "test"): 1}
    assert duplicates(splits) == expected
    assert list(duplicates(splits)) == list(expected)
    assert duplicates({"train": np.array([1]), "test": np.array([2])}) == {}


def test_shared_pictures_are_said_with_their_number(leaking: Path) -> None:
    data = opened(leaking)
    assert len(data.split("train")) == 20
    assert data.notes == (
        f"{leaking}: 2 of 20 pictures of train are also in validation. "
        "Leave them out: --set data.duplicates=drop",
        f"{leaking}: 4 of 20 pictures of train are also in test. Leave them out: --set data.duplicates=drop",
        f"{leaking}: 2 of 4 pictures of validation are also in test. "
        "Leave them out: --set data.duplicates=drop",
    )
    assert opened(leaking, "test").notes == ()


def test_shared_pictures_are_dropped_from_the_earlier_split(leaking: Path) -> None:
    whole = opened(leaking, "train", "validation", "test")
    data = opened(leaking, "train", "validation", "test", duplicates="drop")
    assert {name: len(samples) for name, samples in data.splits.items()} == {
        "train": 16,
        "validation": 2,
        "test": 6,
    }
    assert set(data.split("train").ids) < set(whole.split("train").ids)
    assert data.split("test").fingerprint == whole.split("test").fingerprint
    assert all("left out there (data.duplicates=drop)" in note for note in data.notes)
    alone = opened(leaking, duplicates="drop")  # the test split is looked at all the same
    assert alone.split("train").fingerprint == data.split("train").fingerprint


def test_shared_pictures_stop_a_run(leaking: Path) -> None:
    with pytest.raises(
        InputError, match=r"2 of 20 pictures of train are also in validation \(data\.duplicates=stop"
    ):
        opened(leaking, duplicates="stop")


def test_nothing_that_is_left_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        class_folders(tmp_path, {f"{split}/a": 5, f"{split}/b": 5})
    with pytest.raises(
        InputError, match="10 of 10 pictures of train are also in test: nothing is left of it"
    ):
        opened(tmp_path, "train", duplicates="drop")


def test_pictures_that_are_twice_in_train_are_carved_together(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 20})
    for i in range(20):
        (tmp_path / "a" / f"again{i}.png").write_bytes(tiny_picture(i))
    data = opened(tmp_path, duplicates="stop")
    train, validation = (set(data.split(name).pictures) for name in ("train", "validation"))
    assert validation
    assert not train & validation


def test_a_test_split_that_cannot_be_read_stops_no_training(tmp_path: Path) -> None:
    class_folders(tmp_path, {"train/a": 10, "train/b": 10, "test/a": 2, "test/b": 2})
    (tmp_path / "elsewhere.png").write_bytes(tiny_picture(900))
    (tmp_path / "test" / "a" / "z.png").symlink_to("/etc/hostname")
    (note,) = opened(tmp_path).notes[1:]
    assert note.startswith("pictures of train are not looked for in test: test row 2: ")


def test_extra_pictures_that_are_measured_on_are_said_and_left_out(leaking: Path, tmp_path: Path) -> None:
    from kdcli.data.duplicates import settle_extra
    from kdcli.data.sources import open_unlabelled

    data = opened(leaking)
    class_folders(tmp_path / "more", {".": 0})
    for number in (0, 60, 50, 90, 91):
        (tmp_path / "more" / f"{number}.png").write_bytes(tiny_picture(number))
    extra = open_unlabelled(str(tmp_path / "more"), DataSection())
    kept = settle_extra(extra, data, "keep")
    (name,) = kept.splits
    assert len(kept.splits[name]) == 5
    assert [note.partition(": ")[2] for note in kept.notes] == [
        f"2 of 5 pictures are also in test of {leaking}. Leave them out: --set data.duplicates=drop",
        f"2 of 5 pictures are also in validation of {leaking}. Leave them out: --set data.duplicates=drop",
    ]
    dropped = settle_extra(extra, data, "drop")
    left = {dropped.splits[name].data(i) for i in range(len(dropped.splits[name]))}
    assert left == {tiny_picture(90), tiny_picture(91)}
    with pytest.raises(InputError, match=r"2 of 5 pictures are also in test .*\(data\.duplicates=stop\)"):
        settle_extra(extra, data, "stop")
