"""Queries of student and teacher brought together: the least cost of all, whatever is no number."""

from __future__ import annotations

import importlib.util
import itertools
import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from kdcli.errors import EnvironmentFault
from kdcli.losses.detection import expected_objects, mean_count, query_distillation
from kdcli.tasks.detection.matching import matched_queries, query_terms

Answers = tuple[Tensor, Tensor, Tensor, Tensor]


def drawn(rows: int, mine: int, theirs: int, classes: int = 3, seed: int = 0) -> Answers:
    """Logits and boxes of the student, then of the teacher."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for count in (mine, theirs):
        found.append(2 * torch.randn(rows, count, classes, generator=draw, dtype=torch.float64))
        found.append(torch.rand(rows, count, 4, generator=draw, dtype=torch.float64))
    return found[0], found[1], found[2], found[3]


def cost(answers: Answers, row: int, theirs: int, mine: int) -> float:
    """Of one pair, as the equation has it."""
    logits, boxes, its, others = (tensor[row] for tensor in answers)
    p, q = its[theirs].sigmoid(), logits[mine].sigmoid()
    a, b = others[theirs], boxes[mine]
    overlap = generalized_box_iou(*(box_convert(box[None], "cxcywh", "xyxy") for box in (a, b)))
    apart = 5 * float((a - b).abs().sum()) - 2 * float(overlap)
    return 2 * float((p - q).abs().sum()) + float(p.max()) * apart


@pytest.mark.parametrize(("mine", "theirs"), [(4, 4), (5, 3), (3, 5)])
def test_no_other_matching_costs_less(mine: int, theirs: int) -> None:
    answers = drawn(3, mine, theirs)
    pairs = matched_queries(*answers)
    count = min(mine, theirs)
    assert pairs.shape == (3, count, 2)
    assert pairs.dtype == torch.int64
    for row in range(3):
        best = answers[2][row].amax(dim=1).argsort(descending=True)[:count].tolist()
        assert pairs[row, :, 0].tolist() == best, "the most confident first, of more none else"
        costs = {
            chosen: sum(cost(answers, row, t, s) for t, s in zip(best, chosen))
            for chosen in itertools.permutations(range(mine), count)
        }
        assert tuple(pairs[row, :, 1].tolist()) == min(costs, key=costs.__getitem__)


def test_weights_of_the_costs_are_heeded() -> None:
    logits = torch.tensor([[[4.0, -4.0], [-4.0, 4.0]]])
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]]])
    crossed = (logits, boxes, logits, boxes.flip(1))
    by_class = matched_queries(*crossed, l1=0.0, giou=0.0)
    by_box = matched_queries(*crossed, class_cost=0.0)
    by_overlap = matched_queries(*crossed, class_cost=0.0, l1=0.0)
    assert by_class.tolist() == [[[0, 0], [1, 1]]]
    assert by_box.tolist() == by_overlap.tolist() == [[[0, 1], [1, 0]]]


def test_boxes_of_background_take_nothing_from_an_object() -> None:
    """Many queries on nothing lie on the student's one candidate, and the object a little beside it."""
    its = torch.full((1, 20, 2), -6.0)
    its[0, 0, 0] = 4.0
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).repeat(1, 20, 1)
    boxes[0, 0, 0] = 0.55
    own = torch.full((1, 20, 4), 0.1)
    own[0, 3] = torch.tensor([0.5, 0.5, 0.2, 0.2])
    pairs = matched_queries(torch.full((1, 20, 2), -4.6), own, its, boxes)
    assert pairs[0, 0].tolist() == [0, 3]


def test_the_order_of_queries_means_nothing() -> None:
    answers = drawn(2, 6, 5, seed=1)
    pairs = matched_queries(*answers)
    mine, theirs = torch.tensor([4, 2, 0, 5, 1, 3]), torch.tensor([3, 0, 4, 1, 2])
    moved = (*(t[:, mine] for t in answers[:2]), *(t[:, theirs] for t in answers[2:]))
    found = matched_queries(*moved)
    back = torch.stack([theirs[found[..., 0]], mine[found[..., 1]]], dim=-1)
    assert torch.equal(back, pairs)


def test_it_is_the_same_again_and_has_no_gradient() -> None:
    answers = drawn(2, 6, 6, seed=2)
    answers[0].requires_grad_()
    first = matched_queries(*answers)
    assert not first.requires_grad
    assert torch.equal(first, matched_queries(*answers))
    equal = (torch.zeros(1, 4, 3), torch.full((1, 4, 4), 0.5)) * 2
    assert torch.equal(matched_queries(*equal), matched_queries(*equal))
    assert sorted(matched_queries(*equal)[0, :, 1].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(4))
def test_what_is_no_number_is_matched_and_ends_in_the_loss(which: int, value: float) -> None:
    """One entry of one query, of a student that has more of them than are matched."""
    answers = drawn(2, 7, 3, seed=3)
    answers[which][0, 1, 0] = value
    pairs = matched_queries(*answers)
    for row in range(2):
        assert len(set(pairs[row, :, 1].tolist())) == len(set(pairs[row, :, 0].tolist())) == 3
    mean = mean_count(expected_objects(answers[2], pairs))
    found = float(query_distillation(*answers, pairs, mean))
    if math.isnan(value) or which % 2:  # an infinite logit is a probability like another
        assert not math.isfinite(found)


def test_a_network_that_answers_nothing_but_nan_is_matched() -> None:
    answers = tuple(torch.full_like(tensor, math.nan) for tensor in drawn(2, 4, 4))
    pairs = matched_queries(*answers)
    assert [sorted(rows) for rows in pairs[..., 1].tolist()] == [[0, 1, 2, 3]] * 2


def test_without_scipy_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else found(name))
    message = r"matched with scipy: scipy is not installed. Install it with: pip install 'kdcli\[detection\]'"
    with pytest.raises(EnvironmentFault, match=message):
        matched_queries(*drawn(1, 2, 2))


def test_the_term_brings_what_it_reads() -> None:
    term = query_terms("s", "t", temperature=2.0, t_squared=False)
    assert (term.name, term.scope, term.rows) == ("queries", "sample", None)
    assert term.args == ("s.logits", "s.boxes", "~t.logits", "~t.boxes", "s-t-pairs", "~s-t-objects")
    assert term.keywords == {"l1": 5.0, "giou": 2.0, "temperature": 2.0, "t_squared": False}
    assert [(d.out, d.scope) for d in term.derives] == [
        *(("s-t-pairs", "sample"), ("s-t-expected", "sample"), ("s-t-objects", "batch")),
    ]
    other = query_terms("b2", "t", temperature=1.0, t_squared=True)
    assert {d.out for d in other.derives}.isdisjoint(d.out for d in term.derives)
