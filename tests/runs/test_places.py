"""Where a run may write: every way to name a place in, on or around what is read is refused."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toolbox import encode

from kdcli import cli
from kdcli.artifacts.books import read_book
from kdcli.artifacts.manifest import Manifest, is_ours
from kdcli.artifacts.marks import MARK
from kdcli.artifacts.store import open_output, write_bytes
from kdcli.config import resolve
from kdcli.data import hashes
from kdcli.errors import EnvironmentFault, InputError, UsageError
from kdcli.launch import StopSignal
from kdcli.runs import frame, places
from kdcli.stages import distill, evaluate, probe, synthesize


def artifact(out: Path) -> Path:
    """A small model artifact with a member."""
    with open_output(out, {}) as output:
        assert output is not None
        (output.partial / "last").mkdir()
        for name in ("config.json", "last/config.json"):
            write_bytes(output.partial / name, b"{}")
        output.commit(Manifest("model", "probe", {}), ["config.json", "last"])
    return out


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a user: pictures, a teacher, weights."""
    home = tmp_path / "exp"
    for name in ("cat", "dog"):
        (home / "cars" / name).mkdir(parents=True)
        (home / "cars" / name / "0.png").write_bytes(encode(np.zeros((8, 8, 3), np.uint8)))
    artifact(home / "teacher")
    (home / "own.safetensors").touch()
    (home / "work").mkdir()
    monkeypatch.chdir(home / "work")
    return home


def check(stage: Any = distill, out: str | None = None, **options: Any) -> None:
    given = {key.replace("__", "."): value for key, value in options.items()}
    config = resolve(stage.Config, options={**given, **({"out": out} if out else {})})
    places.check(config, Path(out or "runs/x-0123456789"))


def refused(message: str, **options: Any) -> None:
    for overwrite in (False, True):
        with pytest.raises(InputError, match=message):
            check(overwrite=overwrite, **options)


# -- inputs --------------------------------------------------------------------------------------------------
INPUTS: list[tuple[Any, str, Callable[[str], Any], str]] = [
    (distill, "data__source", str, "--data"),
    (distill, "data__extra", lambda path: ["elsewhere", path], "--extra"),
    (distill, "teacher", lambda path: ["resnet18", path], "--teacher"),
    (distill, "student", str, "--student"),
    (distill, "student", lambda path: f"local-dir:{path}", "--student"),
    (distill, "via", lambda path: [path], "--via"),
    (probe, "teacher", str, "--teacher"),
    (evaluate, "models", lambda path: ["resnet18", path], "the argument"),
    (evaluate, "teacher", str, "--teacher"),
    (synthesize, "weights", str, "--weights"),
    (synthesize, "merge", lambda path: [path], "--merge"),
    (synthesize, "data__source", str, "--data"),
]


@pytest.mark.parametrize(("stage", "field", "given", "option"), INPUTS)
def test_every_input_of_every_stage(
    desk: Path, stage: Any, field: str, given: Callable[[str], Any], option: str
) -> None:
    read = {field: given("../teacher")}
    refused(
        rf"^the output \.\./teacher is {option} .*teacher: .*Choose another --out",
        stage=stage,
        out="../teacher",
        **read,
    )
    refused(f"the output .* contains {option}", stage=stage, out=str(desk), **read)
    refused(
        f"the output .* contains {option}", stage=stage, out="../teacher", **{field: given("../teacher/last")}
    )
    refused(f"the output .* lies in {option}", stage=stage, out="../teacher/report", **read)
    check(stage=stage, out="../teacher2", **read)


def test_files_that_are_read(desk: Path) -> None:
    refused("own.safetensors is --weights", out="../own.safetensors", weights="../own.safetensors")
    refused("contains --weights", out="..", weights="../own.safetensors")
    (desk / "x.partial").mkdir()
    shutil.move(desk / "own.safetensors", desk / "x.partial" / "own.safetensors")
    refused(r"x\.partial contains --weights", out="../x", weights="../x.partial/own.safetensors")
    check(out="../own", weights="../x.partial/own.safetensors")


def test_names_that_are_no_paths(desk: Path) -> None:
    check(out="facebook", student="facebook/convnext")
    check(out="x", student="hf-hub:x", data__source="example:x", teacher=["x/y", ""])
    (Path.cwd() / "facebook").mkdir()
    check(out="facebook2", student="facebook/convnext")


