"""Tests of the local engine: what it compiles and when, what it costs in Python, and its options."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.backends import LocalBackend
from koinon.errors import ArgumentError, KoinonValueError, SecureSumRangeError, UnboundedLoopError
from koinon.testing import count_compilations, count_frames
from koinon.types import CLIENTS, SequenceType, TensorType, at_clients, at_server

INT, FLOAT = at_clients(np.int32), at_clients(np.float32)
EXAMPLE = ko.to_type({"x": (np.float32, (3,)), "y": np.float32})


@pytest.fixture(autouse=True)
def _local() -> Iterator[None]:
    with ko.backends.use("local"):
        yield


def federated_averaging() -> ko.Computation:
    """A round of federated averaging of a linear model: state and data to state."""

    def train(weights: Any, data: Any) -> Any:
        def step(w: Any, batch: Any) -> Any:
            def loss(w: Any) -> Any:
                return jnp.sum((batch.examples["x"] @ w - batch.examples["y"]) ** 2 * batch.mask)

            return w - 0.01 * jax.grad(loss)(w)

        return data.batch(2).reduce(weights, step) - weights, data.length.astype(jnp.float32)

    @ko.federated_computation(
        at_server({"w": (np.float32, (3,)), "round": np.int32}), at_clients(SequenceType(EXAMPLE))
    )
    def next_round(state: Any, data: Any) -> Any:
        updates = ko.federated_map(train, (ko.federated_broadcast(state["w"]), data))
        update = ko.federated_mean(updates[0], updates[1])
        return ko.federated_map(lambda s, u: {"w": s["w"] + u, "round": s["round"] + 1}, (state, update))

    return next_round


def dataset(clients: int) -> ko.PackedSequences:
    """Clients with one to eight examples each."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, clients)
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    total = int(lengths.sum())
    x, y = rng.normal(size=(total, 3)).astype(np.float32), rng.normal(size=total).astype(np.float32)
    return ko.PackedSequences(EXAMPLE, [x, y], offsets, lengths)


STATE = {"w": np.zeros(3, np.float32), "round": np.int32(0)}
NEXT = federated_averaging()
DATA = dataset(500)


def cohort(*, start: int = 0, clients: int) -> ko.Cohort:
    """Clients from a position on."""
    return ko.Cohort(DATA, np.arange(start, start + clients))


# --- compilation -----------------------------------------------------------------------------------------------------


def test_a_second_round_compiles_nothing() -> None:
    """Nor does one with another cohort, of other sizes, whose number of clients is in the same bucket."""
    state = NEXT(STATE, cohort(clients=4))
    state = NEXT(state, cohort(clients=4))
    with count_compilations() as count:
        for others in (cohort(clients=4), cohort(start=100, clients=4), cohort(start=7, clients=3)):
            state = NEXT(state, others)
    assert count.total == 0
    assert int(state["round"]) == 5


@pytest.mark.parametrize("options", [{}, {"threads": 4}, {"deterministic": True}])
def test_cohorts_with_few_and_with_many_examples_share_a_program(options: dict[str, Any]) -> None:
    """On how many threads a round runs follows from the dataset and the room for clients, as what is compiled does."""
    lengths = np.array([1, 1, 1, 400, 400, 400] * 2)
    total = int(lengths.sum())
    buffers = [np.ones((total, 3), np.float32), np.ones(total, np.float32)]
    data = ko.PackedSequences(EXAMPLE, buffers, np.cumsum(lengths) - lengths, lengths)
    process = federated_averaging()
    with ko.backends.use(LocalBackend(**options)):
        state = process(STATE, ko.Cohort(data, np.array([3, 4, 5, 9])))
        process(state, ko.Cohort(data, np.array([3, 4, 5, 9])))
        with count_compilations() as count:
            process(state, ko.Cohort(data, np.array([0, 1, 2])))
            process(state, ko.Cohort(data, np.array([5, 9, 10])))
    assert count.total == 0


def test_a_call_with_lists_of_the_same_sizes_compiles_nothing() -> None:
    """Values and examples in lists, with as many rows in all as fit the same buckets."""
    total = ko.federated_computation(
        lambda v, d: ko.federated_sum(ko.federated_map(lambda a, s: a + s.length, (v, d))),
        *[INT, at_clients(SequenceType(np.float32))],
    )
    total([1, 2, 3], [[1.0], [2.0, 3.0], []])
    with count_compilations() as count:
        assert int(total([4, 5, 6, 7], [[1.0, 2.0], [], [1.0], [1.0]])) == 22 + 4
    assert count.total == 0


