"""Embeddings against a vision-language teacher's pictures and texts: loops, numbers of the authors' code, and
the readings that are known to be wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import agree, draw, gradients, labels, soften
from torch import Tensor

from kdcli.losses.texts import (
    caption_contrast,
    embedding_distance,
    image_contrast,
    proximal_texts,
    text_likelihood,
)

Rows = list[list[float]]


def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Student, teacher, texts, captions and labels of the golden values: the teacher is wrong on two rows."""
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(16, 32, generator=generator) for _ in range(2))
    x, k = (torch.randn(rows, 32, generator=generator) for rows in (12, 16))
    y = torch.arange(16) % 12
    t = t + 1.5 * x[y]
    t[0], t[5] = x[1], x[8]
    return (0.5 * s + 0.5 * t).requires_grad_(), t, x, k, y


def whole(s: Tensor, t: Tensor, x: Tensor, k: Tensor, y: Tensor) -> Tensor:
    parts = text_likelihood(s, x, y), embedding_distance(s, t), image_contrast(s, t)
    return sum(parts, start=proximal_texts(s, t, x, y) + caption_contrast(s, k, y))


# Value and norm of the gradient to the student's embeddings, where the authors' code was asked for it.
GOLDEN: dict[str, tuple[Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor], float, float | None]] = {
    "cls": (lambda s, t, x, k, y: text_likelihood(s, x, y), 1.83742094, 0.37601739),
    "mse": (lambda s, t, x, k, y: embedding_distance(s, t), 0.30683696, 0.05193230),
    "mse, raw": (
        lambda s, t, x, k, y: embedding_distance(s, t, normalised=False),
        1.47052252,
        0.06651971,
    ),
    "im-cst": (lambda s, t, x, k, y: image_contrast(s, t), 0.10307388, 0.07236853),
    "im-cst, single": (
        lambda s, t, x, k, y: image_contrast(s, t, direction="single"),
        0.08037901,
        0.04256794,
    ),
    "im-cst, equation 3": (
        lambda s, t, x, k, y: image_contrast(s, t, direction="single", form="squared"),
        0.01743681,
        None,
    ),
    "vlprox, 4": (lambda s, t, x, k, y: proximal_texts(s, t, x, y, texts=4), 0.01126939, None),
    "vlprox": (lambda s, t, x, k, y: proximal_texts(s, t, x, y), 0.01448929, 0.02250922),
    "vlprox, all rows": (
        lambda s, t, x, k, y: proximal_texts(s, t, x, y, filtered=False),
        0.01789209,
        None,
    ),
    "cap": (lambda s, t, x, k, y: caption_contrast(s, k, y), 2.73564363, None),
    "cls + cap": (
        lambda s, t, x, k, y: text_likelihood(s, x, y) + caption_contrast(s, k, y),
        4.57306480,
        None,
    ),
    "cap, equation 8": (
        lambda s, t, x, k, y: caption_contrast(s, k, y, form="paper"),
        4.60338545,
        None,
    ),
    "all": (whole, 4.99746513, 0.34776592),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_numbers_of_the_authors_code(name: str) -> None:
    loss, value, norm = GOLDEN[name]
    arguments = tensors()
    found = loss(*arguments)
    assert found.item() == pytest.approx(value, rel=1e-6)
    (gradient,) = gradients(found, arguments[0])
    if norm is not None:
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-6)
    assert gradient.norm() > 0


def units(rows: Rows) -> Rows:
    return [[v / math.hypot(*row) for v in row] for row in rows]


def table(a: Rows, b: Rows, temperature: float = 1.0) -> Rows:
    """Cosines over a temperature."""
    return [[sum(a * b for a, b in zip(p, q)) / temperature for q in units(b)] for p in units(a)]


def naive_cls(s: Rows, x: Rows, y: list[Any], temperature: float) -> float:
    total = 0.0
    for row, wanted in zip(table(s, x, temperature), y):
        shares = wanted if isinstance(wanted, list) else [float(c == wanted) for c in range(len(x))]
        total -= sum(share * math.log(p) for share, p in zip(shares, soften(row)))
    return total / len(s)


