"""`compose_learning_process`: four pieces make a round."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon._errors import TypeNotAssignableError
from koinon.aggregators import MeanFactory, SumFactory, UnweightedMeanFactory, as_weighted_aggregator, clipping_factory
from koinon.learning._weights import ModelWeights
from koinon.learning.optimizers import build_adam, build_sgdm
from koinon.learning.templates import (
    ClientResult,
    ClientStateLearningOutput,
    ClientStateWorkOutput,
    ClientWorkProcess,
    FinalizerProcess,
    LearningAlgorithmState,
    LearningProcess,
    LearningProcessOutput,
    build_apply_optimizer_finalizer,
    build_broadcast_process,
    build_identity_finalizer,
    compose_learning_process,
)
from koinon.templates import MeasuredProcess, MeasuredProcessOutput
from koinon.types import SequenceType, StructType, TensorType, at_clients, at_server, to_type

FLOAT = TensorType(jnp.float32)
WEIGHTS = ModelWeights(trainable=np.float32([1.0, -1.0]), non_trainable=())
WEIGHTS_TYPE = to_type(WEIGHTS)
EXAMPLE = to_type({"x": TensorType(jnp.float32, (2,)), "y": FLOAT})
DATA = at_clients(SequenceType(EXAMPLE))
RATE = 0.1

initial_weights = ko.jax_computation(lambda: ModelWeights(jnp.float32([1.0, -1.0]), ()))


def server(value):
    """A constant at the server."""
    return ko.federated_value(value, ko.SERVER)


def local_sgd(weights, rate, data):
    """One pass of SGD on a linear model; the delta, and the number of examples."""
    start = weights.trainable

    def step(current, example):
        return current - rate * (current @ example["x"] - example["y"]) * example["x"]

    return ClientResult(start - data.reduce(start, step), data.length.astype(jnp.float32))


def sgd_work(weights_type=WEIGHTS_TYPE, data_type=DATA):
    """A client work whose state is its learning rate, which it also measures."""

    @ko.federated_computation
    def initialize():
        return server(RATE)

    @ko.federated_computation(at_server(FLOAT), at_clients(weights_type), data_type)
    def next_fn(rate, weights, data):
        result = ko.federated_map(local_sgd, (weights, ko.federated_broadcast(rate), data))
        return MeasuredProcessOutput(rate, result, ko.federated_zip({"rate": rate}))

    return ClientWorkProcess(
        initialize,
        next_fn,
        get_hparams_fn=ko.jax_computation(FLOAT)(lambda state: {"rate": state}),
        set_hparams_fn=ko.jax_computation(FLOAT, to_type({"rate": FLOAT}))(lambda state, hparams: hparams["rate"]),
    )


def pieces(**changes):
    """The pieces of federated averaging on a linear model, some of them replaced."""
    standard = {
        "initial_model_weights_fn": initial_weights,
        "distributor": build_broadcast_process(WEIGHTS_TYPE),
        "client_work": sgd_work(),
        "aggregator": MeanFactory().create(WEIGHTS_TYPE.trainable, FLOAT),
        "finalizer": build_apply_optimizer_finalizer(build_sgdm(1.0), WEIGHTS_TYPE),
    }
    return standard | changes


def clients_data(seed, sizes):
    """Random examples of a noisy linear model."""
    rng = np.random.default_rng(seed)
    data = []
    for size in sizes:
        x = rng.normal(size=(size, 2)).astype(np.float32)
        data.append({"x": x, "y": (x @ np.float32([2.0, 0.5]) + 0.1 * rng.normal(size=size)).astype(np.float32)})
    return data


def numpy_round(weights, data, rate=RATE):
    """One round of federated averaging: the mean of the clients' weights by the numbers of their examples."""
    finals, counts = [], []
    for client in data:
        current = np.array(weights, np.float64)
        for x, y in zip(client["x"], client["y"], strict=True):
            current = current - rate * (current @ x - y) * x
        finals.append(current)
        counts.append(len(client["y"]))
    return np.average(finals, axis=0, weights=counts)


def test_three_rounds_are_federated_averaging(backend):
    """The weights are those of a plain loop over clients and examples."""
    process = compose_learning_process(**pieces())
    state, expected = process.initialize(), WEIGHTS.trainable
    for seed, sizes in enumerate([(3, 5, 1), (2,), (4, 4)]):
        data = clients_data(seed, sizes)
        output = process.next(state, data)
        state, expected = output.state, numpy_round(expected, data)

        np.testing.assert_allclose(process.get_model_weights(state).trainable, expected, rtol=1e-4)


