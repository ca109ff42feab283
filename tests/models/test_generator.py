"""DAFL's generator: sizes, parameters, and the normalisation at its end."""

import pytest
import torch
from torch import nn

from kdcli.models.generator import Generator


@pytest.mark.parametrize(
    ("latent", "channels", "size", "parameters"), [(100, 1, 32, 1_049_985), (1000, 3, 32, 8_423_939)]
)
def test_the_papers_generators(latent, channels, size, parameters):
    generator = Generator(latent, channels, size)
    assert sum(p.numel() for p in generator.parameters()) == parameters
    assert generator(torch.randn(2, latent)).shape == (2, channels, size, size)


def test_a_batch_is_normalised_channel_by_channel():
    torch.manual_seed(0)
    x = Generator(10, 3, 16).train()(torch.randn(32, 10))
    channels = x.transpose(0, 1).flatten(1)
    assert channels.mean(dim=1).abs().max() < 1e-5
    assert (channels.var(dim=1, correction=0) - 1).abs().max() < 5e-3  # the rest is eps


def test_the_norms_are_those_of_the_code():
    norms = [m for m in Generator(10).modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.num_features, m.eps, m.affine) for m in norms] == [
        (128, 1e-5, True),
        (128, 0.8, True),
        (64, 0.8, True),
        (3, 1e-5, False),
    ]


def test_a_picture_depends_on_its_own_noise_in_eval_mode():
    torch.manual_seed(0)
    generator, z = Generator(10, 3, 16), torch.randn(8, 10)
    generator.train()(z)
    generator.eval()
    assert torch.allclose(generator(z)[:2], generator(z[:2]), atol=1e-5)


@pytest.mark.parametrize("size", [0, 2, 30])
def test_a_side_that_is_no_multiple_of_four(size):
    with pytest.raises(ValueError, match=f"a side of {size} is no multiple of 4"):
        Generator(10, 3, size)