def naive_mse(s: Rows, t: Rows, normalised: bool) -> float:
    pairs = zip(units(s), units(t)) if normalised else zip(s, t)
    mean = sum((a - b) ** 2 for p, q in pairs for a, b in zip(p, q)) / len(s)
    return mean if normalised else math.log(1 + mean / 10)


def naive_images(s: Rows, t: Rows, temperature: float, direction: str, form: str) -> float:
    if form == "cosine":
        logits = table(s, t, temperature)
    else:
        logits = [[-(math.dist(p, q) ** 2) / temperature for q in units(t)] for p in units(s)]
    there = -sum(math.log(soften(row)[i]) for i, row in enumerate(logits)) / len(s)
    back = -sum(math.log(soften(list(row))[i]) for i, row in enumerate(zip(*logits))) / len(s)
    return there if direction == "single" else (there + back) / 2


def naive_proximal(
    s: Rows, t: Rows, x: Rows, y: list[int], temperature: float, texts: int, filtered: bool
) -> float:
    costs = []
    for ours, theirs, label in zip(table(s, x, temperature), table(t, x, temperature), y):
        near = sorted(range(len(x)), key=lambda c: (-theirs[c], c))
        if filtered and near[0] != label:
            continue
        p = soften([theirs[c] for c in near[:texts]])
        q = soften([ours[c] for c in near[:texts]])
        costs.append(sum(a * math.log(a / b) for a, b in zip(p, q)))
    return sum(costs) / max(1, len(costs))


def naive_captions(s: Rows, k: Rows, y: list[int], form: str, temperature: float) -> float:
    total, logits = 0.0, table(s, k, 1.0 if form == "code" else temperature)
    for i, row in enumerate(logits):
        negatives = sum(math.exp(row[j]) for j in range(len(k)) if y[j] != y[i])
        if form == "paper" and not negatives:
            continue
        own = 0.0 if form == "paper" else math.exp(row[i])
        total -= math.log(math.exp(row[i]) / (negatives + own))
    return total / len(s)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_text_likelihood(temperature: float) -> None:
    s, x = draw(6, 5), draw(4, 5, seed=1)
    agree(text_likelihood, naive_cls, s, x, labels(6, 4), temperature=temperature)
    mixed = draw(6, 4, seed=2).softmax(dim=1)
    value = text_likelihood(s, x, mixed, temperature=temperature)
    assert value.item() == pytest.approx(
        naive_cls(s.tolist(), x.tolist(), mixed.tolist(), temperature), rel=2e-5
    )


@pytest.mark.parametrize("normalised", [True, False])
def test_embedding_distance(normalised: bool) -> None:
    s, t = draw(6, 5), draw(6, 5, seed=1)
    agree(embedding_distance, naive_mse, s, t, normalised=normalised)
    assert embedding_distance(t, t, normalised=normalised).item() == 0


def test_a_distance_is_a_sum_over_the_width_and_a_mean_over_rows() -> None:
    s, t, *_ = tensors()
    cosine = torch.nn.functional.cosine_similarity(s, t)
    assert embedding_distance(s, t).item() == pytest.approx((2 - 2 * cosine).mean().item(), rel=1e-6)
    per_element = torch.nn.functional.mse_loss(*(torch.nn.functional.normalize(rows) for rows in (s, t)))
    assert embedding_distance(s, t).item() == pytest.approx(32 * per_element.item(), rel=1e-6)
    twice = embedding_distance(s.repeat(2, 1), t.repeat(2, 1))
    assert twice.item() == pytest.approx(embedding_distance(s, t).item(), rel=1e-6)


@pytest.mark.parametrize("form", ["cosine", "squared"])
@pytest.mark.parametrize("direction", ["both", "single"])
def test_image_contrast(direction: str, form: str) -> None:
    s, t = draw(6, 5), draw(6, 5, seed=1)
    agree(image_contrast, naive_images, s, t, temperature=0.3, direction=direction, form=form)


