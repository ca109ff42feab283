"""Masks: found, checked against their pictures, cut with them; what is no mask is refused by its row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from toolbox import encode, sample_photographs, scenes
from torchvision.tv_tensors import Mask

from kdcli.artifacts.model import InputSpec
from kdcli.data.batches import training_loader
from kdcli.data.images import decode, upright_size
from kdcli.data.order import Pool
from kdcli.data.samples import Data
from kdcli.data.sources import open_unlabelled
from kdcli.data.views import TrainingView, WholeCut
from kdcli.errors import BadImageError, InputError, UsageError
from kdcli.sections import DataSection, ViewSection
from kdcli.tasks import open_task_data
from kdcli.tasks.segmentation.target import VOID


def opened(source: Path, *need: str, **options: Any) -> Data:
    """Without a split named, train and a carved validation; else these, with nothing carved."""
    more = {"validation": "train"} if need else {}
    section = DataSection(source=str(source), **more, **options)
    return open_task_data(section, *(need or ("train", "validation")))


def saved(
    folder: Path, cells: list[tuple[bytes, bytes | None]], names: tuple[str, str] = ("image", "mask")
) -> Path:
    columns = [[b and {"bytes": b, "path": None} for b in column] for column in zip(*cells)]
    table = datasets.Dataset.from_dict(dict(zip(names, columns)))
    for name in names:
        table = table.cast_column(name, datasets.Image())
    table.save_to_disk(str(folder))
    return folder


def cells(count: int = 6) -> list[tuple[bytes, bytes | None]]:
    return [(encode(image), encode(mask)) for image, mask in scenes(count, size=24)]


def test_masks_are_found_and_their_classes_counted(masks_data: Path) -> None:
    data = opened(masks_data)
    assert (data.task, data.classes) == ("segmentation", ["0", "1", "2", "3"])
    train, validation = data.split("train"), data.split("validation")
    assert (len(train), len(validation)) == (43, 5)
    assert set(train.labels) == {0}
    mask = train.beside(0, (64, 64), 5000).numpy()
    assert (mask.dtype, mask.shape) == (np.uint8, (64, 64))
    assert {0, VOID} < set(np.unique(mask)) <= {0, 1, 2, 3, VOID}
    assert opened(masks_data, "test").classes == data.classes  # counted in train, whatever is used
    named = opened(masks_data, class_names=["sky", "shirt", "trouser", "bag", "shoe"])
    assert named.classes == ["sky", "shirt", "trouser", "bag", "shoe"]


def test_palettes_keep_their_indices_and_void_may_be_any_value(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 7]], np.uint8)
    mask = Image.fromarray(values, "L").convert("P")
    mask.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200] + [9] * 3 * 253)
    mask.putdata(values.ravel().tolist())
    source = saved(
        tmp_path / "d", [(encode(Image.new("RGB", (2, 2), (i, 0, 0))), encode(mask)) for i in range(4)]
    )
    data = opened(source, "train", void=7)
    assert data.classes == ["0", "1", "2"]
    assert data.split("train").beside(0, (2, 2), 100).tolist() == [[0, 1], [2, VOID]]


def test_a_picture_without_a_mask_is_unlabelled(tmp_path: Path) -> None:
    data = opened(saved(tmp_path / "d", [*cells(), (encode(Image.new("RGB", (9, 7))), None)]), "train")
    train = data.split("train")
    assert train.labels.tolist() == [0] * 6 + [-1]
    assert train.beside(6, (9, 7), 100).tolist() == [[0] * 9] * 7  # no pixel of it is void
    kept = opened(tmp_path / "d", "train", labels_per_class=2).split("train")
    assert int(kept.labelled().sum()) == 2


def test_an_image_folder_with_metadata(tmp_path: Path) -> None:
    folder, lines = tmp_path / "data" / "train", []
    folder.mkdir(parents=True)
    for i, (image, mask) in enumerate(scenes(5, size=16)):
        image.save(folder / f"{i}.png")
        mask.save(folder / f"{i}-mask.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "mask_file_name": f"{i}-mask.png"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    data = opened(tmp_path / "data", "train")
    assert (data.task, len(data.split("train"))) == ("segmentation", 5)
    assert set(np.unique(data.split("train").beside(0, (16, 16), 1000))) <= {0, 1, 2, 3, VOID}


def test_another_mask_is_other_data(tmp_path: Path) -> None:
    rows = cells()
    first = opened(saved(tmp_path / "a", rows), "train").fingerprint
    rows[2] = (rows[2][0], encode(Image.new("L", (24, 24), 1)))
    assert opened(saved(tmp_path / "b", rows), "train").fingerprint != first
    assert (
        opened(saved(tmp_path / "c", rows[::-1]), "train").split("train").fingerprint
        == opened(tmp_path / "b", "train").split("train").fingerprint
    )


def test_masks_of_extra_pictures_are_not_looked_at(tmp_path: Path) -> None:
    rows = [(image, b"no picture at all") for image, _ in cells()]
    (extra,) = open_unlabelled(str(saved(tmp_path / "d", rows)), DataSection()).splits.values()
    assert len(extra) == 6
    assert not extra.labelled().any()


@pytest.mark.parametrize(
    ("mask", "options", "error", "message"),
    [
        (Image.new("L", (24, 12)), {}, InputError,
         "train row 3: its mask has 24 x 12 pixels, its picture 24 x 24"),
        (Image.new("RGB", (24, 24)), {}, BadImageError,
         "train row 3: its mask: mode RGB, where a mask has one"),
        (Image.new("I;16", (24, 24)), {}, BadImageError, "row 3: its mask: mode I;16"),
        (b"junk", {}, BadImageError, "row 3: its mask: not a readable PNG"),
        (encode(Image.new("L", (24, 24)), "JPEG"), {}, BadImageError, "as a JPEG has other values"),
        (Image.new("L", (24, 24), 9), {"class_names": ["a", "b", "c", "d"]}, InputError,
         r"train row 3: its mask has the value 9, outside the 4 classes\. .*class_names.*data\.void"),
        (Image.new("L", (24, 24)), {"mask_column": "mark"}, InputError,
         r"no mask column among image, mask\. Name"),
        (Image.new("L", (24, 24)), {"task": "classification", "class_names": ["a"]}, UsageError,
         r"data\.class_names is for segmentation or detection or multi-label, and .* opened for classific"),
    ],
)  # fmt: skip
def test_what_is_no_mask_is_refused(
    tmp_path: Path, mask: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    rows = cells()
    rows[3] = (rows[3][0], mask if isinstance(mask, bytes) else encode(mask))
    with pytest.raises(error, match=message):
        opened(saved(tmp_path / "d", rows), "train", **options)


def test_a_value_that_train_has_not_is_refused_in_test(tmp_path: Path) -> None:
    parts = {
        "train": cells(),
        "test": [(encode(Image.new("RGB", (4, 4))), encode(Image.new("L", (4, 4), 77)))],
    }
    loaded = {
        name: datasets.load_from_disk(str(saved(tmp_path / name, rows))) for name, rows in parts.items()
    }
    datasets.DatasetDict(loaded).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match="test row 0: its mask has the value 77, outside the 4 classes"):
        opened(tmp_path / "both", "test")


def test_no_or_several_mask_columns(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    datasets.Dataset.from_dict(
        {"image": [{"bytes": cells(1)[0][0], "path": None}], "label": [0]}
    ).cast_column("image", datasets.Image()).save_to_disk(str(plain))
    with pytest.raises(InputError, match="no mask column among image, label"):
        opened(plain, "train", task="segmentation")
    with pytest.raises(
        UsageError,
        match=r"data\.class_names is for segmentation or detection or multi-label, and .*plain is opened",
    ):
        opened(plain, "train", class_names=["a"])
    both = saved(tmp_path / "two", cells(), ("mask", "seg"))
    with pytest.raises(InputError, match="several mask columns among mask, seg"):
        opened(both, "train")
    assert opened(both, "train", image_column="mask").split("train").targets.column == "seg"


def test_corrupt_masks_are_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = cells()
    rows[3] = (rows[3][0], b"junk")
    data = opened(saved(tmp_path / "d", rows), "train", on_bad_image="skip", max_bad_fraction=0.5)
    assert (len(data.split("train")), len(data.skipped)) == (5, 1)


def test_the_size_in_the_header_is_that_of_the_upright_picture() -> None:
    picture, exif = Image.new("RGB", (6, 4)), Image.Exif()
    for orientation in (1, 3, 5, 6, 8):
        exif[274] = orientation
        data = encode(picture, "JPEG", exif=exif)
        assert upright_size(data) == decode(data).size


# -- views ---------------------------------------------------------------------------------------------------

SECTION = {"hflip": 0.5, "vflip": 0.5, "scale": (0.2, 1.0)}


def halves() -> tuple[Image.Image, Mask]:
    """A photograph with a bright rectangle, and the mask of exactly that rectangle."""
    image = sample_photographs()["china.jpg"].resize((160, 120)).point(lambda v: v // 4)
    image.paste((255, 255, 255), (30, 20, 110, 70))
    return image, Mask((np.asarray(image)[..., 0] == 255).astype(np.uint8))


@pytest.mark.parametrize(
    "more", [{}, {"interpolation": "random", "color_jitter": 0.1}, {"erase": 1.0}, {"scale": (1.0, 1.0)}]
)
def test_a_view_without_its_mask_has_the_same_pixels(more: dict[str, Any]) -> None:
    image, mask = halves()
    cut = TrainingView(ViewSection(**{**SECTION, **more}), 48, 3)
    for view in range(6):
        alone, (x, m) = cut(image, view, 11), cut(image, view, 11, mask)
        assert torch.equal(alone, x)
        assert (m.dtype, m.shape, type(m)) == (torch.uint8, (48, 48), Mask)


def test_picture_and_mask_move_together() -> None:
    """The mask is a function of the picture (bright or not), and so is each of its views, but at the edge."""
    image, mask = halves()
    cut = TrainingView(ViewSection(**SECTION), 64, 0)
    seen = 0
    for view in range(30):
        x, m = cut(image, view, 5, mask)
        expected = x.float().mean(0) > 160
        edge = torch.nn.functional.max_pool2d(m[None].float(), 5, 1, 2) != -torch.nn.functional.max_pool2d(
            -m[None].float(), 5, 1, 2
        )
        assert torch.equal(m.bool()[~edge[0]], expected[~edge[0]])
        seen += int(0.1 < m.float().mean() < 0.9)
    assert seen > 20
    whole = WholeCut(InputSpec((32, 48), crop=0.5))
    x, m = whole(image, 0, 0, mask)
    assert (x.shape, m.shape) == ((3, 32, 48), (32, 48))
    assert float(m.float().mean()) == pytest.approx(float(mask.float().mean()), abs=0.02)
    assert ((x.float().mean(0) > 160) != m.bool()).float().mean() < 0.03
    assert torch.equal(whole(image, 0, 0), x)


def test_a_policy_beside_a_mask_is_refused() -> None:
    image, mask = halves()
    with pytest.raises(UsageError, match="auto_augment moves the picture without its mask"):
        TrainingView(ViewSection(auto_augment="rand-m9"), 32, 0)(image, 0, 0, mask)


def test_batches_carry_masks(masks_data: Path) -> None:
    train = opened(masks_data, "train").split("train")
    cut = TrainingView(ViewSection(), 32, 0)
    loader = training_loader(Pool((train,)), cut, max_pixels=5000)
    (batch,) = loader([[(4, 0), (9, 2)]])
    assert (batch["mask"].dtype, batch["mask"].shape) == (torch.uint8, (2, 32, 32))
    image, number = train.picture(9, 5000), int(train.ids[9])
    x, m = cut(image, 2, number, train.beside(9, (64, 64), 5000))
    assert torch.equal(batch["x"][1], x)
    assert torch.equal(batch["mask"][1], m)


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_of_turned_pictures_cover_the_same_things(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    rows: list[tuple[bytes, bytes | None]] = []
    for number in range(6):
        mask = np.zeros((12, 20), np.uint8)
        mask[2:5, 1:9] = 1
        picture = np.stack([mask * 200 + number] * 3, axis=-1)
        rows.append((encode(picture, exif=exif), encode(mask)))
    train = opened(saved(tmp_path / "d", rows), "train").split("train")
    for i in range(len(train)):
        picture = np.asarray(train.picture(i, 5000))[..., 0]
        mask = train.beside(i, train.size(i, 5000), 5000).numpy()
        assert mask.tolist() == (picture > 100).astype(int).tolist()
