"""What masks hold: 0 and 255 as classes, void, values beyond the names, classes without a pixel, palettes."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from toolbox import encode, png

from kdcli.data.images import decode_indices, palette_of
from kdcli.data.samples import Data
from kdcli.errors import BadImageError, InputError
from kdcli.sections import DataSection
from kdcli.tasks import open_task_data
from kdcli.tasks.segmentation.values import VOID

SIDE = 6
_UNLIKE = itertools.count()  # no two pictures are the same


def square(*values: int) -> np.ndarray:
    """A mask whose rows have these values in turn."""
    return np.array([[values[y % len(values)]] * SIDE for y in range(SIDE)], np.uint8)


def split(*masks: np.ndarray | Image.Image | bytes) -> datasets.Dataset:
    pictures = [
        encode(Image.new("RGB", (SIDE, SIDE), (next(_UNLIKE) % 256, i, 7))) for i in range(len(masks))
    ]
    cells = [mask if isinstance(mask, bytes) else encode(mask) for mask in masks]
    columns = {"image": pictures, "mask": cells}
    table = datasets.Dataset.from_dict(
        {name: [{"bytes": b, "path": None} for b in column] for name, column in columns.items()}
    )
    for name in columns:
        table = table.cast_column(name, datasets.Image())
    return table


def saved(folder: Path, **splits: datasets.Dataset) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def opened(source: Path, *need: str, **options: Any) -> Data:
    section = DataSection(source=str(source), validation="train", **options)
    return open_task_data(section, *(need or ("train",)))


def mask_of(data: Data, split_name: str, index: int = 0) -> list[int]:
    """The first column of a mask, as losses see it."""
    read = data.split(split_name).beside(index, (SIDE, SIDE), 10_000).numpy()
    return [int(value) for value in read[:, 0]]


# -- 0 and 255 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "called"), [(None, ["0", "255"]), (["bg", "fg"], ["bg", "fg"])])
def test_masks_of_0_and_255_have_two_classes(
    tmp_path: Path, names: list[str] | None, called: list[str]
) -> None:
    source = saved(
        tmp_path / "d", train=split(square(0), square(0, 255), square(255)), test=split(square(255, 0))
    )
    data = opened(source, "train", "test", class_names=names)
    assert data.classes == called
    assert [mask_of(data, "train", i) for i in range(3)] == [[0] * 6, [0, 1] * 3, [1] * 6]
    assert mask_of(data, "test") == [1, 0] * 3
    (note,) = data.notes
    assert note == (
        "the masks of train have the values 0 and 255 only: they are read as two classes, 0 as "
        f"'{called[0]}' and 255 as '{called[1]}', and no pixel is void"
    )
    assert mask_of(opened(source, "test", class_names=names), "test") == [1, 0] * 3  # train decides alone


def test_one_other_value_makes_255_void(tmp_path: Path) -> None:
    source = saved(
        tmp_path / "d", train=split(*[square(0, 255)] * 40, square(0, 1)), test=split(square(0, 255))
    )
    data = opened(source, "train", "test")
    assert (data.classes, data.notes) == (["0", "1"], ())
    assert mask_of(data, "train") == [0, VOID] * 3
    assert mask_of(data, "test") == [0, VOID] * 3


def test_masks_of_a_test_that_count_otherwise_are_refused(tmp_path: Path) -> None:
    """Of 0 and 255 beside a train of 0 and 1: all pixels of the object would be void, and nobody told."""
    source = saved(
        tmp_path / "d", train=split(square(0, 1), square(1)), test=split(square(0, 255), square(0))
    )
    message = (
        r"the masks of test have the values 0 and 255 only, and those of train 0 and 1: .*'1' would have no"
    )
    with pytest.raises(InputError, match=message):
        opened(source, "train", "test")
    with pytest.raises(InputError, match=message):
        opened(source, "test")


def test_three_names_leave_255_void(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", train=split(square(0, 255)))
    with pytest.raises(
        InputError, match=r"no mask of train has a pixel of class 'b', 'c': at most one class"
    ):
        opened(source, class_names=["a", "b", "c"])


def test_a_foreign_value_beside_the_two_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", train=split(square(0, 255)), test=split(square(0), square(0, 1)))
    with pytest.raises(
        InputError, match=r"test row 1: its mask has the value 1, and those of train have 0 and 255"
    ):
        opened(source, "test")


@pytest.mark.parametrize("names", [None, ["bg", "fg"]])
def test_255_is_void_or_refused_where_another_value_is_void(tmp_path: Path, names: list[str] | None) -> None:
    source = saved(tmp_path / "d", train=split(square(0, 1), square(0, 255)))
    message = r"train row 1: its mask has the value 255, which is no class number .* and not data\.void=254"
    with pytest.raises(InputError, match=message):
        opened(source, void=254, class_names=names)
    other = saved(tmp_path / "e", train=split(square(0, 1), square(0, 254)))
    assert mask_of(opened(other, void=254, class_names=names), "train", 1) == [0, VOID] * 3


# -- classes -------------------------------------------------------------------------------------------------


def test_classes_without_a_pixel_are_said(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", train=split(square(0, 3, 255)), test=split(square(0, 1)))
    data = opened(source)
    assert data.classes == ["0", "1", "2", "3"]
    assert data.notes == (
        "no mask of train has a pixel of 2 of the 4 classes ('1', '2'): they cannot be learned",
    )
    assert opened(source, "test").notes == ()  # nothing is learned


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", train=split(square(0), square(0)))
    with pytest.raises(InputError, match=r"has a pixel of class 'fg': at most one class is left.*data\.void"):
        opened(source, class_names=["bg", "fg"])


def test_a_value_beyond_the_names_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "d", train=split(square(0, 1), square(0, 1, 7)))
    with pytest.raises(InputError, match="train row 1: its mask has the value 7, outside the 2 classes"):
        opened(source, class_names=["a", "b"])
    source = saved(
        tmp_path / "e", train=split(square(0, 200), square(0, 200))
    )  # two names, and neither value
    with pytest.raises(InputError, match="train row 0: its mask has the value 200, outside the 2 classes"):
        opened(source, class_names=["a", "b"])


# -- palettes and modes --------------------------------------------------------------------------------------


def palette(values: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    mask = Image.fromarray(values, "L").convert("P")
    mask.putpalette([channel for colour in colours for channel in colour])
    mask.putdata(values.ravel().tolist())
    return mask


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def test_palettes_must_agree_on_the_values_in_use(tmp_path: Path) -> None:
    same = split(palette(square(0, 1), RED, GREEN), palette(square(0, 1), RED, GREEN, BLUE), square(0, 1))
    assert opened(saved(tmp_path / "a", train=same)).classes == ["0", "1"]
    swapped = split(palette(square(0, 1), RED, GREEN), palette(square(0, 1), GREEN, RED))
    with pytest.raises(
        InputError, match=r"train row 1: the palette of its mask gives 0 the colour \(0, 255, 0\)"
    ):
        opened(saved(tmp_path / "b", train=swapped))
    across = saved(
        tmp_path / "c",
        train=split(palette(square(0, 1), RED, GREEN)),
        test=split(palette(square(0, 1), RED, BLUE)),
    )
    with pytest.raises(
        InputError, match=r"test row 0: .* gives 1 the colour \(0, 0, 255\), that of train row 0"
    ):
        opened(across, "train", "test")
    assert palette_of(encode(square(0))) is None


def test_one_bit_is_0_and_1(tmp_path: Path) -> None:
    bits = Image.fromarray(square(0, 255)).convert("1")
    data = opened(saved(tmp_path / "d", train=split(bits, bits)))
    assert (data.classes, mask_of(data, "train"), data.notes) == (["0", "1"], [0, 1] * 3, ())


@pytest.mark.parametrize("depth", [2, 4])
def test_few_bits_of_grey_keep_their_numbers(depth: int) -> None:
    """Pillow spreads them over 0 to 255: class 3 of two bits would be void."""
    per = 8 // depth
    numbers = np.arange(per * 2).reshape(2, per) % 2**depth
    packed = [sum(int(v) << depth * (per - 1 - i) for i, v in enumerate(row)) for row in numbers]
    data = png(per, 2, depth, 0, b"".join(bytes([0, value]) for value in packed))
    assert np.asarray(Image.open(io.BytesIO(data))).max() > numbers.max()
    assert decode_indices(data).tolist() == numbers.tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            Image.new("I;16", (SIDE, SIDE)),
            r"mode I;16, where .* Save its numbers in 8 bits: classes end at 254",
        ),
        (
            Image.new("RGB", (SIDE, SIDE)),
            r"mode RGB, where .* Give each colour a class number and save the numbers",
        ),
        (Image.new("RGBA", (SIDE, SIDE)), r"mode RGBA, where .* Give each colour a class number"),
        (Image.new("LA", (SIDE, SIDE)), r"mode LA, where .* Remove its transparency"),
        (b"P5 6 6 3\n" + bytes(range(3)) * 12, r"a mask as a PPM of fewer than 8 bits.*save it as PNG"),
    ],
)
def test_other_modes_say_what_to_do(tmp_path: Path, mask: Any, message: str) -> None:
    with pytest.raises(BadImageError, match=f"train row 1: its mask: {message}"):
        opened(saved(tmp_path / "d", train=split(square(0, 1), mask)))


def test_a_tiff_with_white_for_zero_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(square(0, 1)).save(buffer, "TIFF", tiffinfo={262: 0})
    with pytest.raises(BadImageError, match="a mask as a TIFF of fewer than 8 bits, or with white for zero"):
        decode_indices(buffer.getvalue())
    assert decode_indices(encode(square(0, 1), "TIFF"))[:2, 0].tolist() == [0, 1]
    assert decode_indices(b"P5 2 1 255\n" + bytes([0, 3])).tolist() == [[0, 3]]
