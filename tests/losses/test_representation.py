"""Losses between features, against loops; SEED against numbers of the authors' code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdcli.losses import representation as losses


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_cosine_distance_of_rows() -> None:
    a, b = drawn(5, 7, seed=0), drawn(5, 7, seed=1)
    wanted = sum(1 - cosine(x, y) for x, y in zip(a, b)) / 5
    assert losses.cosine_distance(a, b).item() == pytest.approx(wanted, rel=1e-6)
    assert losses.cosine_distance(3 * b, b).item() == pytest.approx(0, abs=1e-6)


def test_maps_are_matched_place_by_place() -> None:
    a, b = drawn(2, 4, 3, 2, seed=0), drawn(2, 4, 3, 2, seed=1)
    alike, smooth = [], []
    for n in range(2):
        for i in range(3):
            for j in range(2):
                alike.append(1 - cosine(a[n, :, i, j], b[n, :, i, j]))
                for d in (a[n, :, i, j] - b[n, :, i, j]).abs().tolist():
                    smooth.append(d * d / 2 if d < 1 else d - 0.5)
    wanted = 0.9 * sum(alike) / len(alike) + 0.1 * sum(smooth) / len(smooth)
    assert losses.spatial_match(a, b).item() == pytest.approx(wanted, rel=1e-5)


def test_all_tokens_count_alike() -> None:
    a, b, g, h = (
        drawn(2, 4, seed=0),
        drawn(2, 4, seed=1),
        drawn(2, 4, 3, 2, seed=2),
        drawn(2, 4, 3, 2, seed=3),
    )
    tokens = torch.cat([a[:, None], g.flatten(2).transpose(1, 2)], dim=1)
    teacher = torch.cat([b[:, None], h.flatten(2).transpose(1, 2)], dim=1)
    wanted = torch.nn.functional.mse_loss(tokens, teacher)
    assert losses.all_tokens(a, g, b, h).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_hidden_places_alone_count() -> None:
    a, b = drawn(3, 4, 2, 2, seed=0), drawn(3, 4, 2, 2, seed=1)
    visible = torch.tensor([[True, True, True, True], [False, True, True, False], [True, True, True, False]])
    a.requires_grad_()
    errors = [
        float((a[n, :, i // 2, i % 2] - b[n, :, i // 2, i % 2]).square().mean().detach())
        for n in range(3)
        for i in range(4)
        if not visible[n, i]
    ]
    found = losses.hidden_places(a, b, visible)
    found.backward()
    assert a.grad is not None
    assert found.item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert not a.grad.flatten(2).transpose(1, 2)[visible].any()
    assert losses.hidden_places(a, b, torch.ones(3, 4, dtype=torch.bool)).item() == 0


def test_relations_need_no_common_width() -> None:
    a, b = drawn(2, 3, 2, 2, seed=0), drawn(2, 5, 2, 2, seed=1)
    wanted, count = 0.0, 0
    for n in range(2):
        for i in range(4):
            for j in range(4):
                mine = cosine(a[n, :, i // 2, i % 2], a[n, :, j // 2, j % 2])
                its = cosine(b[n, :, i // 2, i % 2], b[n, :, j // 2, j % 2])
                wanted, count = wanted + (mine - its) ** 2, count + 1
    assert losses.token_relations(a, b).item() == pytest.approx(wanted / count, rel=1e-5)
    turned = torch.einsum("nchw,cd->ndhw", b, torch.linalg.qr(drawn(5, 5, seed=2))[0])
    assert losses.token_relations(turned, b).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (losses.token_relations, r"student and teacher have \[2, 2\] and \[3, 3\]"),
        (losses.spatial_match, "must have one shape"),
        (
            lambda a, b: losses.hidden_places(a, b, torch.ones(2, 4, dtype=torch.bool)),
            r"the student's has 2x2, the teacher's 3x3: take another --image-size, or method\.patch=0",
        ),
    ],
)
def test_grids_of_unlike_size_are_refused(loss: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(drawn(2, 4, 2, 2, seed=0), drawn(2, 4, 3, 3, seed=1))  # type: ignore[operator]


def test_a_queue_is_compared_as_by_loops() -> None:
    a, b, queue = drawn(3, 6, seed=0), drawn(3, 6, seed=1), drawn(5, 6, seed=2)
    queue = torch.nn.functional.normalize(queue, dim=1)
    wanted = 0.0
    for x, y in zip(a, b):
        mine = [cosine(x, z) / 0.2 for z in (y, *queue)]
        its = [cosine(y, z) / 0.05 for z in (y, *queue)]
        total, its_total = sum(map(math.exp, mine)), sum(map(math.exp, its))
        wanted -= sum(math.exp(t) / its_total * (m - math.log(total)) for m, t in zip(mine, its)) / 3
    found = losses.queue_similarities(a, b, queue, temperature=0.2, teacher_temperature=0.05)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("teacher_temperature", "value", "norm"),
    [(0.01, 4.3147907, 0.4568897), (1e-4, 4.3147907, 0.4568897), (0.2, 4.3191233, 0.3611710)],
)
def test_seed_is_that_of_the_authors(teacher_temperature: float, value: float, norm: float) -> None:
    """Printed by their builder with the student and the teacher giving these rows."""
    a, b, queue = drawn(8, 16, seed=1), drawn(8, 16, seed=2), drawn(32, 16, seed=3)
    queue = torch.nn.functional.normalize(queue, dim=1)
    a.requires_grad_()
    loss = losses.queue_similarities(a, b, queue, temperature=0.2, teacher_temperature=teacher_temperature)
    loss.backward()
    assert a.grad is not None
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert a.grad.norm().item() == pytest.approx(norm, rel=1e-5)
