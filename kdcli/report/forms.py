"""Measured values as text for reading; what was not measured is a dash."""

from __future__ import annotations

import math

MISSING = "–"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.1f}%"


def number(value: float | None) -> str:
    """Three significant digits, and whole thousands with separators."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def thousandths(value: float | None) -> str:
    """Three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def amount(value: float | None) -> str:
    """A large count in k, M or G with one decimal, such as ``3.4 M``."""
    if value is None:
        return MISSING
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.99995 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def correlation(value: float | None) -> str:
    """A correlation with its sign and two decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:+.2f}"


def gflops(value: float | None) -> str:
    """FLOPs in units of 10⁹."""
    return MISSING if value is None else number(value / 1e9)


def milliseconds(value: float | None) -> str:
    """A time with its unit."""
    return MISSING if value is None else f"{number(value)} ms"