def test_the_state_and_the_metrics_are_those_of_the_pieces(backend):
    """By the names of the pieces, in their order."""
    process = compose_learning_process(**pieces())
    output = process.next(process.initialize(), clients_data(0, (2, 3)))

    assert isinstance(output, LearningProcessOutput)
    assert isinstance(output.state, LearningAlgorithmState)
    assert isinstance(output.state.global_model_weights, ModelWeights)
    np.testing.assert_allclose(output.state.client_work, RATE)
    assert list(output.metrics) == ["distributor", "client_work", "aggregator", "finalizer"]
    np.testing.assert_allclose(output.metrics["client_work"]["rate"], RATE)
    assert int(output.metrics["finalizer"]["update_non_finite"]) == 0


def test_the_type_of_a_composed_process():
    """State at the server in, data at the clients in; state and metrics at the server out."""
    signature = compose_learning_process(**pieces()).next.type_signature
    state = (
        "<global_model_weights=<trainable=float32[2],non_trainable=<>>,distributor=<>,client_work=float32,"
        "aggregator=<value_sum_process=<>,weight_sum_process=<>>,finalizer=<learning_rate=float32>>@SERVER"
    )
    metrics = (
        "<distributor=<>,client_work=<rate=float32>,aggregator=<mean_value=<>,mean_weight=<>>,"
        "finalizer=<update_non_finite=int32>>@SERVER"
    )

    assert str(signature) == (
        f"(<state={state},client_data={{<x=float32[2],y=float32>*}}@CLIENTS> -> <state={state},metrics={metrics}>)"
    )


def test_zero_clients_and_empty_clients_leave_the_weights_as_they_were(backend):
    """The mean of nothing is NaN, which the finalizer rejects."""
    process = compose_learning_process(**pieces())
    for data in ([], clients_data(0, (0, 0))):
        output = process.next(process.initialize(), data)

        np.testing.assert_array_equal(output.state.global_model_weights.trainable, WEIGHTS.trainable)
        assert int(output.metrics["finalizer"]["update_non_finite"]) == 1


def test_one_broken_client_costs_a_round_and_not_the_model(backend):
    """Neither the weights nor the momenta of the server take it in."""
    process = compose_learning_process(
        **pieces(finalizer=build_apply_optimizer_finalizer(build_adam(0.1), WEIGHTS_TYPE))
    )
    before = process.next(process.initialize(), clients_data(0, (3,))).state
    data = clients_data(1, (2, 2))
    data[1]["y"][0] = np.nan
    after = process.next(before, data).state

    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_run_that_is_resumed_is_the_run_that_was_not_interrupted(backend):
    """The state is all there is: the same bits come out after a round trip through NumPy."""
    process = compose_learning_process(**pieces())
    rounds = [clients_data(seed, (2, 3)) for seed in range(4)]
    straight = process.initialize()
    for data in rounds:
        straight = process.next(straight, data).state
    resumed = process.initialize()
    for data in rounds:
        resumed = process.next(jax.tree.map(np.asarray, resumed), data).state

    for one, other in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_weights_are_set_into_the_state(backend):
    """And the next round starts from them."""
    process = compose_learning_process(**pieces())
    weights = ModelWeights(np.float32([0.25, 4.0]), ())
    state = process.set_model_weights(process.initialize(), weights)
    data = clients_data(3, (2, 2))

    np.testing.assert_array_equal(process.get_model_weights(state).trainable, weights.trainable)
    np.testing.assert_allclose(
        process.next(state, data).state.global_model_weights.trainable, numpy_round(weights.trainable, data), rtol=1e-4
    )


def test_hyperparameters_of_clients_and_server_are_set_in_the_state(backend):
    """Setting the clients' rate changes what they do in the next round; the rest of the state stays."""
    process = compose_learning_process(**pieces())
    state = process.initialize()
    hparams = process.get_hparams(state)
    np.testing.assert_allclose(hparams["client_work"]["rate"], RATE)
    np.testing.assert_allclose(hparams["finalizer"]["learning_rate"], 1.0)

    hparams = {"client_work": {"rate": 0.02}, "finalizer": {"learning_rate": 0.5}}
    state = process.set_hparams(state, hparams)
    data = clients_data(0, (3, 2))
    moved = numpy_round(WEIGHTS.trainable, data, 0.02)
    expected = WEIGHTS.trainable + 0.5 * (moved - WEIGHTS.trainable)

    np.testing.assert_allclose(process.get_hparams(state)["finalizer"]["learning_rate"], 0.5)
    np.testing.assert_allclose(process.next(state, data).state.global_model_weights.trainable, expected, rtol=1e-4)


