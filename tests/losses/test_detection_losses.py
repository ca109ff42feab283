"""Losses of detectors: the values of G2SD's formula, naive loops, what has no gradient, rows divided."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou

from kdcli.losses import detection as losses
from kdcli.losses.detection import mean_count, per_object


def g(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- per object ----------------------------------------------------------------------------------------------


def test_a_loss_per_object_is_the_sum_over_their_number() -> None:
    rows, count = g(6, seed=0).square(), torch.tensor([3.0, 0, 1, 4, 0, 2])
    found = per_object(rows, mean_count(count, torch.ones(6, dtype=torch.bool)))
    assert float(found) == pytest.approx(float(rows.sum()) / 10)


def test_only_labelled_rows_have_objects() -> None:
    count = torch.tensor([3.0, 5.0, 1.0])
    labelled = torch.tensor([True, False, True])
    assert float(mean_count(count, labelled)) == 2
    assert float(mean_count(count)) == 3
    assert float(mean_count(count.long(), labelled)) == 2


def test_a_batch_without_objects_or_labels_counts_one() -> None:
    none = torch.zeros(4)
    assert float(mean_count(none)) == 0.25
    assert float(per_object(torch.full((4,), 2.0), mean_count(none))) == 8, "the sum over one object"
    assert float(mean_count(none, torch.zeros(4, dtype=torch.bool))) == 1
    assert math.isnan(float(mean_count(torch.tensor([1.0, math.nan]))))


# -- where the teacher sees objects --------------------------------------------------------------------------


def levels(rows: int = 2, width: int = 256, anchors: int = 3) -> list[tuple[Tensor, ...]]:
    """What the script of the golden values drew: five levels, from 16 to 1."""
    return [
        (
            g(rows, width, n, n, seed=40 + i),
            g(rows, width, n, n, seed=50 + i),
            g(rows, anchors, n, n, seed=60 + i),
            2 * g(rows, anchors, n, n, seed=70 + i),
        )
        for i, n in enumerate((16, 8, 4, 2, 1))
    ]


def imitated(level: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    mine, its, logits, teacher = level
    seen = teacher.sigmoid()
    mean = losses.mean_places(losses.places(seen))
    return losses.imitated_features(mine, its, seen, mean), losses.imitated_objectness(logits, seen, mean)


def naive(level: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Both as the formula has them, over the whole batch."""
    mine, its, logits, teacher = level
    m = teacher.sigmoid().amax(dim=1, keepdim=True)
    entropy = F.binary_cross_entropy(logits.sigmoid(), teacher.sigmoid(), reduction="none")
    return (m * (its - mine) ** 2).sum() / m.sum(), (m * entropy).sum() / m.sum()


def test_values_of_the_authors_formula() -> None:
    found = [imitated(level) for level in levels()]
    assert sum(float(a) for a, _ in found) == pytest.approx(2514.0007, rel=1e-6)
    assert sum(float(b) for _, b in found) == pytest.approx(12.3956938, rel=1e-6)


def test_values_and_gradients_of_the_naive_formula() -> None:
    for level in levels(3, 8, 2):
        mine, its, logits, teacher = (t.double() for t in level)
        for which, own in ((0, mine), (1, logits)):
            own.requires_grad_()
            pair = [of((mine, its, logits, teacher))[which] for of in (imitated, naive)]
            slopes = [torch.autograd.grad(value, own)[0] for value in pair]
            torch.testing.assert_close(pair[0], pair[1], rtol=1e-5, atol=1e-6, check_dtype=False)
            torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-7)


def test_a_map_without_anchors_is_one_of_one_anchor() -> None:
    _, _, logits, teacher = levels(2, 4, 1)[1]
    seen = teacher.sigmoid()
    mean = losses.mean_places(losses.places(seen))
    flat = losses.imitated_objectness(logits[:, 0], seen, mean)
    assert torch.equal(flat, losses.imitated_objectness(logits, seen, mean))


