"""A folder that answers pictures without kdcli: the ONNX file, labels, preprocessing, ``predict.py``, a card.

``predict.py`` needs onnxruntime, numpy and pillow. It cuts pictures with Pillow as the evaluation does, which
resizes with Pillow too, so that the pixels are the same ones; see :class:`kdcli.data.views.EvaluationCut`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcli.artifacts.files import write_bytes
from kdcli.compression.onnx import detects, embeds, shape_of
from kdcli.data.views import WholeCut
from kdcli.errors import InputError
from kdcli.models.protocol import Model
from kdcli.tasks import entry

LABELS, PREPROCESSING, PREDICT, CARD = "labels.txt", "preprocessing.json", "predict.py", "README.md"
_GREY = [0.299, 0.587, 0.114]  # of red, green and blue: ITU-R BT.601, as networks of one channel see pictures
_BORDER = [124, 116, 104]  # what timm pads with: the mean of ImageNet
_ANSWERS = {
    "class": "logits of one class a picture: their softmax is printed",
    "labels": "logits of any number of labels a picture: their sigmoid is printed",
    "mask": "logits of a class for every cell of a grid over the whole picture: areas are printed",
    "boxes": "the best detections, each of x1, y1, x2, y2 (fractions of the picture), score and class; those "
    "of a score of 0.3 or more are printed, in pixels",
    "embedding": "an embedding; pictures are compared by the cosine of theirs",
}


def deploy(
    network: Model,
    folder: Path,
    facts: Mapping[str, Any],
    *,
    metrics: Mapping[str, float] | None = None,
    licence: str = "",
) -> list[str]:
    """Write what stands beside an ONNX file so that the folder answers pictures by itself.

    Args:
        network: that the file was made of.
        folder: of the file.
        facts: of :func:`kdcli.compression.onnx.export_onnx`, or of
            :func:`kdcli.compression.quantize.quantise_onnx`; ``check``, what
            :func:`kdcli.compression.onnx.check_onnx` found, enters the card if it is among them.
        metrics: for the card, by name.
        licence: of the weights, for the card.

    Returns:
        Names of all files of the folder, those of the ONNX file among them.

    Raises:
        InputError: an interpolation that changes from picture to picture.
        EnvironmentFault: the disk refuses.
    """
    how, labels = preprocessing(network, facts), label_lines(network)
    texts = {PREPROCESSING: json.dumps(how, indent=1) + "\n"}
    if how["labels"]:
        texts[LABELS] = "".join(f"{label}\n" for label in labels)
    texts[PREDICT] = Path(__file__).with_name("templates").joinpath(PREDICT).read_text(encoding="utf-8")
    texts[CARD] = _card(network, facts, how, metrics or {}, licence)
    for name, text in texts.items():
        write_bytes(folder / name, text.encode(errors="backslashreplace"))
    return [*facts["files"], *sorted(texts)]


def preprocessing(network: Model, facts: Mapping[str, Any]) -> dict[str, Any]:
    """How a picture becomes the input of an ONNX file, and what its output is; see ``predict.py``.

    A network that answers with a mask sees the whole picture, squashed, as it is measured.

    Args:
        network: that the file was made of.
        facts: of :func:`kdcli.compression.onnx.export_onnx`.

    Raises:
        InputError: an interpolation that changes from picture to picture.
    """
    kind = answer_of(network)
    spec = WholeCut(network.spec).spec if kind == "mask" else network.spec
    if spec.interpolation == "random":
        raise InputError(
            f"{network.name} wants pictures resized by a random interpolation, which no deployment repeats: "
            "set interpolation in the config.json of the model."
        )
    return {
        **spec.to_json(),
        "resize": [math.floor(side / spec.crop) for side in spec.size],
        "fill": _BORDER if spec.crop_mode == "border" else [0, 0, 0],
        "grey": _GREY if spec.channels == 1 else None,
        "file": facts["file"],
        "input": facts["input"]["name"],
        "dtype": facts["input"]["dtype"],
        "output": facts["output"]["name"],
        "answer": kind,
        "labels": LABELS if label_lines(network) else None,
    }


def answer_of(network: Model) -> str:
    """What kind of answer it gives: ``boxes``, ``embedding``, ``mask``, ``class`` or ``labels``."""
    if detects(network):
        return "boxes"
    if embeds(network):
        return "embedding"
    if len(network.logit_shape) > 1:
        return "mask"
    return "class" if "class" in entry(network.task).provides else "labels"


def label_lines(network: Model) -> list[str]:
    """Names of the logits, a line each, or their numbers where there are no names; none for an embedding.

    A line break within a name, of any kind, is written as its escape (a backslash and ``n``).
    """
    if embeds(network):
        return []
    return ["".join(map(_visible, name)) for name in network.columns or ()]


def _visible(character: str) -> str:
    return repr(character)[1:-1] if character.splitlines() == [""] else character


def _card(
    network: Model,
    facts: Mapping[str, Any],
    how: Mapping[str, Any],
    metrics: Mapping[str, float],
    licence: str,
) -> str:
    """The text of ``README.md``."""
    height, width = how["size"]
    whose = "normalised inside the graph" if facts["inside"] else "normalised by `predict.py`"
    lines = [
        f"# {network.architecture}: {network.task}",
        "",
        "    pip install onnxruntime numpy pillow",
        "    python predict.py PICTURE …",
        "",
        f"* Input: `{how['input']}`, {shape_of(facts, 'input')}; {height}x{width} pixels, {whose}",
        f"* Output: `{how['output']}`, {shape_of(facts, 'output')}: {_ANSWERS[how['answer']]}",
        f"* File: `{how['file']}`, {facts['bytes']:,} bytes, ONNX opset {facts['opset']}",
    ]
    if how["labels"]:
        lines.append(f"* Classes: {network.outputs}, one a line of `{LABELS}` in the order of the logits")
    if check := facts.get("check"):
        others = check.get("chosen_otherwise", 0)
        lines.append(
            f"* Checked on {check['pictures']} pictures: answers differ by {check['difference']:.2g} at most "
            f"from those of the network, the largest of which is {check['largest']:.3g}"
            + (f"; in {others} answers others were chosen, whose scores tie" if others else "")
        )
    if integers := facts.get("quantised"):
        calibrated = f", calibrated on {integers['pictures']} pictures" if integers["pictures"] else ""
        lines.append(
            f"* {integers['kind'].capitalize()} int8{calibrated}: answers differ by "
            f"{integers['difference']:.2g} at most from those of the network, the largest of which is "
            f"{integers['largest']:.3g}"
        )
    if licence:
        lines.append(f"* Licence: {' '.join(licence.split())}")
    lines += [
        "* Pictures: the orientation of EXIF is applied, transparency is laid over white, more than 8 bits a "
        "sample are refused",
    ]
    if metrics:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return "\n".join(lines) + "\n"
