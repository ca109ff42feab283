"""The contract of the command line: one line on stdout, all else on stderr, exit codes, quick help, pipes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kdcli
from kdcli import cli, commands, errors, stages
from kdcli.launch import StopSignal
from kdcli.runs import Result

ROOT = Path(__file__).parents[1]
PATH_LINE = "runs/upstream"


def run(arguments: Sequence[str], stop: StopSignal | None = None) -> tuple[int, str]:
    """Exit code and what the command wrote as its answer, in process."""
    answer = io.StringIO()
    code = cli.run(list(arguments), answer, stop or StopSignal())
    return code, answer.getvalue()


def process(
    arguments: Sequence[str], cwd: Path, feed: str | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """The real command line in a process of its own."""
    command = [sys.executable, "-m", "kdcli", *arguments]
    more = {"stdin": subprocess.DEVNULL, **more} if feed is None else {"input": feed, **more}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=120, **more)


class Toy:
    """A stage whose `run` does what the test says; it has the configuration of distill."""

    def __init__(self, action: Callable[..., Result], plan: Callable[[Any], None] | None = None) -> None:
        from kdcli.stages.distill import Config

        self.Config, self.action, self.check = Config, action, plan
        self.config: Any = None

    def plan(self, config: Any, console: Any, unless_complete: bool) -> Any:
        """Keep the configuration."""
        self.config = config
        if self.check is not None:
            self.check(config)
        return self

    def run(self, plan: Any, console: Any, **more: Any) -> Result:
        """Do it."""
        return self.action(**more)

    def describe(self, console: Any) -> None:
        """What a dry run shows."""
        console.note("the plan")

    def to_json(self) -> dict[str, Any]:
        """What a dry run prints."""
        return {"out": Path("runs/x")}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Toy]:
    """Put a toy stage in the place of distill."""

    def place(action: Callable[..., Result], plan: Callable[[Any], None] | None = None) -> Toy:
        stage = Toy(action, plan)
        monkeypatch.setitem(stages.STAGES, "distill", ("toy_stage", "A toy."))
        monkeypatch.setitem(sys.modules, "toy_stage", stage)  # type: ignore[arg-type]
        return stage

    return place


def done(**_: Any) -> Result:
    """A run that succeeds."""
    return Result(Path("runs/x"), {"kind": "model"})


def raising(error: BaseException) -> Callable[..., Result]:
    """A run that fails."""

    def action(**_: Any) -> Result:
        raise error

    return action


# -- help ----------------------------------------------------------------------------------------------------


def user_seconds(arguments: Sequence[str], limit: float) -> float:
    """Least user CPU seconds of up to three runs: other work on the machine does not count."""
    best, runs = float("inf"), 0
    while best > limit and runs < 3:
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        assert process(arguments, ROOT).returncode == 0
        best = min(best, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
        runs += 1
    return best


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [(["--help"], 0.5), *(([name, "--help"], 1.0) for name in (*stages.STAGES, *commands.TOOLS))],
)
def test_help_is_quick(arguments: list[str], limit: float) -> None:
    assert user_seconds(arguments, limit) <= limit


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([name, "--help"] for name in (*stages.STAGES, *commands.TOOLS))],
)
def test_help_does_not_import_what_is_slow(arguments: list[str]) -> None:
    code = (
        "import io, sys\nfrom kdcli.cli import run\nfrom kdcli.launch import StopSignal\n"
        f"assert run({arguments!r}, io.StringIO(), StopSignal()) == 0\n"
        "slow = 'torch timm transformers diffusers numpy datasets rich PIL matplotlib'.split()\n"
        "slow = [name for name in slow if name in sys.modules]\n"
        "assert not slow, slow"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("name", stages.STAGES)
def test_help_of_a_stage_fits_a_screen(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run([name, "--help"]) == (0, "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    headings = [line[:-1] for line in lines if re.fullmatch(r"[A-Z][a-z]+:", line)]
    order = ["Inputs", "Method", "Head", "Data", "Training", "Outputs", "Run", "Command"]
    assert headings == [h for h in order if h in headings]
    assert {"Inputs", "Data", "Outputs", "Run", "Command"} <= set(headings)
    assert "<" not in "".join(lines).replace("runs/<stage>-<hash>", "")  # no <bool>, no <list[str]>
    assert re.search(r"--seed N .*\[0\]$", "\n".join(lines), re.MULTILINE)


def test_help_shows_the_stages_own_defaults(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    shown = {}
    for name in ("probe", "distill"):
        run([name, "--help"])
        shown[name] = re.search(r"--views TEXT .*\[(\w+)\]", capsys.readouterr().out)[1]  # type: ignore[index]
    assert shown == {"probe": "1", "distill": "auto"}


@pytest.mark.parametrize("named", [["--method", "kd"], ["--method=kd"]])
def test_help_of_a_method_names_its_paper_and_parameters(
    named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["distill", "--help", *named]) == (0, "")
    text = capsys.readouterr().out
    assert "arXiv 1503.02531" in text
    assert "\n  * ce = 0.1\n  * kd = 0.9\n  * temperature = 4.0\n  * t_squared = True\n" in text


def test_help_of_an_unknown_method(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["distill", "--help", "--method", "kdd"]) == (2, "")
    assert "error: unknown method 'kdd'. Did you mean 'kd'?" in capsys.readouterr().err


def test_version_is_the_answer() -> None:
    assert run(["--version"]) == (0, f"kdcli {kdcli.__version__}\n")


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == (2, "")
    shown = capsys.readouterr()
    assert "Commands:" in shown.out + shown.err


# -- usage ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["distil"],
            "unknown command 'distil'. Did you mean 'distill'? "
            "Commands: probe, synthesize, distill, compress, eval, classes.",
        ),
        (["distill", "--techer", "x"], "unknown option '--techer'. Did you mean '--teacher'?"),
        (["distill", "stray"], "Got unexpected extra argument(s) (stray)"),
        (["distill", "--teacher"], "Option '--teacher' requires an argument."),
        (["distill", "--lr", "fast"], "--lr: input should be a valid number, unable to parse string"),
        (
            ["distill", "--precision", "fp61"],
            "--precision: input should be 'no', 'bf16' or 'fp16', got 'fp61'.",
        ),
        (["distill", "--set", "foo"], "--set takes KEY=VALUE, got 'foo'."),
        (["distill", "--set", "optim.lrr=1"], "unknown key 'optim.lrr'. Did you mean 'optim.lr'?"),
        (["distill", "--method", "kdd"], "unknown method 'kdd'. Did you mean 'kd'?"),
        (["distill", "--teacher", "-", "--data", "-"], "'-' may stand for one model or dataset only."),
        (["eval", "-", "-"], "'-' may stand for one model or dataset only."),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == (2, "")
    text = capsys.readouterr().err
    assert f"error: {message}" in text
    assert text.count("error:") == 1
    assert "Traceback" not in text


# -- the answer and the codes --------------------------------------------------------------------------------


def test_the_answer_is_a_path_or_an_object(toy: Callable[..., Toy]) -> None:
    toy(done)
    assert run(["distill"]) == (0, "runs/x\n")
    code, line = run(["distill", "--json"])
    assert (code, line.count("\n"), json.loads(line)) == (0, 1, {"path": "runs/x", "kind": "model"})


def test_a_failed_gate_still_gives_the_path(
    toy: Callable[..., Toy], capsys: pytest.CaptureFixture[str]
) -> None:
    toy(lambda **_: Result(Path("runs/x"), {}, ["a: top1>=0.8 does not hold: 0.5", "b"]))
    assert run(["distill"]) == (5, "runs/x\n")
    assert "error: a: top1>=0.8 does not hold: 0.5; b" in capsys.readouterr().err


def test_a_dry_run_says_nothing_but_with_json(
    toy: Callable[..., Toy], capsys: pytest.CaptureFixture[str]
) -> None:
    toy(raising(AssertionError("a dry run runs nothing")))
    assert run(["distill", "--dry-run"]) == (0, "")
    assert "the plan" in capsys.readouterr().err
    assert run(["distill", "--dry-run", "--json", "-n", "4"]) == (0, '{"out": "runs/x"}\n')


def test_quiet_leaves_stderr_empty(toy: Callable[..., Toy], capsys: pytest.CaptureFixture[str]) -> None:
    toy(done)
    assert run(["distill", "--quiet"]) == (0, "runs/x\n")
    assert capsys.readouterr().err == ""


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.UsageError("u"), 2, "u"),
        (errors.InputError("i"), 3, "i"),
        (errors.BadImageError("b"), 3, "b"),
        (errors.EnvironmentFault("e"), 4, "e"),
        (errors.GateFailed("g"), 5, "g"),
        (errors.Diverged("d"), 6, "d"),
        (errors.Preempted("p"), 75, "p"),
        (EOFError("cut"), 1, "this is a bug in kdcli: EOFError: cut"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "this is a bug in kdcli: BrokenPipeError"),
        (KeyboardInterrupt(), 130, "interrupted. The same command continues from the last committed step."),
        (MemoryError(), 4, "out of memory. Lower --batch-size"),
        (OutOfMemoryError("CUDA out of memory."), 4, "out of memory. Lower --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "out of memory. Lower --batch-size"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 4, "no space left on the disk"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), 4, "cannot access runs/x: Read-only"),
        (ValueError("odd"), 1, "this is a bug in kdcli: ValueError: odd"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "x"),
            1,
            "this is a bug in kdcli: FileNotFoundError",
        ),
    ],
)
def test_exit_codes(
    toy: Callable[..., Toy],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    toy(raising(error))
    assert run(["distill"]) == (code, "")
    text = capsys.readouterr().err
    assert f"error: {message}" in text
    assert ("Traceback" in text) is (code == 1)


@pytest.mark.parametrize("ended", [True, False])
def test_what_all_processes_meet_is_said_once(
    ended: bool,
    toy: Callable[..., Toy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second process is silent where the job is ended meanwhile, and speaks where it fails alone."""
    toy(raising(errors.InputError("the data are gone.")))
    for key, value in {"KDCLI_WORKER": "1", "RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(cli, "_PATIENCE_S", 0.1)
    stop = StopSignal()
    stop.requested = "SIGTERM" if ended else None
    assert run(["distill"], stop) == (3, "")
    assert ("the data are gone" in capsys.readouterr().err) is not ended


def test_the_table_of_exit_codes() -> None:
    codes = {kind.__name__: kind.exit_code for kind in vars(errors).values() if isinstance(kind, type)
             and issubclass(kind, errors.KdcliError)}  # fmt: skip
    assert codes == {
        "KdcliError": 1,
        "UsageError": 2,
        "InputError": 3,
        "NotFinite": 3,
        "BadImageError": 3,
        "EnvironmentFault": 4,
        "GateFailed": 5,
        "Diverged": 6,
        "Preempted": 75,
    }


# -- pipes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["runs/up\n", '{"path": "runs/up", "kind": "model"}\n', "  runs/up  "])
@pytest.mark.parametrize("form", [["--teacher", "-"], ["--teacher=-"]])
def test_a_dash_reads_the_path(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch, text: str, form: list[str]
) -> None:
    commands = []

    def remember(command: str, **_: Any) -> Result:
        commands.append(command)
        return done()

    stage = toy(remember)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert run(["distill", *form, "--set", "data.source=my cars"])[0] == 0
    assert stage.config.teacher == ["runs/up"]
    assert commands[0].startswith("kdcli distill --teacher")
    assert commands[0].endswith("runs/up --set 'data.source=my cars'")


def test_a_dash_among_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("runs/up\n"))
    given, line = cli._from_pipe({"models": ["a", "-"], "out": "-"})
    assert (given, line) == ({"models": ["a", "runs/up"], "out": "-"}, "runs/up")


