"""Programs in a federated context: references instead of values, in order, with the values that a backend gives."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon._errors import ContextError, KoinonTypeError, KoinonValueError
from koinon.program import (
    CSVFileReleaseManager,
    DatasetDataSource,
    FederatedDataSource,
    FileProgramStateManager,
    JSONLinesReleaseManager,
    MaterializableValueReference,
    MemoryReleaseManager,
    NativeFederatedContext,
    NativeValueReference,
    ReleaseManager,
    check_in_federated_context,
    contains_only_server_placed_data,
    materialize_value,
    wait_for_values,
)
from koinon.simulation import ClientData
from koinon.types import at_clients, at_server, parse


class Output(NamedTuple):
    state: Any
    metrics: Any


@ko.federated_computation(at_server(jnp.float32), at_clients(jnp.float32))
def add_all(state: Any, values: Any) -> Output:
    """The state with the clients' values added, and two numbers to know about it."""
    total = ko.federated_sum(values)
    return Output(
        ko.federated_map(lambda s, t: s + t, (state, total)),
        ko.federated_zip({"total": total, "largest": ko.federated_max(values)}),
    )


@ko.jax_computation(jnp.float32)
def double(x: Any) -> Any:
    return 2 * x


def test_a_result_is_a_structure_of_references_with_the_values_of_the_backend(backend: str) -> None:
    """Containers are those of the result, leaves know their types; the values are those of a direct call."""
    expected = add_all(1.0, [2.0, 3.0])
    with ko.backends.use(NativeFederatedContext()):
        check_in_federated_context()
        output = add_all(1.0, [2.0, 3.0])
    assert isinstance(output, Output)
    assert sorted(output.metrics) == ["largest", "total"]
    assert all(isinstance(leaf, MaterializableValueReference) for leaf in jax.tree.leaves(output))
    assert output.metrics["total"].type_signature == parse("float32")
    found = asyncio.run(materialize_value(output))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_references_are_arguments_of_later_calls() -> None:
    """Rounds are begun without waiting for the ones before, and come out as if one had waited."""
    with ko.backends.use(NativeFederatedContext()):
        output = add_all(double(0.5), [1.0])
        for number in range(20):
            output = add_all(state=output.state, values=[float(number)] * 2)
        direct = double(output.metrics["total"])
    assert float(asyncio.run(output.state.get_value())) == 2 + 2 * sum(range(20))
    assert float(asyncio.run(direct.get_value())) == 2 * (2 * 19)


def test_a_call_returns_before_its_computation_is_over() -> None:
    """And computations run one after the other, in one thread that is not the caller's."""
    may_run, threads = threading.Event(), []

    class Waiting:
        def invoke(self, computation: Any, argument: Any) -> Any:
            threads.append(threading.current_thread())
            assert may_run.wait(timeout=10)
            return len(threads)

    with ko.backends.use(NativeFederatedContext(Waiting())):
        references = [double(1.0) for _ in range(3)]
    assert not any(reference.future.done() for reference in references)
    may_run.set()
    assert asyncio.run(materialize_value(references)) == [1, 2, 3]
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()


def test_an_error_is_raised_where_the_value_is_asked_for_and_by_what_depends_on_it() -> None:
    """The call itself returns; other values are not affected."""
    with ko.backends.use(NativeFederatedContext()):
        wrong = double("one")
        depends, fine = double(wrong), double(1.0)
    for reference in (wrong, depends):
        with pytest.raises(KoinonTypeError, match="not a tensor"):
            asyncio.run(reference.get_value())
    assert float(asyncio.run(fine.get_value())) == 2.0


def test_what_stays_at_the_clients_is_no_result_of_a_program() -> None:
    """The error comes at once; types say it beforehand."""

    @ko.federated_computation(at_clients(jnp.float32))
    def keep(values: Any) -> Any:
        return values, ko.federated_sum(values)

    with ko.backends.use(NativeFederatedContext()), pytest.raises(KoinonValueError, match="placed at the server"):
        keep([1.0])
    for text, expected in {
        "float32": True,
        "float32@SERVER": True,
        "<a=<float32,int32[3]>@SERVER,b=<>>": True,
        "<float32,{int32}@CLIENTS>": False,
        "int32@CLIENTS": False,
        "(float32 -> float32)": False,
        "int32*": False,
    }.items():
        assert contains_only_server_placed_data(parse(text)) is expected


