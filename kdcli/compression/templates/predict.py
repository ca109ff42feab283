"""What the network in this folder answers to pictures: ``python predict.py PICTURE …``.

Needs onnxruntime, numpy and pillow. ``from predict import answer`` gives the numbers.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
HOW = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
LABELS = (HERE / HOW["labels"]).read_text(encoding="utf-8").splitlines() if HOW["labels"] else []
SESSION = onnxruntime.InferenceSession(str(HERE / HOW["file"]), providers=["CPUExecutionProvider"])


def cut(picture: Image.Image) -> np.ndarray:
    """The view of a picture that the network was measured on: uint8 [H, W, 3]."""
    if picture.mode[0] in "IF":
        raise SystemExit(f"{picture.mode}: more than 8 bits a sample. Convert the picture first.")
    upright = ImageOps.exif_transpose(picture)
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        upright = Image.new("RGB", clear.size, "white")
        upright.paste(clear, mask=clear.getchannel("A"))
    (w, h), (height, width), (high, wide) = upright.size, HOW["size"], HOW["resize"]
    if HOW["crop_mode"] == "squash":
        resized = wide, high
    elif HOW["crop_mode"] == "center" and high == wide:
        resized = (wide, int(wide * h / w)) if w <= h else (int(high * w / h), high)
    else:
        ratio = (max if HOW["crop_mode"] == "border" else min)(h / high, w / wide)
        resized = round(w / ratio), round(h / ratio)
    small = upright.convert("RGB").resize(resized, Image.Resampling[HOW["interpolation"].upper()])
    left, top = (round((a - b) / 2) if a > b else -((b - a) // 2) for a, b in zip(resized, (width, height)))
    view = Image.new("RGB", (width, height), tuple(HOW["fill"]))
    view.paste(small, (-left, -top))
    return np.asarray(view)


def answer(file: str | Path) -> np.ndarray:
    """Logits [C] or [C, h, w], the embedding [E], or detections [K, 6] in pixels, of a picture."""
    with Image.open(file) as picture:
        x = cut(picture).transpose(2, 0, 1)[None]
        width, height = ImageOps.exif_transpose(picture).size
    if HOW["dtype"] == "float32":  # else the graph normalises
        x = x.astype(np.float32)
        if len(HOW["mean"]) == 1:
            x = (x * np.array(HOW["grey"], np.float32)[:, None, None]).sum(axis=1, keepdims=True)
        mean, std = (np.array(HOW[name], np.float32)[:, None, None] * 255 for name in ("mean", "std"))
        x = (x - mean) / std
    found = SESSION.run(None, {HOW["input"]: np.ascontiguousarray(x)})[0][0]
    return found * np.array([width, height] * 2 + [1, 1], np.float32) if HOW["answer"] == "boxes" else found


def describe(found: np.ndarray) -> list[str]:
    """Lines: the five likeliest labels, the five largest areas of a mask, boxes, or an embedding's size."""
    if HOW["answer"] == "boxes":
        sure = [row for row in found.tolist() if row[4] >= 0.3]
        return [f"{s:.6f}  {LABELS[int(c)]}  {a:.1f} {b:.1f} {d:.1f} {e:.1f}" for a, b, d, e, s, c in sure]
    if HOW["answer"] == "embedding":
        return [f"embedding of {len(found)} numbers, norm {np.linalg.norm(found):.6f}"]
    if HOW["answer"] == "mask":
        parts = np.bincount(found.argmax(axis=0).ravel(), minlength=len(found)) / found[0].size
    elif HOW["answer"] == "labels":
        parts = 1 / (1 + np.exp(-found.astype(np.float64)))
    else:
        parts = np.exp(found - found.max(), dtype=np.float64)
        parts /= parts.sum()
    return [f"{parts[i]:.6f}  {LABELS[i]}" for i in np.argsort(-parts, kind="stable")[:5]]


if __name__ == "__main__":
    for name in sys.argv[1:] or [__doc__]:
        print(name, *(describe(answer(name)) if sys.argv[1:] else ()), sep="\n")
