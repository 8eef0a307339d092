"""Tests of the decorator of federated computations: what it traces, and what it refuses."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import koinon as ko
from koinon.computation import _ir as ir
from koinon.errors import ComputationReturnedNoneError, UnsupportedTypeError
from koinon.types import at_clients, at_server
from tests.messages import blamed_line

INT = at_clients(np.int32)


class Output(NamedTuple):
    """What a process returns."""

    state: Any
    result: Any


def test_a_traced_function_becomes_a_lambda_expression() -> None:
    """Each operator is bound to a name once, in the order in which the function calls it."""

    @ko.federated_computation(INT)
    def statistics(values: Any) -> Any:
        total = ko.federated_sum(values)
        largest = ko.federated_max(values)
        return {"max": largest, "sum": total, "again": total}

    assert isinstance(statistics.expression, ir.Lambda)
    assert str(statistics) == "(v0 -> (let v1=federated_sum(v0),v2=federated_max(v0) in <again=v1,max=v2,sum=v1>))"
    assert (
        str(statistics.type_signature) == "({int32}@CLIENTS -> <again=int32@SERVER,max=int32@SERVER,sum=int32@SERVER>)"
    )


def test_the_function_is_called_once_and_never_at_run_time(backend: str) -> None:
    """Python code runs while tracing alone."""
    calls = []

    @ko.federated_computation(INT)
    def total(values: Any) -> Any:
        calls.append(values)
        return ko.federated_sum(values)

    assert [int(total([1, 2])), int(total([3]))] == [3, 3]
    assert len(calls) == 1


def test_returning_none_is_an_error_at_the_line_of_the_function() -> None:
    """The message names the function and its line."""

    def forgets(values: Any) -> Any:
        ko.federated_sum(values)

    with pytest.raises(ComputationReturnedNoneError, match="The function `forgets` returned None") as caught:
        ko.federated_computation(forgets, INT)
    assert isinstance(caught.value, ValueError)
    assert blamed_line(caught.value) == "def forgets(values: Any) -> Any:"
    assert caught.value.hint == "add a return statement"


def test_returning_none_through_a_wrapper_still_names_the_line_of_the_function() -> None:
    """TFF names the wrapper here; the user wrote the function inside."""

    def forgets(values: Any) -> Any:
        ko.federated_sum(values)

    @functools.wraps(forgets)
    def wrapper(values: Any) -> Any:
        return forgets(values)

    with pytest.raises(ComputationReturnedNoneError, match="`forgets`") as caught:
        ko.federated_computation(wrapper, INT)
    assert blamed_line(caught.value) == "def forgets(values: Any) -> Any:"


def test_an_error_in_the_function_passes_through() -> None:
    """An exception of the user's own code is not wrapped."""

    def fails(values: Any) -> Any:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        ko.federated_computation(fails, INT)
    assert str(ko.federated_computation(lambda v: v, INT).type_signature) == "({int32}@CLIENTS -> {int32}@CLIENTS)"


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="JAX holds 64 bits here")
@pytest.mark.parametrize(
    "notation",
    ["int64@SERVER", "{float64*}@CLIENTS", "uint64", "<a=int32@SERVER,b={complex128}@CLIENTS>", "(int64 -> int32)"],
)
def test_a_parameter_of_64_bits_is_refused_while_jax_holds_32(notation: str) -> None:
    """The type is named where it stands, with the way to have it."""
    with pytest.raises(UnsupportedTypeError, match="narrows no value silently") as caught:
        ko.federated_computation(lambda v: v, ko.types.parse(notation))
    assert "lambda v: v" in blamed_line(caught.value)
    assert caught.value.hint is not None
    assert "jax_enable_x64" in caught.value.hint


def test_results_come_back_in_the_containers_that_the_function_wrote(backend: str) -> None:
    """Named tuples, dicts, lists and tuples, around values of both placements."""

    @ko.federated_computation(INT, at_server(np.float32))
    def process(values: Any, state: Any) -> Any:
        return Output(state, {"clients": [values, ()], "constant": 3})

    output = process([1, 2], 0.5)
    assert isinstance(output, Output)
    assert float(output.state) == 0.5
    assert output.result == {"clients": [[1, 2], ()], "constant": 3}


def test_threads_trace_apart() -> None:
    """What one thread traces is invisible to another."""
    inside, outside = threading.Event(), threading.Event()
    texts: dict[str, str] = {}

    def slow(values: Any) -> Any:
        inside.set()
        assert outside.wait(10)
        return ko.federated_sum(values)

    def trace(name: str, fn: Callable[[Any], Any]) -> None:
        texts[name] = str(ko.federated_computation(fn, INT))

    thread = threading.Thread(target=trace, args=("slow", slow))
    thread.start()
    assert inside.wait(10)
    trace("fast", lambda values: ko.federated_max(values))
    with pytest.raises(ko.errors.ContextError):
        ko.federated_sum([1])
    outside.set()
    thread.join()
    assert texts == {
        "slow": "(v0 -> (let v1=federated_sum(v0) in v1))",
        "fast": "(v0 -> (let v1=federated_max(v0) in v1))",
    }
