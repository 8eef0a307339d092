"""`KrumFactory`; see also `test_robust_contract.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from koinon.aggregators import KrumFactory
from koinon.aggregators._rows import Rows


@functools.cache
def compiled(num_byzantine, num_selected=1):
    """The rule on rows, of which the first so many count."""
    return jax.jit(lambda m, n: KrumFactory(num_byzantine, num_selected).combine(Rows(m, jnp.arange(len(m)), n)))


def brute_force(values, num_byzantine, num_selected):
    """The paper's definition in float64."""
    values = np.asarray(values, np.float64)
    n = len(values)
    squares = ((values[:, None] - values[None]) ** 2).sum(axis=-1)
    scores = [np.sort(np.delete(squares[i], i))[: n - num_byzantine - 2].sum() for i in range(n)]
    selected = n - num_byzantine if num_selected is None else min(num_selected, n - num_byzantine)
    return values[np.argsort(scores, kind="stable")[:selected]].mean(axis=0)


@pytest.mark.parametrize(
    ("f", "m"), [(2, 1), pytest.param(2, 3, marks=pytest.mark.soak), pytest.param(2, None, marks=pytest.mark.soak)]
)
def test_it_is_the_definition(f, m):
    """In random cases, for every number of clients for which the rule is defined."""
    rule = compiled(f, m)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        matrix = (rng.normal(size=(12, 3)) * rng.choice([1, 10], (12, 1))).astype(np.float32)
        count = rng.integers(2 * f + 3, 13)
        result, measured = rule(matrix, jnp.int32(count))

        np.testing.assert_allclose(result, brute_force(matrix[:count], f, m), rtol=1e-5, atol=1e-6)
        assert int(measured["too_few_clients"]) == 0


def test_of_too_few_clients_it_is_the_coordinate_median():
    """And says so."""
    matrix = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    rule = compiled(2)
    for count in range(1, 7):
        result, measured = rule(matrix, jnp.int32(count))

        np.testing.assert_allclose(result, np.median(matrix[:count], axis=0), rtol=1e-6)
        assert int(measured["too_few_clients"]) == 1
    assert int(rule(matrix, jnp.int32(7))[1]["too_few_clients"]) == 0


@pytest.mark.parametrize("m", [pytest.param(1, marks=pytest.mark.soak), None])
def test_an_offset_that_all_have_in_common_hides_no_attacker(m):
    """Values near 1000 that differ by 0.01 in float32, attackers by 0.1: in no of a hundred draws is one selected."""
    rule = compiled(4, m)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        direction = rng.normal(size=50)
        offset = 1000 * direction / np.linalg.norm(direction)
        honest = offset + rng.normal(0, 0.01, (16, 50))
        corrupted = offset + rng.normal(0, 0.1, (4, 50))
        result, _ = rule(np.concatenate([corrupted, honest]).astype(np.float32), jnp.int32(20))

        # A mean in which there were an attacker would be a tenth of 16 clients' spread farther away.
        expected = brute_force(honest.astype(np.float32), 0, m)
        if m is None:
            np.testing.assert_allclose(result, expected, atol=2e-4)
        else:
            assert np.abs(np.asarray(result) - honest).max(axis=1).min() < 1e-3


def test_absurd_values_are_not_selected_however_many_agree_on_them():
    """As long as there are no more than `num_byzantine`, and whatever their size; two more win."""
    rng = np.random.default_rng(1)
    rule = compiled(2)
    honest = rng.normal(size=(12, 3)).astype(np.float32)
    for bad in (1e6, 1e30, -3e38):
        for corrupted, withstands in ((2, True), (7, False)):
            matrix = honest.copy()
            matrix[:corrupted] = bad
            result, _ = rule(matrix, jnp.int32(12))

            assert bool((np.abs(result) < 10).all()) is withstands


def test_it_turns_with_the_values():
    """Rotation and translation of all values are those of the result."""
    rng = np.random.default_rng(2)
    rule = compiled(2)
    for _ in range(50):
        matrix = rng.normal(size=(12, 3)).astype(np.float32)
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        moved = (matrix @ rotation + 1.0).astype(np.float32)

        np.testing.assert_allclose(
            rule(moved, jnp.int32(12))[0], rule(matrix, jnp.int32(12))[0] @ rotation + 1.0, atol=1e-5
        )


@pytest.mark.parametrize("arguments", [(-1,), (1, 0)])
def test_numbers_out_of_range_are_refused(arguments):
    """No negative number of corrupted clients, and at least one that is selected."""
    with pytest.raises(ValueError, match="must"):
        KrumFactory(*arguments)


@pytest.mark.parametrize("arguments", [(1.0,), (True,), (None,), (1, 2.0)])
def test_numbers_of_clients_are_ints(arguments):
    """A share is not a number of clients."""
    with pytest.raises(TypeError, match="must be an int"):
        KrumFactory(*arguments)
