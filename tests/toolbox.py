"""What several tests make or break: tiny pictures, traps, a flipped bit, a console that says nothing."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import struct
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from kdcli.console import Console
from kdcli.methods import METHODS

if TYPE_CHECKING:
    from kdcli.models.banks import TextBank

QUIET = Console(silent=True)
"""Methods for toy networks of timm; those of detectors have networks, and tests, of their own."""
EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "fashion-mnist"


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Bytes of a picture as a file."""
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiny_picture(number: int, kind: str = "PNG") -> bytes:
    """A picture of 8 x 8 pixels, of its own for each number."""
    return encode(Image.new("RGB", (8, 8), (number % 251, number // 251, 7)), kind)


def class_folders(folder: Path, counts: dict[str, int], start: int = 0, suffix: str = "png") -> Path:
    """Folders with so many tiny pictures each, all unlike; a name may be a path."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / name / f"{i}.{suffix}").write_bytes(tiny_picture(start))
            start += 1
    return folder


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: bytes,
    before: Iterable[tuple[bytes, bytes]] = (),
    after: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG written by hand, for what Pillow does not write; each row begins with its filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def sample_photographs() -> dict[str, Image.Image]:
    """Scikit-learn's two, 640 x 427, without the five seconds that importing scikit-learn takes."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "images"
    return {  # through arrays, which leaves the files' metadata behind
        name: Image.fromarray(np.asarray(Image.open(folder / name))) for name in ("china.jpg", "flower.jpg")
    }


def scenes(count: int, size: int = 64, seed: int = 0) -> list[tuple[Image.Image, Image.Image]]:
    """Pictures with exact masks: one or two Fashion-MNIST pieces, in colour, on a part of a photograph.

    Classes: 0 background, 1 T-shirt, 2 trouser, 3 bag; 255 (void) is a line of one pixel around each piece.
    """
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(EXAMPLE / "train.parquet").slice(0, 600).to_pylist()
    number = {0: 1, 1: 2, 8: 3}
    pieces = [(row["image"]["bytes"], number[row["label"]]) for row in table if row["label"] in number]
    grounds, rng, made = list(sample_photographs().values()), np.random.default_rng(seed), []
    for i in range(count):
        ground = grounds[i % 2]
        x, y = (int(rng.integers(0, side - 200)) for side in ground.size)
        image = ground.crop((x, y, x + 200, y + 200)).resize((size, size))
        mask = Image.new("L", image.size, 0)
        for _ in range(1 + i % 2):
            data, label = pieces[int(rng.integers(len(pieces)))]
            side = int(rng.integers(size // 2, size * 3 // 4))
            grey = Image.open(io.BytesIO(data)).resize((side, side))
            alpha = grey.point(lambda value: 255 * (value > 32))
            tint = Image.merge("RGB", [grey.point(lambda v, f=f: int(v * f)) for f in rng.uniform(0.3, 1, 3)])
            at = tuple(int(v) for v in rng.integers(0, size - side, 2))
            image.paste(tint, at, alpha)
            mask.paste(255, at, alpha.filter(ImageFilter.MaxFilter(3)))
            mask.paste(label, at, alpha)
        made.append((image, mask))
    return made


class Payload:
    """Makes a folder when it is unpickled: nothing that reads pickles may be run on it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def flip(file: Path, at: int = -1) -> None:
    """Change one bit of the byte at ``at``."""
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def facts(artifact: Path) -> dict[str, Any]:
    """Its manifest."""
    return json.loads((artifact / "kdcli.json").read_text())


def rows(artifact: Path) -> list[dict[str, Any]]:
    """Rows of its log."""
    return [json.loads(line) for line in (artifact / "metrics.jsonl").read_text().splitlines()]


def synthesis_plan(pictures: Path, out: Path, **options: Any) -> Any:
    """A plan of ``kdcli synthesize``, 40 pictures in few steps, its cache beside its output."""
    from kdcli.config import resolve
    from kdcli.stages import synthesize

    given = {"data.source": str(pictures), "count": 40, "out": str(out), "cache": str(out.parent / "cache")}
    if options.get("mixer") not in ("mixup", "cutmix"):
        given["sampling.steps"] = 3
    return synthesize.plan(resolve(synthesize.Config, options={**given, **options}), QUIET)


def inversion_plan(network: Path, out: Path, **options: Any) -> Any:
    """A plan of twenty pictures from a teacher alone, in three blocks of few steps."""
    from kdcli.config import resolve
    from kdcli.stages import synthesize

    given = {
        "mixer": "deepinversion",
        "teacher": str(network),
        "count": 20,
        "out": str(out),
        "inversion.batch": 8,
        "inversion.steps": 6,
    }
    config = resolve(synthesize.Config, options={**given, **options})
    return synthesize.plan(config, QUIET, unless_complete=True)


def synthetic(artifact: Path) -> list[dict[str, Any]]:
    """Rows of a synthetic dataset as plain datasets reads them, pictures as stored."""
    import datasets

    return list(datasets.load_from_disk(str(artifact)).cast_column("image", datasets.Image(decode=False)))


def model_with_exits(out: Path, network: Any, exits: Any, command: str = "distill", **more: Any) -> Path:
    """A model artifact of a network and its exits; ``more`` are facts of its manifest."""
    from kdcli.artifacts.manifest import Manifest
    from kdcli.artifacts.store import open_output
    from kdcli.models.exits import save_exits

    identity = {"made": out.name}
    with open_output(out, identity) as output:
        assert output is not None
        names = [*network.save(output.partial), *save_exits(output.partial, exits)]
        manifest = Manifest("model", command, identity, [], facts={"classes": network.classes, **more})
        output.commit(manifest, names)
    return out


def commit_model(
    network: Any, path: Path, change: Callable[[dict[str, Any]], Any] | None = None, *, labels: bool = True
) -> Path:
    """The network as an artifact, its ``config.json`` changed; without ``labels`` that has no class names."""
    import json

    from kdcli.artifacts.manifest import Manifest
    from kdcli.artifacts.store import open_output

    classes = network.classes
    with open_output(path, {}) as output:
        assert output is not None
        network.classes = classes if labels else None
        names = network.save(output.partial)
        network.classes = classes
        if change:
            file = output.partial / "config.json"
            config = json.loads(file.read_text())
            change(config)
            file.write_text(json.dumps(config))
        facts = {"classes": classes, "layout": network.layout, "task": network.task}
        output.commit(Manifest("model", "distill", {}, facts=facts), names)
    return path


def autoencoder(path: Path) -> Path:
    """A masked autoencoder of random weights for 32 pixels, with its decoder of three blocks."""
    from kdcli.models.autoencoder import Decoder
    from kdcli.models.build import Wanted, build
    from kdcli.models.masked import patch_grid

    if path.exists():
        return path
    network = build("test_vit", Wanted([], task="representation"), pretrained=False, size=32)
    network.decoder = Decoder(64, 32, 3, 0, patch_grid(network), 3 * 16 * 16)
    return commit_model(network, path)


def squares(folder: Path, counts: dict[str, int], side: int = 64, seed: int = 0) -> Path:
    """A saved dataset of dark pictures with up to three red or green squares each, and their boxes."""
    import datasets

    rng = np.random.default_rng(seed)
    kind = {
        "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
        "category": datasets.List(datasets.ClassLabel(names=["red", "green"])),
    }
    features = datasets.Features({"image": datasets.Image(), "objects": kind})
    tables = {}
    for split, count in counts.items():
        rows: dict[str, list[Any]] = {"image": [], "objects": []}
        for number in range(count):
            height, width = (int(n) for n in rng.integers(side, side + 24, 2))
            pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
            found: dict[str, list[Any]] = {"bbox": [], "category": []}
            for _ in range(number % 4):
                w, h = (int(n) for n in rng.integers(side // 6, side // 2, 2))
                x, y, label = (
                    int(rng.integers(width - w)),
                    int(rng.integers(height - h)),
                    int(rng.integers(2)),
                )
                pixels[y : y + h, x : x + w] = [(230, 40, 40), (40, 230, 40)][label]
                found["bbox"].append([float(n) for n in (x, y, w, h)])
                found["category"].append(label)
            rows["image"].append({"bytes": encode(pixels), "path": None})
            rows["objects"].append(found)
        tables[split] = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(tables).save_to_disk(str(folder))
    return folder


def bank(classes: Sequence[str], width: int = 16, seed: int = 5, scale: float = 20.0) -> TextBank:
    """Texts of some classes, embedded at random."""
    import torch

    from kdcli.models.banks import TextBank, mean_of_texts

    rows = torch.randn(len(classes), width, generator=torch.Generator().manual_seed(seed))
    texts = tuple((f"a photo of {name}",) for name in classes)
    unit = mean_of_texts(rows, [1] * len(classes))
    return TextBank(tuple(classes), unit, texts, "nowhere", "of random numbers", scale)


def aligned(path: Path, classes: Sequence[str], seed: int = 1) -> Path:
    """A network of random weights for 32 pixels that compares pictures with texts, embedded at random."""
    from kdcli.models.build import Wanted, build

    if path.exists():
        return path
    wanted = Wanted(list(classes), task="zeroshot", bank=bank(classes))
    network = build("test_resnet", wanted, pretrained=False, size=32, seed=seed)
    network.trained = "artifact"
    return commit_model(network, path)


DETECTOR = "light,num_queries=12,num_denoising=8"


def detector(path: Path, seed: int = 1) -> Path:
    """A detector of random weights for the classes of :func:`squares`, for 64 pixels."""
    from kdcli.models.build import Wanted, build

    if path.exists():
        return path
    kind = DETECTOR.replace("12", "16") + ",encoder_hidden_dim=32"
    wanted = Wanted(["red", "green"], task="detection", head=kind, kind=kind)
    return commit_model(build("test_resnet", wanted, pretrained=False, size=64, seed=seed), path)


def method_options(
    name: str, pictures: Path, probed: Callable[[str], Path], folder: Path, **more: object
) -> dict[str, object]:
    """Options of ``kdcli distill`` for four steps of a method on toy networks; "absent" leaves one out."""
    small: dict[str, dict[str, object]] = {
        "hint": {"method.match": "pool"},
        "fitnets": {"method.match": "pool", "method.hint_share": 0.5},
        "sskd": {"method.head_share": 0.5},
        "ft": {"method.paraphrase_share": 0.5, "method.student": "stage2", "method.teacher": "stage2"},
        "crd": {"method.negatives": 16},
        "seed": {"method.queue": 64},
        "mae": {"student": "test_vit", "method.decoder": 32, "method.decoder_depth": 1},
        "g2sd-generic": {
            "student": "test_vit",
            "method.decoder": 32,
            "method.decoder_depth": 1,
            "method.teacher_block": 2,
        },
        "g2sd-specific": {"student": "test_vit"},
        "proteus": {"student": "test_vit"},
        "ab": {"method.boundary_share": 0.5},
        "eskd": {"method.stop": 0.5},
        "sequential": {"method.generations": 1},
    }
    objects = METHODS[name].needs == "object"
    if objects:
        teacher, pictures = detector(folder / "detector"), folder / "squares"
        small[name] = {"head": DETECTOR, "image_size": 64}
        if not pictures.exists():
            squares(pictures, {"train": 24, "validation": 8})
    else:
        teacher = probed("test_vit" if name == "proteus" else "test_resnet")
    if METHODS[name].needs == "text":
        teacher = aligned(folder / "aligned", ("T-shirt/top", "Trouser", "Pullover", "Dress"))
    if name == "g2sd-generic":
        teacher = autoencoder(folder / "autoencoder")
    options: dict[str, object] = {
        "student": "test_resnet",
        "from_scratch": True,
        "image_size": 32,
        "data.source": str(pictures),
        "optim.max_steps": 4,
        "optim.batch_size": 8,
        "log_every": 1,
        "method.name": name,
        "out": str(folder / "out"),
        "cache": str(folder / "cache"),
        **({"teacher": str(teacher)} if METHODS[name].teacher else {}),
        **small.get(name, {}),
        **more,
    }
    return {key: value for key, value in options.items() if value != "absent"}


def in_process(capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Exit code and answer of a command that runs here, and what it wrote to stderr."""
    from kdcli import cli
    from kdcli.launch import StopSignal

    capsys.readouterr()
    answer = io.StringIO()
    code = cli.run(list(arguments), answer, StopSignal())
    return code, answer.getvalue(), capsys.readouterr().err


def training_plan(source: Path, out: Path, cache: Path, /, **more: Any) -> Any:
    """A plan of ``kdcli distill`` for eight steps of a toy network; ``more`` stands in place of the usual."""
    from kdcli.config import resolve
    from kdcli.stages import distill

    options = {
        **{"student": "test_resnet", "from_scratch": True, "image_size": 32, "data.source": str(source)},
        **{"optim.max_steps": 8, "optim.batch_size": 8, "log_every": 1, "out": str(out), "cache": str(cache)},
        **more,
    }
    found = distill.plan(resolve(distill.Config, options=options), QUIET)
    assert isinstance(found, distill.Plan)
    return found


def heads_plan(source: Path, weights: Path, out: Path, cache: Path, /, **more: Any) -> Any:
    """A plan of ``kdcli probe`` for six epochs of heads on a toy network."""
    from kdcli.config import resolve
    from kdcli.stages import probe

    options = {
        **{"teacher": "test_resnet", "weights": str(weights), "image_size": 32, "data.source": str(source)},
        **{"grid.epochs": 6, "out": str(out), "cache": str(cache)},
        **more,
    }
    found = probe.plan(resolve(probe.Config, options=options), QUIET)
    assert isinstance(found, probe.Plan)
    return found


def measured(models: list[Path], source: Path, out: Path, /, **more: Any) -> Any:
    """The result of ``kdcli eval``, which measures no cost unless it is asked to."""
    from kdcli.config import resolve
    from kdcli.stages import evaluate

    options = {"models": list(map(str, models)), "data.source": str(source), "out": str(out), "cost": False}
    plan = evaluate.plan(resolve(evaluate.Config, options=options | more), QUIET)
    assert isinstance(plan, evaluate.Plan)
    return evaluate.run(plan, QUIET)


class StopAfter:
    """Asks to stop once it was looked at ``looks`` times; loops look before the first step and after each."""

    def __init__(self, looks: int, asks: bool = True) -> None:
        self.left, self.asks = looks, asks

    @property
    def requested(self) -> str | None:
        self.left -= 1
        return "SIGTERM" if self.asks and self.left < 0 else None


class Child:
    """A forked process that runs a function; libraries are loaded already, so a life costs milliseconds."""

    def __init__(self, function: Callable[[Callable[[int], None]], None]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._read)
                function(lambda step: os.write(write, f"{step}\n".encode()) and None)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)

    def wait(self, seconds: float) -> int | None:
        """Exit code, or None if it was killed after ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return None if code == -signal.SIGKILL else code

    def steps(self) -> list[int]:
        """Steps whose commit the child reported."""
        with os.fdopen(self._read) as stream:
            return [int(line) for line in stream.read().split()]
