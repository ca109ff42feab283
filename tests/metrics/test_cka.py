"""CKA: HSIC₁ by loops from the equation, invariances, a golden value by hand, and the centred estimate."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kdcli.metrics.cka import LEAST, cka, gram, hsic1, hsic_parts

N = 12


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Activations of the same pictures that have something in common."""
    x = torch.randn(N, 5, generator=generator, dtype=torch.float64)
    return x, x[:, :3] + 0.5 * torch.randn(N, 3, generator=generator, dtype=torch.float64)


def by_loops(x: Tensor, y: Tensor) -> float:
    """Eq. 3 of arXiv 2010.15327, number by number."""
    n = len(x)
    k, l = (  # noqa: E741
        [[0.0 if i == j else float(a[i] @ a[j]) for j in range(n)] for i in range(n)] for a in (x, y)
    )
    trace = sum(k[i][j] * l[j][i] for i in range(n) for j in range(n))
    sums = sum(map(sum, k)) * sum(map(sum, l))
    both = sum(k[i][j] * l[j][m] for i in range(n) for j in range(n) for m in range(n))
    return (trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3))


def one(x: Tensor, y: Tensor) -> float:
    """CKA of two layers on one minibatch."""
    return float(cka(hsic_parts(gram(x)[None], gram(y)[None])))


def test_hsic_by_loops(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    layers = torch.stack([gram(x), gram(y), gram(x.square())])
    found = hsic1(layers, layers[:2])
    assert found.shape == (3, 2)
    for i, a in enumerate((x, y, x.square())):
        for j, b in enumerate((x, y)):
            assert float(found[i, j]) == pytest.approx(by_loops(a, b), rel=1e-9)


def test_a_golden_value_by_hand() -> None:
    """Four pictures, x = (0, 0, 1, 1) and y = (0, 1, 1, 1).

    Less their means K̃ has 1/4 within each half and -1/4 between, L̃ has -3/16 with the first and 1/16
    among the others. tr(K̃L̃) = 2·(1/4·(-3/16 + 1/16) - 1/4·(-3/16 - 3/16 + 1/16 + 1/16)) = 1/16;
    row sums are (-1/4)·1 and (-9/16, -1/16, -1/16, -1/16), so sums -1 and -3/4, and 1ᵀK̃L̃1 = 3/16:
    HSIC₁ = (1/16 + 3/4/6 - 3/16) / 4 = 0. Of x with itself: (12/16 + 1/6 - 4/16) / 4 = 1/6.
    """
    x, y = torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    assert float(hsic1(gram(x)[None], gram(y)[None])) == pytest.approx(0, abs=1e-15)
    assert float(hsic1(gram(x)[None], gram(x)[None])) == pytest.approx(1 / 6)
    # (0, 1, 2, 3) less 3/2: six products each way, rows (-9, -1, -1, -9)/4
    turned = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    own = (2 * (9 + 9 + 81 + 1 + 9 + 9) / 16 + 25 / 6 - 164 / 16) / 4
    cross = (2 * (3 + 3 + 9 + 1 + 3 + 3) / 16 + 5 / 6 - 5 / 4) / 4
    assert one(x, turned) == pytest.approx(cross / math.sqrt(own / 6))


def test_what_changes_nothing_and_what_does(pair: tuple[Tensor, Tensor], generator: torch.Generator) -> None:
    x, y = pair
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    assert one(x, x) == pytest.approx(1)
    assert one(x, 3.7 * x @ q + 100) == pytest.approx(1)
    assert one(3.7 * x @ q + 100, y) == pytest.approx(one(x, y))
    assert one(x, x @ torch.diag(torch.tensor([100.0, 1, 1, 1, 1], dtype=torch.float64))) < 0.95
    assert one(x, y) == pytest.approx(one(y, x))


def biased(x: Tensor, y: Tensor) -> float:
    """Kornblith et al. 2019: HKH and HLH as vectors, the cosine between them."""
    centre = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    a, b = ((centre @ m @ m.mT @ centre).flatten() for m in (x, y))
    return float(a @ b / (a.norm() * b.norm()))


def minibatches(x: Tensor, y: Tensor, size: int) -> Iterator[Tensor]:
    for a, b in zip(x.split(size), y.split(size)):
        yield hsic_parts(gram(a)[None], gram(b)[None])


def test_of_many_pictures_it_is_the_cosine_of_centred_gram_matrices(generator: torch.Generator) -> None:
    x = torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    y = x[:, :2] + torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    wanted = biased(x, y)
    assert one(x, y) == pytest.approx(wanted, abs=5e-3)
    for size in (500, 100, 50):  # without bias: small minibatches give no larger values
        assert float(cka(sum(minibatches(x, y, size)))) == pytest.approx(wanted, abs=0.03)  # type: ignore[arg-type]
    assert biased(x[:10], torch.randn(10, 50, generator=generator, dtype=torch.float64)) > 0.5
    noise = torch.randn(1000, 50, generator=generator, dtype=torch.float64)
    assert abs(float(cka(sum(minibatches(x, noise, 10))))) < 0.1  # type: ignore[arg-type]


def test_all_positions_count(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(N, 3, 4, 4, generator=generator)
    assert gram(maps).dtype == torch.float64
    centred = maps.double() - maps.double().mean(0)
    assert float(gram(maps)[2, 5]) == pytest.approx(float((centred[2] * centred[5]).sum()))
    whole = gram(maps)
    monkeypatch.setattr("kdcli.metrics.cka._COLUMNS", 7)
    torch.testing.assert_close(gram(maps), whole)
    given = maps.double()
    gram(given)
    assert torch.equal(given, maps.double())


def test_a_layer_that_says_nothing_has_no_value(pair: tuple[Tensor, Tensor]) -> None:
    flat = torch.full((N, 1000), 0.1)
    found = cka(hsic_parts(torch.stack([gram(pair[0]), gram(flat)]), gram(pair[1])[None]))
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match=f"HSIC₁ takes {LEAST} pictures or more, not 3"):
        hsic1(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3))
    with pytest.raises(ValueError, match=r"same pictures are .* not \[1, 4, 4\] and \[1, 5, 5\]"):
        hsic1(torch.zeros(1, 4, 4), torch.zeros(1, 5, 5))
