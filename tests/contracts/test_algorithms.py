"""The contract that every federated learning algorithm fulfils; a new one is a row in `algorithms.py`."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np
import pytest

import koinon as ko
from koinon.program import pytree_from_bytes, pytree_to_bytes
from koinon.testing import count_compilations, count_frames
from tests.contracts.algorithms import ALGORITHMS, BROKEN, EMPTY, USUAL, Run, golden_types, make_process
from tests.contracts.pytrees import numbers

GOLDEN = pathlib.Path(__file__).with_name("algorithm_types.txt")
# In its mean clients without an update count, too.
COUNTS_EVERYONE = "unweighted_fed_avg"
# Each position of a cohort has a key of its own, which decides the order of a client's examples.
SHUFFLES = "weighted_fed_avg"
# Rows of client states are checked at each call.
MAX_FRAMES, MAX_DEPTH = 60, 12

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def assert_close(actual: Any, expected: Any, rtol: float = 1e-5) -> None:
    """Asserts that two pytrees are equal up to the order of sums."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(numbers(actual), numbers(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Asserts that two pytrees are equal to the bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert [leaf.tobytes() for leaf in numbers(actual)] == [leaf.tobytes() for leaf in numbers(expected)]


def test_the_types_are_those_that_were_agreed() -> None:
    """A change of a type is a change of the interface: states, metrics, and what clients keep."""
    assert golden_types() == GOLDEN.read_text(encoding="utf-8")


@every_algorithm
def test_the_state_is_closed_under_a_round(name: str) -> None:
    """What `next` returns, it takes; what `initialize` returns, too; and likewise for the states of clients."""
    process = make_process(name)
    signature = process.next.type_signature

    assert signature.parameter[0].is_equivalent_to(signature.result["state"])
    assert signature.parameter[0].is_assignable_from(process.initialize.type_signature.result)
    if process.initialize_client_state is not None:
        assert signature.parameter[1].is_equivalent_to(signature.result["client_state"])


@every_algorithm
def test_reference_and_local_engine_agree(name: str) -> None:
    """On two clients: states, metrics, and what clients keep."""
    cohort = (0, 2)
    local = Run(name).play(cohort)
    with ko.backends.use("reference"):
        reference = Run(name).play(cohort)

    assert_close(local.saved, reference.saved)
    assert_close(local.metrics, reference.metrics)


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - {SHUFFLES}))
def test_the_order_of_the_clients_does_not_matter(name: str) -> None:
    """Up to the rounding of sums."""
    run, reordered = Run(name).play(USUAL), Run(name).play((3, 0, 2, 1))

    assert_close(run.saved, reordered.saved)
    assert_close(run.metrics, reordered.metrics)


@every_algorithm
@pytest.mark.parametrize("cohort", [(), EMPTY], ids=["no clients", "no examples"])
def test_a_round_without_examples_leaves_the_model_as_it_was(name: str, cohort: tuple[int, ...]) -> None:
    """No clients, or clients whose weights are all zero; the next round is as if nothing had been."""
    run = Run(name).play(USUAL)
    before = run.weights
    run.play(cohort)

    assert_same_bits(run.weights, before)
    assert all(np.isfinite(leaf).all() for leaf in numbers(run.saved) if leaf.dtype.kind == "f")


@every_algorithm
def test_a_client_that_is_no_number_costs_nothing(name: str) -> None:
    """The round is that of the other clients, and so is what they keep; its own state stays."""
    run, others = Run(name).play((*USUAL[:3], BROKEN)), Run(name).play(USUAL[:3])

    if name == COUNTS_EVERYONE:
        # Three updates and a zero.
        expected = jax.tree.map(lambda old, new: old + 0.75 * (new - old), Run(name).weights, others.weights)
        assert_close(run.weights, expected)
        return
    assert_close(run.weights, others.weights)
    if run.clients is not None and others.clients is not None:
        assert_close(run.clients[BROKEN], run.process.initialize_client_state())
        for client in USUAL[:3]:
            assert_close(run.clients[client], others.clients[client])


@every_algorithm
def test_a_warm_round_compiles_nothing_and_runs_little_python(name: str) -> None:
    """The same number of frames for two clients and for four."""
    run = Run(name)
    cohorts = {size: run.data.cohort(USUAL[:size]) for size in (2, 4)}
    states = {size: () if run.clients is None else (run.clients.rows(USUAL[:size]),) for size in cohorts}
    call = lambda size: run.process.next(run.state, *states[size], cohorts[size])  # noqa: E731 - counted below
    for size in cohorts:
        call(size)
    with count_compilations() as compiled:
        counts = {size: count_frames(call, size) for size in cohorts}

    assert compiled.total == 0
    assert counts[2] == counts[4]
    assert counts[4].total <= MAX_FRAMES
    assert counts[4].deepest <= MAX_DEPTH


COHORTS = [USUAL, (1, 3), (0, 2, 1), USUAL]


@every_algorithm
def test_a_run_that_is_resumed_at_any_round_has_the_same_bits(name: str) -> None:
    """Saved to bytes and loaded into a new run, server and clients alike."""
    whole = Run(name)
    for cohort in COHORTS:
        whole.play(cohort)
    interrupted = Run(name)
    for stop in range(len(COHORTS)):
        resumed = Run(name)
        resumed.saved = pytree_from_bytes(pytree_to_bytes(interrupted.saved), interrupted.saved)
        for cohort in COHORTS[stop:]:
            resumed.play(cohort)
        assert_same_bits(resumed.saved, whole.saved)
        assert_same_bits(resumed.metrics, whole.metrics)
        interrupted.play(COHORTS[stop])
