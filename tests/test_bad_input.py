"""Bad input ends with its exit code and one message that says what is wrong; nothing of it is run.

The command line runs in process on some sixty bundled pictures of two classes, at 32 pixels.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toolbox import Payload, flip, in_process, png

from kdcli import cli
from kdcli.launch import StopSignal

ROOT = Path(__file__).parents[1]
CLASSES = ("bag", "shirt")
PER_CLASS = 30


@dataclass
class Bench:
    """Where the commands run, and what is there: data/, other/ and teacher/."""

    root: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, answer and what went to stderr."""
        code, answer, text = in_process(self.capsys, *arguments)
        return code, answer.strip(), text

    def refuses(self, arguments: list[str], code: int, message: str) -> str:
        """Run, expect one message and no traceback; returns the message."""
        found, answer, text = self(*arguments)
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert found == code, text
        assert answer == ""
        assert len(errors) == 1, text
        assert "Traceback" not in text
        assert re.search(message, errors[0]), errors[0]
        assert text.count(errors[0].removeprefix("error: ")) == 1
        return errors[0]


def pictures(label: int, count: int, skip: int = 0) -> Iterator[bytes]:
    """Stored bytes of bundled pictures of one class."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(ROOT / "examples" / "data" / "fashion-mnist" / "train.parquet")
    rows = [row for row in table.slice(0, 1500).to_pylist() if row["label"] == label]
    yield from (row["image"]["bytes"] for row in rows[skip : skip + count])


def folder(root: Path, classes: tuple[str, ...] = CLASSES, count: int = PER_CLASS) -> Path:
    """An image folder: train/CLASS/NUMBER.png."""
    for number, name in enumerate(classes):
        place = root / "train" / name
        place.mkdir(parents=True)
        for i, data in enumerate(pictures(number, count)):
            (place / f"{i:03}.png").write_bytes(data)
    return root


def parquet(file: Path, cells: list[dict[str, Any]], labels: list[str]) -> Path:
    """A parquet file with an image column as datasets reads one."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    table = pyarrow.Table.from_pydict({"image": cells, "label": labels}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, file)
    return file


