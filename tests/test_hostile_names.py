"""Names with escape sequences, marks of direction and line breaks: seen as they are written, never obeyed.

Stderr and the page of a report show them in an escaped form; what programs read has them exactly.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from toolbox import class_folders, in_process, tiny_picture

from kdcli.console import legible

EVIL = "a\x1b[2J\x1b]0;b\x07\u202ec\u2066\nerror: d\r\x9b31m\x7f\u2028\ufeffe"
SHOWN = r"a\x1b[2J\x1b]0;b\x07\u202ec\u2066\nerror: d\r\x9b31m\x7f\u2028\ufeffe"
STUDENT = ["--student", "test_resnet", "--from-scratch", "--image-size", "32", "--max-steps", "1"]
TRAIN = ["distill", "--method", "supervised", *STUDENT, "--batch-size", "4", "--device", "cpu"]


@dataclass
class Desk:
    """Where commands run."""

    root: Path
    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, answer, and what went to stderr, of which every line is legible."""
        code, answer, text = in_process(self.capsys, *arguments)
        assert [line for line in text.split("\n") if legible(line) != line] == []
        assert "error: d" not in text.split("\n")
        return code, answer, text


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path, capsys)


def test_classes_models_and_files(desk: Desk) -> None:
    data, model = desk.root / f"data {EVIL}", f"model {EVIL}"
    class_folders(data / "train", {EVIL: 8, "plain": 8})
    class_folders(data / "test", {EVIL: 3, "plain": 3}, start=100)
    code, answer, text = desk(*TRAIN, "--data", str(data), "--out", "model", "--json")
    assert code == 0, text
    assert json.loads(answer)["path"] == "model"
    assert answer.isascii()
    assert json.loads((desk.root / "model" / "config.json").read_text())["label_names"] == [EVIL, "plain"]
    shutil.move("model", model)

    code, answer, text = desk("eval", model, "--data", str(data), "--no-cost", "--out", "report")
    assert (code, answer) == (0, "report\n"), text
    assert f"model {SHOWN}" in text
    report = json.loads((desk.root / "report" / "report.json").read_text())
    assert (report["data"]["classes"], report["models"][0]["name"]) == ([EVIL, "plain"], model)
    page = (desk.root / "report" / "report.html").read_text()
    assert [line for line in page.split("\n") if legible(line) != line] == []
    assert f"model {SHOWN}" in page
    assert f"data {SHOWN}, test split" in page

    code, answer, text = desk("eval", model, "--data", str(data), "--dry-run", "--json")
    assert (code, json.loads(answer)["models"]) == (0, [model])

    (data / "train" / "plain" / f"{EVIL}.png").write_bytes(b"no picture")
    code, answer, text = desk(*TRAIN, "--data", str(data), "--out", "again")
    assert (code, answer) == (3, "")
    assert f"(train/plain/{SHOWN}.png): not a readable PNG" in text


def test_columns(desk: Desk) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [tiny_picture(i) for i in range(8)]
    pq.write_table(pa.table({f"x{EVIL}": cells, f"y{EVIL}": cells}), "train.parquet")
    code, _, text = desk(*TRAIN, "--data", "train.parquet", "--set", "data.image_column=z")
    assert code == 3
    assert f"has no column 'z'; it has: x{SHOWN}, y{SHOWN}." in text


def test_an_output_is_one_line_of_text(desk: Desk) -> None:
    class_folders(desk.root / "data", {"a": 8, "b": 8})
    for name in (f"out {EVIL}", "one\ntwo", "\x1b[31mred", "x\u202e", "latin-\udce9", f"{EVIL}/out"):
        for more in ([], ["--dry-run"], ["--json"]):
            code, answer, text = desk(*TRAIN, "--data", "data", "--out", name, *more)
            assert (code, answer) == (3, "")
            assert "the path is given to the next command as one line of text" in text
    assert [path.name for path in desk.root.iterdir()] == ["data"]
    code, answer, text = desk(*TRAIN, "--data", "data", "--out", "größe 大 👩‍🔬")
    assert (code, answer) == (0, "größe 大 👩‍🔬\n"), text


@pytest.mark.parametrize("bug", [False, True])
def test_what_libraries_say(desk: Desk, monkeypatch: pytest.MonkeyPatch, bug: bool) -> None:
    class_folders(desk.root / "data", {"a": 8, "b": 8})

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError(EVIL)

    where = "kdcli.stages.distill.plan" if bug else "timm.create_model"
    monkeypatch.setattr(where, fail)
    code, answer, text = desk(*TRAIN, "--data", "data", "--out", "x")
    assert answer == ""
    if bug:
        assert code == 1
        assert "  Traceback (most recent call last):\n" in text
        assert f"error: this is a bug in kdcli: RuntimeError: {SHOWN}\n" in text
    else:
        assert code == 3
        assert r"a\x1b[2J" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", f"--{EVIL}"],
        ["distill", "--set", f"{EVIL}=1"],
        ["distill", "--method", EVIL],
        ["eval", EVIL, "--data", "data", "--split", "train"],
        ["probe", "--teacher", EVIL, "--data", "data"],
        [*TRAIN, "--data", EVIL],
        ["distill", "--config", EVIL],
        [EVIL],
    ],
)
def test_what_was_typed(desk: Desk, arguments: list[str]) -> None:
    class_folders(desk.root / "data", {"a": 8, "b": 8})
    code, answer, text = desk(*arguments)
    assert (code in (2, 3), answer) == (True, ""), text
    assert r"\x1b" in text


def test_a_line_of_a_pipe(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f'{{"no": "{EVIL[:8]}"}}'))
    code, _, text = desk("eval", "-", "--data", "data")
    assert code == 3
    assert r"\x1b[2J" in text