def test_an_unweighted_aggregation_composes_when_it_is_made_weighted(backend):
    """Every client counts the same."""
    aggregator = as_weighted_aggregator(UnweightedMeanFactory()).create(WEIGHTS_TYPE.trainable, FLOAT)
    process = compose_learning_process(**pieces(aggregator=aggregator))
    data = clients_data(0, (1, 4))
    expected = np.mean([numpy_round(WEIGHTS.trainable, [client]) for client in data], axis=0)
    output = process.next(process.initialize(), data)

    np.testing.assert_allclose(output.state.global_model_weights.trainable, expected, rtol=1e-4)


def test_an_aggregation_may_have_parts_and_state(backend):
    """A clipped mean composes like a plain one, and its measurements are the metrics of the aggregator."""
    aggregator = clipping_factory(1e-3, MeanFactory()).create(WEIGHTS_TYPE.trainable, FLOAT)
    process = compose_learning_process(**pieces(aggregator=aggregator))
    output = process.next(process.initialize(), clients_data(0, (2, 2)))
    moved = output.state.global_model_weights.trainable - WEIGHTS.trainable

    assert int(output.metrics["aggregator"]["clipped_count"]) == 2
    assert np.linalg.norm(moved) <= 1.001e-3


def test_the_parts_are_shown():
    """The pieces stand in the page of the process, and those of the aggregator below it."""
    process = compose_learning_process(**pieces())
    words = [line.split()[:2] for line in repr(process).splitlines()]

    assert list(process.parts) == ["distributor", "client_work", "aggregator", "finalizer"]
    assert [word for word in words if word[0] in process.parts or word[0].endswith("_process")] == [
        ["distributor", "DistributionProcess"],
        ["client_work", "ClientWorkProcess"],
        ["aggregator", "AggregationProcess"],
        ["value_sum_process", "AggregationProcess"],
        ["weight_sum_process", "AggregationProcess"],
        ["finalizer", "FinalizerProcess"],
    ]
    assert repr(process).startswith("LearningProcess\n")
    weights = "<trainable=float32[2],non_trainable=<>>"
    assert f"distributor  DistributionProcess  {weights}@SERVER -> {weights}@CLIENTS" in repr(process)


def placed_weights():
    """First weights at the server."""
    return ko.federated_computation(lambda: server(WEIGHTS))


WIDE = ModelWeights(np.float32([1.0, 2.0, 3.0]), ())
WIDE_TYPE = to_type(WIDE)
no_state = ko.federated_computation(lambda: server(()))


def changing_finalizer(update_type):
    """A finalizer that takes any weights of unknown size, and returns them."""
    any_size = StructType([("trainable", TensorType(jnp.float32, (None,))), ("non_trainable", StructType([]))])

    @ko.federated_computation(no_state.type_signature.result, at_server(any_size), at_server(update_type))
    def next_fn(state, weights, update):
        return MeasuredProcessOutput(state, weights, server(()))

    return FinalizerProcess(no_state, next_fn)


def measured_broadcast():
    """A process with the types of a distribution that is only a measured process."""
    broadcast = build_broadcast_process(WEIGHTS_TYPE)
    return MeasuredProcess(broadcast.initialize, broadcast.next)