BOMB = png(20_000, 20_000, 8, 0, bytes(1000))
STUDENT = ["--student", "test_vit", "--from-scratch", "--image-size", "32", "--seed", "1"]
STUDENT += ["--max-steps", "2", "--batch-size", "8"]
SUPERVISED = ["distill", "--method", "supervised", *STUDENT]
DISTILL = ["distill", "--teacher", "teacher", *STUDENT]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a teacher, made once."""
    root = tmp_path_factory.mktemp("bad-input")
    folder(root / "data")
    before = Path.cwd()
    os.chdir(root)
    try:
        answer = io.StringIO()
        arguments = [*SUPERVISED, "--data", "data", "--out", "teacher", "--device", "cpu", "--quiet"]
        assert cli.run(arguments, answer, StopSignal()) == 0
        assert answer.getvalue() == "teacher\n"
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def bench(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    """A fresh folder with links to the shared data and teacher."""
    for name in ("data", "teacher"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, capsys)


CASES = {
    "unknown option": ("distill --techer x", 2, "unknown option '--techer'. Did you mean '--teacher'"),
    "unknown key": ("distill --set optim.lrr=1", 2, "unknown key 'optim.lrr'. Did you mean 'optim.lr'"),
    "unknown method": ("distill --method kdd --data data", 2, "unknown method 'kdd'. Did you mean 'kd'"),
    "no data": ("{distill}", 2, "--data is required"),
    "no teacher": ("distill --student test_vit --from-scratch --data data", 2, "needs --teacher"),
    "no such teacher": ("{distill} --data data --teacher runs/none", 3, "runs/none does not exist"),
    "no such data": ("{distill} --data runs/none", 3, "runs/none"),
    "no such model": (
        "{distill} --data data --student tset_vit",
        3,
        "no model named 'tset_vit'. Did you mean",
    ),
    "no such split": ("eval teacher --data data --split tst", 3, "no split 'tst'"),
    "another method's parameter": ("{distill} --data data --method supervised --alpha 0.5", 2, "--alpha"),
    "unknown parameter": (
        "{distill} --data data --method kd --set method.temprature=2",
        2,
        "method.temprature.*Did you mean 'temperature'",
    ),
    "parameter of a wrong type": (
        "{distill} --data data --method kd --set method.ce=x",
        2,
        "method.ce: .*'x'",
    ),
    "views of mixed pictures": ("{distill} --data data --views 2 --set optim.mixup=0.2", 2, "--views live"),
    "no number of views": ("{distill} --data data --views many", 2, "--views: .*'many'"),
    "batch that does not divide": (
        "{distill} --data data --set optim.accumulate=3",
        2,
        r"a batch of 8 does not divide by 3",
    ),
    "fp16 without CUDA": ("{distill} --data data --precision fp16 --device cpu", 4, "fp16"),
    "no weights": (
        "probe --teacher test_vit --data data",
        3,
        "no weights for test_vit.*--weights FILE.*HF_HOME",
    ),
    "weights beside an artifact": ("probe --teacher teacher --weights a --data data", 2, "--weights"),
    "output in the way": ("{distill} --data data --out data", 3, "the output data is --data data"),
    "gate of an unknown metric": (
        "eval teacher --data data --require top2>=0",
        2,
        "no metric 'top2'. Did you mean 'top",
    ),
    "not a model": ("eval data --data data --split train", 3, "data is not a kdcli artifact"),
}


@pytest.mark.parametrize(("line", "code", "message"), CASES.values(), ids=CASES)
def test_refused_by_the_plan(bench: Bench, line: str, code: int, message: str) -> None:
    arguments = line.replace("{distill}", " ".join(DISTILL)).split()
    bench.refuses(arguments, code, message)
    assert {p.name for p in bench.root.iterdir()} <= {"data", "teacher", "runs"}
    assert not list(bench.root.glob("runs/*"))


def test_cuda_without_a_gpu(bench: Bench) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    bench.refuses([*DISTILL, "--data", "data", "--device", "cuda"], 4, "cuda")


DEVICES = {
    "no device": ("gpu", 2, r"--device: one of auto, cpu, cuda, cuda:0, cuda:1, …, mps is wanted, got 'gpu'"),
    "no such one": ("cuda:77", 4, r"--device cuda:77: no such device here\. There is: cpu"),
}


@pytest.mark.parametrize(("device", "code", "message"), DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize(
    "line",
    [
        "{distill} --data data",
        "eval teacher --data data --split train",
        "probe --teacher teacher --head keep",
        "synthesize --mixer cutmix --data data --count 4",
    ],
)
def test_a_dry_run_refuses_a_device_that_is_not_there(
    bench: Bench, line: str, device: str, code: int, message: str
) -> None:
    arguments = line.replace("{distill}", " ".join(DISTILL)).split()
    bench.refuses([*arguments, "--device", device, "--dry-run"], code, message)


def test_a_dry_run_finds_a_size_that_the_patches_do_not_divide(bench: Bench) -> None:
    arguments = [*SUPERVISED, "--data", "data", "--image-size", "50", "--dry-run"]
    bench.refuses(arguments, 3, r"test_vit does not take pictures of 50 pixels .* Take 48 or 64\.")


# -- masks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            Image.new("L", (28, 14), 1),
            r"train row 4: its mask has 28 x 14 pixels, its picture 28 x 28 \(train/m04\.png\)",
        ),
        (
            Image.new("L", (28, 28), 7),
            r"train row 4: its mask has the value 7, outside the 2 classes \(train/m04\.png\)",
        ),
        (
            Image.new("RGB", (28, 28)),
            r"train row 4: its mask: mode RGB, .* Give each colour a class number.*\(train/m04\.png\)\. Mend",
        ),
    ],
)
def test_a_mask_that_is_none(bench: Bench, mask: Image.Image, message: str) -> None:
    place, lines = bench.root / "masks" / "train", []
    place.mkdir(parents=True)
    for i, data in enumerate(pictures(0, 12)):
        (place / f"{i:02}.png").write_bytes(data)
        (mask if i == 4 else Image.new("L", (28, 28), i % 2)).save(place / f"m{i:02}.png")
        lines.append(f'{{"file_name": "{i:02}.png", "mask_file_name": "m{i:02}.png"}}')
    (place / "metadata.jsonl").write_text("\n".join(lines))
    more = ["--data", "masks", "--set", "data.class_names=[ground, thing]"]
    bench.refuses([*SUPERVISED, *more], 3, message)
    assert {p.name for p in bench.root.iterdir()} <= {"data", "teacher", "masks"}


# -- artifacts -----------------------------------------------------------------------------------------------


def test_half_written_artifact(bench: Bench) -> None:
    (bench.root / "half.partial").mkdir()
    bench.refuses([*DISTILL, "--data", "data", "--teacher", "half"], 3, "half is half-written: the run")


def test_a_flipped_bit_in_the_weights(bench: Bench) -> None:
    shutil.copytree(bench.root / "teacher", bench.root / "flipped")
    file = bench.root / "flipped" / "model.safetensors"
    flip(file, -100)
    data = file.read_bytes()
    arguments = [*DISTILL, "--data", "data", "--teacher", "flipped"]
    bench.refuses(arguments, 3, r"flipped/model.safetensors is damaged: its sha256 differs")
    file.write_bytes(data[:-100])
    bench.refuses(arguments, 3, r"flipped/model.safetensors is damaged: [\d,]+ bytes instead of [\d,]+")
    file.unlink()
    bench.refuses(arguments, 3, "flipped/model.safetensors is missing")


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.safetensors"])
def test_a_pickle_as_weights_is_never_run(bench: Bench, name: str) -> None:
    import torch

    trap = bench.root / "executed"
    plain, zipped = bench.root / f"plain-{name}", bench.root / f"zip-{name}"
    plain.write_bytes(pickle.dumps({"state_dict": Payload(trap)}, protocol=2))
    torch.save({"state_dict": Payload(trap)}, zipped)
    for file in (plain, zipped):
        arguments = ["probe", "--teacher", "test_vit", "--data", "data", "--weights", str(file)]
        bench.refuses(arguments, 3, re.escape(str(file)))
        assert not trap.exists()
    pickle.loads(plain.read_bytes())
    assert trap.exists()  # the payload is a real one


def test_weights_with_nan(bench: Bench) -> None:
    import timm
    from safetensors.torch import save_file

    tensors = timm.create_model("test_vit").state_dict()
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, bench.root / "nan.safetensors")
    arguments = ["probe", "--teacher", "test_vit", "--data", "data", "--weights", "nan.safetensors"]
    bench.refuses(arguments, 3, f"nan.safetensors holds NaN or Inf in {name}")


# -- data ----------------------------------------------------------------------------------------------------


def test_another_number_of_classes(bench: Bench) -> None:
    folder(bench.root / "three", (*CLASSES, "shoe"), 12)
    bench.refuses([*DISTILL, "--data", "three"], 3, "teacher knows 2 classes, the data has 3")
    bench.refuses(["eval", "teacher", "--data", "three", "--split", "train"], 3, "knows 2 classes")


def test_other_names_of_classes(bench: Bench) -> None:
    folder(bench.root / "renamed", ("bag", "coat"), 12)
    message = r"teacher and the data name their classes differently \(coat, shirt"
    bench.refuses([*DISTILL, "--data", "renamed"], 3, message)


def test_an_empty_class(bench: Bench) -> None:
    folder(bench.root / "empty", count=12)
    (bench.root / "empty" / "train" / "coat").mkdir()
    bench.refuses([*SUPERVISED, "--data", "empty"], 3, "class folder 'coat' holds no picture")


def test_one_class_folder_or_one_picture_of_each(bench: Bench) -> None:
    folder(bench.root / "alone", CLASSES[:1], 12)
    bench.refuses([*SUPERVISED, "--data", "alone"], 3, "alone has no labels: .*label_column.*no two class")
    folder(bench.root / "single", count=1)
    message = "2 labelled pictures are too few .*raise --set data.validation_fraction .*two pictures or more"
    bench.refuses([*SUPERVISED, "--data", "single"], 3, message)


@pytest.fixture
def cells() -> tuple[list[dict[str, Any]], list[str]]:
    """Image cells with their labels."""
    found = [(data, name) for number, name in enumerate(CLASSES) for data in pictures(number, PER_CLASS)]
    return [{"bytes": data, "path": None} for data, _ in found], [name for _, name in found]


def test_a_corrupt_picture_is_named_or_skipped(
    bench: Bench, cells: tuple[list[dict[str, Any]], list[str]]
) -> None:
    cells[0][7]["bytes"] = cells[0][7]["bytes"][:-40]
    parquet(bench.root / "corrupt.parquet", *cells)
    arguments = [*SUPERVISED, "--data", "corrupt.parquet", "--batch-size", "60", "--device", "cpu"]
    bench.refuses(arguments, 3, r"row 7: .*Mend the picture, or run with --on-bad-image skip")
    arguments += ["--on-bad-image", "skip"]
    bench.refuses(arguments, 3, "1 of 60 pictures .*max_bad_fraction")
    code, answer, text = bench(*arguments, "--set", "data.max_bad_fraction=0.1", "--out", "skipped")
    assert (code, answer) == (0, "skipped"), text


def test_a_decompression_bomb(bench: Bench, cells: tuple[list[dict[str, Any]], list[str]]) -> None:
    assert len(BOMB) < 200
    cells[0][7]["bytes"] = BOMB
    parquet(bench.root / "bomb.parquet", *cells)
    arguments = [*SUPERVISED, "--data", "bomb.parquet", "--batch-size", "60", "--device", "cpu"]
    bench.refuses(arguments, 3, "row 7: picture too large: .*(400000000|400,000,000) pixels")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret.png", "http://localhost:1/x.png", "file:///etc/passwd"]
)
def test_a_cell_that_names_a_foreign_file(
    bench: Bench, cells: tuple[list[dict[str, Any]], list[str]], path: str
) -> None:
    (bench.root.parent / "secret.png").write_bytes(cells[0][0]["bytes"])
    cells[0][7] = {"bytes": None, "path": path}
    parquet(bench.root / "foreign.parquet", *cells)
    arguments = [*SUPERVISED, "--data", "foreign.parquet"]
    bench.refuses(arguments, 3, f"row 7: .*named as '{re.escape(path)}'.*never opened")


# -- outputs, disk, training ---------------------------------------------------------------------------------


def test_other_settings_on_the_same_output(bench: Bench) -> None:
    arguments = [*SUPERVISED, "--data", "data", "--out", "teacher", "--lr", "0.25"]
    bench.refuses(
        arguments, 3, r"belongs to a run with other settings: .*config.optim.lr \(0.0005 then, 0.25 now\)"
    )
    same = [*SUPERVISED, "--data", "data", "--out", "teacher", "--device", "cpu"]
    assert bench(*same)[:2] == (0, "teacher")


def test_a_dash_without_upstream(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    bench.refuses(["eval", "-", "--data", "data"], 3, "upstream wrote no path")


def test_a_full_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mocked: one `os.write` of the manifest's files says that the disk is full."""
    real, full = os.write, []

    def write(fd: int, data: Any) -> int:
        if not full and b"sha256" in bytes(data):
            full.append(fd)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    arguments = [*SUPERVISED, "--data", "data", "--out", "full", "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        bench.refuses(arguments, 4, "no space left on the disk while writing .*full")
    assert full
    assert not (bench.root / "full").exists()
    assert bench(*arguments)[:2] == (0, "full")


def test_a_loss_that_diverges(bench: Bench) -> None:
    arguments = [*SUPERVISED, "--data", "data", "--out", "lost", "--device", "cpu", "--max-steps", "6"]
    arguments += ["--lr", "1e12", "--set", "optim.clip_grad=null", "--set", "optim.warmup=0"]
    line = bench.refuses(arguments, 6, r"the (loss|gradient) became (nan|inf) in step \d+ \(samples")
    step = int(re.search(r"in step (\d+)", line)[1])  # type: ignore[index]
    states = [p.name for p in (bench.root / "lost.partial").glob("state-*")]
    assert states == [f"state-{step - 1:012d}"]
    assert not (bench.root / "lost").exists()
