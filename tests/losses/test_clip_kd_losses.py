"""CLIP-KD's losses of a picture tower: loops, and numbers of the authors' code.

Those come from its KDClipLoss, unmodified, with the teacher's texts in the place of the student's, and one
process in the place of all (its own path for one process stops at a name that it never sets).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from golden import agree, draw, gradients, soften
from torch import Tensor

from kdcli.losses.clip_kd import contrastive_relation, feature_distance, interactive_contrast
from kdcli.losses.texts import embedding_distance, image_contrast

Rows = list[list[float]]
CODE_START = 1 / math.log(1 / 0.07)  # τ of the code's ICL before it is learnt


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    """Student's pictures, teacher's texts and teacher's pictures of the golden values."""
    generator = torch.Generator().manual_seed(0)
    s, t, x = (torch.randn(16, 32, generator=generator) for _ in range(3))
    return (0.5 * s + 0.5 * t).requires_grad_(), x + t, t


GOLDEN: list[tuple[Callable[[Tensor, Tensor, Tensor], Tensor], float, float]] = [
    (
        lambda s, x, t: contrastive_relation(s, x, t, temperature=0.07, teacher_temperature=0.01),
        0.49959037,
        0.36010668,
    ),
    (
        lambda s, x, t: contrastive_relation(s, x, t, temperature=0.2, teacher_temperature=0.1),
        0.90589625,
        0.18072182,
    ),
    (lambda s, x, t: feature_distance(s, t), 0.01943384, 0.00283963),
    (lambda s, x, t: interactive_contrast(s, x, t), 0.30782774, 0.19402130),
    (lambda s, x, t: interactive_contrast(s, x, t, temperature=CODE_START), 1.50228679, 0.06491715),
]


@pytest.mark.parametrize(("loss", "value", "norm"), GOLDEN)
def test_numbers_of_the_authors_code(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], value: float, norm: float
) -> None:
    s, x, t = tensors()
    found = loss(s, x, t)
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert gradients(found, s)[0].norm().item() == pytest.approx(norm, rel=1e-6)


def table(a: Rows, b: Rows, temperature: float) -> Rows:
    def cosine(p: list[float], q: list[float]) -> float:
        return sum(u * v for u, v in zip(p, q)) / math.hypot(*p) / math.hypot(*q)

    return [[cosine(p, q) / temperature for q in b] for p in a]


def naive_relation(s: Rows, x: Rows, t: Rows, temperature: float, teacher_temperature: float) -> float:
    total = 0.0
    for ours, theirs in (
        (table(s, x, temperature), table(t, x, teacher_temperature)),
        (table(x, s, temperature), table(x, t, teacher_temperature)),
    ):
        for row, wanted in zip(ours, theirs):
            total += sum(p * math.log(p / q) for p, q in zip(soften(wanted), soften(row)))
    return total / len(s) / 2


def naive_distance(s: Rows, t: Rows) -> float:
    total = 0.0
    for p, q in zip(s, t):
        total += sum((a / math.hypot(*p) - b / math.hypot(*q)) ** 2 for a, b in zip(p, q))
    return total / len(s) / len(s[0])


def naive_interactive(s: Rows, x: Rows, t: Rows, temperature: float, reverse: str) -> float:
    total = 0.0
    for logits in (table(s, x, temperature), table(x, t if reverse == "code" else s, temperature)):
        total -= sum(math.log(soften(row)[i]) for i, row in enumerate(logits))
    return total / len(s) / 2


@pytest.mark.parametrize(("temperature", "teacher_temperature"), [(0.5, 0.3), (0.2, 1.0)])
def test_contrastive_relation(temperature: float, teacher_temperature: float) -> None:
    agree(
        contrastive_relation,
        naive_relation,
        *(draw(6, 5, seed=seed) for seed in range(3)),
        rel=1e-4,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
    )


def test_feature_distance() -> None:
    agree(feature_distance, naive_distance, draw(6, 5), draw(6, 5, seed=1))
    s, _, t = tensors()
    assert feature_distance(s, t).item() == pytest.approx(embedding_distance(s, t).item() / 32, rel=1e-6)


@pytest.mark.parametrize("reverse", ["code", "student"])
def test_interactive_contrast(reverse: str) -> None:
    three = [draw(6, 5, seed=seed) for seed in range(3)]
    agree(interactive_contrast, naive_interactive, *three, temperature=0.3, reverse=reverse)


def test_the_relation_is_from_the_teacher_and_of_both_directions() -> None:
    s, x, t = tensors()
    keywords = {"temperature": 0.2, "teacher_temperature": 0.2}
    there, back = (contrastive_relation(a, x, b, **keywords) for a, b in ((s, t), (t, s)))
    assert abs(there / back - 1) > 0.02
    assert contrastive_relation(t, x, t, **keywords).item() == pytest.approx(0, abs=1e-7)
    assert contrastive_relation(t, x, t, temperature=0.2, teacher_temperature=0.1).item() > 0.1


def test_the_codes_reverse_is_a_constant_and_ours_is_not() -> None:
    s, x, t = tensors()
    forth = image_contrast(s, x, direction="single")
    constant = image_contrast(x, t, direction="single")
    value = interactive_contrast(s, x, t)
    assert value.item() == pytest.approx((forth + constant).item() / 2, rel=1e-6)
    torch.testing.assert_close(gradients(value, s)[0], gradients(forth, s)[0] / 2)
    ours = interactive_contrast(s, x, t, reverse="student")
    assert ours.item() == pytest.approx(image_contrast(s, x).item(), rel=1e-6)
    torch.testing.assert_close(gradients(ours, s)[0], gradients(image_contrast(s, x), s)[0])
    assert ours.item() == interactive_contrast(s, x, t + 1, reverse="student").item()


def every(s: Tensor, x: Tensor, t: Tensor) -> list[Tensor]:
    return [
        contrastive_relation(s, x, t, temperature=0.07, teacher_temperature=0.05),
        feature_distance(s, t),
        interactive_contrast(s, x, t),
        interactive_contrast(s, x, t, reverse="student"),
    ]


def test_only_directions_count_and_nothing_is_detached() -> None:
    s, x, t = tensors()
    for one, other in zip(every(s, x, t), every(3 * s, 0.5 * x, 7 * t)):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
    leaves = [x.requires_grad_(), t.requires_grad_()]
    reached = [[bool(g.any()) for g in gradients(v, *leaves)] for v in every(s, x, t)]
    assert reached == [[True, True], [False, True], [True, True], [True, False]]


def test_a_dead_row_has_finite_values_and_gradients() -> None:
    s, x, t = tensors()
    dead = s.detach().clone()
    dead[3] = 0
    dead.requires_grad_()
    for value in every(dead, x, t):
        assert value.isfinite()
        assert gradients(value, dead)[0].isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    s, x, t = tensors()
    with pytest.raises(ValueError, match=r"student features \[16, 32\] and teacher features \[16, 31\] must"):
        feature_distance(s, t[:, :31])
    for texts in (x[:, :31], x[:12]):
        message = r"texts \[1\d, 3\d\] and teacher features \[16, 32\] must have one shape: one text for each"
        with pytest.raises(ValueError, match=message):
            interactive_contrast(s, texts, t)
        with pytest.raises(ValueError, match=message):
            contrastive_relation(s, texts, t, temperature=1.0, teacher_temperature=1.0)