def test_a_program_must_be_in_a_context() -> None:
    """Outside, and in a plain backend, the check fails; a context does not run on a context."""
    with pytest.raises(ContextError, match="must run in a federated context"):
        check_in_federated_context()
    with ko.backends.use("reference"), pytest.raises(ContextError, match="ReferenceBackend"):
        check_in_federated_context()
    with pytest.raises(KoinonTypeError, match="not on another context"):
        NativeFederatedContext(NativeFederatedContext())


def test_the_context_runs_on_the_backend_in_use_where_it_was_made() -> None:
    """Also where the backend itself calls computations, which then must not come back to the context."""
    with ko.backends.use("reference"):
        context = NativeFederatedContext()
    assert repr(context).startswith("NativeFederatedContext(ReferenceBackend")

    class Nested:
        def invoke(self, computation: Any, argument: Any) -> Any:
            with ko.backends.use("reference"):
                inner = double(21.0)
            return inner if ko.backends.current() is self else None

    with ko.backends.use(NativeFederatedContext(Nested())):
        reference = double(1.0)
    assert float(asyncio.run(reference.get_value())) == 42.0


def test_precision_and_device_of_the_caller_hold_for_the_computation() -> None:
    """Settings of JAX belong to a thread, and the context has another one."""
    with jax.enable_x64(True), ko.backends.use(NativeFederatedContext()):
        squared = ko.jax_computation(jnp.float64)(lambda x: x * x)(1 / 3)
    value = asyncio.run(squared.get_value())
    assert value.dtype == np.float64
    assert float(value) == (1 / 3) ** 2


def test_a_reference_keeps_its_own_value_alive_and_no_other() -> None:
    """Metrics of many rounds must not hold the states of those rounds."""

    class Big:
        pass

    big = Big()
    watched = weakref.ref(big)

    class Fixed:
        def __init__(self, value: Any) -> None:
            self.value = value

        def invoke(self, computation: Any, argument: Any) -> Any:
            value, self.value = self.value, None
            return Output(value, {"total": 1, "largest": 2})

    with ko.backends.use(NativeFederatedContext(Fixed(big))):
        output = add_all(1.0, [1.0])
    metrics = output.metrics
    assert asyncio.run(materialize_value(metrics)) == {"total": 1, "largest": 2}
    del output, big
    for _ in range(100):
        gc.collect()
        if watched() is None:
            break
        threading.Event().wait(0.01)
    assert watched() is None


def test_a_program_that_stops_waiting_does_not_take_the_value_away() -> None:
    """Cancelling one wait leaves the value for others."""
    may_run = threading.Event()

    class Waiting:
        def invoke(self, computation: Any, argument: Any) -> Any:
            assert may_run.wait(timeout=10)
            return 5

    with ko.backends.use(NativeFederatedContext(Waiting())):
        reference = double(1.0)

    async def program() -> Any:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reference.get_value(), timeout=0.01)
        may_run.set()
        return await reference.get_value()

    assert asyncio.run(program()) == 5


def test_references_are_waited_for_together_and_to_the_bottom() -> None:
    """Two references that each wait for the other's beginning both come; one to a structure of references is opened."""

    class Meeting(MaterializableValueReference):
        def __init__(self, own: asyncio.Event, other: asyncio.Event, value: Any) -> None:
            self.own, self.other, self.value = own, other, value

        @property
        def type_signature(self) -> Any:
            return parse("int32")

        async def get_value(self) -> Any:
            self.own.set()
            await asyncio.wait_for(self.other.wait(), timeout=10)
            return self.value

    async def program() -> Any:
        left, right, always = asyncio.Event(), asyncio.Event(), asyncio.Event()
        always.set()
        inner = Meeting(always, always, 3)
        return await materialize_value({"a": Meeting(left, right, [inner, 4]), "b": (Meeting(right, left, 1), "text")})

    assert asyncio.run(program()) == {"a": [3, 4], "b": (1, "text")}