@pytest.mark.parametrize("relation", ["is", "contains", "lies in"])
@pytest.mark.parametrize("way", ["link to the input", "link to the output", "dots", "link above", "home"])
def test_other_names_of_the_same_place(
    desk: Path, monkeypatch: pytest.MonkeyPatch, way: str, relation: str
) -> None:
    data, out = desk / "cars", {"is": "cars", "contains": ".", "lies in": "cars/new"}[relation]
    source, place = str(data), str(desk / out)
    if way == "link to the input":
        (desk / "work" / "link").symlink_to(data)
        source = "link"
    elif way == "link to the output":
        if relation == "lies in":
            (desk / "new").mkdir()
            (data / "new").symlink_to(desk / "new")
        else:
            (desk / "work" / "out").symlink_to(desk / out)
            place = "out"
    elif way == "dots":
        source, place = "./../cars/.", f"../cars/../{out}/"
    elif way == "link above":
        (desk / "work" / "up").symlink_to(desk)
        place = f"up/{out}"
    else:
        monkeypatch.setenv("HOME", str(desk))
        source = "~/cars"
    refused(f"^the output .* {relation} --data {re.escape(source)}: ", out=place, data__source=source)


def test_directories_are_compared_by_the_file_system(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system without case does: CARS is cars."""
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        return real(path.replace("CARS", "cars") if isinstance(path, str) else path, **options)

    monkeypatch.setattr(os, "stat", stat)
    refused("is --data", out="../CARS", data__source="../cars")
    refused("lies in --data", out="../CARS/new", data__source="../cars")
    refused("contains --data", out="../CARS", data__source="../cars/cat")


def test_a_link_in_the_output_to_data_elsewhere(desk: Path) -> None:
    (desk / "teacher" / "data").symlink_to(desk / "cars")
    refused("teacher contains --data", out="../teacher", data__source="../teacher/data")


# -- hashes of pictures --------------------------------------------------------------------------------------
def kept(**options: Any) -> Path | None:
    return places.kept_hashes(resolve(distill.Config, options=options))


def test_hashes_of_pictures_are_kept_below_the_cache(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept() == Path("runs/cache/picture-hashes")
    assert kept(cache="../new", out="../x") == Path("../new/picture-hashes")
    refusals: list[dict[str, Any]] = [
        {"cache": "../teacher/cache"},
        {"cache": "../own.safetensors"},
        {"cache": "../x/cache", "out": "../x"},
        {"cache": "../x.partial/cache", "out": "../x"},
    ]
    assert [kept(**options) for options in refusals] == [None] * len(refusals)
    monkeypatch.setattr(hashes, "_FEWEST", 1)
    monkeypatch.setattr(hashes, "GRAIN_NS", 0)
    config = resolve(distill.Config, options={"data.source": "../cars", "data.validation": "train"})
    first = frame.labelled(config.data, "train", run=config)
    (book,) = Path("runs/cache/picture-hashes").glob("*.hashes")
    assert len(read_book(book)[0].paths) == 2
    assert frame.labelled(config.data, "train", run=config).fingerprint == first.fingerprint
    assert is_ours("runs")


# -- the working directory, the cache, kdcli's own -----------------------------------------------------------
def test_the_working_directory(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out, relation in ((".", "is"), ("..", "contains"), (str(desk / "work"), "is")):
        refused(f"the output .* {relation} the working directory /", out=out)
    monkeypatch.chdir(artifact(desk / "x"))
    refused("the output .*x is the working directory", out="../x")
    (desk / "y.partial" / "deep").mkdir(parents=True)
    monkeypatch.chdir(desk / "y.partial" / "deep")
    refused(r"y\.partial contains the working directory", out=str(desk / "y"))


@pytest.mark.parametrize(
    ("out", "cache", "relation"),
    [
        ("runs", "runs/cache", "contains"),
        ("runs/x", "runs/x/cache", "contains"),
        ("runs/x", "runs/x.partial/cache", "contains"),
        ("runs/x", "runs/x", "is"),
        ("runs/cache/x", "runs/cache", "lies in"),
        ("x", ".", "lies in"),
    ],
)
def test_the_cache_whether_it_is_there_or_not(desk: Path, out: str, cache: str, relation: str) -> None:
    refused(f"the output .* {relation} --cache {re.escape(cache)}: ", out=out, cache=cache)
    Path(cache).mkdir(parents=True, exist_ok=True)
    refused(f"the output .* {relation} --cache {re.escape(cache)}: ", out=out, cache=cache)


def test_a_cache_that_was_named_is_looked_at_by_the_plan(desk: Path) -> None:
    for cache in ("../own.safetensors", "../own.safetensors/below"):
        with pytest.raises(
            EnvironmentFault, match=rf"--cache {cache}: .*own\.safetensors is not a directory"
        ):
            check(out="x", cache=cache)
    Path("runs").touch()
    check(out="x")  # the default may not be used at all


def test_directories_that_kdcli_keeps(desk: Path) -> None:
    refused(r"the output \.\./teacher/x lies in .*teacher, which is an artifact", out="../teacher/x")
    for cache in ("../teacher", "../teacher/below"):
        refused(rf"--cache {cache} lies in .*teacher, which is an artifact", out="x", cache=cache)
    (desk / "y.partial").mkdir()
    write_bytes(desk / "y.partial" / ".lock", MARK)
    refused(
        r"lies in .*y\.partial, which is an artifact, an unfinished output or a cache", out="../y.partial/a/b"
    )


def test_the_log_of_a_tracker(desk: Path) -> None:
    shutil.move(desk / "cars", desk / "x.track")
    check(out="../x", data__source="../x.track")
    refused(r"x\.track is --data", out="../x", data__source="../x.track", track=["tensorboard"])
    (desk / "y.track").touch()
    artifact(desk / "z.track")
    for out in ("../y", "../z"):
        check(out=out)
        refused(
            rf"--track writes to {desk}.*\.track, and something else stands", out=out, track=["tensorboard"]
        )


def test_names_that_cannot_be(desk: Path) -> None:
    for out in ("../teacher.partial", "/"):
        refused(r"cannot name an artifact|contains the working directory", out=out)
    for key in ("out", "cache"):
        with pytest.raises(UsageError, match=rf"--{key}: a text without the character NUL is wanted"):
            check(**{key: "a\0b"})


# -- what stands there ---------------------------------------------------------------------------------------
def test_what_stands_there_is_refused_by_the_plan(desk: Path) -> None:
    check(out="../teacher")
    check(out="../teacher", overwrite=True)
    (desk / "teacher" / "notes.txt").touch()
    check(out="../teacher")
    with pytest.raises(InputError, match=r"teacher holds notes\.txt, which its manifest does not name"):
        check(out="../teacher", overwrite=True)
    refused("cars exists and is not a kdcli artifact", out="../cars")
    shutil.move(desk / "cars", desk / "x.partial")
    refused(r"x\.partial is needed for the unfinished output, and holds something else", out="../x")
    write_bytes(desk / "y.partial", b"")
    refused(r"y\.partial is not a directory", out="../y")


# -- outputs in the data -------------------------------------------------------------------------------------
def test_the_default_output_may_lie_in_the_data(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data's reader leaves it out; what the user named, he can name elsewhere."""
    monkeypatch.chdir(desk / "cars")
    check(data__source=".")
    check(data__source=str(desk), data__extra=["."])
    refused("lies in --data", out="runs/x", data__source=".")
    artifact(Path("runs/x-0123456789"))
    (Path("runs") / "cache" / "0123").mkdir(parents=True)
    write_bytes(Path("runs") / "cache" / "0123" / ".lock", MARK)
    assert is_ours("runs")
    assert not is_ours("cat")
    with pytest.raises(InputError, match="lies in --teacher"):
        check(teacher=["."])


# -- the command line ----------------------------------------------------------------------------------------
def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = cli.run(["distill", *arguments, "--quiet"], io.StringIO(), StopSignal())
    return code, capsys.readouterr().err


def test_no_picture_is_deleted(
    desk: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk.parent)
    shutil.copytree(pictures, desk / "saved")
    supervised = ["--method", "supervised", "--student", "test_vit", "--from-scratch", "--data", "exp/saved"]
    (desk / "kdcli.json").write_text("{}")
    before = sorted(desk.rglob("*"))
    for more, message in (
        (["--out", "exp"], "the output exp contains --data exp/saved"),
        (["--out", "exp/saved"], "the output exp/saved is --data exp/saved"),
        (["--out", "exp/saved/x"], "the output exp/saved/x lies in --data exp/saved"),
        (["--out", "exp/x", "--cache", "exp/x"], "the output exp/x is --cache exp/x"),
        (["--out", "exp/cars"], "exp/cars exists and is not a kdcli artifact"),
    ):
        for overwrite in ([], ["--overwrite"], ["--overwrite", "--dry-run"]):
            code, text = command(capsys, *supervised, *more, *overwrite)
            assert (code, message in text) == (3, True), text
    assert sorted(desk.rglob("*")) == before
    assert os.listdir(desk.parent) == ["exp"]


def test_a_config_file_that_would_be_deleted(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "x.partial").mkdir()
    for file, out in ((desk / "x.partial" / "c.yaml", "../x"), (desk / "teacher" / "c.yaml", "../teacher")):
        file.write_text("seed: 1")
        code, text = command(capsys, "--config", str(file), "--out", out)
        assert code == 3
        assert f"{desk.name}" in text
        assert f"contains --config {file}" in text


def test_a_chain_is_refused_before_its_first_link(
    desk: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "work" / "out-via-2").mkdir()
    (desk / "work" / "out-via-2" / "notes.txt").touch()
    vit = ["--via", "test_vit", "--via", "test_vit", "--student", "test_vit", "--from-scratch"]
    code, text = command(capsys, *vit, "--teacher", "../teacher", "--data", str(pictures), "--out", "out")
    assert code == 3
    assert "out-via-2 exists and is not a kdcli artifact" in text
    assert os.listdir() == ["out-via-2"]
