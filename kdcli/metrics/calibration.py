"""Temperature scaling: one number that makes a classifier's probabilities likely.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599, section 4.2): logits are
divided by T, which moves confidence and no prediction. In β = 1/T the mean negative log-likelihood is
convex, a mean of logsumexp(β·(z − z_y)), so its only stationary point is found by Newton's method within a
bracket.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from kdcli.metrics.classification import expected_calibration_error, negative_log_likelihood

LOWEST, HIGHEST = 0.1, 1e4
"""Bounds of a temperature: beyond them a few pictures decide, or logits say nothing."""

OVERCONFIDENT = 1.5
"""From this temperature on logits are said to be overconfident."""

_ROWS, _STEPS = 8192, 100


@dataclass(frozen=True)
class Calibration:
    """A temperature that was fitted on labelled pictures, and what it does there.

    Attributes:
        temperature: T, by which logits are divided.
        samples: N pictures.
        before: ``nll`` and ``ece`` of the logits as they are.
        after: the same of logits / T.
    """

    temperature: float
    samples: int
    before: Mapping[str, float]
    after: Mapping[str, float]

    @property
    def overconfident(self) -> bool:
        """Whether the logits claim far more than they know."""
        return self.temperature >= OVERCONFIDENT

    def to_json(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"temperature {self.temperature:.3g} (fitted on {self.samples:,} validation pictures: NLL "
            f"{self.before['nll']:.3f} → {self.after['nll']:.3f}, ECE {self.before['ece']:.1%} → "
            f"{self.after['ece']:.1%})"
        )


def calibrate(logits: Tensor, y: Tensor) -> Calibration:
    """The temperature of logits [N, C] on labels [N], and likelihood and calibration error with it.

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    temperature = fit_temperature(logits, y)
    before, after = figures(logits, y), figures(logits / temperature, y)
    return Calibration(temperature, len(y), before, after)


def figures(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Likelihood and calibration error of logits [N, C] as they are, for labels [N]."""
    return {"nll": negative_log_likelihood(logits, y), "ece": expected_calibration_error(logits, y)}


def fit_temperature(logits: Tensor, y: Tensor) -> float:
    """The T that maximises the likelihood of softmax(logits / T), to six digits, by float64 arithmetic.

    Where every true class has the largest logit, the smaller T the better, and nothing says how small: T is 1
    then. Where logits are best left unread, T is :data:`HIGHEST`.

    Args:
        logits: ``[N, C]``.
        y: ``[N]``, integers in [0, C).

    Raises:
        ValueError: N = 0, logits that are not finite, or labels that do not fit them.
    """
    negative_log_likelihood(logits, y)  # refuses what has no likelihood
    if bool((logits <= logits.gather(1, y[:, None])).all()):
        return 1.0
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _slopes(logits, y, low)[0] >= 0:
        return HIGHEST
    if _slopes(logits, y, high)[0] <= 0:
        return LOWEST
    beta = 1.0
    for _ in range(_STEPS):
        slope, curvature = _slopes(logits, y, beta)
        low, high = (beta, high) if slope < 0 else (low, beta)
        newton = beta - slope / curvature if curvature > 0 else low
        if abs(newton - beta) <= 1e-12 * beta:
            break
        beta = newton if low < newton < high else (low * high) ** 0.5
    return float(f"{1 / beta:.6g}")


def _slopes(logits: Tensor, y: Tensor, beta: float) -> tuple[float, float]:
    """First and second derivative in β of the mean negative log-likelihood."""
    first = second = 0.0
    for margins in _margins(logits, y):
        p = (margins * beta).softmax(dim=1)
        mean = (p * margins).sum(dim=1)
        first += float(mean.sum())
        second += float((p * (margins - mean[:, None]).square()).sum())
    return first / len(y), second / len(y)


def _margins(logits: Tensor, y: Tensor) -> Iterator[Tensor]:
    """z − z_y in float64, some rows at a time."""
    for z, own in zip(logits.detach().cpu().split(_ROWS), y.cpu().split(_ROWS)):
        z = z.double()
        yield z - z.gather(1, own[:, None])
