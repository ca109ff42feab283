"""``kdcli classes``: a division in a file and what to ask about classes, through the command line."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from toolbox import EXAMPLE, class_folders

from kdcli import cli
from kdcli.classes import COMMANDS
from kdcli.config import leaves
from kdcli.launch import StopSignal

ROOT = Path(__file__).parents[1]
EXAMPLE_NAME = f"example:{EXAMPLE.name}"


def run(*arguments: object) -> tuple[int, list[str]]:
    """Exit code and lines of stdout, in process."""
    answer = io.StringIO()
    code = cli.run(["classes", *map(str, arguments)], answer, StopSignal())
    return code, answer.getvalue().splitlines()


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    """Four classes of five pictures."""
    return class_folders(tmp_path / "birds", dict.fromkeys(("auk", "black_kite", "coot", "dipper"), 5))


# -- the surface ---------------------------------------------------------------------------------------------


def test_the_options_are_frozen() -> None:
    offered = {name: set(tool.options) for name, tool in COMMANDS.items()}
    assert offered == {
        "split": {"--data", "--split", "--ood", "--train", "--seed", "--out", "--overwrite"},
        "prompts": {"--data", "--texts", "--style"},
    }
    for tool in COMMANDS.values():
        assert set(tool.options) <= {extra["flag"] for _, _, extra in leaves(tool.Config)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run(name, "--help") == (0, [])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"{option} " in text for option in (*COMMANDS[name].options, "--set", "--quiet"))
    assert not any(option in text for option in ("--json", "--config", "--dry-run", "--class-balance"))
    assert run("--help") == (0, [])
    assert f"  {name} " in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_slow(name: str) -> None:
    code = (
        "import io, sys\nfrom kdcli.cli import run\nfrom kdcli.launch import StopSignal\n"
        f"assert run(['classes', {name!r}, '--help'], io.StringIO(), StopSignal()) == 0\n"
        "slow = [name for name in 'torch numpy datasets rich PIL'.split() if name in sys.modules]\n"
        "assert not slow, slow"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["splt"], 2, "No such command 'splt'. Did you mean 'split'?"),
        (["split"], 2, "--data is required."),
        (["split", "--data", "DATA"], 2, "--out is required: the file that the division is written to."),
        (["split", "--dat", "x"], 2, "unknown option '--dat'. Did you mean '--data'?"),
        (["split", "--ood", "1"], 2, "--ood: input should be less than 1, got '1'."),
        (["split", "--set", "data.sorce=x"], 2, "unknown key 'data.sorce'. Did you mean 'data.source'?"),
        (
            ["split", "--data", "DATA", "--set", "data.shots=2"],
            2,
            "data.shots changes nothing here. Of the data kdcli classes heeds: source, image_column, ",
        ),
        (
            ["split", "--data", "DATA", "--set", "data.task=multi-label"],
            2,
            "data.task=multi-label reads more than one class a picture, or none: leave it out.",
        ),
        (["split", "--data", "no/where/at/all", "--out", "x"], 3, "no/where/at/all does not exist"),
        (["split", "--data", "DATA", "--out", "DATA"], 3, "exists and is not replaced. cannot read "),
        (["split", "--data", "DATA", "--out", "x", "--split", "test"], 3, "has no split 'test'; it has: tr"),
        (["prompts"], 2, "classes are those of --data, or those of --texts: give one of the two."),
        (["prompts", "--data", "x", "--texts", "y"], 2, "classes are those of --data, or those of --texts"),
        (["prompts", "--data", "DATA", "--style", "mian"], 2, "Did you mean 'main'?"),
        (["prompts", "--texts", "no.json"], 3, "cannot read no.json"),
    ],
)
def test_faults(
    birds: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert run(*(str(birds) if one == "DATA" else one for one in arguments)) == (code, [])
    text = capsys.readouterr().err
    assert message in text
    assert "error: " in text
    assert "Traceback" not in text


# -- split ---------------------------------------------------------------------------------------------------


def test_a_division_is_written_once(birds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "split.json"
    assert run("split", "--data", birds, "--out", out) == (0, [str(out)])
    shown = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert shown[-4:] == [
        ["split", "classes", "pictures"],
        ["train", "2", "8"],
        ["id", "2", "2"],
        ["ood", "2", "10"],
    ]
    written = out.read_bytes()
    assert run("split", "--data", birds, "--out", out, "--quiet") == (0, [str(out)])
    assert capsys.readouterr().err == ""
    assert run("split", "--data", birds, "--out", out, "--train", "0.4") == (3, [])
    assert f"{out} holds another division of classes." in capsys.readouterr().err
    assert out.read_bytes() == written
    assert run("split", "--data", birds, "--out", out, "--train", "0.4", "--overwrite") == (0, [str(out)])
    assert out.read_bytes() != written


def test_a_column_of_labels_and_a_split_can_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    source = class_folders(tmp_path / "d", {f"{split}/all": 12 for split in ("train", "test")})
    cells = [{"bytes": path.read_bytes(), "path": None} for path in sorted(source.glob("train/all/*"))]
    kinds = [f"kind {i % 4}" for i in range(12)]
    table = datasets.Dataset.from_dict({"image": cells, "label": ["x"] * 12, "kind": kinds})
    table = table.cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table, "more": table.select(range(4))}).save_to_disk(tmp_path / "t")
    out = tmp_path / "split.json"
    given = ["split", "--data", tmp_path / "t", "--out", out, "--split", "train"]
    assert run(*given) == (3, [])
    assert "has 1 class, of which 0 would be unseen" in capsys.readouterr().err
    assert run(*given, "--set", "data.label_column=kind") == (0, [str(out)])
    found = json.loads(out.read_text())
    assert sorted(found["classes"]["id"] + found["classes"]["ood"]) == sorted(set(kinds))
    assert sum(map(len, found["splits"].values())) == 12


def test_the_bundled_pictures_through_the_real_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kdcli", "classes", "split", "--data", EXAMPLE_NAME, "--out", "s.json"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    found = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=120)
    assert (found.returncode, found.stdout) == (0, "s.json\n"), found.stderr
    assert f"{EXAMPLE_NAME}: its own splits test, train are laid together." in found.stderr
    from kdcli.sections import DataSection
    from kdcli.tasks import open_task_data

    config = DataSection(source=EXAMPLE_NAME, open_classes=str(tmp_path / "s.json"), shots=5)
    train = open_task_data(config, "train", "validation")
    counts = {name: open_task_data(config, name) for name in ("id", "ood")}
    assert len(train.classes or ()) == 10
    assert [len(data.classes or ()) for data in counts.values()] == [5, 5]
    assert not {*(counts["id"].classes or ())} & {*(counts["ood"].classes or ())}
    learned = len(train.split("train")) + len(train.split("validation"))
    assert (learned, len(counts["id"].split("id")), len(counts["ood"].split("ood"))) == (1950, 825, 2725)
    few = Counter(train.split("train").labels.tolist())
    assert [few[label] for label in range(5, 10)] == [5] * 5


# -- prompts -------------------------------------------------------------------------------------------------


def test_prompts_of_the_classes_of_data(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run("prompts", "--data", birds)
    assert code == 0
    said = "Use a single sentence to describe the appearance and shape of {}. Only describe the shape and "
    assert [json.loads(line) for line in lines] == [
        {"class": name, "prompt": said.format(name.replace("_", " ")) + "appearance."}
        for name in ("auk", "black_kite", "coot", "dipper")
    ]
    assert capsys.readouterr().err == (
        "4 classes. Write the answers into a file for --texts: "
        '{"CLASS": {"name": "…", "description": "…"}, …}\n'
    )


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"n02119789": {"name": "kit fox"}, "n02124075": {"name": "Egyptian cat"}}))
    code, lines = run("prompts", "--texts", file, "--style", "distinct", "--quiet")
    assert code == 0
    found = [json.loads(line) for line in lines]
    assert [one["class"] for one in found] == ["n02119789", "n02124075"]
    assert "distinctive appearance and shape of kit fox." in found[0]["prompt"]
