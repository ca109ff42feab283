"""The real command line: a shell pipeline from checkpoint to figures, and signals at any time."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import timm
import torch
from safetensors.torch import save_file

KDCLI = f"{shlex.quote(sys.executable)} -m kdcli"
DISTILL = "distill --method supervised --student test_resnet --from-scratch --image-size 32 --batch-size 8"


def shell(line: str, cwd: Path) -> tuple[int, str, str]:
    """Exit code, answer and messages of a line of bash."""
    command = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)
    return done.returncode, done.stdout, done.stderr


def test_one_pipe_from_checkpoint_to_figures(pictures, tmp_path):
    """``probe | distill - | eval -``, from a file of the user's own and in a folder of theirs."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", img_size=32).state_dict(), tmp_path / "my checkpoint.safetensors")
    data = f"--data {shlex.quote(str(pictures))}"
    probe = f"probe --teacher test_vit --weights 'my checkpoint.safetensors' --image-size 32 {data}"
    student = "--student test_resnet --from-scratch --max-steps 12 --batch-size 8 --out 'my student'"
    distill = f"distill --teacher - {student} {data}"
    line = f"{KDCLI} {probe} | {KDCLI} {distill} | {KDCLI} eval - {data} --no-cost --json"
    code, answer, text = shell(line, tmp_path)
    assert code == 0, text
    (line,) = answer.splitlines()
    report = json.loads(line)
    assert report["kind"] == "report"
    assert 0 <= report["models"][0]["metrics"]["top1"] <= 1
    assert (tmp_path / report["path"] / "report.html").is_file()
    assert logged_steps(tmp_path / "my student") == [10, 12]


@pytest.mark.long
def test_methods_of_three_kinds_by_the_command_line(pictures, tmp_path):
    """Exits to early exit; peers to their ensemble; terms added to kd."""

    data = f"--data {shlex.quote(str(pictures))}"
    student = f"--student test_resnet --from-scratch --image-size 32 --max-steps 4 --batch-size 8 {data}"
    judge = f"eval - {data} --no-cost --json"
    exits = f"{KDCLI} distill --method byot {student} | {KDCLI} {judge} --require 'exits.early.top1>=0'"
    code, answer, text = shell(exits, tmp_path)
    assert code == 0, text
    found = json.loads((tmp_path / json.loads(answer)["path"] / "report.json").read_text())
    assert len(found["models"][0]["exits"]["exits"]) == 4  # three exits and the network

    code, answer, text = shell(f"{KDCLI} distill --method dml {student} --out peers", tmp_path)
    assert (code, answer) == (0, "peers\n"), text
    code, answer, text = shell(f"{KDCLI} eval peers peers/peer2 {data} --no-cost --json", tmp_path)
    assert code == 0, text
    assert len(json.loads(answer)["models"]) == 2

    added = "--add rkd=1 --add 'hint=1,student=layer3,teacher=layer3,match=pool'"
    line = f"{KDCLI} distill --method kd {added} --teacher peers {student} --out added"
    code, answer, text = shell(line, tmp_path)
    assert (code, answer) == (0, "added\n"), text
    first = json.loads((tmp_path / "added" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"ce", "kl", "rkd-distance", "rkd-angle", "hint"} <= set(first)


def wait_for_rows(log: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return once a running command has logged ``count`` rows."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no rows were logged")


def logged_steps(out: Path) -> list[int]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if "loss" in row]


class Run:
    """``kdcli distill`` in a process of its own."""

    def __init__(self, pictures: Path, out: Path, processes: int, steps: int = 10_000) -> None:
        command = [*shlex.split(KDCLI), *DISTILL.split(), "--data", str(pictures), "--out", str(out)]
        command += ["--max-steps", str(steps), "--set", "log_every=1", "--set", "evaluate_every=1000"]
        command += ["-n", str(processes)] if processes > 1 else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment)
        self.log = out.with_name(f"{out.name}.partial") / "metrics.jsonl"

    def stop(self, number: signal.Signals) -> tuple[int, float, str]:
        """Send a signal; returns exit code, seconds it took, and stderr."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        started = time.monotonic()
        self.process.send_signal(number)
        _, text = self.process.communicate(timeout=60)
        seconds = time.monotonic() - started
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive, "orphans"
        return self.process.returncode, seconds, text


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_then_killed_then_finished(processes, pictures, tmp_path):
    """SIGUSR1 commits and exits 75; the job is killed; the rerun finishes."""
    out = tmp_path / "out"
    run = Run(pictures, out, processes, steps=60)
    wait_for_rows(run.log, 5, run.process)
    code, seconds, text = run.stop(signal.SIGUSR1)
    assert code == 75, text
    assert seconds < 25
    assert "run the same command again" in text
    (state,) = run.log.parent.glob("state-*")
    run = Run(pictures, out, processes, steps=60)
    wait_for_rows(run.log, int(state.name.removeprefix("state-")) + 1, run.process)
    code, _, _ = run.stop(signal.SIGKILL)
    assert code == -signal.SIGKILL
    run = Run(pictures, out, processes, steps=60)
    answer, text = run.process.communicate(timeout=120)
    assert run.process.returncode == 0, text
    assert answer.splitlines() == [str(out)]
    assert f"continuing at step {int(state.name.removeprefix('state-'))}" in text
    assert logged_steps(out) == list(range(1, 61))


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_signals_at_random_times(processes, pictures, tmp_path):
    """Ten times each over import, start-up and training: 75 within 25 s, no orphans."""
    rng = random.Random(processes)
    out, steps = tmp_path / "out", []
    for _ in range(10):
        run = Run(pictures, out, processes)
        time.sleep(rng.uniform(0.5, 14))
        code, seconds, text = run.stop(rng.choice([signal.SIGTERM, signal.SIGUSR1]))
        assert code == 75, text
        assert seconds < 25
        states = list(run.log.parent.glob("state-*"))
        steps += [int(s.name.removeprefix("state-")) for s in states]
        assert len(states) <= 1
    assert steps == sorted(steps)
