"""Any number of loader processes gives the same batches; what they meet is said clearly."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.artifacts.model import InputSpec
from kdcli.data.batches import Loader, _context, evaluation_loader, training_loader
from kdcli.data.order import Order, Pool, in_order
from kdcli.data.samples import Samples
from kdcli.data.targets import Targets
from kdcli.data.views import TrainingView
from kdcli.errors import BadImageError, EnvironmentFault, InputError, KdcliError
from kdcli.sections import ViewSection


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (12, 12, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def made(count: int, name: str = "train", start: int = 0) -> Samples:
    """Samples of noise; the label is the row modulo 3."""
    numbers = np.arange(start, start + count)
    cells = [{"image": {"bytes": picture(n), "path": None}} for n in numbers.tolist()]
    ids = (numbers + 1000).astype(np.uint64)
    targets = Targets(np.arange(count) % 3)
    return Samples(name, cells, "image", None, np.arange(count), ids, ids, targets)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return made(20)


def whole(picture: Image.Image, view: int, sample_id: int) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def test_a_pool_lays_its_parts_side_by_side(samples: Samples) -> None:
    other = made(5, "extra", start=100)
    pool = Pool((samples, other))
    assert len(pool) == 25
    assert [pool.locate(i) for i in (0, 19, 20, 24)] == [(samples, 0), (samples, 19), (other, 0), (other, 4)]
    assert pool.ids.tolist() == [*samples.ids.tolist(), *other.ids.tolist()]
    assert pool.labels.tolist() == [*samples.labels.tolist(), *other.labels.tolist()]


class Column:
    """Stands for a cache: a column made of ids and views."""

    def read(self, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        return {"t.logits": torch.tensor([[float(i), float(v)] for i, v in pairs])}


def loaded(samples: Samples, workers: int, **section: object) -> list[dict[str, torch.Tensor]]:
    pool = Pool((samples,))
    order = Order(pool.labels, 6, 0, None)
    cut = TrainingView(ViewSection(**section), 10, 0)  # type: ignore[arg-type]
    loader = training_loader(pool, cut, max_pixels=1000, workers=workers, timeout=120, columns=Column())
    return list(loader([order.keys(step) for step in range(9)]))


def test_any_number_of_workers_gives_the_same_batches(samples: Samples) -> None:
    section = {"auto_augment": "rand-m9-mstd0.5-inc1", "erase": 0.5, "color_jitter": 0.3}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = loaded(samples, 0, **section)
    assert torch.equal(torch.get_rng_state(), state)
    assert (expected[0]["x"].dtype, expected[0]["x"].shape) == (torch.uint8, (6, 3, 10, 10))
    for batch in expected:
        index = batch["index"]
        assert torch.equal(batch["y"], torch.from_numpy(samples.labels)[index])
        assert torch.equal(batch["t.logits"][:, 0], (index + 1000).float())
    for workers in (1, 2):
        torch.manual_seed(workers)
        found = loaded(samples, workers, **section)
        assert len(found) == 9
        for ours, theirs in zip(found, expected):
            assert set(ours) == set(theirs)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_evaluation_covers_the_split(samples: Samples) -> None:
    loader = evaluation_loader(samples, InputSpec((8, 8)), max_pixels=1000, workers=0, timeout=1)
    batches = list(loader(in_order(20, 8)))
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(20))
    with pytest.raises(InputError, match="train is empty"):
        evaluation_loader(
            samples.take(np.array([], int)), InputSpec((8, 8)), max_pixels=1, workers=0, timeout=1
        )


KEYS = [[(i % 20, 0), ((i + 1) % 20, 0)] for i in range(0, 2000, 2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_picture_arrives_with_its_row(workers: int) -> None:
    samples = made(20)
    samples.table[7]["image"]["bytes"] = picture(7)[:-20]
    loader = Loader(Pool((made(5, "extra"), samples)), whole, max_pixels=1000, workers=workers, timeout=60)
    with pytest.raises(BadImageError, match=r"train row 7: .*--on-bad-image skip"):
        list(loader([[(i, 0)] for i in range(25)]))
    samples.table[7]["image"] = {"bytes": None, "path": "/etc/passwd"}
    with pytest.raises(InputError, match=r"train row 7: .*never opened"):
        list(loader([[(i, 0)] for i in range(25)]))


def broken(picture: Image.Image, view: int, sample_id: int) -> torch.Tensor:
    if sample_id == 1007:
        raise ZeroDivisionError("no such luck")
    return torch.zeros(3, 4, 5 if sample_id == 1011 else 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_view_names_sample_and_source(samples: Samples, workers: int) -> None:
    loader = Loader(Pool((samples,)), broken, max_pixels=1000, workers=workers, timeout=60)
    message = "train row 7, view 3: cannot make a view: ZeroDivisionError: no such luck"
    with pytest.raises(KdcliError, match=message) as caught:
        list(loader([[(i, 3)] for i in range(20)]))
    assert caught.value.exit_code == 1  # a bug
    assert "in broken" in caught.value.__notes__[0]
    with pytest.raises(KdcliError, match=r"train, batch of sample 10: .*equal size"):
        list(loader([[(10, 0), (11, 0)]]))


def children() -> set[multiprocessing.process.BaseProcess]:
    return set(multiprocessing.active_children())


def test_a_killed_worker_is_said_to_be_lost(samples: Samples) -> None:
    loader = Loader(Pool((samples,)), whole, max_pixels=1000, workers=2, timeout=60)
    before, handler = children(), signal.getsignal(signal.SIGCHLD)
    batches = loader(KEYS)
    next(batches)
    victim, other = sorted(children() - before, key=lambda p: p.pid or 0)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    time.sleep(1)  # the step that is being computed is left alone: nothing is raised here
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match=r"a loader process of train was lost .*lower --workers"):
        list(batches)
    assert time.monotonic() - start < 15
    other.join(10)
    assert children() <= before
    assert signal.getsignal(signal.SIGCHLD) == handler


def test_a_worker_that_crashed_is_not_said_to_lack_memory(samples: Samples) -> None:
    loader = Loader(Pool((samples,)), whole, max_pixels=1000, workers=1, timeout=60)
    before = children()
    batches = loader(KEYS)
    next(batches)
    (victim,) = children() - before
    os.kill(victim.pid or 0, signal.SIGSEGV)
    with pytest.raises(EnvironmentFault, match=r"was lost \(.*\)\. Compiled code crashed there"):
        list(batches)


def looks(event: Any) -> None:
    while True:
        event.is_set()


def test_a_process_that_dies_while_it_looks_holds_nobody_up() -> None:
    """Torch asks the event of its processes about one that was killed: with a lock a run would hang here."""
    context = _context()
    event = context.Event()
    for _ in range(20):
        process = context.Process(target=looks, args=(event,), daemon=True)
        process.start()
        time.sleep(0.02)
        process.kill()
        process.join(10)
        asked = threading.Thread(target=event.is_set, daemon=True)
        asked.start()
        asked.join(5)
        assert not asked.is_alive()
    event.set()
    assert event.is_set()


def hang(picture: Image.Image, view: int, sample_id: int) -> torch.Tensor:
    if sample_id == 1007:
        time.sleep(600)
    return whole(picture, view, sample_id)


@pytest.mark.parametrize("timeout", [1.0, 3.0])
def test_a_hanging_worker_is_bounded(samples: Samples, timeout: float) -> None:
    loader = Loader(Pool((samples, made(1, "extra"))), hang, max_pixels=1000, workers=2, timeout=timeout)
    before = children()
    start = time.monotonic()
    message = rf"no batch of train, extra within {timeout:g} s: a loader process hangs.*worker_timeout"
    with pytest.raises(EnvironmentFault, match=message):
        list(loader(KEYS))
    assert timeout <= time.monotonic() - start < timeout + 12
    for process in children() - before:
        process.join(10)
    assert children() <= before


def slow(picture: Image.Image, view: int, sample_id: int) -> torch.Tensor:
    if sample_id == 1000:
        time.sleep(3)  # longer than one look at the workers, shorter than the limit
    return whole(picture, view, sample_id)


def test_a_slow_worker_is_waited_for(samples: Samples) -> None:
    loader = Loader(Pool((samples,)), slow, max_pixels=1000, workers=2, timeout=60)
    assert [b["index"].tolist() for b in loader([[(0, 0)], [(1, 0)], [(2, 0)]])] == [[0], [1], [2]]


def test_signals_are_not_for_workers(samples: Samples) -> None:
    loader = Loader(Pool((samples,)), whole, max_pixels=1000, workers=2, timeout=60)
    before = children()
    batches = loader(KEYS[:50])
    found = [next(batches)]
    for process in children() - before:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(process.pid or 0, number)
    found += batches
    assert len(found) == 50
    stopped = loader(KEYS)
    next(stopped)
    stopped.close()  # an epoch left early leaves nobody behind
    for process in children() - before:
        process.join(10)
    assert children() <= before


def test_a_pass_left_open_does_not_hold_up_the_exit() -> None:
    code = (
        "import torch; from kdcli.data import batches\n"
        "class Pool:\n"
        "    parts, ids, labels = (), torch.arange(9).numpy(), torch.zeros(9).long().numpy()\n"
        "    def locate(self, index): return Part, index\n"
        "class Part:\n"
        "    def picture(place, limit): return torch.zeros(3, 2, 2)\n"
        "loader = batches.Loader(Pool(), lambda p, v, i: p, max_pixels=1, workers=2, timeout=60)\n"
        "batches.kept = loader([[(i % 9, 0)] for i in range(500)])\n"
        "next(batches.kept)\n"
        "raise SystemExit(7)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (7, "")
