"""Targets of a kind that no task of the product has: boxes, a list of another length for each picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from toolbox import encode
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxes

from kdcli.artifacts.model import InputSpec
from kdcli.data.batches import Loader, training_loader
from kdcli.data.order import Pool
from kdcli.data.samples import Data, Samples
from kdcli.data.sources import open_data, open_unlabelled
from kdcli.data.targets import UNLABELLED, Targets
from kdcli.data.views import TrainingView, WholeCut
from kdcli.errors import InputError
from kdcli.sections import DataSection, ViewSection

SIDE = 40


@dataclass(frozen=True)
class Boxes(Targets):
    """Boxes [k, 4] in pixels (left, top, right, bottom); the label is how many they are."""

    boxes: np.ndarray  # [N] of arrays

    @property
    def hashes(self) -> tuple[np.ndarray, ...]:
        return (np.array([crc32(boxes.tobytes()) for boxes in self.boxes], np.uint64),)

    def take(self, keep: np.ndarray) -> Boxes:
        return replace(super().take(keep), boxes=self.boxes[keep])

    def blank(self, count: int) -> Boxes:
        return boxed([None] * count)

    def read(self, index: int, size: tuple[int, int], max_pixels: int, where: str) -> Any:
        boxes = self.boxes[index]
        if boxes.size and (boxes.max(0)[2:] > size).any():
            raise InputError(f"{where}: a box leaves the picture.")
        return {
            "boxes": BoundingBoxes(boxes, format="XYXY", canvas_size=size[::-1]),
            "numbers": torch.arange(len(boxes)),
        }

    def columns(self, indices: np.ndarray, moved: Sequence[Any]) -> dict[str, Any]:
        boxes, numbers = [], []
        for one in moved:
            kept, some = functional.sanitize_bounding_boxes(one["boxes"], min_size=2)
            boxes.append(kept.as_subclass(torch.Tensor))
            numbers.append(one["numbers"][some])
        return {"boxes": boxes, "numbers": numbers, "count": torch.from_numpy(self.labels[indices])}


def boxed(rows: list[list[list[int]] | None]) -> Boxes:
    boxes = np.empty(len(rows), object)
    boxes[:] = [np.array(row or [], np.float32).reshape(-1, 4) for row in rows]
    return Boxes(np.array([UNLABELLED if row is None else len(row) for row in rows], np.int64), boxes)


class BoxReader:
    """Reads a column of lists of four numbers."""

    task, columns = "boxes", ("found",)

    def __init__(self, raw: Any, config: DataSection) -> None:
        self.raw = raw

    @classmethod
    def claims(cls, table: Any, config: DataSection) -> bool:
        return "found" in table.column_names

    def targets(self, name: str, table: Any) -> Targets:
        return boxed(table["found"][:])

    def classes(self, splits: Mapping[str, Samples], whole: Callable[[str], Samples]) -> list[str]:
        return ["it"]

    def check(self, train: Samples, classes: list[str]) -> None:
        if len(train) == 3:
            raise InputError("three are too few.")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Dark pictures with white boxes, none to two of them; each tenth picture is unlabelled."""
    cells, found = [], []
    for i in range(40):
        picture, boxes = Image.new("RGB", (SIDE + 20, SIDE), (i, 0, 0)), []
        for k in range(i % 3):
            left, top = 4 + (i * 7 + k * 24) % 22 + k * 4, 3 + (i * 5) % 12
            boxes.append([left, top, left + 12, top + 16])
            picture.paste((255, 255, 255), tuple(boxes[-1]))
        cells.append({"bytes": encode(picture), "path": None})
        found.append(None if i % 10 == 9 else boxes)
    table = datasets.Dataset.from_dict({"image": cells, "found": found})
    folder = tmp_path_factory.mktemp("boxes") / "saved"
    table.cast_column("image", datasets.Image()).save_to_disk(str(folder))
    return str(folder)


def opened(source: str, **options: Any) -> Data:
    return open_data(DataSection(source=source, **options), BoxReader, need=("train", "validation"))


