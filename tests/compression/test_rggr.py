"""Retrieval-guided gradient resetting: golden masks, a literal loop beside it, queues that wrap, ties."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcli.compression.rggr import candidates, cumulative, empty, enqueue, observe
from kdcli.compression.rows import with_lasso
from kdcli.engine.states import checked

DIMS = (24, 48)


def golden_steps() -> list[list[Tensor]]:
    """s_1, t_1, s_2, t_2 of two steps: in each, all t are drawn, then the noise that makes all s of them."""
    generator = torch.Generator().manual_seed(5)
    scales = [torch.linspace(0.02, 1.5, p) for p in DIMS]
    steps = []
    for _ in range(2):
        teacher = [torch.randn(4, p, generator=generator) * scale for p, scale in zip(DIMS, scales)]
        noise = [torch.randn(4, p, generator=generator) * scale for p, scale in zip(DIMS, scales)]
        steps.append([x for t, n in zip(teacher, noise) for x in (t + 0.3 * n, t)])
    return steps


def golden_run(**keywords: Any) -> tuple[list[list[int]], dict[str, Tensor]]:
    """Numbers of reset rows after each step, and the state at the end."""
    state = empty(*((p,) for p in DIMS), size=16)
    counts = []
    for pooled in golden_steps():
        number, changes = observe(state, *pooled, **keywords)
        state = {**state, **changes}
        counts.append([int((~state[f"mask{layer}"]).sum()) for layer in (1, 2)])
        assert number.item() == sum(counts[-1])
    return counts, state


def reset(mask: Tensor) -> list[int]:
    return (~mask).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("distance", "ratio", "neighbours", "golden"),
    [
        ("cosine", 0.5, 1, [[6, 10], [6, 13]]),
        ("cosine", 0.5, 2, [[6, 10], [6, 13]]),
        ("cosine", 0.7, 1, [[9, 16], [11, 23]]),
        ("cosine", 0.7, 2, [[8, 16], [9, 21]]),
        ("l2", 0.5, 1, [[6, 10], [6, 13]]),
        ("l2", 0.5, 2, [[6, 10], [6, 12]]),
    ],
)
def test_golden_numbers_of_reset_rows(
    distance: str, ratio: float, neighbours: int, golden: list[list[int]]
) -> None:
    assert golden_run(distance=distance, ratio=ratio, neighbours=neighbours)[0] == golden


def test_golden_rows() -> None:
    for neighbours in (1, 2):
        assert reset(golden_run(neighbours=neighbours)[1]["mask1"]) == [0, 1, 2, 3, 5, 9]
    assert reset(golden_run(ratio=0.7)[1]["mask1"]) == [0, 1, 2, 3, 4, 5, 7, 9, 13]


def test_golden_gradient() -> None:
    """Of the first compactor, the identity, after the widest choice: 16 rows have the lasso alone."""
    mask = golden_run(distance="l2", ratio=0.9, neighbours=2)[1]["mask1"]
    gradient = torch.randn(24, 24, 1, 1, generator=torch.Generator().manual_seed(7))
    weight = torch.eye(24)[:, :, None, None]
    found = with_lasso(gradient, weight, strength=0.004, mask=mask)
    assert found.norm().item() == pytest.approx(14.31584167, rel=1e-6)
    alone = [i for i in range(24) if torch.equal(found[i], 0.004 * weight[i])]
    assert len(alone) == 16
    assert alone == reset(mask)


# -- against loops -------------------------------------------------------------------------------------------


def unit(row: list[float]) -> list[float]:
    size = math.hypot(*row) or 1.0
    return [x / size for x in row]


def naive_candidates(
    student: list[Any], teacher: list[Any], gallery: list[Any], neighbours: int, ratio: float, distance: str
) -> list[bool]:
    width = len(student[0])
    if distance == "cosine":
        student, teacher, gallery = ([unit(row) for row in rows] for rows in (student, teacher, gallery))
    always = set(range(width))
    for s, t in zip(student, teacher):
        if distance == "cosine":
            far = [-sum(x * y for x, y in zip(t, g)) for g in gallery]
        else:
            far = [math.dist(t, g) for g in gallery]
        for nearest in sorted(range(len(gallery)), key=far.__getitem__)[:neighbours]:
            parts = [abs(x * y) for x, y in zip(gallery[nearest], s)]
            always &= set(sorted(range(width), key=parts.__getitem__)[: math.floor(width * ratio)])
    return [i in always for i in range(width)]


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("neighbours", [1, 2, 3])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_literal_loop(distance: str, neighbours: int, ratio: float, seed: int) -> None:
    """Eight batches of 3 through queues of 12, which wrap twice; two layers share the count."""
    generator = torch.Generator().manual_seed(seed)
    dims, state = (16, 20), empty((16,), (20,), size=12)
    galleries: list[deque[list[float]]] = [deque(maxlen=12), deque(maxlen=12)]
    masked: list[set[int]] = [set(), set()]
    for step in range(8):
        pooled = []
        for p in dims:
            teacher = torch.randn(3, p, generator=generator) * torch.linspace(0.02, 1.5, p)
            student = teacher + 0.3 * torch.randn(3, p, generator=generator)
            pooled += [student, teacher]
        before = {name: tensor.clone() for name, tensor in state.items()}
        number, changes = observe(state, *pooled, neighbours=neighbours, ratio=ratio, distance=distance)
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        state = {**state, **changes}
        for layer, (gallery, rows) in enumerate(zip(galleries, masked), 1):
            s, t = (x.tolist() for x in pooled[2 * layer - 2 : 2 * layer])
            gallery.extend(t)
            found = naive_candidates(s, t, list(gallery), neighbours, ratio, distance)
            rows.update(i for i, candidate in enumerate(found) if candidate)
            assert set(reset(state[f"mask{layer}"])) == rows, step
        assert number.item() == len(masked[0]) + len(masked[1])
    assert int(state["filled"]) == 24
    assert masked[0] or ratio < 0.75


def test_units_of_several_channels_are_chosen_by_what_these_contribute_together() -> None:
    """Heads of an attention: contributions are added up over each of their channels."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(3, 12, generator=draw), torch.randn(3, 12, generator=draw)
    found = candidates(student, teacher, teacher, neighbours=1, ratio=0.5, each=3)
    always = {0, 1, 2, 3}
    for s, t in zip(student.tolist(), teacher.tolist()):
        parts = [abs(x * y) for x, y in zip(unit(s), unit(t))]
        sums = [sum(parts[3 * head : 3 * head + 3]) for head in range(4)]
        always &= set(sorted(range(4), key=sums.__getitem__)[:2])
    assert {head for head in range(4) if found[head]} == always
    state = empty((12,), (5,), size=6, each=(3, 1))
    assert [len(state[name]) for name in ("mask1", "mask2")] == [4, 5]
    pooled = (student, teacher, student[:, :5], teacher[:, :5])
    _, changes = observe(state, *pooled, neighbours=1, each=(3, 1))
    assert set(reset(changes["mask1"])) == always


