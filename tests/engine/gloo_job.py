"""Run by two gloo processes (see test_two_processes.py): checks write what they found to a JSON file."""

import json
from pathlib import Path

import torch
from toolbox import QUIET, StopAfter, inversion_plan
from torch import nn

from kdcli.config import resolve
from kdcli.engine.runtime import Runtime, open_runtime
from kdcli.engine.states import States
from kdcli.engine.turn import TurnModule
from kdcli.errors import Preempted
from kdcli.losses.relations import cc
from kdcli.sections import RunSection
from kdcli.stages import distill, synthesize
from kdcli.words import Call, Derive, State, Term, Turn

ROWS, WIDTH, CLASSES = 8, 6, 3


class Toy(nn.Module):
    """Two layers and a head that no loss reads."""

    def __init__(self, seed: int, out: int = CLASSES, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, out)
        self.unused = nn.Linear(WIDTH, 2) if unused else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


def mean_square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a - b) ** 2).mean()


def half(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a + b) / 2


# The student is called on two views and on what the generator makes; its head `unused` gets nothing.
STUDENT = Turn(
    "student",
    trains=("student",),
    calls=(
        Call("g", "generator", ("z",)),
        Call("s", "student", ("x",)),
        Call("s@view2", "student", ("x2",)),
        Call("s@fake", "student", ("~g.out",)),
        Call("t", "teacher", ("x",)),
        Call("t@fake", "teacher", ("~g.out",)),
    ),
    derives=(Derive("both", half, ("s.out", "s@view2.out")),),
    terms=(
        Term("ce", nn.functional.cross_entropy, ("s.out", "y"), rows="labelled"),
        Term("match", mean_square, ("both", "~t.out"), weight=0.7),
        Term("fake", mean_square, ("s@fake.out", "~t@fake.out"), weight=lambda done: 0.5 + done),
    ),
)
# The generator learns through the frozen teacher and through the student, which this turn does not train.
GENERATOR = Turn(
    "generator",
    trains=("generator",),
    calls=(Call("g", "generator", ("z",)), Call("t", "teacher", ("g.out",))),
    terms=(Term("entropy", lambda a: (a.softmax(1) ** 2).mean(), ("t.out",)),),
)


# A relation between the rows of the batch, wherever they are.
RELATION = Turn(
    "student",
    trains=("student",),
    calls=(Call("s", "student", ("x",)), Call("t", "teacher", ("x",))),
    terms=(
        Term("cc", cc, ("s.out", "~t.out"), weight=0.3, scope="batch"),
        Term("match", mean_square, ("s.out", "~t.out")),
    ),
)


