"""The order of samples: once per epoch, any step alone, exact shares, balanced classes."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcli.data.order import Order, Share, in_order


def rows(order: Order, first: int, last: int) -> list[int]:
    return [index for step in range(first, last) for index, _ in order.keys(step)]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 30),
    batch=st.integers(1, 20),
    views=st.integers(1, 4),
    steps=st.integers(0, 12),
    labels=st.sampled_from(["all", "some"]),
    balance=st.booleans(),
)
def test_used_views_are_those_of_the_keys(
    count: int, batch: int, views: int, steps: int, labels: str, balance: bool
) -> None:
    y = np.where(np.arange(count) % 3, np.arange(count) % 2, -1 if labels == "some" else 0)
    order = Order(y, batch, 5, views, Share(y >= 0, 0.5) if labels == "some" else None, balance)
    naive = np.zeros((views, count), bool)
    for step in range(steps):
        for index, view in order.keys(step):
            naive[view, index] = True
    np.testing.assert_array_equal(order.used(steps), naive)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 50),
    views=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 9),
)
def test_every_sample_comes_once_per_epoch(count: int, batch: int, views: int | None, seed: int) -> None:
    order = Order(np.zeros(count, np.int64), batch, seed, views)
    keys = [key for step in range(3 * count) for key in order.keys(step)][: 5 * count]
    for epoch in range(5 if len(keys) == 5 * count else 3 * batch):
        part = keys[epoch * count : (epoch + 1) * count]
        assert sorted(index for index, _ in part) == list(range(count))
        assert {view for _, view in part} == {epoch if views is None else epoch % views}
    assert all(len(order.keys(step)) == batch for step in range(5))
    assert order.steps_per_epoch == count / batch


def test_any_step_can_be_asked_for_alone() -> None:
    labels = np.arange(50) % 4 - 1
    for options in (
        {},
        {"share": Share(labels >= 0, 0.3)},
        {"balance": True},
        {"share": Share(labels >= 0, 0.3), "balance": True},
    ):
        straight = Order(labels, 7, 3, None, **options)
        expected = [straight.keys(step) for step in range(60)]
        jumping = Order(labels, 7, 3, None, **options)
        for step in np.random.default_rng(0).permutation(60).tolist():
            assert jumping.keys(step) == expected[step]
            assert Order(labels, 7, 3, None, **options).keys(step) == expected[step]
            assert jumping.labelled_in(step) == sum(labels[i] >= 0 for i, _ in expected[step])
        assert Order(labels, 7, 4, None, **options).keys(0) != expected[0]


def test_epochs_differ_in_order() -> None:
    order = Order(np.zeros(30, np.int64), 30, 0, None)
    orders = [tuple(rows(order, epoch, epoch + 1)) for epoch in range(6)]
    assert len(set(orders)) == 6
    assert orders[0] != tuple(range(30))


@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.1, 1 / 3, 0.07, 0.9, 1.0])
@pytest.mark.parametrize("batch", [1, 7, 128])
def test_the_labelled_fraction_is_exact_over_time(fraction: float, batch: int) -> None:
    labels = np.where(np.arange(90) % 9 < 2, 0, -1)  # 20 labelled, 70 not
    order = Order(labels, batch, 0, None, Share(labels >= 0, fraction))
    labelled = 0
    for step in range(200):
        keys = order.keys(step)
        assert len(keys) == batch
        labelled += order.labelled_in(step)
        assert abs(labelled - fraction * batch * (step + 1)) < 1
    late = 10**9  # no rounding far out
    assert len(order.keys(late)) == batch
    assert abs(order.labelled_in(late) - fraction * batch) <= 1
    drawn = Counter(rows(order, 0, 200))
    for stream in (labels >= 0, labels < 0):
        times = [drawn[i] for i in np.flatnonzero(stream)]
        assert max(times) - min(times) <= 1


def test_a_fraction_without_two_kinds_changes_nothing() -> None:
    for labels in (np.zeros(10, np.int64), np.full(10, -1)):
        order = Order(labels, 4, 0, None, Share(labels >= 0, 0.25))
        assert sorted(rows(order, 0, 5)) == sorted([*range(10), *range(10)])


def test_labelled_rows_are_spread_over_the_micro_batches() -> None:
    labels = np.where(np.arange(100) < 50, 0, -1)
    order = Order(labels, 32, 0, None, Share(labels >= 0, 0.5))
    first = sum(order.labels[i] >= 0 for step in range(100) for i, _ in order.keys(step)[:16])
    assert abs(first / 1600 - 0.5) < 0.05


def test_balance_draws_classes_evenly() -> None:
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    order = Order(labels, 100, 0, None, balance=True)
    counts = np.bincount(labels[rows(order, 0, 100)])
    assert abs(counts / counts.sum() - 1 / 3).max() < 0.02
    mixed = Order(np.concatenate([labels, np.full(1000, -1)]), 100, 0, None, balance=True)
    drawn = mixed.labels[rows(mixed, 0, 100)]
    shares = np.array([(drawn == label).mean() for label in (-1, 0, 1, 2)])
    assert abs(shares - [1 / 2, 1 / 6, 1 / 6, 1 / 6]).max() < 0.02
    split = Order(mixed.labels, 100, 0, None, Share(mixed.labels >= 0, 0.5), balance=True)
    unlabelled = Counter(i for i in rows(split, 0, 20) if mixed.labels[i] < 0)
    assert set(unlabelled.values()) == {1}  # one epoch of them, none twice


def test_balance_is_quick() -> None:
    order = Order(np.arange(300_000) % 1000, 256, 0, None, balance=True)
    order.keys(0)
    start = time.perf_counter()
    order.keys(1)
    assert time.perf_counter() - start < 0.1


# -- groups of one label -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=40),
    size=st.integers(2, 6),
    groups=st.integers(1, 5),
    views=st.sampled_from([None, 1, 3, 7]),
    seed=st.integers(0, 9),
)
def test_an_epoch_is_made_of_groups_of_one_label(
    labels: list[int], size: int, groups: int, views: int | None, seed: int
) -> None:
    order = Order(np.array(labels), size * groups, seed, views, per_label=size)
    members = {label: [i for i, y in enumerate(labels) if y == label] for label in set(labels)}
    wanted = {label: math.ceil(len(rows) / size) for label, rows in members.items()}
    length = size * sum(wanted.values())
    steps = math.ceil(3 * length / order.batch_size)
    keys = [key for step in range(steps) for key in order.keys(step)][: 3 * length]
    assert order.steps_per_epoch == len(labels) / order.batch_size
    for epoch in range(3):
        part = keys[epoch * length : (epoch + 1) * length]
        found: Counter[int] = Counter()
        for start in range(0, length, size):
            group = [index for index, _ in part[start : start + size]]
            (label,) = {labels[i] for i in group}
            found[label] += 1
            assert len(set(group)) == min(size, len(members[label]))  # repeated only where there are too few
        assert found == wanted
        seen = {i: sorted(view for index, view in part if index == i) for i in range(len(labels))}
        for label, rows in members.items():
            times = sorted(len(seen[i]) for i in rows)
            assert times[-1] - times[0] <= 1
            assert sum(times) == size * wanted[label]
        for own in seen.values():
            repeats = range(len(own))
            if views is None:
                assert own == [epoch * size + r for r in repeats]
            else:
                assert own == sorted((epoch + r) % views for r in repeats)
    if views is None:
        assert len(set(keys)) == len(keys)  # no view comes twice


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 3), min_size=1, max_size=20),
    size=st.integers(1, 4),
    groups=st.integers(1, 4),
    views=st.sampled_from([None, 1, 2, 5]),
    steps=st.integers(0, 10),
    share=st.booleans(),
)
def test_used_views_of_groups_are_those_of_the_keys(
    labels: list[int], size: int, groups: int, views: int | None, steps: int, share: bool
) -> None:
    y = np.array(labels)
    order = Order(y, size * groups, 5, views, Share(y >= 0, 0.4) if share else None, per_label=size)
    naive = np.zeros((views or 1, len(y)), bool)
    for step in range(steps):
        keys = order.keys(step)
        assert order.labelled_in(step) == sum(labels[i] >= 0 for i, _ in keys)
        for index, view in keys:
            naive[0 if views is None else view, index] = True
    np.testing.assert_array_equal(order.used(steps), naive)


@pytest.mark.parametrize("fraction", [0.5, 0.3, 1 / 3, 0.9])
def test_shares_are_exact_over_time_and_cut_no_group(fraction: float) -> None:
    labels = np.arange(90) % 11 - 1
    labels[60:] = -1
    order = Order(labels, 24, 2, None, Share(labels >= 0, fraction), per_label=4)
    labelled = 0
    for step in range(100):
        keys = order.keys(step)
        assert len(keys) == 24
        for start in range(0, 24, 4):
            assert len({labels[index] for index, _ in keys[start : start + 4]}) == 1
        labelled += order.labelled_in(step)
        assert abs(labelled - fraction * 24 * (step + 1)) < 4
    first = [order.labels[order.keys(step)[0][0]] >= 0 for step in range(100)]
    assert any(first)
    assert not all(first)  # the two kinds are spread over the batch
    alone = Order(labels, 24, 2, None, Share(labels >= 0, fraction), per_label=4)
    assert alone.keys(77) == order.keys(77)


def test_groups_are_new_in_each_epoch() -> None:
    order = Order(np.repeat(np.arange(6), 8), 48, 0, None, per_label=4)
    epochs = [order.keys(epoch) for epoch in range(5)]
    mates = {frozenset(i for i, _ in keys[s : s + 4]) for keys in epochs for s in range(0, 48, 4)}
    assert len(mates) > 12 * 4
    assert len({tuple(order.labels[i] for i, _ in keys) for keys in epochs}) == 5


def test_single_samples_are_what_they_were() -> None:
    labels, found = np.arange(50) % 4 - 1, []
    share = Share(labels >= 0, 0.3)
    for options in ((None,), (2,), (None, share), (None, share, True)):
        order = Order(labels, 7, 3, *options, per_label=1)  # type: ignore[arg-type]
        keys = [order.keys(step) for step in (*range(40), 10**6)]
        found.append(hashlib.sha256(str(keys).encode()).hexdigest()[:16])
    assert found == ["61ba3d1959009c92", "f73e3784dbe5d7d0", "923ed72652470f81", "9522d62e738e9e93"]


def test_groups_fill_batches_and_are_not_balanced() -> None:
    labels = np.zeros(8, np.int64)
    for size in (3, 0, -2):
        message = rf"a batch of 8 is no multiple of {size} samples of each label"
        with pytest.raises(ValueError, match=message):
            Order(labels, 8, 0, None, per_label=size)
    with pytest.raises(ValueError, match="balanced by label or drawn in groups of one, not both"):
        Order(labels, 8, 0, None, balance=True, per_label=4)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_order_covers_all_once(world: int) -> None:
    for count in (1, 2, 10, 11):
        parts = [in_order(count, 4, rank, world) for rank in range(world)]
        indices = [index for part in parts for batch in part for index, view in batch if view == 0]
        assert sorted(indices) == list(range(count))
        assert all(len(batch) <= 4 for part in parts for batch in part)
    assert in_order(5, 2) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)]]


def test_streams_have_numbers_of_views_of_their_own() -> None:
    labels = np.array([0] * 4 + [-1] * 12)
    order = Order(labels, 8, 3, (5, 2), Share(labels >= 0, 0.5))
    assert order.views == 5
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    mask = np.zeros((5, 16), bool)
    for step in range(12):
        for index, view in order.keys(step):
            seen[bool(labels[index] >= 0)].add(view)
            mask[view, index] = True
    assert seen == {True: set(range(5)), False: {0, 1}}
    assert np.array_equal(order.used(12), mask)
    assert not order.used(1000)[2:, 4:].any()