def test_squared_distances_halve_the_temperature() -> None:
    s, t, *_ = tensors()
    halved = image_contrast(s, t, temperature=0.035)
    assert image_contrast(s, t, form="squared").item() == pytest.approx(halved.item(), rel=1e-5)
    assert halved.item() != pytest.approx(image_contrast(s, t).item(), rel=0.1)


def test_the_single_direction_looks_for_the_teachers_picture() -> None:
    s, t, *_ = tensors()
    there, back = (image_contrast(a, b, direction="single") for a, b in ((s, t), (t, s)))
    assert abs(there - back) > 0.01
    assert image_contrast(s, t).item() == pytest.approx((there + back).item() / 2, rel=1e-6)


def test_one_row_has_nothing_to_be_told_from() -> None:
    s, t = draw(1, 5).requires_grad_(), draw(1, 5, seed=1)
    for value in (image_contrast(s, t), *captions_of(s, t, labels(1, 3))):
        assert value.item() == 0
        assert gradients(value, s)[0].abs().max() == 0


def captions_of(s: Tensor, k: Tensor, y: Tensor) -> list[Tensor]:
    """By all three forms."""
    return [
        caption_contrast(s, k, y, form="code"),
        caption_contrast(s, k, y, form="temperature"),
        caption_contrast(s, k, y, form="paper"),
    ]


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("texts", [2, 4, 7, 256])
def test_proximal_texts(texts: int, filtered: bool) -> None:
    s, t, x = draw(9, 5), draw(9, 5, seed=1), draw(7, 5, seed=2)
    y = (t @ x.T / x.norm(dim=1)).argmax(dim=1)
    y[::2] = (y[::2] + 1) % 7
    agree(
        proximal_texts, naive_proximal, s, t, x, y, rel=1e-4, temperature=0.3, texts=texts, filtered=filtered
    )


def test_the_divergence_is_from_the_teacher() -> None:
    s, t, x, _, y = tensors()
    there, back = (proximal_texts(a, b, x, y, filtered=False) for a, b in ((s, t), (t, s)))
    assert there.item() == pytest.approx(0.01789209, rel=1e-6)
    assert abs(there / back - 1) > 0.02


def test_only_rows_that_the_teacher_knows_count_and_divide() -> None:
    """Rows 0 and 5 are wrong: their students may be anything, and the mean is of the 14 others."""
    s, t, x, _, y = tensors()
    value = proximal_texts(s, t, x, y)
    (gradient,) = gradients(value, s)
    assert [i for i, row in enumerate(gradient) if not row.any()] == [0, 5]
    kept = [i for i in range(16) if i not in (0, 5)]
    only = proximal_texts(s[kept], t[kept], x, y[kept], filtered=False)
    assert value.item() == pytest.approx(only.item(), rel=1e-6)
    assert value.item() != pytest.approx(only.item() * 14 / 16, rel=0.05)  # the paper's mean over all
    moved = s.detach().clone()
    moved[[0, 5]] = draw(2, 32, seed=9)
    assert proximal_texts(moved, t, x, y).item() == value.item()


def test_distributions_are_over_the_nearest_texts_alone() -> None:
    """What a student thinks of farther texts is of no effect."""
    t, x = torch.eye(4)[:1] * 3 + torch.tensor([0, 2.0, 1, 0]), torch.eye(4)
    s = torch.tensor([[2.0, 2, 1, 0]])
    farther = torch.tensor([[2.0, 2, 0, 1]])
    y = torch.tensor([0])
    near = [proximal_texts(row, t, x, y, texts=2, temperature=0.3).item() for row in (s, farther)]
    assert near[0] == pytest.approx(near[1], rel=1e-6)
    assert near[0] > 0.01
    wide = [proximal_texts(row, t, x, y, texts=3, temperature=0.3).item() for row in (s, farther)]
    assert abs(wide[0] - wide[1]) > 0.01


def test_of_texts_that_tie_the_lower_number_is_nearer() -> None:
    x = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, -1]])
    t, s = torch.tensor([[1.0, 0.1]]), torch.tensor([[1.0, 1.0]], requires_grad=True)
    kept, dropped = (proximal_texts(s, t, x, torch.tensor([y]), texts=3) for y in (1, 2))
    assert kept.item() > 0
    assert dropped.item() == 0