def test_two_computations_do_not_share_what_one_of_them_keeps() -> None:
    """What is compiled for a computation goes when the computation goes."""
    comp = ko.federated_computation(lambda v: ko.federated_sum(v), INT)
    comp([1, 2])
    kept = weakref.ref(comp)
    del comp
    gc.collect()
    assert kept() is None


def test_a_dataset_is_placed_on_the_device_once() -> None:
    """The buffers of the first round serve the later ones."""
    data = dataset(20)
    NEXT(STATE, ko.Cohort(data, np.arange(4)))
    first = data.on_device()
    NEXT(STATE, ko.Cohort(data, np.arange(4, 9)))
    assert all(a is b for a, b in zip(first, data.on_device(), strict=True))


# --- Python ----------------------------------------------------------------------------------------------------------


def test_the_python_of_a_warm_round_does_not_grow_with_the_cohort() -> None:
    """At most 60 frames of the library, never more than 12 deep; on one thread the same for 4 and for 400 clients."""
    counts = {}
    for threads, clients in itertools.product((1, 2), (4, 400)):
        with ko.backends.use(LocalBackend(threads=threads)):
            chosen = cohort(clients=clients)
            state = NEXT(STATE, chosen)
            NEXT(state, chosen)
            counts[threads, clients] = count_frames(NEXT, state, chosen)
    assert counts[1, 4] == counts[1, 400]
    assert max(count.total for count in counts.values()) <= 60
    assert max(count.deepest for count in counts.values()) <= 12


def test_a_call_without_clients_is_a_few_frames() -> None:
    """A program at one place costs little more than a jitted function."""
    double = ko.jax_computation(lambda x: x + x, (np.float32, (3,)))
    x = jnp.ones(3)
    double(x)
    assert count_frames(double, x).total <= 30


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"lanes": 4}, {"threads": 2}, {"lanes": 2, "threads": 2}, {"deterministic": True}])
def test_every_way_to_run_gives_the_same_round(options: dict[str, Any]) -> None:
    """Lanes and threads change the order of sums, no more; clients of all sizes, also fewer than lanes."""
    for clients in (1, 9):
        chosen = cohort(start=3, clients=clients)
        with ko.backends.use("reference"):
            expected = NEXT(STATE, chosen)
        with ko.backends.use(LocalBackend(**options)):
            result = NEXT(STATE, chosen)
        np.testing.assert_allclose(result["w"], expected["w"], rtol=1e-5, atol=1e-6)
        assert int(result["round"]) == 1