def enqueued(
    state: dict[str, torch.Tensor], rows: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The queue [12, C] as it was; then the oldest rows give way, and their weight is what they add up to."""
    keys = torch.cat([state["keys"], rows])[-len(state["keys"]) :]
    return state["keys"], {"keys": keys, "seen": state["seen"] + len(rows)}


def against(
    rows: torch.Tensor, centre: torch.Tensor, bank: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """A relation between rows, their derived mean, a constant bank and a parameter, none a sum over rows."""
    return ((rows - centre) @ bank.t()).logsumexp(1).mean().square() + (centre @ weight).square().mean()


def mean_of(rows: torch.Tensor) -> torch.Tensor:
    return rows.mean(0, keepdim=True)


QUEUE = State("queue", lambda: {"keys": torch.zeros(12, CLASSES), "seen": torch.zeros((), dtype=torch.long)})
# Relations of selected rows, of derived rows of all processes, and of a queue that they fill.
GATHERED = Turn(
    "student",
    trains=("student",),
    calls=(Call("s", "student", ("x",)), Call("t", "teacher", ("x2",))),
    derives=(
        Derive("bank", enqueued, ("~t.out",), scope="batch", state=QUEUE),
        Derive("centre", mean_of, ("s.out",), scope="batch"),
    ),
    terms=(
        Term("cc", cc, ("s.out", "~t.out"), weight=0.3, scope="batch", rows="labelled"),
        Term("against", against, ("s.out", "centre", "bank", "s:last.weight"), scope="batch"),
        Term("near", mean_square, ("s.out", "~centre"), weight=0.5, rows="labelled"),
    ),
)


def parties() -> dict[str, nn.Module]:
    return {
        "student": Toy(0, unused=True),
        "generator": Toy(1, out=WIDTH),
        "teacher": Toy(2).requires_grad_(False),
    }


def batch(labels: str) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(3)
    columns = {name: torch.randn(ROWS, WIDTH, generator=made) for name in ("x", "x2", "z")}
    columns["y"] = torch.randint(0, CLASSES, (ROWS,), generator=made)
    masks = {"all": [1] * 8, "uneven": [1, 1, 1, 0, 0, 0, 0, 0], "none": [0] * 8}
    columns["labelled"] = torch.tensor(masks[labels], dtype=torch.bool)
    return columns


def gradients(
    runtime: Runtime | None,
    micro: int,
    labels: str,
    turns: tuple[Turn, ...] = (GENERATOR, STUDENT),
    states: States | None = None,
) -> dict[str, torch.Tensor]:
    """Gradients of all turns in one step: of this job, or (without a runtime) of one process."""
    networks, found = parties(), {}
    whole = batch(labels)
    world, rank = (runtime.world_size, runtime.rank) if runtime else (1, 0)
    count = max(int(whole["labelled"].sum()), 1)
    for turn in turns:
        module = TurnModule(turn, networks, shared=runtime is not None, states=states)
        prepared = runtime.accelerator.prepare(module) if runtime else module
        size = ROWS // (world * micro)
        for i in range(micro):
            start = (rank * micro + i) * size
            part = {k: v[start : start + size] for k, v in whole.items()}
            share = torch.tensor([size / ROWS, float(part["labelled"].sum()) / count]) * world
            if runtime and i < micro - 1:
                with runtime.accelerator.no_sync(prepared):
                    runtime.accelerator.backward(prepared(part, share, 0.25)["loss"])
            else:
                loss = prepared(part, share, 0.25)["loss"]
                runtime.accelerator.backward(loss) if runtime else loss.backward()
        for name, parameter in networks[turn.name].named_parameters():
            if parameter.grad is not None:
                found[f"{turn.name}/{name}"] = parameter.grad.clone()
                parameter.grad = None
        if runtime:
            runtime.accelerator.free_memory()
    return found


def compare_gradients(runtime: Runtime, folder: Path) -> None:
    results = {}
    for labels in ("all", "uneven", "none"):
        one = gradients(None, 1, labels)
        for micro in (1, 2):
            two = gradients(runtime, micro, labels)
            # parameters that no loss reads get a zero gradient or none
            names = {n for n, g in two.items() if g.abs().sum() > 0} | {
                n for n, g in one.items() if g.abs().sum()
            }
            worst = max(float((two[n] - one[n]).abs().max()) for n in names)
            results[f"{labels}/{micro}"] = {"worst": worst, "names": sorted(names)}
    one, two = (gradients(where, 1, "all", (RELATION,)) for where in (None, runtime))
    names = sorted(name for name in one if one[name].abs().sum() > 0)
    worst = max(float((two[n] - one[n]).abs().max()) for n in names)
    results["relation"] = {"worst": worst, "names": names}
    for labels in ("all", "uneven", "none"):
        results[f"gathered/{labels}"] = compare_states(runtime, labels)
    if runtime.main:
        (folder / "gradients.json").write_text(json.dumps(results))


def compare_states(runtime: Runtime, labels: str) -> dict[str, object]:
    """Two steps with one queue: gradients and queues of one process and of two."""
    first = QUEUE.build()
    first["keys"] += torch.arange(12.0)[:, None] / 10
    queues = [{"queue": dict(first)} for _ in range(2)]
    worst, names = 0.0, set()
    for _ in range(2):
        one, two = (
            gradients(where, 1, labels, (GATHERED,), states) for where, states in zip((None, runtime), queues)
        )
        names = {name for name in one if one[name].abs().sum() > 0}
        worst = max([worst, *(float((two[n] - one[n]).abs().max()) for n in names)])
    one_queue, two_queue = (queue["queue"] for queue in queues)
    return {
        "worst": worst,
        "names": sorted(names),
        "queue": float((one_queue["keys"] - two_queue["keys"]).abs().max()),
        "seen": [int(one_queue["seen"]), int(two_queue["seen"])],
        "same": float((one_queue["keys"] - first["keys"]).abs().max()),
    }


def resume(folder: Path, pictures: Path, stops: list[int]) -> None:
    """A run on two processes, stopped after k steps on one of them, against an uninterrupted one."""

    def plan(name: str) -> distill.Plan:
        options = {
            "method.name": "supervised",
            "student": "test_resnet",
            "from_scratch": True,
            "image_size": 32,
            "data.source": str(pictures),
            "optim.max_steps": 29,
            "optim.batch_size": 8,
            "log_every": 1,
            "out": str(folder / name),
        }
        return distill.plan(resolve(distill.Config, options=options), QUIET)

    distill.run(plan("whole"), QUIET)
    rank = int(torch.distributed.get_rank())
    results = {}
    for stop in stops:
        made = plan(f"stopped-{stop}")
        try:
            distill.run(made, QUIET, stop=StopAfter(stop, asks=rank == 1))
            results[stop] = "was not stopped"
        except Preempted:
            distill.run(made, QUIET)
            files = [
                p.relative_to(made.target.path)
                for p in made.target.path.rglob("*")
                if p.name != "kdcli.json" and p.is_file()
            ]
            other = [
                f for f in files if (made.target.path / f).read_bytes() != (folder / "whole" / f).read_bytes()
            ]
            results[stop] = "differs" if other else f"equal in {len(files)} files"
    if rank == 0:
        (folder / "resume.json").write_text(json.dumps(results))


def mix(folder: Path, pictures: Path) -> None:
    """Forty pictures in pixels on two processes, one of which is told to stop."""
    options = {"mixer": "cutmix", "data.source": str(pictures), "count": 40, "out": str(folder / "mixed")}
    plan = synthesize.plan(resolve(synthesize.Config, options=options), QUIET)
    try:
        synthesize.run(plan, QUIET, stop=StopAfter(2, asks=torch.distributed.get_rank() == 1))
    except Preempted:
        assert len(list(folder.glob("mixed.partial/data-*.arrow"))) == 2, "a part of each process"
        synthesize.run(plan, QUIET)


def toy_method(folder: Path, options: dict[str, object], steps: int) -> None:
    """The method with every word: stopped after each step, on one of two processes, and continued."""
    open_runtime(resolve(RunSection, options={"device": "cpu"}), find_unused=True)
    rank, results = int(torch.distributed.get_rank()), {}

    def plan(name: str) -> distill.Plan:
        return distill.plan(resolve(distill.Config, options={**options, "out": str(folder / name)}), QUIET)

    def stop(made: distill.Plan, looks: int) -> None:
        try:
            distill.run(made, QUIET, stop=StopAfter(looks, asks=rank == 1))
        except Preempted:
            return
        raise AssertionError(f"{made.target.path} was not stopped")

    def running_state(made: distill.Plan) -> dict[str, object]:
        (kept,) = made.target.path.with_name(f"{made.target.path.name}.partial").glob("state-*")
        found = {file.name: file.read_bytes() for file in kept.glob("*.safetensors")}
        facts = json.loads((kept / "progress.json").read_text())
        return {**found, **{name: value for name, value in facts.items() if name != "seconds"}}

    whole = distill.run(plan("whole"), QUIET).path  # fills the cache, which looks for a stop too
    for looks in range(steps + 1):
        made = plan(f"stopped-{looks}")
        stop(made, looks)
        if looks < steps:
            stop(made, steps - looks)
        if looks == 0:
            expected = running_state(made)
        same = running_state(made) == expected and len(expected) > 8
        torch.distributed.barrier()  # before the state goes
        out = distill.run(made, QUIET).path
        logs = [(path / "metrics.jsonl").read_bytes() for path in (whole, out)]
        weights = [(path / "model.safetensors").read_bytes() for path in (whole, out)]
        results[looks] = same and logs[0] == logs[1] and weights[0] == weights[1]
    if rank == 0:
        (folder / "toy.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def every_method(folder: Path, options: dict[str, dict[str, object]]) -> None:
    """Each method, stopped half-way and continued, against an uninterrupted run."""
    rank, results = int(torch.distributed.get_rank()), {}
    for name, given in options.items():
        made = {}
        for kind in ("whole", "stopped"):
            resolved = resolve(distill.Config, options={**given, "out": str(folder / f"{name}-{kind}")})
            made[kind] = distill.plan(resolved, QUIET)
        whole = distill.run(made["whole"], QUIET).path
        try:
            distill.run(made["stopped"], QUIET, stop=StopAfter(2, asks=rank == 1))
            results[name] = "was not stopped"
        except Preempted:
            stopped = distill.run(made["stopped"], QUIET).path
            files = [p.relative_to(whole) for p in whole.rglob("*.safetensors")]
            same = all((whole / f).read_bytes() == (stopped / f).read_bytes() for f in files)
            results[name] = "equal" if same and files else "differs"
    if rank == 0:
        (folder / "methods.json").write_text(json.dumps(results))


def methods_work(folder: Path, options: dict[str, dict[str, object]]) -> None:
    """Every method, in one process of two."""
    open_runtime(resolve(RunSection, options={"device": "cpu"}), find_unused=True)
    every_method(folder, options)
    torch.distributed.destroy_process_group()


def invert(folder: Path, network: Path) -> None:
    """Three blocks of pictures on two processes, one of which is told to stop within its block."""
    plan = inversion_plan(network, folder / "inverted")
    try:
        synthesize.run(plan, QUIET, stop=StopAfter(3, asks=torch.distributed.get_rank() == 1))
    except Preempted:
        assert len(list(folder.glob("inverted.partial/round-*/state-*"))) == 1
        synthesize.run(plan, QUIET)


def work(folder: Path, pictures: Path, network: Path, stops: list[int]) -> None:
    """All checks, in one process of two."""
    runtime = open_runtime(resolve(RunSection, options={"device": "cpu"}), find_unused=True)
    compare_gradients(runtime, folder)
    resume(folder, pictures, stops)
    mix(folder, pictures)
    invert(folder, network)
    torch.distributed.destroy_process_group()