DATA = ClientData.from_clients(
    {client_id: {"x": np.float32([[client_id]]), "y": np.float32([3 * client_id])} for client_id in range(1, 9)}
)


async def train(
    process: Any,
    source: FederatedDataSource,
    rounds: int,
    metrics_manager: ReleaseManager,
    state_manager: FileProgramStateManager,
) -> Any:
    """A program as users write them: of processes, sources and managers, for whatever context there is."""
    check_in_federated_context()
    initial = {"state": await materialize_value(process.initialize()), "data": source.iterator().state}
    saved, first = state_manager.load_latest(initial)
    program_state = initial if saved is None else saved
    state, iterator = program_state["state"], source.iterator(program_state["data"])
    for round_num in range(first + 1, rounds + 1):
        state, metrics = process.next(state, iterator.select(3))
        metrics_manager.release(await materialize_value(metrics), round_num)
        state_manager.save({"state": await materialize_value(state), "data": iterator.state}, round_num)
    return await materialize_value(state)


def test_a_program_resumes_bit_for_bit_in_any_context(tmp_path: Any, backend: str) -> None:
    """Stopped and started again it has the states and metrics of a run that was not; data sources included."""
    model = ko.learning.models.functional(
        lambda w, x: x @ w,
        jnp.zeros(1),
        example_spec=DATA.element_type,
        loss=ko.learning.losses.squared_error,
    )
    process = ko.learning.algorithms.build_weighted_fed_avg(model, optax.sgd(0.005), batch_size=1)
    source = DatasetDataSource(DATA, seed=3)
    memories = {"whole": MemoryReleaseManager(), "parts": MemoryReleaseManager()}
    finals = {}
    with ko.backends.use(NativeFederatedContext()):
        for name, stops in (("whole", [6]), ("parts", [2, 5, 6])):
            for rounds in stops:
                manager = FileProgramStateManager(tmp_path / name)
                finals[name] = asyncio.run(train(process, source, rounds, memories[name], manager))
    jax.tree.map(np.testing.assert_array_equal, finals["parts"], finals["whole"])
    assert list(memories["parts"].values()) == list(range(1, 7))
    jax.tree.map(np.testing.assert_array_equal, memories["parts"].values(), memories["whole"].values())
    losses = [value["client_work"]["train"]["loss"] for value in memories["whole"].values().values()]
    assert losses[-1] < losses[0]


def test_references_say_what_they_refer_to() -> None:
    """In the notation of types."""
    assert repr(NativeValueReference(parse("<a=int32[3]>"))) == "NativeValueReference(<a=int32[3]>)"


def test_managers_take_references(tmp_path: Any) -> None:
    """What is released or saved as references is what they refer to, inside of an event loop too."""
    memory, states = MemoryReleaseManager(), FileProgramStateManager(tmp_path / "states")
    files = CSVFileReleaseManager(tmp_path / "a.csv"), JSONLinesReleaseManager(tmp_path / "a.jsonl")

    async def program() -> Any:
        output = add_all(1.0, [2.0, 4.0])
        for manager in (memory, *files):
            manager.release(output.metrics, 1)
        states.save(output.state, 1)
        return wait_for_values(output)

    with ko.backends.use(NativeFederatedContext()):
        output = asyncio.run(program())
        assert states.load(1, add_all(0.0, [1.0]).state) == 7.0

    assert wait_for_values(output) is output
    assert memory.values()[1] == {"largest": 4.0, "total": 6.0}
    assert (tmp_path / "a.csv").read_text() == "key,largest,total\n1,4.0,6.0\n"
    assert (tmp_path / "a.jsonl").read_text() == '{"key": 1, "value": {"largest": 4.0, "total": 6.0}}\n'
