"""The contract that every aggregation fulfils; a new one is a row in `aggregators.py`."""

from __future__ import annotations

import inspect
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from koinon import aggregators, learning
from koinon.testing import count_compilations
from tests.contracts.aggregators import (
    AGGREGATORS,
    BROKEN,
    USUAL,
    arguments,
    golden_types,
    make_process,
    play,
)
from tests.contracts.pytrees import numbers

GOLDEN = pathlib.Path(__file__).with_name("aggregator_types.txt")


def rows(*, slow_ones: bool = False, **attributes: bool) -> Any:
    """Runs a test on the rows with these attributes; on those that compile slowly as a soak, unless asked for."""
    chosen = [
        name if slow_ones or not row.is_slow else pytest.param(name, marks=pytest.mark.soak)
        for name, row in AGGREGATORS.items()
        if all(getattr(row, attribute) == value for attribute, value in attributes.items())
    ]
    return pytest.mark.parametrize("name", chosen)


def assert_close(actual: Any, expected: Any) -> None:
    """Asserts that two pytrees are equal up to the order of sums."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(numbers(actual), numbers(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Asserts that two pytrees are equal to the bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert [leaf.tobytes() for leaf in numbers(actual)] == [leaf.tobytes() for leaf in numbers(expected)]


def is_finite(tree: Any) -> bool:
    """Whether no number of a pytree is infinite or none."""
    return all(np.isfinite(leaf).all() for leaf in numbers(tree) if leaf.dtype.kind == "f")


def test_every_aggregation_has_a_row() -> None:
    """Every public class or function that makes a factory is the first word of the name of a row."""
    public = {name: getattr(module, name) for module in (aggregators, learning) for name in module.__all__}
    classes = {
        name
        for name, value in public.items()
        if inspect.isclass(value)
        and issubclass(value, aggregators.UnweightedAggregationFactory | aggregators.WeightedAggregationFactory)
        and not inspect.isabstract(value)
    }
    functions = {
        name
        for name, value in public.items()
        if inspect.isfunction(value) and "Factory" in str(inspect.signature(value).return_annotation)
    }

    assert len(classes) > 10
    assert len(functions) > 8
    assert classes | functions == {name.split()[0] for name in AGGREGATORS}


def test_the_types_are_those_that_were_agreed() -> None:
    """A change of a type is a change of the interface: states, results and measurements."""
    assert golden_types() == GOLDEN.read_text(encoding="utf-8")


@rows(slow_ones=True)
def test_the_state_is_closed_under_a_round(name: str) -> None:
    """What `next` returns, it takes; what `initialize` returns, too."""
    process = make_process(name)
    signature = process.next.type_signature

    assert signature.parameter[0].is_equivalent_to(signature.result["state"])
    assert signature.parameter[0].is_assignable_from(process.initialize.type_signature.result)


@rows()
def test_reference_and_local_engine_agree(name: str) -> None:
    """Over two rounds: states, results and measurements."""
    cohorts = (0, 1, 2), (3, 0, 1)

    assert_close(play(name, *cohorts), play(name, *cohorts, backend="reference"))


@rows(depends_on_position=False)
def test_the_order_of_the_clients_does_not_matter(name: str) -> None:
    """Up to the rounding of sums."""
    assert_close(play(name, USUAL), play(name, (3, 0, 2, 1)))


@rows(is_plain=False)
def test_nobody_changes_nothing_that_is_not_finite(name: str) -> None:
    """A round without clients gives numbers; the next round goes on."""
    nobody, after = play(name, (), USUAL)

    assert is_finite(nobody.result)
    assert is_finite(after.result)


@rows()
def test_a_single_client_is_aggregated(name: str) -> None:
    """To its own value, by most aggregations; to numbers, by all."""
    (output,) = play(name, (3,))

    assert is_finite(output)
    if AGGREGATORS[name].alone:
        (value,), *_ = arguments(name, (3,))
        assert_close(output.result, value)


@rows(counts_weights=True)
def test_weights_that_are_all_zero_give_zeros(name: str) -> None:
    """The plain mean gives no numbers, as it declares."""
    process = make_process(name)
    values, weights = arguments(name, USUAL, np.zeros(len(USUAL)))
    result = process.next(process.initialize(), values, weights).result
    if name == "MeanFactory":
        assert all(np.isnan(leaf).all() for leaf in numbers(result))
    else:
        assert all((leaf == 0).all() for leaf in numbers(result))


@rows(is_plain=False, is_integer=False)
def test_a_client_that_is_not_finite_leaves_no_trace(name: str) -> None:
    """In its value or its weight: result and state are bit for bit those without it, and it is counted once."""
    (without,) = play(name, (0, 1, 2))
    process = make_process(name)
    values, *weights = arguments(name, USUAL)
    broken = []
    for bad in (np.nan, np.inf, -np.inf):
        value = {**values[3], "a": np.float32([1.0, bad, 0.0])}
        broken.append(([*values[:3], value], *weights))
        if AGGREGATORS[name].counts_weights:
            broken.append((values, [*weights[0][:3], np.float32(bad)]))
    for given in broken:
        with_it = process.next(process.initialize(), *given)
        assert is_finite(with_it.result)
        assert_same_bits(with_it.result, without.result)
        assert_same_bits(with_it.state, without.state)
        difference = [
            float(np.sum(a.astype(np.float64) - b))
            for a, b in zip(numbers(with_it.measurements), numbers(without.measurements), strict=True)
        ]
        assert 1.0 in difference
        assert set(difference) <= {0.0, 1.0}


@rows(alone=True, is_integer=False)
def test_numbers_at_the_ends_of_their_range_are_never_wrong(name: str) -> None:
    """Of a single client: as they are, or counted as clipped or left out; subnormal numbers may vanish."""
    process = make_process(name)
    _, *weights = arguments(name, (3,))
    value = {"a": np.float32([3e38, -3e38, 1.0]), "b": np.float32(1e-42)}
    result, measurements = process.next(process.initialize(), [value], *weights)[1:]

    found = np.append(result["a"], result["b"])
    is_right = np.allclose(found, np.append(value["a"], value["b"]), rtol=1e-5, atol=1e31)
    is_counted = any(leaf.dtype.kind == "i" and (leaf == 1).all() for leaf in numbers(measurements))
    assert is_right or is_counted or not np.isfinite(found).all()


@rows(is_plain=True)
def test_the_plain_mathematics_hides_nothing(name: str) -> None:
    """What is no number makes a result that is none, in the elements in which it is."""
    (output,) = play(name, (0, 1, 2, BROKEN))

    np.testing.assert_array_equal(np.isnan(output.result["a"]), [False, True, False])
    assert np.isfinite(output.result["b"])


@rows()
def test_a_cohort_of_another_size_compiles_nothing(name: str) -> None:
    """Within the same power of two."""
    process = make_process(name)
    state = play(name, (0, 1, 2))[0].state
    for cohort in ((0, 1, 2), USUAL):
        process.next(state, *arguments(name, cohort))
    with count_compilations() as compiled:
        for cohort in (USUAL, (0, 1, 2), (3, 1, 0)):
            state = process.next(state, *arguments(name, cohort)).state

    assert compiled.total == 0


def test_sums_of_integers_wrap_or_are_refused() -> None:
    """`SumFactory` is arithmetic modulo `2**32`, as it declares."""
    process = aggregators.SumFactory().create(
        make_process("SumFactory of integers").next.type_signature.parameter[1].member
    )
    large = {"a": np.full(3, 2**30, np.int32), "b": np.int32(-(2**31))}
    total = process.next(process.initialize(), [large] * 3).result

    assert total["a"].tolist() == [(3 * 2**30 + 2**31) % 2**32 - 2**31] * 3
    assert int(total["b"]) == (3 * -(2**31) + 2**31) % 2**32 - 2**31