def test_a_dash_as_extra_pictures(toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch) -> None:
    stage = toy(done)
    monkeypatch.setattr(sys, "stdin", io.StringIO("runs/mixed\n"))
    assert run(["distill", "--teacher", "t", "--extra", "more/", "--extra", "-"])[0] == 0
    assert stage.config.data.extra == ["more/", "runs/mixed"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'-' stands for an artifact, but upstream wrote no path."),
        ("\n\n", "'-' stands for an artifact, but upstream wrote no path."),
        ('{"kind": "model"}\n', "'-': upstream wrote JSON without a path:"),
        ('{"path"\n', "'-': upstream wrote JSON without a path:"),
        ('{"path": 3}\n', "'-': upstream wrote JSON without a path:"),
        ('{"path": ' * 5000, "'-': upstream wrote JSON without a path:"),
        ("x" * 10_000_000, "'-': upstream wrote more than 1,048,576 characters, which is no path."),
        ("x\n" + "y" * 10_000, "'-': upstream wrote 10,000 characters, and no path is so long."),
    ],
)
def test_a_dash_without_a_path(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert run(["distill", "--teacher", "-"]) == (3, "")
    said = capsys.readouterr().err
    assert f"error: {message}" in said
    assert len(said) < 1000


def test_a_pipe_of_no_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"runs/\xff\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    assert run(["distill", "--teacher", "-"]) == (3, "")
    assert "error: '-': upstream wrote bytes that are no text." in capsys.readouterr().err


def test_a_long_value_is_not_echoed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["distill", "--method", "x" * 100_000]) == (2, "")
    said = capsys.readouterr().err
    assert "error: unknown method 'xxx" in said
    assert "characters left out" in said
    assert len(said) < 12_000


