"""DAFL's generator of pictures: Chen et al. 2019, arXiv 1904.01186."""

from __future__ import annotations

from torch import Tensor, nn

_CODE_EPS = 0.8  # the code's BatchNorm2d(128, 0.8): its second argument is eps, where momentum was meant


class Generator(nn.Module):
    """Noise to pictures that are already normalised: Linear, then two times up ×2 and Conv, then Tanh.

    The last layer is a batch norm without weights, which makes each channel of a batch mean 0 and variance 1:
    it takes the place of the input normalisation, so a teacher is fed with its output as it is, and pictures
    to be stored need the inverse of the teacher's normalisation. In eval mode a picture depends on its own
    noise alone.

    Args:
        latent: dimension of the noise.
        channels: of the pictures.
        size: their side, a multiple of 4.

    Raises:
        ValueError: another size.
    """

    def __init__(self, latent: int, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        if size < 4 or size % 4:
            raise ValueError(f"a side of {size} is no multiple of 4")
        self.latent, self.side = latent, size // 4
        self.first = nn.Linear(latent, 128 * self.side**2)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128, eps=_CODE_EPS),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64, eps=_CODE_EPS),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, z: Tensor) -> Tensor:
        """Pictures [B, channels, size, size] of noise [B, latent]."""
        return self.layers(self.first(z).view(-1, 128, self.side, self.side))