def test_a_teacher_that_sees_nothing_divides_by_something() -> None:
    mine, its, logits, teacher = levels(2, 4, 1)[2]
    found = imitated((mine, its, logits, torch.full_like(teacher, -200.0)))
    assert [float(value) for value in found] == [0, 0]


# -- matched queries -----------------------------------------------------------------------------------------


@pytest.fixture
def answers() -> tuple[Tensor, ...]:
    """Logits and boxes of five queries, of the teacher's four, and which belong together."""
    draw = torch.Generator().manual_seed(3)
    boxes, others = (torch.rand(2, n, 4, generator=draw, dtype=torch.float64) for n in (5, 4))
    pairs = torch.tensor([[[0, 4], [1, 2], [2, 0], [3, 1]], [[3, 0], [0, 1], [1, 3], [2, 4]]])
    logits, its = g(2, 5, 3, seed=1, dtype=torch.float64), 2 * g(2, 4, 3, seed=2, dtype=torch.float64)
    return logits, boxes, its, others, pairs


def distilled(answers: Sequence[Tensor], **keywords: float) -> Tensor:
    mean = mean_count(losses.expected_objects(answers[2], answers[4]))
    return losses.query_distillation(*answers, mean, **keywords)


def looped(answers: Sequence[Tensor], t: float, l1: float, giou: float) -> Tensor:
    """Pair by pair and class by class."""
    logits, boxes, its, others, pairs = answers
    total, objects = logits.new_zeros(()), logits.new_zeros(())
    for row in range(len(pairs)):
        for theirs, mine in pairs[row].tolist():
            sure, own = (float(z.sigmoid().max()) for z in (its[row, theirs], logits[row, mine]))
            objects = objects + sure
            for a, b in zip(logits[row, mine], its[row, theirs]):
                q, p = (a / t).sigmoid(), (b / t).sigmoid()
                kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
                total = total + max(sure, own) * t**2 * kl
            a, b = boxes[row, mine], others[row, theirs]
            total = total + sure * l1 * (a - b).abs().sum()
            corners = [box_convert(box[None], "cxcywh", "xyxy") for box in (a, b)]
            total = total + sure * giou * (1 - generalized_box_iou(*corners)[0, 0])
    return total / objects


@pytest.mark.parametrize(("t", "l1", "giou"), [(1.0, 5.0, 2.0), (3.0, 1.0, 0.0), (2.0, 0.0, 0.5)])
def test_queries_are_compared_pair_by_pair(answers, t: float, l1: float, giou: float) -> None:
    logits, boxes = answers[0].requires_grad_(), answers[1].requires_grad_()
    found = distilled(answers, temperature=t, l1=l1, giou=giou)
    wanted = looped(answers, t, l1, giou)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, check_dtype=False)
    for own in (logits, boxes):
        slopes = [torch.autograd.grad(v, own, retain_graph=True)[0] for v in (found, wanted)]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=1e-6)


def test_without_the_square_of_the_temperature(answers) -> None:
    with_, without = (
        distilled(answers, temperature=2.0, l1=0.0, giou=0.0, t_squared=on) for on in (True, False)
    )
    assert float(with_) == pytest.approx(4 * float(without))


def test_a_student_that_says_the_same_has_no_loss_and_the_order_of_queries_means_nothing(answers) -> None:
    logits, boxes, its, others, pairs = answers
    own, where = logits.clone(), boxes.clone()
    for row in range(2):
        own[row, pairs[row, :, 1]] = its[row, pairs[row, :, 0]]
        where[row, pairs[row, :, 1]] = others[row, pairs[row, :, 0]]
    assert float(distilled((own, where, its, others, pairs))) == pytest.approx(0, abs=1e-6)
    turned = torch.tensor([3, 0, 4, 1, 2])  # query i of the student stands at place turned[i]
    at = turned.argsort()
    moved = torch.stack([pairs[..., 0], turned[pairs[..., 1]]], dim=-1)[:, torch.tensor([2, 0, 3, 1])]
    found = distilled((logits[:, at], boxes[:, at], its, others, moved))
    assert float(found) == pytest.approx(float(distilled(answers)), rel=1e-6)