def test_a_neighbour_from_an_earlier_batch_is_found() -> None:
    """It has the second channel small, the row itself the first: no channel is small in both."""
    gallery = torch.tensor([[1.0, 3.0, 9.0], [3.0, 1.0, 9.0], [-9.0, 9.0, 0.0]])
    rows = gallery[:1]
    alone = candidates(torch.ones(1, 3), rows, gallery, neighbours=1, ratio=1 / 3)
    assert alone.tolist() == [True, False, False]
    both = candidates(torch.ones(1, 3), rows, gallery, neighbours=2, ratio=1 / 3)
    assert both.tolist() == [False, False, False]


def test_equal_contributions_are_taken_in_the_order_of_channels() -> None:
    rows = torch.ones(2, 5)
    assert candidates(rows, rows, rows, ratio=0.5).tolist() == [True, True, False, False, False]
    quiet = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]]).repeat(2, 1)
    assert candidates(quiet, rows, rows, ratio=0.5).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("width", "ratio", "count"), [(100, 0.29, 29), (10, 0.7, 7), (3, 0.3, 0), (4, 1.0, 4)]
)
def test_so_many_channels_are_looked_at(width: int, ratio: float, count: int) -> None:
    row = torch.rand(1, width, generator=torch.Generator().manual_seed(0)) + 0.1
    assert int(candidates(row, row, row, neighbours=1, ratio=ratio).sum()) == count


def test_scale_matters_to_l2_alone() -> None:
    """The nearest by angle is far away."""
    gallery = torch.tensor([[1.0, 2.0, 3.0], [100.0, 201.0, 300.0], [2.0, 1.0, 3.0]])
    student, teacher = torch.ones(1, 3), gallery[:1]
    assert candidates(student, teacher, gallery, ratio=1 / 3).tolist() == [True, False, False]
    assert candidates(student, teacher, gallery, ratio=1 / 3, distance="l2").tolist() == [False] * 3


def test_neither_autocast_nor_half_precision_changes_the_choice() -> None:
    """Similarities that bf16 cannot tell apart."""
    gallery = torch.randn(12, 24, generator=torch.Generator().manual_seed(1)) * 0.01 + 1.0
    student = torch.randn(3, 24, generator=torch.Generator().manual_seed(2))
    expected = candidates(student, gallery[:3], gallery)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(candidates(student, gallery[:3], gallery), expected)
    naive = naive_candidates(student.tolist(), gallery[:3].tolist(), gallery.tolist(), 2, 0.5, "cosine")
    assert expected.tolist() == naive
    assert expected.any()