def test_the_same_round_twice_has_the_same_bits() -> None:
    """On one engine, with one cohort."""
    first, second = (np.asarray(NEXT(STATE, cohort(clients=37))["w"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("clients", [5, 8, 300])
def test_the_order_of_a_deterministic_sum_is_that_of_the_cohort(clients: int) -> None:
    """The same bits for any number of threads and devices, also where a cohort is too small to be shared."""
    chosen = cohort(clients=clients)
    rounds = []
    for options in ({"threads": 1}, {"threads": 2}, {"threads": 3}, {"devices": 2}, {"strategy": "sharded"}):
        with ko.backends.use(LocalBackend(deterministic=True, **options)):
            rounds.append(np.asarray(NEXT(STATE, chosen)["w"]))
    for found in rounds[1:]:
        np.testing.assert_array_equal(found, rounds[0])
    with ko.backends.use(LocalBackend(threads=1)):
        whole = np.asarray(NEXT(STATE, chosen)["w"])
    np.testing.assert_allclose(rounds[0], whole, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"lanes": 2}, {"threads": 2}, {"deterministic": True}])
def test_rows_are_as_many_as_the_longer_of_two_sequences_needs(options: dict[str, Any]) -> None:
    """What a client makes for each example has room for all of them, also those of its second argument."""
    floats = SequenceType(np.float32)

    @ko.jax_computation(floats, floats)
    def running(first: Any, second: Any) -> Any:
        _, totals = second.scan(jnp.float32(0), lambda total, x: (total + x, total + x))
        return first.reduce(jnp.float32(0), jnp.add), totals.reduce(jnp.float32(0), jnp.add)

    both = ko.federated_computation(at_clients(floats), at_clients(floats))(
        lambda first, second: ko.federated_sum(ko.federated_map(running, (first, second)))
    )
    with ko.backends.use(LocalBackend(**options)):
        totals = both([[1.0], [2.0]], [[1.0] * 40, [2.0] * 50])

    assert [float(total) for total in totals] == [3.0, 40 * 41 / 2 + 2 * 50 * 51 / 2]


def test_clients_work_may_call_a_computation_from_a_callback() -> None:
    """A round inside a round, each on two threads, comes to an end."""
    floats = SequenceType(np.float32)

    @ko.jax_computation(floats)
    def total(numbers: Any) -> Any:
        return numbers.reduce(jnp.float32(0), jnp.add)

    sum_of_all = ko.federated_computation(at_clients(floats))(
        lambda data: ko.federated_sum(ko.federated_map(total, data))
    )
    clients = [[1.0, 2.0]] * 8

    def inner(x: Any) -> Any:
        with ko.backends.use(LocalBackend(threads=2)):
            return np.asarray(sum_of_all(clients)) * x

    @ko.jax_computation(floats)
    def with_callback(numbers: Any) -> Any:
        shape = jax.ShapeDtypeStruct((), np.float32)
        return numbers.reduce(jnp.float32(0), lambda c, x: c + jax.pure_callback(inner, shape, x))

    outer = ko.federated_computation(at_clients(floats))(
        lambda data: ko.federated_sum(ko.federated_map(with_callback, data))
    )
    with ko.backends.use(LocalBackend(threads=2)):
        assert float(outer(clients)) == 24.0 * 24.0


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("options", [{}, {"lanes": 3}, {"threads": 2}])
def test_what_a_client_draws_does_not_depend_on_who_runs_beside_it(
    implementation: str, options: dict[str, Any]
) -> None:
    """With every generator of JAX the numbers are those of the reference."""
    key = jax.random.key(0, impl=implementation)

    @ko.federated_computation(ko.types.at_server(ko.types.TensorType(key.dtype)), at_clients(np.float32))
    def draw(key: Any, values: Any) -> Any:
        keys = ko.federated_split_key(key)
        return ko.federated_map(lambda k, x: x + jax.random.normal(k), (keys, values))

    with ko.backends.use("reference"):
        expected = draw(key, [0.0] * 40)
    with ko.backends.use(LocalBackend(**options)):
        found = draw(key, [0.0] * 40)

    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"lanes": 3}])
def test_callbacks_run_once_for_each_client(options: dict[str, Any]) -> None:
    """Also those that JAX cannot run for several at once."""
    called = []

    def double(x: Any) -> Any:
        called.append(float(x))
        return np.float32(2 * x)

    twice = ko.federated_computation(at_clients(np.float32))(
        lambda values: ko.federated_sum(
            ko.federated_map(lambda x: jax.pure_callback(double, jax.ShapeDtypeStruct((), np.float32), x), values)
        )
    )
    with ko.backends.use(LocalBackend(**options)):
        assert float(twice([float(i) for i in range(17)])) == 2 * sum(range(17))

    assert sorted(called) == list(range(17))


def test_debugging_of_nans_reaches_the_operation_that_makes_them() -> None:
    """JAX then runs a program again without compiling it."""
    floats = SequenceType(np.float32)

    @ko.jax_computation(floats)
    def quotient(numbers: Any) -> Any:
        return numbers.reduce(jnp.float32(0), lambda c, x: c + x / x)

    ratio = ko.federated_computation(at_clients(floats))(
        lambda data: ko.federated_sum(ko.federated_map(quotient, data))
    )
    for threads in (1, 2):
        with (
            ko.backends.use(LocalBackend(threads=threads)),
            jax.debug_nans(True),
            pytest.raises(FloatingPointError, match="nan"),
        ):
            ratio([[1.0], [0.0]] * 8)


def test_explain_says_what_runs() -> None:
    """A cohort too small to be shared stays on one device; clients without sequences are one part."""
    small, backend = cohort(clients=3), LocalBackend(devices=2, threads=2)
    explanation = backend.explain(NEXT, STATE, small)
    sums = LocalBackend(threads=2).explain(ko.federated_computation(lambda v: ko.federated_sum(v), INT), [1, 2, 3, 4])

    assert (explanation.devices, explanation.threads) == (2, 2)
    assert (sums.devices, sums.threads) == (1, 1)