def test_a_source_is_opened_through_its_reader(source: str) -> None:
    data = opened(source, validation_fraction=0.25)
    assert (data.task, data.classes) == ("boxes", ["it"])
    train, validation = data.split("train"), data.split("validation")
    assert len(train) + len(validation) == 40
    assert np.bincount(validation.labels).tolist() == [3, 3, 3]  # carved by strata
    assert UNLABELLED in train.labels
    for part in (train, validation):
        assert [len(boxes) for boxes in part.targets.boxes] == np.maximum(part.labels, 0).tolist()
    few = opened(source, labels_per_class=2).split("train")
    assert np.bincount(few.labels[few.labelled()]).tolist() == [2, 2, 2]
    assert few.fingerprint != train.fingerprint


def test_the_reader_may_refuse(source: str, tmp_path: Path) -> None:
    datasets.load_from_disk(source).select(range(3)).save_to_disk(str(tmp_path / "three"))
    with pytest.raises(InputError, match="three are too few"):
        opened(str(tmp_path / "three"), validation="train")
    train = opened(source).split("train").take(np.array([5]))
    row = int(train.rows[0])
    with pytest.raises(InputError, match=f"train row {row}: a box leaves the picture"):
        replace(train, targets=boxed([[[0, 0, 99, 9]]])).beside(0, (60, 40), 10**6)


def test_what_is_known_enters_the_fingerprint(source: str) -> None:
    train = opened(source).split("train")
    moved = [None if x < 0 else (b + 1).tolist() for x, b in zip(train.labels, train.targets.boxes)]
    other = replace(train, targets=boxed(moved))
    assert (other.labels == train.labels).all()
    assert other.fingerprint != train.fingerprint
    order = np.random.default_rng(0).permutation(len(train))
    assert train.take(order).fingerprint == train.fingerprint


def white(x: torch.Tensor) -> torch.Tensor:
    """Where a view is white, away from edges that were resampled."""
    return x.float().mean(0) > 250


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_boxes_move_with_their_pictures_and_stay_lists(source: str, workers: int, whole: bool) -> None:
    train = opened(source).split("train")
    cut: Any = TrainingView(ViewSection(scale=(0.5, 1.0), vflip=0.5), 64, 0)
    if whole:
        cut = WholeCut(InputSpec((64, 96)))
    pool = Pool((train,))
    loader = training_loader(pool, cut, max_pixels=10**6, workers=workers)
    keys = [[(i, view) for i in range(b, b + 6)] for view in range(3) for b in range(0, 30, 6)]
    seen = 0
    for batch_keys, batch in zip(keys, loader(keys)):
        assert {len(batch["boxes"]), len(batch["numbers"]), len(batch["count"])} == {6}
        assert batch["count"].tolist() == batch["y"].tolist()
        for (index, view), x, boxes in zip(batch_keys, batch["x"], batch["boxes"]):
            assert type(boxes) is torch.Tensor
            assert len(boxes) <= max(int(train.labels[index]), 0)
            assert torch.equal(x, cut(train.picture(index, 10**6), view, int(train.ids[index])))
            inside = torch.zeros(x.shape[1:], dtype=torch.bool)
            for left, top, right, bottom in boxes.round().int().tolist():
                inside[top:bottom, left:right] = True
                assert white(x)[top + 2 : bottom - 2, left + 2 : right - 2].all()
                seen += 1
            if train.labels[index] >= 0:
                outside = torch.nn.functional.max_pool2d(inside[None].float(), 7, 1, 3)[0] == 0
                assert not (x.float().mean(0) > 200)[outside].any()
    assert seen > 40


def test_extra_pictures_have_targets_of_the_same_kind(source: str, pictures: Path) -> None:
    train = opened(source).split("train")
    (extra, *_) = open_unlabelled(str(pictures), DataSection()).splits.values()
    pool = Pool((train, extra.unlabelled(train.targets)))
    cut = TrainingView(ViewSection(), 16, 0)
    first = [int(np.flatnonzero(train.labels == count)[0]) for count in (2, 0, 1)]
    rows = [first[0], len(train) + 3, *first[1:], len(train)]
    (batch,) = training_loader(pool, cut, max_pixels=10**6)([[(i, 0) for i in rows]])
    assert batch["y"].tolist() == [2, -1, 0, 1, -1]
    assert batch["count"].tolist() == batch["y"].tolist()  # rows of both parts, in their order
    assert [len(b) for b in batch["boxes"]][1::3] == [0, 0]
    assert len(batch["boxes"]) == 5
    (plain,) = Loader(pool, cut, max_pixels=10**6)([[(i, 0) for i in rows]])
    assert set(plain) == {"x", "y", "index"}
    assert torch.equal(plain["x"], batch["x"])