def test_the_engine_takes_the_changes() -> None:
    state, pooled = empty(*((p,) for p in DIMS), size=16), golden_steps()[0]
    _, changes = observe(state, *pooled)
    taken = checked(state, changes, pooled, "derive reset", "rggr")
    assert taken.keys() == state.keys()
    assert all(torch.equal(tensor, changes[name]) for name, tensor in taken.items())
    assert torch.equal(taken["queue2"][:4], pooled[3])


# -- queues, masks, what is refused --------------------------------------------------------------------------


def test_the_newest_rows_take_the_places_of_the_oldest() -> None:
    queue, filled = torch.zeros(4, 1), torch.zeros((), dtype=torch.int64)
    seen = []
    for batch in range(3):
        rows = torch.tensor([[2.0 * batch + 1], [2.0 * batch + 2]])
        new, count = enqueue(queue, filled, rows)
        assert (queue.flatten().tolist(), int(filled)) == (seen[-1] if seen else ([0, 0, 0, 0], 0))
        queue, filled = new, count
        seen.append((queue.flatten().tolist(), int(filled)))
    assert seen == [([1, 2, 0, 0], 2), ([1, 2, 3, 4], 4), ([5, 6, 3, 4], 6)]


def test_a_queue_keeps_its_type_and_no_gradient() -> None:
    rows = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    queue, filled = enqueue(torch.zeros(4, 3), torch.zeros((), dtype=torch.int64), rows)
    assert (queue.dtype, filled.dtype) == (torch.float32, torch.int64)
    assert not queue.requires_grad


def test_what_is_empty_holds_no_row() -> None:
    state = empty((3,), (5,), size=4)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        "filled": [],
        "queue1": [4, 3],
        "mask1": [3],
        "queue2": [4, 5],
        "mask2": [5],
    }
    assert state["mask1"].all()
    assert int(state["filled"]) == 0


def test_a_row_never_comes_back() -> None:
    mask = torch.tensor([True, True, False, False])
    assert cumulative(mask, torch.tensor([True, False, True, False])).tolist() == [False, True, False, False]
    assert mask.tolist() == [True, True, False, False]


def test_a_batch_that_wraps_around_the_end() -> None:
    """A queue of 5 and batches of 2: the third batch takes the last place and the first."""
    queue, filled = torch.zeros(5, 1), torch.zeros((), dtype=torch.int64)
    for batch in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]):
        queue, filled = enqueue(queue, filled, torch.tensor(batch)[:, None])
    assert queue[:, 0].tolist() == [6.0, 2.0, 3.0, 4.0, 5.0]
    assert int(filled) == 6


@pytest.mark.parametrize("batch", [0, 5])
def test_a_queue_that_does_not_hold_the_batch_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match=f"a queue of 4 rows holds no batch of {batch}"):
        enqueue(torch.zeros(4, 2), torch.zeros((), dtype=torch.int64), torch.zeros(batch, 2))


def test_a_first_batch_of_one_row_has_itself_as_its_only_neighbour() -> None:
    row = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    _, changes = observe(empty((4,), size=4), row, row, neighbours=2)
    assert reset(changes["mask1"]) == [0, 1]


def test_shapes_and_neighbours_that_do_not_fit_are_refused() -> None:
    rows = torch.ones(2, 3)
    with pytest.raises(ValueError, match="3 neighbours among 2 rows of the gallery"):
        candidates(rows, rows, rows, neighbours=3)
    with pytest.raises(ValueError, match="0 neighbours among 2 rows"):
        candidates(rows, rows, rows, neighbours=0)
    with pytest.raises(ValueError, match=r"student features \[2, 2\] and teacher features \[2, 3\] must"):
        candidates(rows[:, :2], rows, rows)
    with pytest.raises(ValueError, match="2 layers need student's and teacher's rows of each, got 3"):
        observe(empty((3,), (3,), size=4), rows, rows, rows)


def test_no_more_rows_are_reset_once_those_that_are_meet_a_target() -> None:
    """By the widths that the masks in force leave, of which each is one at least."""
    from kdcli.compression.cdd import observed

    draw = torch.Generator().manual_seed(0)
    state = {**empty((6,), (4,), size=8), "seen": torch.zeros((), dtype=torch.int64)}
    asked: list[list[int]] = []

    def enough(widths: Sequence[int]) -> bool:
        asked.append(list(widths))
        return sum(widths) <= 8

    counts = []
    for _ in range(6):
        pooled = [torch.rand(1, width, generator=draw) for width in (6, 6, 4, 4)]
        value, changes = observed(state, *pooled, warmup=0, ratio=0.5, neighbours=1, enough=enough)
        state |= changes
        counts.append(int(value))
    assert asked[0] == [6, 4]
    assert counts[0] == 5  # half of six, half of four
    assert counts == [5] * 6
    assert int(state["seen"]) == int(state["filled"]) == 6  # queues go on
    assert asked[1:] == [[3, 2]] * 5
