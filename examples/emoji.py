"""Pictures with several exact labels, or exact masks: emoji of several categories on parts of photographs.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz    # Noto, Apache-2.0
    python examples/emoji.py package runs/emoji    # 2,000 training and 1,000 test pictures of 96 px
    python examples/emoji.py package runs/masks --masks    # the same pictures, with masks for labels

A picture's labels are the categories of what was pasted on it, each in a quarter of its own, so they are
exact by construction. So are the masks: 0 is the photograph, and i the i-th category where an emoji of it is
more than half opaque. Emoji of the test pictures appear in no training picture. The photographs are
scikit-learn's two.
"""

import argparse
import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Drawings = dict[str, list[Image.Image]]  # by category
SIZE, MOST = 96, 4  # pixels of a side; emoji on a picture, one in a quarter
LEAST = 60  # emoji of a category that takes part
TEST_SHARE = 0.3  # of the emoji of a category


def photographs() -> list[Image.Image]:
    """Scikit-learn's two, 640 x 427."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "images"
    return [Image.open(folder / name).convert("RGB") for name in ("china.jpg", "flower.jpg")]


def drawings(package: Path) -> Drawings:
    """RGBA pictures of 64 px by category, in the package's order; one of each emoji, without skin tones."""
    found: Drawings = {}
    images = next((package / "img").iterdir()) / "64"
    for entry in sorted(json.loads((package / "emoji.json").read_text()), key=lambda e: e["unified"]):
        file = images / entry["image"]
        if file.exists() and entry["category"] != "Component":
            found.setdefault(entry["category"], []).append(Image.open(file).convert("RGBA"))
    return {name: pictures for name, pictures in sorted(found.items()) if len(pictures) >= LEAST}


def encoded(image: Image.Image) -> dict[str, Any]:
    """A cell of a column of pictures: a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def picture(
    drawn: Drawings, grounds: list[Image.Image], rng: Any
) -> tuple[Image.Image, Image.Image, list[int]]:
    """A picture with one to ``MOST`` emoji of unlike categories, its mask, and the numbers of these."""
    ground = grounds[int(rng.integers(len(grounds)))]
    side, half = int(rng.integers(SIZE, 2 * SIZE)), SIZE // 2
    x, y = (int(rng.integers(0, length - side)) for length in ground.size)
    image = ground.crop((x, y, x + side, y + side)).resize((SIZE, SIZE))
    mask = Image.new("L", image.size, 0)
    names = list(drawn)
    labels = sorted(rng.choice(len(names), 1 + int(rng.integers(MOST)), replace=False).tolist())
    for label, quarter in zip(labels, rng.permutation(MOST).tolist()):
        pictures = drawn[names[label]]
        emoji = pictures[int(rng.integers(len(pictures)))]
        width = int(rng.integers(half * 5 // 8, half))
        emoji = emoji.resize((width, width), Image.Resampling.BICUBIC)
        left, top = rng.integers(0, half - width, 2, endpoint=True).tolist()
        at = (left + half * (quarter % 2), top + half * (quarter // 2))
        image.paste(emoji, at, emoji)
        mask.paste(label + 1, at, emoji.getchannel("A").point(lambda alpha: 255 * (alpha > 127)))
    return image, mask, labels


def table(drawn: Drawings, count: int, seed: int, masks: bool = False) -> Any:
    """A dataset of ``count`` pictures.

    Their column ``labels`` is a list of class labels; or they have a column ``mask`` instead.
    """
    import datasets

    rng, grounds = np.random.default_rng(seed), photographs()
    made = [picture(drawn, grounds, rng) for _ in range(count)]
    columns: dict[str, list[Any]] = {"image": [encoded(image) for image, _, _ in made]}
    kinds: dict[str, Any] = {"image": datasets.Image()}
    if masks:
        columns["mask"], kinds["mask"] = [encoded(mask) for _, mask, _ in made], datasets.Image()
    else:
        columns["labels"] = [labels for _, _, labels in made]
        kinds["labels"] = datasets.List(datasets.ClassLabel(names=list(drawn)))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("out", type=Path, help="folder of the saved dataset")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--masks", action="store_true", help="the class of every pixel for labels")
    given = parser.parse_args()
    import datasets

    everything = drawings(given.package)
    parts: dict[str, Drawings] = {"train": {}, "test": {}}
    for number, (name, pictures) in enumerate(everything.items()):
        order = np.random.default_rng(number).permutation(len(pictures)).tolist()
        cut = round(TEST_SHARE * len(pictures))
        parts["test"][name] = [pictures[i] for i in order[:cut]]
        parts["train"][name] = [pictures[i] for i in order[cut:]]
    made = {
        "train": table(parts["train"], given.train, seed=0, masks=given.masks),
        "test": table(parts["test"], given.test, seed=1, masks=given.masks),
    }
    datasets.DatasetDict(made).save_to_disk(str(given.out))


if __name__ == "__main__":
    main()
