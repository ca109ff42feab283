"""Pictures and what is said of them: some to align a picture tower with a text tower, others to distil on.

    npm pack emoji-datasource-google && mkdir -p google && tar xzf emoji-datasource-google-*.tgz -C google
    npm pack emoji-datasource-twitter && mkdir -p twitter && tar xzf emoji-datasource-twitter-*.tgz -C twitter
    python examples/texts.py runs/texts google/package twitter/package
    python examples/texts.py runs/toy    # the bundled pictures of clothes: for trying commands only

``names`` is what the teacher is aligned on, as CLIP is on captions, and ``kinds`` what students learn and are
measured on; no picture is in both, but nearly all kinds are: the teacher has seen such things, and none of
these pictures.

Emoji: Noto is under Apache-2.0, Twemoji under CC-BY-4.0; each emoji is there in both drawings, 64 pixels a
side. Half of the emoji (by hash) are ``names``, a class for each. Of the other half a class is one of
Unicode's subcategories ("animal mammal") of which there are enough pictures. A description of a kind is some
emoji of it by name, which a language model would list too; they are of the first half, so that none names a
picture that is measured.

``kinds.json`` has natural names and descriptions, ``shuffled.json`` gives each kind another kind's
description, ``captions.json`` says of every picture of ``kinds`` what it is called.
"""

import argparse
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STYLES = ("noto", "twemoji")
LEAST, NAMED = 10, 5  # pictures of a kind that takes part; emoji in a description
BUNDLED = Path(__file__).parent / "data" / "fashion-mnist" / "train.parquet"
CLOTHES = {
    "T-shirt/top": "a light garment for the upper body with short sleeves and a round neck",
    "Trouser": "two long straight legs that hang from a waistband",
    "Pullover": "a thick knitted garment with long sleeves and no opening at the front",
    "Dress": "a long narrow garment from the shoulders to below the knees",
    "Coat": "a heavy garment with long sleeves, a collar and an opening all along the front",
    "Sandal": "an open shoe of straps over a flat or raised sole",
    "Shirt": "a garment for the upper body with sleeves, a collar and a row of buttons",
    "Sneaker": "a low closed shoe with laces and a thick flat sole",
    "Bag": "a wide container with a handle or a strap above it",
    "Ankle boot": "a closed shoe with a high shaft around the ankle and a heel",
}
FEW = 1200  # of the bundled pictures
HELD = 10  # of so many names one keeps its second drawing for validation
SKIPPED = ("Component", "Flags")  # parts of emoji; and flags, which no text describes


def entries(package: Path) -> list[dict[str, Any]]:
    """What the package says of each emoji, by code points."""
    found = json.loads((package / "emoji.json").read_text())
    kept = [entry for entry in found if entry["category"] not in SKIPPED and entry["name"]]
    return sorted(kept, key=lambda entry: entry["unified"])


def named(entry: dict[str, Any]) -> str:
    """Its short name in words: ``dog face`` of ``dog_face``."""
    return str(entry["short_name"]).replace("_", " ").replace("-", " ").strip(" +")


def half(entry: dict[str, Any]) -> int:
    """0 for an emoji of ``names``, 1 for one of ``kinds``."""
    return hashlib.sha256(entry["unified"].encode()).digest()[0] & 1


def emoji(packages: Sequence[Path], folder: Path) -> None:
    """Write both folders of emoji, and the texts."""
    images = [next(p for p in (package / "img").iterdir() if p.is_dir()) / "64" for package in packages]
    seen: set[str] = set()
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    members: dict[str, list[str]] = defaultdict(list)
    for entry in entries(packages[0]):
        kind, name = entry["subcategory"], named(entry)
        if not all((own / entry["image"]).exists() for own in images) or name in seen:
            continue
        seen.add(name)
        if half(entry):
            kinds[kind].append(entry)
            continue
        members[kind].append(name)
        for style, own in zip(STYLES, images):
            held = style == STYLES[1] and len(members[kind]) % HELD == 0
            place = folder / "names" / ("validation" if held else "train") / name.replace("/", " ")
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(own / entry["image"], place / f"{style}.png")
    captions: dict[str, str] = {}
    large = {kind: own for kind, own in kinds.items() if 2 * len(own) >= LEAST and members[kind]}
    for kind, own_entries in sorted(large.items()):
        for entry in own_entries:
            for style, own in zip(STYLES, images):
                place = Path("train", kind, f"{entry['unified']}-{style}.png")
                (folder / "kinds" / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(own / entry["image"], folder / "kinds" / place)
                captions[place.as_posix()] = f"a drawing of {named(entry)}"
    said = {kind: f"such as {', '.join(sorted(members[kind])[:NAMED])}" for kind in sorted(large)}
    source = "names of other emoji"
    described(folder, {kind: (kind.replace("-", " "), text) for kind, text in said.items()}, captions, source)


def clothes(folder: Path) -> None:
    """Write the bundled pictures, a third of them to align on, and the texts."""
    import datasets

    table = datasets.load_dataset("parquet", data_files=str(BUNDLED), split="train")
    table = table.cast_column("image", datasets.Image(decode=False))
    names, captions = table.features["label"].names, dict[str, str]()
    for number, row in enumerate(table.select(range(FEW))):
        kind = names[row["label"]].replace("/", " ")
        half = "names" if number % 3 == 0 else "kinds"
        split = "validation" if number % 30 == 0 else "train"
        place = Path(split, kind, f"{number:05}.png")
        (folder / half / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / half / place).write_bytes(row["image"]["bytes"])
        if half == "kinds":
            captions[place.as_posix()] = f"a grey picture of {kind.lower()} from the front"
    found = {name.replace("/", " "): (name.lower().replace("/", " or "), CLOTHES[name]) for name in names}
    described(folder, found, captions, "written for this example")


def described(folder: Path, said: dict[str, tuple[str, str]], captions: dict[str, str], source: str) -> None:
    """Write what is said of kinds, by class name and description, and of pictures."""
    others = [*list(said.values())[1:], next(iter(said.values()))]
    turned = {kind: (own[0], other[1]) for (kind, own), other in zip(said.items(), others)}
    for file, texts in (("kinds.json", said), ("shuffled.json", turned)):
        table = {
            kind: {"name": name, "description": text, "source": source}
            for kind, (name, text) in texts.items()
        }
        (folder / file).write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    (folder / "captions.json").write_text(json.dumps(captions, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("folder", type=Path, help="to write into")
    parser.add_argument(
        "packages", type=Path, nargs="*", help="unpacked emoji-datasource-google and -twitter"
    )
    given = parser.parse_args()
    if given.packages:
        emoji(given.packages, given.folder)
    else:
        clothes(given.folder)


if __name__ == "__main__":
    main()
