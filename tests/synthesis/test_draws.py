"""Which sources and noise a picture is made of."""

import numpy as np
import pytest

from kdcli.errors import UsageError
from kdcli.synthesis.draws import draw, draw_of_block, shard


def test_sources_are_distinct_and_evenly_drawn():
    draws = [draw(j, seed=0, pictures=10, count=3, per_image=None) for j in range(4000)]
    assert all(len(set(d.sources)) == 3 and set(d.sources) <= set(range(10)) for d in draws)
    counts = np.bincount([i for d in draws for i in d.sources], minlength=10)
    assert abs(counts - 1200).max() < 5 * np.sqrt(4000 * 0.3 * 0.7)
    assert len({d.noise for d in draws}) == 4000
    assert all(0 <= d.noise < 2**63 for d in draws)


def test_every_source_of_all():
    assert sorted(draw(3, seed=1, pictures=5, count=5, per_image=None).sources) == [0, 1, 2, 3, 4]


def test_a_draw_depends_on_seed_and_number_alone():
    first = draw(7, seed=0, pictures=10, count=2, per_image=None)
    assert draw(7, seed=0, pictures=10, count=2, per_image=None) == first
    assert draw(7, seed=1, pictures=10, count=2, per_image=None).noise != first.noise
    assert draw(8, seed=0, pictures=10, count=2, per_image=None).noise != first.noise


def test_per_image_takes_each_source_so_often():
    draws = [draw(j, seed=0, pictures=6, count=2, per_image=3) for j in range(18)]
    assert [d.sources[0] for d in draws] == [i for i in range(6) for _ in range(3)]
    assert all(d.sources[0] != d.sources[1] for d in draws)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 40])
def test_shards_partition(count):
    parts = [shard(f"{i}/{count}", 40) for i in range(1, count + 1)]
    assert [j for part in parts for j in part] == list(range(40)) == list(shard(None, 40))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", "", "1/²", "1/" + "9" * 5000]
)
def test_no_shard(text):
    with pytest.raises(UsageError, match=r"a shard is i/n, from 1/n to n/n"):
        shard(text, 40)


def test_an_empty_shard():
    with pytest.raises(UsageError, match=r"--shard 1/5: 3 pictures leave it empty\. Use fewer shards"):
        shard("1/5", 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shards_of_blocks_hold_whole_ones(count):
    parts = [shard(f"{i}/{count}", 41, block=8) for i in range(1, count + 1)]
    assert [j for part in parts for j in part] == list(range(41))
    assert all(part.start % 8 == 0 for part in parts)


def test_a_shard_without_a_block():
    with pytest.raises(UsageError, match=r"--shard 1/4: 20 pictures in blocks of 8 leave it empty"):
        shard("1/4", 20, block=8)


def test_pictures_of_a_block_share_their_noise():
    draws = [draw_of_block(j, seed=0, block=8) for j in range(24)]
    assert [d.number for d in draws] == list(range(24))
    assert len({d.noise for d in draws[8:16]}) == 1
    assert len({d.noise for d in draws}) == 3
    assert draw_of_block(9, seed=1, block=8).noise != draws[9].noise
    assert all(d.sources == () for d in draws)
