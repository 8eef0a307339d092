"""The order of the clients, lanes and threads: every client runs exactly once, in segments that are alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import koinon as ko
from koinon.backends._schedule import (
    ORDERED_PARTS,
    Work,
    available_cores,
    choose_lanes,
    choose_threads,
    ordered_segments,
    segments,
)

SIZES = st.lists(st.integers(0, 500), min_size=1, max_size=70)


@given(SIZES, st.sampled_from([1, 2, 16]), st.integers(1, 4))
def test_the_segments_hold_every_client_exactly_once(sizes: list[int], lanes: int, threads: int) -> None:
    """Whatever the lanes and threads, the segments are a partition of the cohort."""
    count = len(sizes)
    parts = segments(np.array(sizes, np.int32), count, 128, lanes, threads)
    run = [int(client) for part in parts for client in part.order[part.start : part.stop]]

    assert sorted(run) == list(range(count))
    assert len(parts) == threads


@given(SIZES, st.integers(2, 3))
def test_the_threads_get_examples_in_like_numbers(sizes: list[int], threads: int) -> None:
    """No thread has more examples than another by more than the largest client."""
    lengths = np.array(sizes, np.int32)
    parts = segments(lengths, len(sizes), 128, 1, threads)
    shares = [int(lengths[part.order[part.start : part.stop]].sum()) for part in parts]

    assert max(shares) - min(shares) <= max(sizes)


def test_a_client_that_is_longer_than_the_others_is_made_up_for() -> None:
    """The threads take about as long, a step to begin and end each client included."""
    lengths = np.array([300, *[20] * 30], np.int32)
    parts = segments(lengths, len(lengths), 128, 1, 2, rows=10)
    steps = [int((np.ceil(lengths[part.order[part.start : part.stop]] / 10) + 1).sum()) for part in parts]

    assert max(steps) - min(steps) <= 3


def test_one_thread_and_one_lane_keep_the_order_of_the_cohort() -> None:
    """The plain loop runs the clients as the cohort names them."""
    (part,) = segments(np.array([3, 9, 1], np.int32), 3, 4, 1, 1)

    assert part.order[part.start : part.stop].tolist() == [0, 1, 2]


def test_lanes_are_for_small_steps_and_large_cohorts() -> None:
    """Small steps run side by side in large cohorts; large steps, small cohorts and unbatchable work do not."""
    assert choose_lanes(Work(step=10_000, whole=10_000, can_batch=True), 1024) > 1
    assert choose_lanes(Work(step=10_000, whole=10_000, can_batch=True), 8) == 1
    assert choose_lanes(Work(step=10_000_000, whole=10_000_000, can_batch=True), 1024) == 1
    assert choose_lanes(Work(step=10_000, whole=10_000, can_batch=False), 1024) == 1
    assert choose_lanes(Work(step=10_000, whole=10_000, can_batch=True, convolves=True), 1024) == 1
    assert choose_lanes(Work(step=400_000, whole=400_000, can_batch=True), 1024) < choose_lanes(
        Work(step=10_000, whole=10_000, can_batch=True), 1024
    )


def test_threads_are_for_folds_over_many_examples() -> None:
    """Work without a fold, few examples, and steps that XLA splits by itself run on one thread."""
    assert not Work(step=None, whole=10, can_batch=True).is_worth_sharing(10_000)
    assert not Work(step=1_000, whole=1_000, can_batch=True).is_worth_sharing(10)
    assert not Work(step=1_000, whole=1_000, can_batch=True, rows=20).is_worth_sharing(400)
    assert Work(step=10**8, whole=10**8, can_batch=True, rows=4).is_worth_sharing(400)
    assert choose_threads(Work(step=10**8, whole=10**8, can_batch=True), 100, shares=False) == 1
    assert choose_threads(Work(step=10**10, whole=10**10, can_batch=True), 100, shares=True) == 1
    assert choose_threads(Work(step=10**8, whole=10**8, can_batch=True, rows=4), 16, shares=True) == min(
        available_cores(), 8
    )


@pytest.mark.parametrize("options", [{"lanes": 4}, {"threads": 2}, {"lanes": 4, "threads": 2}, {"deterministic": True}])
def test_every_schedule_gives_the_same_round(options: dict[str, int]) -> None:
    """Lanes and threads change the order of sums and nothing else; integers are exactly the same."""
    example = ko.to_type({"x": (np.float32, (3,)), "n": np.int32})

    @ko.jax_computation(ko.types.SequenceType(example))
    def work(data):
        return data.batch(2).reduce(
            {"s": np.zeros(3, np.float32), "n": 0},
            lambda c, b: {
                "s": c["s"] * 0.9 + (b.examples["x"] * b.mask[:, None]).sum(0),
                "n": c["n"] + (b.examples["n"] * b.mask).sum(),
            },
        )

    @ko.federated_computation(ko.types.at_clients(ko.types.SequenceType(example)))
    def round_of(data):
        results = ko.federated_map(work, data)
        return ko.federated_sum(results.n), ko.federated_mean(results.s), ko.federated_max(results.s)

    rng = np.random.default_rng(5)
    sizes = np.array([0, 1, 7, 2, 30, 4, 0, 3, 5, 5, 9])
    total = int(sizes.sum())
    buffers = [rng.integers(0, 9, total).astype(np.int32), rng.normal(size=(total, 3)).astype(np.float32)]
    cohort = ko.Cohort(ko.PackedSequences(example, buffers, np.cumsum(sizes) - sizes, sizes), np.arange(len(sizes)))

    with ko.backends.use("reference"):
        expected = round_of(cohort)
    with ko.backends.use(ko.backends.LocalBackend(**options)):
        found, again = round_of(cohort), round_of(cohort)

    assert int(found[0]) == int(expected[0]) == int(buffers[0].sum())
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("option", ["lanes", "threads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_an_option_that_is_no_positive_int_is_refused(option: str, value: object) -> None:
    """The engine says which option is wrong before anything runs."""
    with pytest.raises(ko.errors.KoinonValueError, match=option):
        ko.backends.LocalBackend(**{option: value})


@given(st.lists(st.integers(0, 50), max_size=40))
def test_segments_in_order_are_the_cohort(lengths: list[int]) -> None:
    """Together they are all clients in their order, and none has much more than its share of the examples."""
    sizes = np.array(lengths, np.int32)
    parts = ordered_segments(sizes, len(lengths), 64)
    taken = [int(position) for part in parts for position in part.order[part.start : part.stop]]
    assert taken == list(range(len(lengths)))
    for part in parts:
        share = sizes[part.order[part.start : part.stop]]
        assert share.sum() <= sizes.sum() / ORDERED_PARTS + sizes.max(initial=0)
    assert len(parts) == ORDERED_PARTS
