import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kdcli import methods
from kdcli.config import Section, leaves, resolve
from kdcli.errors import UsageError
from kdcli.stages import STAGES, compress, distill, evaluate, probe, synthesize

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))
CONFIGS: dict[str, type[Section]] = {
    "probe": probe.Config,
    "synthesize": synthesize.Config,
    "distill": distill.Config,
    "compress": compress.Config,
    "eval": evaluate.Config,
}
BARE = {"--help", "-h", "--json", "--quiet", "--dry-run"}
START = re.compile(rf"\bkdcli ((?:{'|'.join(STAGES)}) (?:[^|`]|\|(?! ))*)")


def commands(text: str) -> list[str]:
    """Command lines of kdcli in a script or a page, without the program's name."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [found.strip() for line in joined.splitlines() for found in START.findall(line)]


def expanded(text: str, script: str) -> str:
    """``text`` with the shell's arrays and variables put in."""
    arrays = dict(re.findall(r"(\w+)=\(([^)]*)\)", script))
    while found := re.search(r'"\$\{(\w+)\[@\]\}"', text):
        value = arrays.get(found[1], "").replace("\n", " ")  # empty: filled from the environment
        text = text.replace(found[0], "" if "$(" in value else value)  # no outputs of commands
    numbers = "steps|twice|half|labels|epochs|pretraining|side|align|batch|few"
    text = re.sub(rf"\$\{{?(?:{numbers})\}}?", "250", text.replace('"$@"', ""))
    text = re.sub(r"\$\{?rate\}?", "1e-3", text)
    text = re.sub(r"\$\{?method\}?", "kd", text)
    text = re.sub(r"\$\{?head\}?", "light", text)
    text = re.sub(r"\$described\b", "true", text)
    text = re.sub(r"\$\{?strength\}?", "0.1", text)
    return re.sub(r"\$\{?seed\}?", "0", text)


def parse(line: str) -> Section:
    """The configuration that a command line asks for. Raises UsageError for what kdcli would refuse."""
    stage, *words = shlex.split(line)
    kind = CONFIGS[stage]
    flags = {
        flag: (name, field.annotation)
        for name, field, extra in leaves(kind)
        for flag in (extra["flag"] or "").split(",")
        if flag
    }
    options: dict[str, object] = {}
    sets: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in BARE:
            continue
        if word in ("--set", "--config"):
            value = next(rest)
            sets += [value] if word == "--set" else []
        elif not word.startswith("-") or word == "-":
            if stage != "eval":
                raise UsageError(f"{stage} takes no arguments, got '{word}'.")
            options["models"] = [*options.get("models", []), word]  # type: ignore[misc]
        elif word.startswith("--no-") and flags.get(f"--{word[5:]}", ("", str))[1] is bool:
            options[flags[f"--{word[5:]}"][0]] = False
        elif word not in flags:
            raise UsageError(f"unknown option '{word}'.")
        else:
            name, annotation = flags[word]
            value = True if annotation is bool else next(rest)
            options[name] = [value] if "list" in str(annotation) else value
    config = resolve(kind, sets=sets, options=options)
    if isinstance(config, distill.Config) and config.method.name != methods.AUTO:
        given = config.method.model_dump(exclude={"name"}, exclude_none=True)
        methods.arguments(config.method.name, given)
    return config


def script_commands(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    code = "\n".join(re.sub(r'"[)"]+$', '"', line) for line in lines if not line.startswith("#"))
    return [expanded(line.removesuffix(")"), text) for line in commands(code)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_bash(path):
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("name", "count", "source"),
    [
        ("quickstart.sh", 4, "example:fashion-mnist"),
        ("few_labels.sh", 6, "example:fashion-mnist"),
        ("sweep.sh", 6, "example:fashion-mnist"),
        ("matrix.sh", 3, "example:fashion-mnist"),
        ("several_labels.sh", 4, "$runs/emoji"),
        ("good_practices.sh", 5, "$data"),
        ("compress_tiny.sh", 4, "example:fashion-mnist"),
        ("pairs.sh", 11, "$runs/emoji"),
        ("masks.sh", 5, "$runs/masks"),
        ("smaller.sh", 10, "$data"),
        ("g2sd.sh", 8, "$data"),
        ("detection.sh", 7, "$runs/$kind"),
    ],
)
def test_every_command_of_a_script_parses(name, count, source):
    found = script_commands(ROOT / "examples" / name)
    assert len(found) == count
    for line in found:
        assert parse(line).data.source == source


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("backbone.sh", 9),
        ("g2sd_imagenet.sh", 5),
        ("detection_coco.sh", 5),
        ("vlm_ood.sh", 5),
        ("vlm_ood_tiny.sh", 8),
    ],
)
def test_commands_without_data_parse_too(name, count):
    assert len([parse(line) for line in script_commands(ROOT / "examples" / name)]) == count


def test_every_command_of_the_readme_parses():
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(found) >= 12
    for line in found:
        parse(line)