ILL_FORMED = {
    "the first weights are no computation": ({"initial_model_weights_fn": lambda: WEIGHTS}, TypeError, "Expected .*"),
    "the first weights take a parameter": (
        {"initial_model_weights_fn": ko.jax_computation(WEIGHTS_TYPE)(lambda w: w)},
        TypeError,
        "must not take a parameter",
    ),
    "the first weights are placed": ({"initial_model_weights_fn": placed_weights()}, TypeError, "unplaced"),
    "the distributor is another template": ({"distributor": measured_broadcast()}, TypeError, "DistributionProcess"),
    "the client work is missing": ({"client_work": None}, TypeError, "ClientWorkProcess"),
    "the aggregator is a factory": ({"aggregator": MeanFactory()}, TypeError, "AggregationProcess"),
    "the aggregator is unweighted": (
        {"aggregator": SumFactory().create(WEIGHTS_TYPE.trainable)},
        TypeError,
        "must be weighted",
    ),
    "the finalizer is another piece": (
        {"finalizer": build_broadcast_process(WEIGHTS_TYPE)},
        TypeError,
        "FinalizerProcess",
    ),
    "the distributor takes other weights": (
        {"distributor": build_broadcast_process(WIDE_TYPE)},
        TypeNotAssignableError,
        "distributor .* must accept the model's weights",
    ),
    "the client work takes other weights": (
        {"client_work": sgd_work(to_type(WEIGHTS._replace(non_trainable=np.float32(0.0))))},
        TypeNotAssignableError,
        "client work .* must accept the result of the distributor",
    ),
    "the aggregator takes other updates": (
        {"aggregator": MeanFactory().create(WIDE_TYPE.trainable, FLOAT)},
        TypeNotAssignableError,
        "aggregator .* must accept the update of the client work",
    ),
    "the aggregator takes other weights of clients": (
        {"aggregator": MeanFactory().create(WEIGHTS_TYPE.trainable, TensorType(jnp.int32))},
        TypeNotAssignableError,
        "aggregator .* must accept the weight of the client work",
    ),
    "the finalizer takes other weights": (
        {"finalizer": build_identity_finalizer(WIDE_TYPE, WEIGHTS_TYPE.trainable)},
        TypeNotAssignableError,
        "finalizer .* must accept the model's weights",
    ),
    "the finalizer takes another aggregate": (
        {"finalizer": build_identity_finalizer(WEIGHTS_TYPE, FLOAT)},
        TypeNotAssignableError,
        "finalizer .* must accept the result of the aggregator",
    ),
    "the finalizer returns other weights": (
        {"finalizer": changing_finalizer(WEIGHTS_TYPE.trainable)},
        TypeNotAssignableError,
        "finalizer .* must return the model's weights",
    ),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_pieces_that_do_not_fit_are_refused(case):
    """The message says which piece does not accept what."""
    changes, error, message = ILL_FORMED[case]
    with pytest.raises(error, match=message):
        compose_learning_process(**pieces(**changes))


def test_pieces_that_do_not_fit_say_where_their_types_differ():
    """At the path inside the structure."""
    with pytest.raises(TypeNotAssignableError) as raised:
        compose_learning_process(**pieces(distributor=build_broadcast_process(WIDE_TYPE)))

    assert "differs at .trainable: expected float32[3], found float32[2]" in str(raised.value)


def test_clients_with_a_state_make_a_process_with_client_state(backend):
    """Every client keeps its own correction, which the process hands in and out."""
    correction_type = TensorType(jnp.float32, (2,))

    def corrected(weights, correction, data):
        delta = weights.trainable - data.reduce(
            weights.trainable, lambda w, e: w - 0.1 * (w @ e["x"] - e["y"]) * e["x"]
        )
        return ClientResult(delta + correction, data.length.astype(jnp.float32)), delta

    @ko.federated_computation(
        no_state.type_signature.result, at_clients(WEIGHTS_TYPE), at_clients(correction_type), DATA
    )
    def next_fn(state, weights, correction, data):
        result, delta = ko.federated_map(corrected, (weights, correction, data))
        return ClientStateWorkOutput(state, delta, result, server(()))

    work = ClientWorkProcess(no_state, next_fn, client_state_fn=ko.jax_computation(lambda: jnp.zeros(2)))
    process = compose_learning_process(**pieces(client_work=work))
    fresh = process.initialize_client_state()
    data = clients_data(0, (2,))
    one = process.next(process.initialize(), [fresh], data)
    delta = WEIGHTS.trainable - numpy_round(WEIGHTS.trainable, data)
    two = process.next(process.initialize(), one.client_state, data)

    assert isinstance(process, LearningProcess)
    assert isinstance(one, ClientStateLearningOutput)
    assert process.client_state_type == correction_type
    np.testing.assert_allclose(one.client_state[0], delta, rtol=1e-4)
    np.testing.assert_allclose(one.state.global_model_weights.trainable, WEIGHTS.trainable - delta, rtol=1e-4)
    np.testing.assert_allclose(two.state.global_model_weights.trainable, WEIGHTS.trainable - 2 * delta, rtol=1e-4)
