"""The order of samples: once per epoch, any step alone, exact shares, balanced classes."""

from __future__ import annotations

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


@pytest.mark.parametrize("world", [1, 2, 3])
def test_in_order_covers_all_once(world: int) -> None:
    for count in (1, 2, 10, 11):
        parts = [in_order(count, 4, rank, world) for rank in range(world)]
        indices = [index for part in parts for batch in part for index, view in batch if view == 0]
        assert sorted(indices) == list(range(count))
        assert all(len(batch) <= 4 for part in parts for batch in part)
    assert in_order(5, 2) == [[(0, 0), (1, 0)], [(2, 0), (3, 0)], [(4, 0)]]