def test_one_text_says_nothing() -> None:
    s, t, x, _, y = tensors()
    value = proximal_texts(s, t, x, y, texts=1)
    assert value.item() == 0
    assert gradients(value, s)[0].abs().max() == 0


def test_no_row_kept_is_zero_with_a_zero_gradient() -> None:
    s, t, x, _, y = tensors()
    t.requires_grad_()
    value = proximal_texts(s, t, x, (y + 5) % 12)
    value.backward()
    assert value.item() == 0
    for leaf in (s, t):
        assert leaf.grad is not None
        assert not leaf.grad.any()  # NaN would be true


@pytest.mark.parametrize("classes", [1, 2, 6])
@pytest.mark.parametrize("form", ["code", "temperature", "paper"])
def test_caption_contrast(form: str, classes: int) -> None:
    agree(
        caption_contrast,
        naive_captions,
        draw(6, 5),
        draw(6, 5, seed=1),
        labels(6, classes),
        form=form,
        temperature=0.3,
    )


def test_captions_of_the_same_class_are_no_negatives() -> None:
    """Row 1 has the class of row 0: its caption may be anything to row 0, and not to row 2."""
    s, k, y = draw(3, 5), draw(3, 5, seed=1), torch.tensor([0, 0, 1])
    k.requires_grad_()
    for form in ("code", "temperature", "paper"):
        alone = caption_contrast(s[:2], k[:2], y[:2], form=form)  # type: ignore[arg-type]
        assert alone.item() == 0
        (gradient,) = gradients(caption_contrast(s, k, y, form=form), k)  # type: ignore[arg-type]
        assert gradient.isfinite().all()
        assert gradient.any(dim=1).all()


def test_the_codes_form_of_captions_has_no_temperature() -> None:
    s, _, _, k, y = tensors()
    assert caption_contrast(s, k, y, temperature=0.01).item() == caption_contrast(s, k, y).item()
    at_one = caption_contrast(s, k, y, form="temperature", temperature=1.0)
    assert at_one.item() == pytest.approx(caption_contrast(s, k, y).item(), rel=1e-6)
    other = caption_contrast(s, k, y, form="temperature")
    assert other.item() > caption_contrast(s, k, y, form="paper").item()  # by the positive below the line


def every(s: Tensor, t: Tensor, x: Tensor, k: Tensor, y: Tensor) -> list[Tensor]:
    return [
        text_likelihood(s, x, y),
        embedding_distance(s, t),
        image_contrast(s, t),
        image_contrast(s, t, direction="single", form="squared"),
        proximal_texts(s, t, x, y),
        *captions_of(s, k, y),
    ]


def test_only_directions_count_and_nothing_is_detached() -> None:
    s, t, x, k, y = tensors()
    for one, other in zip(every(s, t, x, k, y), every(3 * s, 0.5 * t, 7 * x, 2 * k, y)):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
    leaves = [t.requires_grad_(), x.requires_grad_(), k.requires_grad_()]
    reached = [[bool(g.any()) for g in gradients(v, *leaves)] for v in every(s, t, x, k, y)]
    texts, teacher, both, captions = [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]
    assert reached == [texts, teacher, teacher, teacher, both, captions, captions, captions]


def test_a_dead_row_has_finite_values_and_gradients() -> None:
    s, t, x, k, y = tensors()
    dead, its = s.detach().clone(), t.clone()
    dead[3], its[4] = 0, 0
    dead.requires_grad_()
    for value in every(dead, its, x, k, y):
        assert value.isfinite()
        assert gradients(value, dead)[0].isfinite().all()


def test_what_does_not_fit_is_refused() -> None:
    s, t, x, k, y = tensors()
    message = r"student features \[16, 32\] and teacher features \[16, 31\] must have one shape"
    for call in (
        lambda: embedding_distance(s, t[:, :31]),
        lambda: image_contrast(s, t[:, :31]),
        lambda: proximal_texts(s, t[:, :31], x, y),
        lambda: caption_contrast(s, k[:, :31], y),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="texts must be at least 1, not 0"):
        proximal_texts(s, t, x, y, texts=0)