def test_no_gradient_goes_through_weights_and_the_teachers_is_the_callers(answers) -> None:
    logits, boxes, its, others, pairs = answers
    for tensor in (logits, its):
        tensor.requires_grad_()
    mean = mean_count(losses.expected_objects(its.detach(), pairs))
    losses.query_distillation(logits, boxes, its.detach(), others, pairs, mean).backward()
    assert its.grad is None
    assert logits.grad is not None
    unmatched = [q for q in range(5) if q not in pairs[0, :, 1].tolist()]
    assert float(logits.grad[0, unmatched].abs().sum()) == 0
    assert float(logits.grad[0].abs().sum()) > 0


def test_background_weighs_next_to_nothing_and_a_false_alarm_what_it_says() -> None:
    """300 queries, one object: what both take for background does not outweigh it, an alarm does count."""
    its, own = torch.full((1, 300, 80), -4.0), torch.full((1, 300, 80), -4.6)
    its[0, 0, 7] = 3.0
    boxes = torch.full((1, 300, 4), 0.5)
    pairs = torch.arange(300)[None, :, None].expand(-1, -1, 2)

    def loss(student: Tensor) -> float:
        return float(losses.query_distillation(student, boxes, its, boxes, pairs, torch.ones(())))

    quiet, right, alarmed = own.clone(), own.clone(), own.clone()
    right[0, 0, 7] = 3.0
    alarmed[0, 0, 7] = alarmed[0, 5, 3] = 3.0
    background = loss(right)
    assert 0 < background < (loss(quiet) - background) / 2
    assert loss(alarmed) - background > 2


def test_what_is_no_number_is_none_in_the_loss(answers) -> None:
    for which in range(4):
        spoilt = [tensor.clone() for tensor in answers]
        spoilt[which][0, answers[4][0, 0, 1 if which < 2 else 0]] = math.nan
        assert math.isnan(float(distilled(spoilt)))


# -- rows of several processes -------------------------------------------------------------------------------


def halves(
    loss: Callable[[slice, Tensor], Tensor], counts: Tensor, leaf: Tensor, mean: Tensor
) -> list[Tensor]:
    """Gradients of the whole batch, and of two processes with 1 and the other rows, each with its share."""
    (whole,) = torch.autograd.grad(loss(slice(None), mean), leaf)
    parts = [slice(0, 1), slice(1, None)]
    shares = [len(counts[part]) / len(counts) for part in parts]
    pieces = [torch.autograd.grad(loss(part, mean) * share, leaf)[0] for part, share in zip(parts, shares)]
    return [whole, pieces[0] + pieces[1]]


def test_two_processes_have_the_gradient_of_one(answers) -> None:
    rows = torch.arange(4) % 2
    logits, boxes, its, others, pairs = (tensor[rows].clone() for tensor in answers)
    its[0] -= 3  # a picture with little in it
    logits.requires_grad_()
    counts = losses.expected_objects(its, pairs)

    def queries(part: slice, mean: Tensor) -> Tensor:
        return losses.query_distillation(
            logits[part], boxes[part], its[part], others[part], pairs[part], mean
        )

    whole, parts = halves(queries, counts, logits, mean_count(counts))
    torch.testing.assert_close(whole, parts)
    mine, theirs, _, teacher = (t.clone() for t in levels(4, 4, 1)[1])
    teacher[0] -= 5
    mine.requires_grad_()
    seen = teacher.sigmoid()
    places = losses.places(seen)

    def features(part: slice, mean: Tensor) -> Tensor:
        return losses.imitated_features(mine[part], theirs[part], seen[part], mean)

    whole, parts = halves(features, places, mine, losses.mean_places(places))
    torch.testing.assert_close(whole, parts)


def test_half_precision_is_computed_in_single(answers) -> None:
    half = [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in answers]
    with torch.autocast("cpu", torch.bfloat16):
        found = distilled(half)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, distilled([t.float() if t.is_floating_point() else t for t in half]))