def test_devices_share_the_clients_of_a_round() -> None:
    """Each has a copy of the data, made once; the results are those of one device."""
    chosen, data = cohort(clients=300), DATA
    with ko.backends.use("reference"):
        expected = NEXT(STATE, cohort(clients=300))
    backend = LocalBackend(devices=2)
    with ko.backends.use(backend):
        found = NEXT(STATE, chosen)
        copy = data.on_device(device=jax.local_devices()[1])
        with count_compilations() as compiled:
            NEXT(found, chosen)
    np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-5)
    assert found["w"].devices() == {jax.local_devices()[0]}
    assert {device for buffer in copy for device in buffer.devices()} == {jax.local_devices()[1]}
    assert all(a is b for a, b in zip(copy, data.on_device(device=jax.local_devices()[1]), strict=True))
    assert backend.explain(NEXT, STATE, chosen).devices == 2
    assert compiled.total == 0


def test_a_strategy_stands_for_options() -> None:
    """One name for what the three options say together; what contradicts it is refused."""
    sequential = LocalBackend(strategy="sequential").options
    assert (sequential.lanes, sequential.threads, sequential.homes) == (1, 1, (None,))
    assert LocalBackend(strategy="lanes").options.lanes == 8
    assert LocalBackend(strategy="sharded", threads=3).options.threads == 3
    with pytest.raises(KoinonValueError, match="The strategy 'sequential' has lanes=1"):
        LocalBackend(strategy="sequential", lanes=4)
    with pytest.raises(KoinonValueError, match="There is no such strategy"):
        LocalBackend(strategy="parallel")  # pyright: ignore[reportArgumentType]
    with pytest.raises(KoinonValueError, match="There are not so many devices"):
        LocalBackend(devices=99)
    with pytest.raises(KoinonValueError, match="The first of the devices does the server's work"):
        LocalBackend(devices=jax.local_devices()[1:])
    with pytest.raises(KoinonValueError, match="Lanes add up in another order"):
        LocalBackend(lanes=4, deterministic=True)


@pytest.mark.parametrize("name", ["lanes", "threads", "devices"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "two"])
def test_options_are_positive_ints(name: str, value: Any) -> None:
    """A wrong option is refused when the engine is made."""
    with pytest.raises(KoinonValueError, match=f"The option `{name}` must be a positive int"):
        LocalBackend(**{name: value})


def test_the_engine_prints_its_settings() -> None:
    """For those who look at what runs."""
    assert (
        repr(LocalBackend(lanes=2))
        == "LocalBackend(default_num_clients=0, lanes=2, threads=None, devices=None, deterministic=False)"
    )


def test_the_number_of_clients_without_client_arguments_is_the_default() -> None:
    """As many as the engine is told, also where they draw."""
    comp = ko.federated_computation(lambda: ko.federated_eval(lambda: 3, CLIENTS))
    assert comp() == []
    with ko.backends.use(LocalBackend(default_num_clients=5)):
        assert comp() == [3] * 5


# --- what is not one program -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 2), (3, 1), (1, 3), (2, 2), (0, 2), ()])
def test_clients_may_have_arrays_of_different_sizes(sizes: tuple[int, ...]) -> None:
    """Unknown dimensions that differ from client to client have the meaning that the reference gives them."""
    double = ko.federated_computation(
        lambda v: ko.federated_map(lambda x: (x.sum(), x * 2), v), at_clients(TensorType(np.float32, (None,)))
    )
    results = double([np.ones(size, np.float32) for size in sizes])
    assert [(float(total), x.tolist()) for total, x in results] == [(size, [2.0] * size) for size in sizes]


def test_the_examples_of_clients_may_have_different_shapes() -> None:
    """The same for examples, one size for each client."""
    length = ko.federated_computation(
        lambda d: ko.federated_map(lambda s: s.reduce(jnp.float32(0), lambda c, x: c + x.sum()), d),
        at_clients(SequenceType(TensorType(np.float32, (None,)))),
    )
    data = [[np.ones(3, np.float32)] * 2, [np.ones(5, np.float32)], []]
    assert [float(x) for x in length(data)] == [6.0, 5.0, 0.0]