def test_the_pipe_is_read_before_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import io, sys\nfrom kdcli.cli import run\nfrom kdcli.launch import StopSignal\n"
        "code = run(['distill', '--teacher', '-'], io.StringIO(), StopSignal())\n"
        "assert 'torch' not in sys.modules\nsys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        input="",
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert found.returncode == 3
    assert "upstream wrote no path" in found.stderr


def test_more_processes_than_a_machine_bears_are_not_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "launch", lambda *_, **__: pytest.fail("it was started"))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert run(["distill", "--student", "a", "-n", "500"]) == (4, "")
    assert (
        "--num-processes 500: this machine has 2 cores, and no more than 8 processes"
        in capsys.readouterr().err
    )


def test_processes_get_the_path_not_the_dash(
    toy: Callable[..., Toy], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(raising(AssertionError("the launcher runs nothing itself")))
    launched = []
    monkeypatch.setattr(cli, "launch", lambda arguments, n, **_: launched.append((arguments, n)) or 0)
    monkeypatch.setattr(sys, "stdin", io.StringIO("runs/up\n"))
    assert run(["distill", "--teacher=-", "-n", "2"]) == (0, "")
    assert launched == [(["distill", "--teacher=runs/up", "-n", "2"], 2)]


# -- real processes: a stage without torch, in a directory of its own ----------------------------------------

STAGE = """
import os, sys, time
from functools import partial
from pathlib import Path
from kdcli.stages.distill import Config
from kdcli.runs import Result
class plan:
    def __init__(self, config, console, unless_complete): self.config = config
    def describe(self, console): console.note("the plan")
    def to_json(self): return {"out": "x"}
def run(plan, console, stop=None, command=""):
    print("a library prints")
    os.write(1, b"a C library prints\\n")
    Path("made").mkdir()
    if plan.config.out == "slow":
        Path("ready").touch()
        time.sleep(60)
    console.note("done")
    return Result(Path("made"), {"kind": "model"})
"""


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """A folder where ``python main.py distill`` is the real main with a toy stage."""
    (tmp_path / "toy_stage.py").write_text(STAGE)
    (tmp_path / "main.py").write_text(
        "from kdcli import cli, stages\nstages.STAGES['distill'] = ('toy_stage', 'A toy.')\ncli.main()\n"
    )
    return tmp_path


def workshop_command(folder: Path, arguments: str) -> list[str]:
    """A shell line; KDCLI stands for the command."""
    return ["bash", "-c", arguments.replace("KDCLI", shlex.join([sys.executable, str(folder / "main.py")]))]


def shell(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """Run a shell line in the workshop."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = workshop_command(folder, line)
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=60)


def test_stdout_carries_one_line_whatever_libraries_print(workshop: Path) -> None:
    found = shell(workshop, "KDCLI distill")
    assert (found.returncode, found.stdout) == (0, "made\n")
    assert {"a library prints", "a C library prints", "done"} <= set(found.stderr.splitlines())


def test_a_closed_downstream_is_quiet_and_the_artifact_stays(workshop: Path) -> None:
    found = shell(
        workshop, "set -o pipefail; KDCLI distill --quiet 2>errors | head -0; echo ${PIPESTATUS[0]}"
    )
    assert found.stdout == "0\n"
    assert (workshop / "made").is_dir()
    assert "rror" not in (workshop / "errors").read_text()


def test_streams_that_are_closed_from_the_start(workshop: Path) -> None:
    found = shell(workshop, "KDCLI distill 2>&-")
    assert (found.returncode, found.stdout) == (0, "made\n")
    (workshop / "made").rmdir()
    found = shell(workshop, "KDCLI distill >&-")
    assert found.returncode == 0
    assert "Traceback" not in found.stderr


def test_a_dry_run_writes_nothing(workshop: Path) -> None:
    before = {p.name for p in workshop.iterdir()}
    found = shell(workshop, "KDCLI distill --dry-run")
    assert (found.returncode, found.stdout) == (0, "")
    assert found.stderr.splitlines()[-1] == "the plan"
    assert {p.name for p in workshop.iterdir()} - {"__pycache__"} == before


def test_ctrl_c_ends_with_130(workshop: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "main.py", "distill", "--out", "slow"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # shells start background jobs deaf to it
    with subprocess.Popen(
        command, cwd=workshop, env=env, text=True, stderr=subprocess.PIPE, preexec_fn=heard
    ) as started:
        end = time.monotonic() + 30
        while not (workshop / "ready").exists() and time.monotonic() < end:
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        _, text = started.communicate(timeout=30)
    assert started.returncode == 130
    assert text.splitlines()[-1].startswith("error: interrupted.")
    assert "Traceback" not in text


def test_the_installed_module_answers(tmp_path: Path) -> None:
    found = process(["--version"], tmp_path)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"kdcli {kdcli.__version__}\n", "")
    found = process(["distil"], tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: unknown command 'distil'. Did you mean 'distill'?")
    assert list(tmp_path.iterdir()) == []
