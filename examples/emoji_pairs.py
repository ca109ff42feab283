"""Retrieval across drawing styles: each emoji as Noto and as Twemoji draw it, one identity in two pictures.

    npm pack emoji-datasource-google && mkdir -p google && tar xzf emoji-datasource-google-*.tgz -C google
    npm pack emoji-datasource-twitter && mkdir -p twitter && tar xzf emoji-datasource-twitter-*.tgz -C twitter
    python examples/emoji_pairs.py google/package twitter/package runs/pairs

Noto is under Apache-2.0, Twemoji under CC-BY-4.0. Columns are ``identity``, the emoji's code points, and
``camera``, the style, so that only the other drawing of a query counts as found. Identities of the test are
in no training picture; there one style asks (query), and the other is searched (gallery).
"""

import argparse
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

TEST_SHARE = 0.35
STYLES = ("noto", "twemoji")


def files(package: Path) -> dict[str, Path]:
    """Pictures of 64 px by code points, without skin tones."""
    images = next(path for path in (package / "img").iterdir() if path.is_dir()) / "64"
    entries = json.loads((package / "emoji.json").read_text())
    found = {entry["unified"]: images / entry["image"] for entry in entries}
    return {code: file for code, file in found.items() if file.exists()}


def encoded(file: Path) -> bytes:
    """A PNG on white."""
    drawn = Image.open(file).convert("RGBA")
    ground = Image.new("RGBA", drawn.size, "white")
    ground.alpha_composite(drawn)
    buffer = io.BytesIO()
    ground.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def is_test(code: str) -> bool:
    """Whether an emoji is one of the test, by a hash of its code points."""
    return int(hashlib.sha256(code.encode()).hexdigest()[:8], 16) / 2**32 < TEST_SHARE


def table(rows: list[tuple[str, str, Path]]) -> Any:
    """A dataset of (identity, style, file)."""
    import datasets

    columns = {
        "image": [{"bytes": encoded(file), "path": None} for _, _, file in rows],
        "identity": [code for code, _, _ in rows],
        "camera": [style for _, style, _ in rows],
    }
    kinds = {"image": datasets.Image(), **dict.fromkeys(("identity", "camera"), datasets.Value("string"))}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("google", type=Path, help="the unpacked emoji-datasource-google")
    parser.add_argument("twitter", type=Path, help="the unpacked emoji-datasource-twitter")
    parser.add_argument("out", type=Path, help="folder of the saved dataset")
    given = parser.parse_args()
    import datasets

    drawn = dict(zip(STYLES, map(files, (given.google, given.twitter))))
    codes = sorted(set(drawn[STYLES[0]]) & set(drawn[STYLES[1]]))
    rows = {style: [(code, style, found[code]) for code in codes] for style, found in drawn.items()}
    train = [row for style in STYLES for row in rows[style] if not is_test(row[0])]
    query, gallery = ([row for row in rows[style] if is_test(row[0])] for style in STYLES)
    parts = {"train": table(train), "query": table(query), "gallery": table(gallery)}
    print(", ".join(f"{name} {len(part):,}" for name, part in parts.items()))
    datasets.DatasetDict(parts).save_to_disk(str(given.out))


if __name__ == "__main__":
    main()
