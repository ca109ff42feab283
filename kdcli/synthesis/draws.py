"""Which sources and which noise a new picture is made of: functions of (seed, number) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdcli.errors import UsageError
from kdcli.seeds import seed_of

_SOURCES, _NOISE, _BLOCK = 1, 2, 3
_LONGEST = 20  # characters of a shard


@dataclass(frozen=True)
class Draw:
    """What one new picture is made of.

    Attributes:
        number: j of the picture, from 0.
        sources: K distinct places among the source pictures.
        noise: 63-bit seed of everything random in it.
    """

    number: int
    sources: tuple[int, ...]
    noise: int


Make = Callable[[list[Draw]], Sequence[Any]]
"""What turns the draws of one block into pictures (PIL), in their order."""


def draw(number: int, seed: int, pictures: int, count: int, per_image: int | None) -> Draw:
    """The draw of picture ``number``.

    Args:
        number: j.
        seed: of the run.
        pictures: N source pictures.
        count: K <= N sources of each new picture.
        per_image: R pictures per source: picture j has source j // R first and K − 1 random others; None
            for K random ones.
    """
    chosen = [] if per_image is None else [number // per_image]
    attempt = 0
    while len(chosen) < count:
        place = seed_of(seed, _SOURCES, number, attempt) % pictures
        if place not in chosen:
            chosen.append(place)
        attempt += 1
    return Draw(number, tuple(chosen), seed_of(seed, _NOISE, number) >> 1)


def draw_of_block(number: int, seed: int, block: int) -> Draw:
    """The draw of a picture without sources: its noise is that of its block of ``block`` numbers."""
    return Draw(number, (), seed_of(seed, _BLOCK, number // block) >> 1)


def shard(text: str | None, total: int, block: int = 1) -> range:
    """Numbers of shard ``i/n`` (from 1) of ``total`` pictures, all without one: a range each, in order.

    Args:
        text: ``i/n``, or None.
        total: pictures.
        block: pictures that belong together; no shard divides them.

    Raises:
        UsageError: not a shard, or one without a picture.
    """
    if text is None:
        return range(total)
    part, slash, of = text.partition("/")
    plain = len(text) <= _LONGEST and text.isascii() and part.isdecimal() and of.isdecimal()
    if not (slash and plain and 1 <= int(part) <= int(of)):
        raise UsageError(f"--shard {text}: a shard is i/n, from 1/n to n/n.")
    i, n = int(part), int(of)
    blocks = -(-total // block)
    numbers = range(min((i - 1) * blocks // n * block, total), min(i * blocks // n * block, total))
    if not numbers:
        kind = "pictures" if block == 1 else f"pictures in blocks of {block}"
        raise UsageError(f"--shard {text}: {total} {kind} leave it empty. Use fewer shards.")
    return numbers