def test_the_matrix_trains_methods_that_exist():
    """Its options of single methods stand behind the shell function's arguments."""
    text = (ROOT / "examples" / "matrix.sh").read_text(encoding="utf-8")
    names = [name for loop in re.findall(r"for method in (.*); do", text) for name in loop.split()]
    own = re.findall(r"^  distill (\w+) .*--set method\.(\w+)=(\S+)", text, re.MULTILINE)
    assert len(names) + len(own) >= 8
    for name in names:
        methods.arguments(name, {})
    for name, key, value in own:
        assert methods.arguments(name, {key: value})[key] != methods.parameters(name)[key].default


def test_quickstart_gives_both_students_the_same_budget():
    _, alone, distilled, report = map(parse, script_commands(ROOT / "examples" / "quickstart.sh"))
    assert alone.method.name == "supervised"
    assert distilled.method.name == "task-specific"
    assert alone.optim == distilled.optim
    assert (alone.student, alone.image_size, alone.seed) == (distilled.student, distilled.image_size, 0)
    assert alone.data.labels_per_class == distilled.data.labels_per_class == 10
    assert report.split == "test"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("distill --studnet resnet18", "unknown option '--studnet'"),
        ("probe --set grid.epoch=3", r"unknown key 'grid\.epoch'"),
        ("distill --method kd --alpha 0.5", "kd has no --alpha"),
        ("distill cars/", "takes no arguments"),
    ],
)
def test_this_parser_refuses_what_kdcli_refuses(line, message):
    with pytest.raises(UsageError, match=message):
        parse(line)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "CHANGELOG.md",
        "examples/methods.md",
        "examples/new_method.md",
        "examples/new_task.md",
        "examples/results/backbone.md",
        "examples/results/few_labels.md",
        "examples/results/g2sd.md",
        "examples/results/masks.md",
        "examples/results/matrix.md",
        "examples/results/several_labels.md",
        "examples/results/sweep.md",
    ],
)
def test_links_point_to_files(name):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
    if name == "README.md":
        assert len(links) >= 4


def test_the_readmes_figures_are_those_measured():
    rows = {}
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if found := re.search(r"results/(benchmark_\w+)\.json\): ", line):
            rows[found[1]] = re.findall(r"\d+\.\d+", line[found.end() :])
    assert {name: len(figures) for name, figures in rows.items()} == {
        "benchmark_backbones": 2,
        "benchmark_distill": 3,
        "benchmark_heads": 1,
        "benchmark_synthesis": 1,
    }
    for name, figures in rows.items():
        text = (ROOT / "examples" / "results" / f"{name}.json").read_text()
        measured = re.findall(r'"median": ([\d.]+)', text)
        for figure in figures:
            digits = len(figure.partition(".")[2])
            assert figure in [f"{float(value):.{digits}f}" for value in measured], (name, figure)


def test_pipeline_picture_is_valid_and_readable_in_the_dark():
    file = ROOT / "examples" / "pipeline.svg"
    assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in file.read_text()


def test_bundled_data_is_small_and_licensed():
    folder = ROOT / "examples" / "data"
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 3_000_000
    sets = [path for path in folder.iterdir() if path.is_dir()]
    assert sets
    for path in sets:
        assert "Permission is hereby granted" in (path / "LICENSE").read_text()


def quickstart(runs: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "RUNS": str(runs), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    script = ROOT / "examples" / "quickstart.sh"
    return subprocess.run([str(script), *arguments], cwd=cwd, env=env, capture_output=True, text=True)


def test_quickstart_refuses_an_unknown_argument(tmp_path):
    done = quickstart(tmp_path / "runs", "--small", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "usage: quickstart.sh [--tiny]\n")
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_quickstart_tiny_twice_from_a_folder_with_spaces(tmp_path):
    assert shutil.which("bash")
    runs = tmp_path / "my runs"
    first = quickstart(runs, "--tiny", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    sentence, path = first.stdout.splitlines()
    assert sentence.startswith("On 1,500 test pictures the distilled student is right for ")
    assert path == f"report: {runs}/report/report.html"
    report = json.loads((runs / "report" / "report.json").read_text())
    assert [m["name"] for m in report["models"]] == ["teacher", "student-alone", "student-distilled"]
    assert report["models"][0]["metrics"]["top1"] > 0.5  # the backbone's ImageNet weights were read
    again = quickstart(runs, "--tiny", cwd=tmp_path)
    assert again.stdout == first.stdout
    table = [line for line in first.stderr.splitlines() if line.startswith("  student-")]
    assert len(table) == 2
    assert set(table) <= set(again.stderr.splitlines())
    assert again.stderr.count(" is complete") >= 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "more"),
    [
        *(("dense_heads", ["--count", "4"]), ("distill", []), ("heads", []), ("methods", ["--steps", "4"])),
        ("synthesis", []),
        ("compress", ["--networks", "test_resnet", "--batches", "1,2"]),
        ("backbones", []),
    ],
)
def test_a_benchmark_runs(name, more, tmp_path):
    script, file = ROOT / "examples" / "benchmarks" / f"{name}.py", tmp_path / "figures.json"
    command = [sys.executable, str(script), "--pairs", "1", "--json", str(file), *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(file.read_text())["device"]
