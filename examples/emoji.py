"""Pictures with several exact labels: emoji of several categories pasted on parts of photographs.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz    # Noto, Apache-2.0
    python examples/emoji.py package runs/emoji    # 2,000 training and 1,000 test pictures of 96 px

A picture's labels are the categories of what was pasted on it, each in a quarter of its own, so they are
exact by construction. Emoji of the test pictures appear in no training picture. The photographs are
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


def picture(drawn: Drawings, grounds: list[Image.Image], rng: Any) -> tuple[bytes, list[int]]:
    """A PNG with one to ``MOST`` emoji of unlike categories, and the numbers of these."""
    ground = grounds[int(rng.integers(len(grounds)))]
    side, half = int(rng.integers(SIZE, 2 * SIZE)), SIZE // 2
    x, y = (int(rng.integers(0, length - side)) for length in ground.size)
    image = ground.crop((x, y, x + side, y + side)).resize((SIZE, SIZE))
    names = list(drawn)
    labels = sorted(rng.choice(len(names), 1 + int(rng.integers(MOST)), replace=False).tolist())
    for label, quarter in zip(labels, rng.permutation(MOST).tolist()):
        pictures = drawn[names[label]]
        emoji = pictures[int(rng.integers(len(pictures)))]
        width = int(rng.integers(half * 5 // 8, half))
        emoji = emoji.resize((width, width), Image.Resampling.BICUBIC)
        left, top = rng.integers(0, half - width, 2, endpoint=True).tolist()
        image.paste(emoji, (left + half * (quarter % 2), top + half * (quarter // 2)), emoji)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue(), labels


def table(drawn: Drawings, count: int, seed: int) -> Any:
    """A dataset of ``count`` pictures with the column ``labels``, a list of class labels."""
    import datasets

    rng, grounds = np.random.default_rng(seed), photographs()
    made = [picture(drawn, grounds, rng) for _ in range(count)]
    columns = {
        "image": [{"bytes": data, "path": None} for data, _ in made],
        "labels": [labels for _, labels in made],
    }
    kinds = {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=list(drawn)))}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("out", type=Path, help="folder of the saved dataset")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
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
        "train": table(parts["train"], given.train, seed=0),
        "test": table(parts["test"], given.test, seed=1),
    }
    datasets.DatasetDict(made).save_to_disk(str(given.out))


if __name__ == "__main__":
    main()
