"""Products stay in fp32 under autocast; zero rows have no direction and no gradient."""

from __future__ import annotations

import pytest
import torch
from golden import agree, draw, gradients

from kdcli.losses.products import cosines, product, same_shape, unit


def test_product_is_the_sum_of_products() -> None:
    def naive(a: list, b: list) -> list:
        return [[sum(x * y for x, y in zip(row, column)) for column in zip(*b)] for row in a]

    agree(product, naive, draw(3, 5), draw(5, 4))


def test_autocast_alone_would_round_the_product() -> None:
    a, b = draw(8, 64), draw(64, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        assert torch.equal(product(a, b), a @ b.float()) is False
        inside = product(a, b)
    assert torch.equal(inside, a @ b)


def test_unit_has_length_one_or_zero() -> None:
    x = draw(4, 3)
    x[2] = 0
    assert unit(x).norm(dim=1).tolist() == pytest.approx([1, 1, 0, 1])
    assert unit(x.T, dim=0).T.tolist() == unit(x).tolist()


def test_a_zero_row_has_zero_gradient() -> None:
    x = draw(4, 3)
    x[2] = 0
    x.requires_grad_()
    (gradient,) = gradients((unit(x) * draw(4, 3, seed=1)).sum(), x)
    assert gradient[2].tolist() == [0, 0, 0]
    assert gradient[0].abs().min() > 0
    (gradient,) = gradients(cosines(x, draw(5, 3)).sum(), x)
    assert gradient[2].tolist() == [0, 0, 0]


def test_cosines_are_those_of_torch() -> None:
    a, b = draw(4, 6), draw(5, 6, seed=1)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(cosines(a, b), expected)


def test_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"student features \[4, 3\] and teacher features \[4, 5\] must"):
        same_shape(draw(4, 3), draw(4, 5))
