"""Ids follow the picture; splits follow ids, groups and classes, never the order of rows."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdcli.data.samples import Data, Samples, carve, cell_bytes, hide_labels, identify
from kdcli.data.targets import UNLABELLED, Targets
from kdcli.errors import BadImageError, InputError


def made(
    contents: list[int], labels: list[int], groups: list[str] | None = None, name: str = "train"
) -> Samples:
    """Samples whose picture is a number; equal numbers are duplicates."""
    ids, pictures = identify([hashlib.sha256(str(c).encode()).digest() for c in contents])
    return Samples(
        name,
        [{"image": {"bytes": str(c).encode(), "path": None}} for c in contents],
        "image",
        None,
        np.arange(len(contents)),
        ids,
        pictures,
        Targets(np.array(labels, np.int64)),
        None if groups is None else np.array(groups),
    )


def shuffled(samples: Samples, seed: int) -> Samples:
    """The same pictures in another order, ids given anew."""
    order = np.random.default_rng(seed).permutation(len(samples))
    contents = [int(samples.table[i]["image"]["bytes"]) for i in samples.rows[order]]
    groups = None if samples.groups is None else samples.groups[order].tolist()
    return made(contents, samples.labels[order].tolist(), groups)


# -- ids -----------------------------------------------------------------------------------------------------


def test_ids_follow_the_picture() -> None:
    shas = [hashlib.sha256(bytes([i % 50])).digest() for i in range(60)]  # ten duplicates
    ids, pictures = identify(shas)
    assert len(np.unique(ids)) == 60
    assert len(np.unique(pictures)) == 50
    backwards, _ = identify(shas[::-1])
    assert set(backwards.tolist()) == set(ids.tolist())
    subset, _ = identify(shas[7:20])
    assert subset.tolist() == ids[7:20].tolist()
    golden = int.from_bytes(hashlib.sha256(shas[0] + bytes(8)).digest()[:8], "big")
    assert ids[0] == golden
    assert ids.dtype == np.uint64


def test_the_fingerprint_is_of_the_set() -> None:
    # The same picture under two labels: which of them comes first must not matter.
    samples = made([1, 2, 3, 3, 4], [0, 1, 0, 1, UNLABELLED])
    assert {shuffled(samples, seed).fingerprint for seed in range(8)} == {samples.fingerprint}
    other = made([1, 2, 3, 3, 4], [0, 1, 0, 1, 0])
    assert other.fingerprint != samples.fingerprint
    assert samples.take(np.arange(4)).fingerprint != samples.fingerprint


def test_data_describes_itself() -> None:
    train, test = made([1, 2], [0, UNLABELLED]), made([3], [1])
    data = Data("somewhere", ["a", "b"], {"train": train, "test": test}, "MIT", ("0f",))
    facts = data.describe()
    assert facts["splits"]["train"] == {"samples": 2, "labelled": 1, "hash": train.fingerprint}
    assert (facts["licence"], facts["skipped"]) == ("MIT", ["0f"])
    renamed = Data("elsewhere", ["a", "c"], {"train": train, "test": test})
    assert renamed.fingerprint != data.fingerprint
    with pytest.raises(InputError, match=r"somewhere has no split 'val'; it has: train, test\."):
        data.split("val")


# -- carving -------------------------------------------------------------------------------------------------


def test_carving_takes_the_fraction_of_each_class() -> None:
    labels = [0] * 100 + [1] * 50 + [2] * 10 + [3]
    train, validation = carve(made(list(range(161)), labels), 0.2, 0)
    assert np.bincount(validation.labels, minlength=4).tolist() == [20, 10, 2, 0]
    assert np.bincount(train.labels).tolist() == [80, 40, 8, 1]
    assert (train.name, validation.name) == ("train", "validation")
    _, other = carve(made(list(range(161)), labels), 0.2, 1)
    assert other.fingerprint != validation.fingerprint
    _, one_class = carve(made(list(range(10)), [0] * 10), 0.3, 0)
    assert len(one_class) == 3


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 30), st.integers(-1, 2), st.sampled_from("abcdefgh")),
        min_size=1,
        max_size=60,
    ),
    grouped=st.booleans(),
    fraction=st.sampled_from([0.1, 0.3, 0.5]),
    seed=st.integers(0, 3),
)
def test_carving_never_splits_duplicates_or_groups(
    rows: list[tuple[int, int, str]], grouped: bool, fraction: float, seed: int
) -> None:
    contents, labels, groups = (list(column) for column in zip(*rows))
    samples = made(contents, labels, groups if grouped else None)
    again = shuffled(samples, seed)
    try:
        train, validation = carve(samples, fraction, seed)
    except InputError:
        with pytest.raises(InputError, match="too few to carve"):
            carve(again, fraction, seed)
        return
    assert not set(train.pictures.tolist()) & set(validation.pictures.tolist())
    if grouped:
        assert not set(train.groups) & set(validation.groups)  # type: ignore[arg-type]
    assert len(train) + len(validation) == len(samples)
    assert [s.fingerprint for s in carve(again, fraction, seed)] == [
        train.fingerprint,
        validation.fingerprint,
    ]
    assert len(train) > 0


def test_unlabelled_samples_stay_in_train() -> None:
    train, validation = carve(made(list(range(40)), [0] * 20 + [UNLABELLED] * 20), 0.5, 0)
    assert len(validation) == 10
    assert validation.labelled().all()
    assert len(train) == 30


def test_a_picture_in_two_groups_joins_them() -> None:
    contents = [*range(20), 0]  # the last is the first again, in a group of its own
    groups = [f"g{i // 2}" for i in range(20)] + ["lone"]
    for seed in range(20):
        train, _ = carve(made(contents, [0] * 21, groups), 0.3, seed)
        assert ("g0" in train.groups) == ("lone" in train.groups)  # type: ignore[operator]


@dataclass(frozen=True)
class Joined(Targets):
    """Targets of one stratum, in which equal labels are never split."""

    @property
    def strata(self) -> np.ndarray:
        return np.where(self.labels < 0, self.labels, 0)

    @property
    def together(self) -> np.ndarray:
        return self.labels

    def refuse_carving(self, held: np.ndarray, fraction: float, name: str) -> None:
        if held.sum() < 2:
            raise InputError(f"{name}: {held.sum()} of {len(held)} at {fraction}")


def naive_carving(samples: Samples, fraction: float, seed: int) -> set[int]:
    """Ids that are held out where all of a label, of a group and of a picture stay together."""
    count = len(samples)
    unit = list(range(count))
    for _ in range(count):  # as often as a chain of neighbours is long
        for i in range(count):
            for j in range(count):
                alike = samples.pictures[i] == samples.pictures[j]
                alike |= samples.labels[i] == samples.labels[j] >= 0
                alike |= samples.groups is not None and samples.groups[i] == samples.groups[j]
                if alike:
                    unit[i] = unit[j] = min(unit[i], unit[j])
    members = {u: [i for i in range(count) if unit[i] == u] for u in set(unit)}
    known = {u: sum(samples.labels[i] >= 0 for i in rows) for u, rows in members.items()}
    smallest = {u: int(min(samples.pictures[i] for i in rows)) for u, rows in members.items() if known[u]}
    ranked = sorted(smallest, key=lambda u: hashlib.sha256(f"{seed}:{smallest[u]}".encode()).digest())
    wanted, held = round(fraction * sum(known.values())), set()
    for u in ranked[:-1]:
        if known[u] <= wanted:
            held |= {int(samples.ids[i]) for i in members[u]}
            wanted -= known[u]
    return held


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 40), st.integers(-1, 6), st.sampled_from("abcdefghij")),
        min_size=1,
        max_size=16,
    ),
    grouped=st.booleans(),
    fraction=st.sampled_from([0.1, 0.3, 0.6]),
    seed=st.integers(0, 3),
)
def test_what_targets_join_is_never_split(
    rows: list[tuple[int, int, str]], grouped: bool, fraction: float, seed: int
) -> None:
    contents, labels, groups = (list(column) for column in zip(*rows))
    samples = made(contents, labels, groups if grouped else None)
    samples = replace(samples, targets=Joined(samples.labels))
    held = naive_carving(samples, fraction, seed)
    if len(held) < 2:
        with pytest.raises(InputError, match=rf"^train: {len(held)} of {len(rows)} at {fraction}$"):
            carve(samples, fraction, seed)
        return
    train, validation = carve(samples, fraction, seed)
    assert set(validation.ids.tolist()) == held
    assert set(train.ids.tolist()) == set(samples.ids.tolist()) - held


def test_carvings_by_class_are_what_they_were() -> None:
    contents, labels = [*range(60), 3, 7], [i % 5 - 1 for i in range(62)]
    _, plain = carve(made(contents, labels), 0.2, 0)
    _, grouped = carve(made(contents, labels, [f"g{i // 4}" for i in range(62)]), 0.2, 0)
    assert plain.fingerprint == "54f7ddddf0290e0fb9f46b1200f9fab0"
    assert grouped.fingerprint == "5f5bf54d87f82959bb3ccca1826017fc"


@pytest.mark.parametrize(
    "labels", [[0], [0, 1, 2, 3], [UNLABELLED] * 30, [0] * 4], ids=["one", "one each", "none", "below half"]
)
def test_too_few_to_carve(labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"labelled pictures are too few .*data\.validation_fraction"):
        carve(made(list(range(len(labels))), labels), 0.1, 0)


def test_hiding_labels_keeps_so_many_per_class() -> None:
    samples = made(list(range(60)), [i % 3 for i in range(58)] + [UNLABELLED] * 2)
    hidden = hide_labels(samples, 5, 0)
    assert np.bincount(hidden.labels[hidden.labelled()]).tolist() == [5, 5, 5]
    assert (hidden.labels[hidden.labelled()] == samples.labels[hidden.labelled()]).all()
    assert hidden.ids.tolist() == samples.ids.tolist()
    assert hide_labels(shuffled(samples, 1), 5, 0).fingerprint == hidden.fingerprint
    assert hide_labels(samples, 5, 1).fingerprint != hidden.fingerprint
    assert hide_labels(samples, 100, 0).fingerprint == samples.fingerprint
    # A larger number keeps what a smaller one kept.
    assert set(np.flatnonzero(hidden.labelled())) < set(np.flatnonzero(hide_labels(samples, 9, 0).labelled()))


# -- cells ---------------------------------------------------------------------------------------------------


def test_cells(tmp_path: Path) -> None:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    (root / "in.png").write_bytes(b"inside")
    (tmp_path / "out.png").write_bytes(b"outside")
    (root / "link.png").symlink_to(tmp_path / "out.png")
    assert cell_bytes({"bytes": b"x", "path": "/etc/passwd"}, None, "row 1") == b"x"
    assert cell_bytes({"bytes": None, "path": str(root / "in.png")}, root, "row 1") == b"inside"
    assert cell_bytes({"bytes": b"", "path": str(tmp_path / "out.png")}, root, "row 1") == b""
    outside = [tmp_path / "out.png", root / "link.png", root / ".." / "out.png", f"file://{root}/in.png"]
    for path in outside:
        with pytest.raises(InputError, match=r"row 1: .* never opened"):
            cell_bytes({"bytes": None, "path": str(path)}, root, "row 1")
    with pytest.raises(InputError, match=r"row 1: .* never opened"):
        cell_bytes(str(root / "in.png"), None, "row 1")
    with pytest.raises(InputError, match=r"row 1: cannot read .*gone\.png: No such file"):
        cell_bytes({"bytes": None, "path": str(root / "gone.png")}, root, "row 1")
    for empty in (None, {"bytes": None, "path": None}, {}, 3):
        with pytest.raises(InputError, match="row 1: the image cell is empty"):
            cell_bytes(empty, root, "row 1")


def test_a_corrupt_picture_names_its_row() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4)).save(buffer, "PNG")
    samples = made([10, 11, 12], [0, 0, 0])
    samples.table[2]["image"]["bytes"] = buffer.getvalue()
    chosen = samples.take(np.array([2, 1]))
    assert chosen.picture(0, 100).size == (5, 4)
    with pytest.raises(BadImageError, match=r"train row 1: .*--on-bad-image skip"):
        chosen.picture(1, 100)
    with pytest.raises(BadImageError, match=r"train row 2: picture too large"):
        chosen.picture(0, 19)