def test_an_accumulator_may_grow() -> None:
    """An accumulator of unknown size is no fixed program, and still runs."""
    growing = TensorType(np.float32, (None,))
    append = ko.jax_computation(lambda total, x: jnp.concatenate([total, x[None]]), growing, np.float32)
    join = ko.jax_computation(lambda a, b: jnp.concatenate([a, b]), growing, growing)
    same = ko.jax_computation(lambda a: a, growing)
    comp = ko.federated_computation(
        lambda v: ko.federated_aggregate(v, np.zeros(0, np.float32), append, join, same), FLOAT
    )
    assert comp([1.0, 2.0, 3.0]).tolist() == [1.0, 2.0, 3.0]


# --- derivatives -----------------------------------------------------------------------------------------------------


def test_a_round_is_differentiated_through_its_folds() -> None:
    """Reverse mode with the bound that the cohort gives, against finite differences of the reference."""

    def loss(scale: Any) -> Any:
        state = {"w": scale * jnp.ones(3), "round": jnp.int32(0)}
        return jnp.sum(NEXT(state, cohort(start=5, clients=3))["w"] ** 2)

    slope = float(jax.grad(loss)(0.5))
    with ko.backends.use("reference"):
        difference = (float(loss(jnp.float32(0.51))) - float(loss(jnp.float32(0.49)))) / 0.02
    assert slope == pytest.approx(difference, rel=1e-2)


def test_a_round_is_differentiated_in_what_clients_hold() -> None:
    """The values of the clients may be traced too."""
    mean = ko.federated_computation(lambda v: ko.federated_mean(ko.federated_map(lambda x: x * x, v)), FLOAT)
    gradients = jax.grad(lambda values: mean(values))([jnp.float32(1.0), jnp.float32(3.0)])
    np.testing.assert_allclose(gradients, [2 * 1 / 2, 2 * 3 / 2])


def test_a_round_compiles_into_a_larger_program() -> None:
    """Rounds inside jit: three rounds as one program are three rounds."""
    chosen = cohort(start=5, clients=3)

    @jax.jit
    def three(state: Any) -> Any:
        for _ in range(3):
            state = NEXT(state, chosen)
        return state

    expected: Any = STATE
    for _ in range(3):
        expected = NEXT(expected, chosen)
    np.testing.assert_allclose(three(STATE)["w"], expected["w"], rtol=1e-5)


def test_a_sequence_of_traced_length_has_no_bound_for_reverse_mode() -> None:
    """A fold whose length nobody knows is refused, as everywhere."""
    fold = ko.jax_computation(
        lambda w, n, s: s.take(n).reduce(w, lambda c, x: c * x), np.float32, np.int32, SequenceType(np.float32)
    )
    assert float(fold(2.0, 2, [3.0, 5.0, 7.0])) == 30.0
    with pytest.raises(UnboundedLoopError):
        ko.jax_computation(
            lambda w, s: jax.grad(lambda v: s.reduce(v, lambda c, x: c * x))(w), np.float32, SequenceType(np.float32)
        )


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "path"),
    [
        ({"w": np.zeros(4, np.float32), "round": np.int32(0)}, ".state.w"),
        ({"w": np.zeros(3, np.float64), "round": np.int32(0)}, ".state.w"),
        ({"w": np.zeros(3, np.float32), "round": np.float32(0)}, ".state.round"),
        ({"w": np.zeros(3, np.float32)}, ".state"),
        ({"w": np.zeros(3, np.float32), "round": 0.5}, ".state.round"),
    ],
)
def test_a_wrong_state_is_found_behind_the_fast_way(state: Any, path: str) -> None:
    """Arguments of exactly the declared type take a short way; all others are checked leaf by leaf."""
    NEXT(STATE, cohort(clients=4))
    with pytest.raises(ArgumentError) as caught:
        NEXT(state, cohort(clients=4))
    assert caught.value.differs == path


@pytest.mark.parametrize(
    "make",
    [
        lambda: STATE,
        lambda: {"round": 0, "w": [0, 0, 0]},
        lambda: {"w": jnp.zeros(3), "round": jnp.int32(0)},
        lambda: (0, np.zeros(3, np.float32)),
    ],
    ids=["numpy", "python", "jax", "tuple"],
)
def test_every_way_to_write_a_state_is_the_same_state(make: Callable[[], Any]) -> None:
    """Arrays of numpy and JAX, numbers and lists, dicts in any order, and a tuple in the order of the fields."""
    expected = NEXT(STATE, cohort(clients=4))
    np.testing.assert_array_equal(NEXT(make(), cohort(clients=4))["w"], expected["w"])


