"""A memory of a few pictures beside texts: the authors' numbers, and a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdcli.metrics.support import supported_logits


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Student's embeddings, texts and class numbers, in the order in which the golden numbers draw them."""
    made = torch.Generator().manual_seed(0)
    student, teacher, texts = (torch.randn(n, 32, generator=made) for n in (16, 16, 12))
    y = torch.arange(16) % 12
    teacher = teacher + 1.5 * texts[y]
    teacher[0], teacher[5] = texts[1], texts[8]
    return 0.5 * student + 0.5 * teacher, texts, y


def test_it_has_the_values_of_the_authors_code() -> None:
    """Its test() with 50 views a class; rows 2 and 7 are in the memory, and not measured."""
    embedding, bank, y = drawn()
    support = torch.randn(12, 50, 32, generator=torch.Generator().manual_seed(3)).flatten(0, 1)
    logits = supported_logits(embedding, bank, support, torch.arange(12).repeat_interleave(50))
    kept = torch.tensor([i for i in range(16) if i not in (2, 7)])
    logits, y = logits[kept], y[kept]
    assert F.cross_entropy(logits, y).item() == pytest.approx(1.96012664, rel=1e-6)
    right = [float((logits[y == c].argmax(dim=1) == c).float().mean()) for c in y.unique()]
    assert 100 * sum(right) / len(right) == pytest.approx(86.3636364, rel=1e-6)


def test_it_is_the_sum_that_it_says() -> None:
    made = torch.Generator().manual_seed(1)
    embedding, bank, support = (torch.randn(n, 6, generator=made) for n in (4, 3, 5))
    labels = torch.tensor([0, 2, 2, 0, 0])  # class 1 has its text alone
    found = supported_logits(embedding, bank, support, labels, alpha=0.7, beta=2.0)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a.double() @ b.double() / a.double().norm() / b.double().norm())

    for i in range(4):
        for c in range(3):
            wanted = cosine(embedding[i], bank[c])
            for m, label in enumerate(labels.tolist()):
                if label == c:
                    wanted += 0.7 * math.exp(-2 * (1 - cosine(embedding[i], support[m])))
            assert found[i, c].item() == pytest.approx(wanted, rel=1e-5)


def test_what_is_no_memory_is_refused() -> None:
    rows = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="a memory of 0 pictures with 0 labels holds nothing"):
        supported_logits(rows, rows, rows[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels from 0 to 2 for 2 classes"):
        supported_logits(rows, rows, rows, torch.tensor([0, 2]))
