"""Which sources and which noise a new picture is made of: functions of (seed, number) alone."""

from __future__ import annotations

from dataclasses import dataclass

from kdcli.data.views import mix
from kdcli.errors import UsageError

_SOURCES, _NOISE = 1, 2


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
        place = mix(seed, _SOURCES, number, attempt) % pictures
        if place not in chosen:
            chosen.append(place)
        attempt += 1
    return Draw(number, tuple(chosen), mix(seed, _NOISE, number) >> 1)


def shard(text: str | None, total: int) -> range:
    """Numbers of shard ``i/n`` (from 1) of ``total`` pictures, all without one: a block each, in order.

    Raises:
        UsageError: not a shard, or one without a picture.
    """
    if text is None:
        return range(total)
    part, slash, of = text.partition("/")
    if not (slash and part.isdecimal() and of.isdecimal() and 1 <= int(part) <= int(of)):
        raise UsageError(f"--shard {text}: a shard is i/n, from 1/n to n/n.")
    i, n = int(part), int(of)
    numbers = range((i - 1) * total // n, i * total // n)
    if not numbers:
        raise UsageError(f"--shard {text}: {total} pictures leave it empty. Use fewer shards.")
    return numbers