def test_errors_inside_the_program_name_the_client() -> None:
    """Flags of the compiled program become the same errors as on the reference, in the first phase that raises one."""
    comp = ko.federated_computation(lambda v: ko.federated_secure_sum(v, 10), INT)
    assert int(comp([1, 2, 10])) == 13
    with pytest.raises(SecureSumRangeError, match="outside the declared range") as caught:
        comp([1, 2, 11, 12])
    assert caught.value.differs == "the client at position 2 of the cohort"


# --- explanations ----------------------------------------------------------------------------------------------------


def test_an_explanation_says_how_a_call_runs() -> None:
    """The page names the clients, lanes and threads; what cannot be one program says why."""
    explanation = LocalBackend(lanes=2, threads=1).explain(NEXT, STATE, cohort(clients=4))
    assert (explanation.clients, explanation.lanes, explanation.threads) == (4, 2, 1)
    assert explanation.examples == int(cohort(clients=4).lengths.sum())
    assert explanation.reason is None
    assert str(explanation).startswith("next_round: 4 clients with")
    function = ko.types.FunctionType(np.int32, np.int32)
    comp = ko.federated_computation(lambda f, v: ko.federated_map(f, v), function, INT)
    explanation = LocalBackend().explain(comp, ko.jax_computation(lambda x: x, np.int32), [1])
    assert explanation.reason is not None
    assert "reference" in str(explanation)


def test_what_a_client_keeps_of_its_examples_does_not_grow_with_the_dataset() -> None:
    """A sequence of outputs has room for the longest client, and not for the examples of all clients."""
    clients = 2**14
    lengths = np.arange(clients) % 8
    values = np.arange(lengths.sum(), dtype=np.float32)
    data = ko.PackedSequences(ko.to_type(np.float32), [values], np.cumsum(lengths) - lengths, lengths)

    @ko.federated_computation(at_clients(SequenceType(np.float32)))
    def largest_sum(data: Any) -> Any:
        def running(sequence: Any) -> Any:
            return sequence.scan(jnp.float32(0), lambda total, x: (total + x, total + x))[1]

        sums = ko.federated_map(running, data)
        return ko.federated_max(ko.federated_map(lambda s: s.reduce(jnp.float32(0), jnp.maximum), sums))

    # With room for all examples in each client's row, this would take four gigabytes.
    assert float(largest_sum(ko.Cohort(data, np.arange(clients)))) == values[-7:].sum()
    one = float(largest_sum(ko.Cohort(data, np.array([3]))))
    assert one == values[3:6].sum()


@pytest.mark.parametrize(
    "step",
    [
        lambda total, x: total + jnp.searchsorted(jnp.arange(5.0), x),
        lambda total, x: total + jnp.ldexp(x, 1).astype(jnp.int32),
        lambda total, x: total + jnp.interp(x, jnp.arange(5.0), jnp.arange(5.0) * 2).astype(jnp.int32),
    ],
)
def test_functions_that_jax_expands_late_work_in_folds(step: Any) -> None:
    """Some functions of NumPy are primitives of a higher kind in JAX, which a loop of XLA does not know."""
    work = ko.jax_computation(SequenceType(np.float32))(lambda data: data.reduce(jnp.int32(0), step))
    total = ko.federated_computation(at_clients(SequenceType(np.float32)))(
        lambda data: ko.federated_sum(ko.federated_map(work, data))
    )
    clients = [np.float32([0.5, 3.5]), np.float32([1.5])]
    with ko.backends.use("reference"):
        expected = int(total(clients))
    assert int(total(clients)) == expected > 0


@pytest.mark.parametrize("constant", [1, 1.0, True])
def test_a_constant_for_every_client_is_a_value_like_others(constant: Any) -> None:
    """What does not depend on the argument is no array in JAX, and one here."""
    ones = ko.federated_computation(FLOAT)(lambda x: ko.federated_map(lambda _: constant, x))
    assert ones([2.0, 3.0]) == [constant, constant]
    if constant is not True:
        total = ko.federated_computation(FLOAT)(lambda x: ko.federated_sum(ko.federated_map(lambda _: constant, x)))
        assert float(total([2.0, 3.0])) == 2 * constant
