"""Make Fashion-MNIST, or the bundled subset of it, as parquet that kdcli reads.

    uv run examples/fashion_mnist.py --idx IDX --out data/fashion-mnist  # all 70,000
    uv run examples/fashion_mnist.py --idx IDX --out examples/data/fashion-mnist --train 400 --test 150

IDX is the folder with the four idx files (Debian's ``dataset-fashion-mnist`` puts them into
/usr/share/datasets/fashion-mnist). The pictures are MIT licensed by Zalando SE (2017), see
``examples/data/fashion-mnist/LICENSE``; the second command makes the bundled subset.
"""

import argparse
import gzip
import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def idx(path: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def table(pictures: np.ndarray, labels: np.ndarray, per_class: int | None) -> datasets.Dataset:
    """The first ``per_class`` pictures of each class, in the order of the source."""
    rows = np.arange(len(labels))
    if per_class is not None:
        rows = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(len(CLASSES))]))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    columns = {
        "image": [{"bytes": png(pictures[i]), "path": None} for i in rows],
        "label": [int(labels[i]) for i in rows],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--idx", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, help="pictures per class")
    parser.add_argument("--test", type=int, help="pictures per class")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, prefix, count in (("train", "train", arguments.train), ("test", "t10k", arguments.test)):
        pictures = idx(arguments.idx / f"{prefix}-images-idx3-ubyte.gz")
        labels = idx(arguments.idx / f"{prefix}-labels-idx1-ubyte.gz")
        data = table(pictures, labels, count)
        file = arguments.out / f"{split}.parquet"
        data.to_parquet(str(file))
        print(f"{file}: {len(data):,} pictures, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
