"""Federated averaging against an implementation of its own in numpy, on ragged clients with partial batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import MeanFactory, SumFactory, UnweightedMeanFactory
from koinon.learning import ClientWeighting, algorithms, losses, metrics, models, optimizers

FEATURES, CLASSES = 5, 3
SIZES = (7, 1, 0, 12, 4)


def make_clients(sizes=SIZES, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Clients with these numbers of examples."""
    rng = np.random.default_rng(seed)
    return [
        {
            "x": rng.normal(size=(n, FEATURES)).astype(np.float32),
            "y": rng.integers(0, CLASSES, n).astype(np.int32),
        }
        for n in sizes
    ]


def make_model() -> models.FunctionalModel:
    """A network with one hidden layer of 4 units, so that client drift is not linear."""
    rng = np.random.default_rng(42)
    weights = {
        "w1": rng.normal(size=(FEATURES, 4)).astype(np.float32),
        "b1": rng.normal(size=4).astype(np.float32),
        "w2": rng.normal(size=(4, CLASSES)).astype(np.float32),
    }
    return models.functional(
        lambda w, x: jnp.tanh(x @ w["w1"] + w["b1"]) @ w["w2"],
        weights,
        example_spec={"x": (jnp.float32, (FEATURES,)), "y": jnp.int32},
        loss=losses.cross_entropy,
        metrics={"accuracy": metrics.accuracy()},
    )


class NumpyNetwork:
    """The same network with its gradients by hand, in float64."""

    def __init__(self, weights: dict) -> None:
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def loss_and_gradients(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict]:
        """The loss of each example, whether it is classified right, and the gradients of the mean loss."""
        x, w = x.astype(np.float64), self.weights
        hidden = np.tanh(x @ w["w1"] + w["b1"])
        logits = hidden @ w["w2"]
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        error = (probabilities - np.eye(CLASSES)[y]) / len(y)
        back = error @ w["w2"].T * (1 - hidden**2)
        gradients = {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ error}
        return -np.log(probabilities[np.arange(len(y)), y]), logits.argmax(axis=1) == y, gradients


def numpy_fed_avg(
    weights, clients, *, rounds, batch_size, epochs, rate, server_rate=1.0, weight_of=len, momentum=0.0
) -> tuple[dict, list[dict]]:
    """Federated averaging with SGD at the clients and SGD with momentum at the server."""
    server = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    velocity = {name: np.zeros_like(value) for name, value in server.items()}
    history = []
    for _ in range(rounds):
        deltas, client_weights, all_losses, hits, batches = [], [], [], [], 0
        for client in clients:
            network = NumpyNetwork(server)
            for _ in range(epochs):
                for start in range(0, len(client["y"]), batch_size):
                    rows = slice(start, start + batch_size)
                    example_losses, right, gradients = network.loss_and_gradients(client["x"][rows], client["y"][rows])
                    network.weights = {n: w - rate * gradients[n] for n, w in network.weights.items()}
                    all_losses.extend(example_losses)
                    hits.extend(right)
                    batches += 1
            deltas.append({name: server[name] - network.weights[name] for name in server})
            client_weights.append(weight_of(client["y"]))
        total = sum(client_weights)
        for name in server:
            mean = sum(k * delta[name] for k, delta in zip(client_weights, deltas, strict=True)) / total
            velocity[name] = momentum * velocity[name] + mean
            server[name] = server[name] - server_rate * velocity[name]
        history.append(
            {"loss": np.mean(all_losses), "accuracy": np.mean(hits), "num_examples": len(hits), "num_batches": batches}
        )
    return server, history


def run(process, clients, rounds: int, backend: str) -> tuple[dict, list[dict]]:
    """The trainable weights and the training metrics of some rounds."""
    history = []
    with ko.backends.use(backend):
        state = process.initialize()
        for _ in range(rounds):
            state, measured = process.next(state, clients)
            history.append(measured["client_work"]["train"])
        return process.get_model_weights(state).trainable, history


def assert_close(actual: dict, expected: dict, tolerance: float = 1e-5) -> None:
    assert set(actual) >= set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("backend", "batch_size", "epochs"),
    [("reference", 3, 2), ("local", 3, 2), ("local", 1, 1), ("local", 4, 1), ("local", 100, 3)],
)
def test_weighted_averaging_equals_numpy(backend: str, batch_size: int, epochs: int) -> None:
    """Three rounds over ragged clients, one without examples, give numpy's weights and metrics to 1e-5."""
    model, clients = make_model(), make_clients()
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.3), batch_size=batch_size, epochs=epochs)
    expected, expected_history = numpy_fed_avg(
        model.initial_weights.trainable, clients, rounds=3, batch_size=batch_size, epochs=epochs, rate=0.3
    )

    weights, history = run(process, clients, 3, backend)

    assert_close(weights, expected)
    for measured, numbers in zip(history, expected_history, strict=True):
        assert_close(measured, numbers)
        assert int(measured["num_non_finite_clients"]) == 0


def test_unweighted_averaging_equals_numpy() -> None:
    """Every client counts 1, also the one without examples."""
    model, clients = make_model(), make_clients()
    process = algorithms.build_unweighted_fed_avg(model, optimizers.build_sgdm(0.3), batch_size=3)
    expected, _ = numpy_fed_avg(
        model.initial_weights.trainable, clients, rounds=2, batch_size=3, epochs=1, rate=0.3, weight_of=lambda y: 1
    )

    weights, _ = run(process, clients, 2, "local")

    assert_close(weights, expected)


def test_uniform_weights_leave_clients_without_examples_out() -> None:
    """With `ClientWeighting.UNIFORM` the mean is over the clients that have examples."""
    model, clients = make_model(), make_clients()
    process = algorithms.build_weighted_fed_avg(
        model, optax.sgd(0.3), batch_size=3, client_weighting=ClientWeighting.UNIFORM
    )
    expected, _ = numpy_fed_avg(
        model.initial_weights.trainable,
        clients,
        rounds=2,
        batch_size=3,
        epochs=1,
        rate=0.3,
        weight_of=lambda y: min(len(y), 1),
    )

    assert_close(run(process, clients, 2, "local")[0], expected)


def test_a_weighting_may_be_a_function_of_the_number_of_examples() -> None:
    """Capped weights equal numpy's with capped weights."""
    model, clients = make_model(), make_clients()
    process = algorithms.build_weighted_fed_avg(
        model, optax.sgd(0.3), batch_size=3, client_weighting=lambda n: jnp.minimum(n, 5)
    )
    expected, _ = numpy_fed_avg(
        model.initial_weights.trainable,
        clients,
        rounds=1,
        batch_size=3,
        epochs=1,
        rate=0.3,
        weight_of=lambda y: min(len(y), 5),
    )

    assert_close(run(process, clients, 1, "local")[0], expected)


def test_the_server_optimizer_steps_along_the_mean() -> None:
    """Momentum at the server equals numpy's, its state carried from round to round."""
    model, clients = make_model(), make_clients()
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.1), optax.sgd(0.7, momentum=0.9), batch_size=5)
    expected, _ = numpy_fed_avg(
        model.initial_weights.trainable,
        clients,
        rounds=4,
        batch_size=5,
        epochs=1,
        rate=0.1,
        server_rate=0.7,
        momentum=0.9,
    )

    assert_close(run(process, clients, 4, "local")[0], expected)


def test_the_types_of_the_process_are_those_of_the_model() -> None:
    """The signature names the state, one sequence of examples for each client, and the metrics."""
    process = algorithms.build_weighted_fed_avg(make_model(), optax.sgd(0.1), batch_size=2)
    weights = "<trainable=<b1=float32[4],w1=float32[5,4],w2=float32[4,3]>,non_trainable=<>>"
    state = (
        f"<global_model_weights={weights},distributor=<>,client_work=<hparams=<>,key=<>>,"
        "aggregator=<value_sum_process=<>,weight_sum_process=<>>,finalizer=<learning_rate=float32>>@SERVER"
    )
    train = "<accuracy=float32,loss=float32,num_batches=int32,num_examples=int32,num_non_finite_clients=int32>"
    measured = (
        f"<distributor=<>,client_work=<train={train}>,"
        "aggregator=<mean_value=<>,mean_weight=<>>,finalizer=<update_non_finite=int32>>@SERVER"
    )

    assert str(process.next.type_signature.parameter[0]) == state
    assert str(process.next.type_signature.parameter[1]) == "{<x=float32[5],y=int32>*}@CLIENTS"
    assert str(process.next.type_signature.result) == f"<state={state},metrics={measured}>"
    assert str(process.get_model_weights.type_signature.result) == weights


@pytest.mark.parametrize(("backend", "bad"), [("reference", np.nan), ("local", np.nan), ("local", np.inf)])
def test_a_client_whose_update_is_not_finite_does_not_count(backend: str, bad: float) -> None:
    """One client with NaN data among good ones leaves the others' average, and is counted; its metrics are left out."""
    model, clients = make_model(), make_clients((6, 5, 4))
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.3), batch_size=3)
    poisoned = {**clients[1], "x": np.where(np.arange(5)[:, None] == 2, bad, clients[1]["x"]).astype(np.float32)}

    weights, history = run(process, [clients[0], poisoned, clients[2]], 1, backend)
    expected, expected_history = numpy_fed_avg(
        model.initial_weights.trainable, [clients[0], clients[2]], rounds=1, batch_size=3, epochs=1, rate=0.3
    )

    assert_close(weights, expected)
    assert_close(history[0], expected_history[0])
    assert int(history[0]["num_non_finite_clients"]) == 1


@pytest.mark.parametrize(("backend", "sizes"), [("reference", (0, 0)), ("local", ()), ("local", (0, 0))])
def test_a_round_without_examples_changes_nothing(backend: str, sizes) -> None:
    """No client, or clients without examples: the weights stay, the loss is NaN, the update is reported as rejected."""
    model = make_model()
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.3), optax.adam(0.1), batch_size=3)
    with ko.backends.use(backend):
        first = process.initialize()
        state, measured = process.next(first, make_clients(sizes))

    jax.tree.map(np.testing.assert_array_equal, state, first)
    assert np.isnan(measured["client_work"]["train"]["loss"])
    assert int(measured["client_work"]["train"]["num_examples"]) == 0
    assert int(measured["finalizer"]["update_non_finite"]) == 1


def shuffling_process(seed: int = 0, **options):
    return algorithms.build_weighted_fed_avg(
        make_model(), optax.sgd(0.3), batch_size=2, epochs=2, shuffle=True, seed=seed, **options
    )


def test_shuffling_is_decided_by_the_seed_and_the_round() -> None:
    """Equal seeds give equal bits, another seed other weights; and each round has a key of its own."""
    clients, process = make_clients(), shuffling_process()
    other_seed = process.initialize()._replace(client_work=shuffling_process(seed=1).initialize().client_work)
    first, again, other = (
        process.next(state, clients).state for state in (process.initialize(), process.initialize(), other_seed)
    )

    jax.tree.map(np.testing.assert_array_equal, first.global_model_weights, again.global_model_weights)
    assert not np.array_equal(first.global_model_weights.trainable["w1"], other.global_model_weights.trainable["w1"])
    keys = [jax.random.key_data(state.client_work.key).tolist() for state in (process.initialize(), first, other)]
    assert len({tuple(key) for key in keys}) == 3


def test_shuffling_visits_every_example_once_in_each_epoch() -> None:
    """A model that adds up what it sees has, after any shuffling, the sum over all examples times the epochs."""
    # The gradient of -w x in w is -x, so with rate 1 the weight grows by each example once an epoch.
    model = models.functional(
        lambda w, x: -w * x,
        jnp.float32(0.0),
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=lambda output, y: output,
    )
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(1.0), batch_size=1, epochs=3, shuffle=True)
    values = 2.0 ** np.arange(10)
    state = process.next(process.initialize(), [{"x": values.astype(np.float32), "y": np.zeros(10, np.float32)}]).state

    assert float(process.get_model_weights(state).trainable) == 3 * values.sum()


def test_reference_and_local_agree_on_a_shuffled_round() -> None:
    """Both engines draw the same order for each client; the last example counts most for this model."""
    model = models.functional(
        lambda w, x: w * x,
        jnp.float32(0.0),
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=losses.squared_error,
    )
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.4), batch_size=1, epochs=2, shuffle=True)
    clients = [{"x": np.ones(n, np.float32), "y": np.arange(n, dtype=np.float32)} for n in (3, 2)]
    results = []
    for backend in ("reference", "local"):
        with ko.backends.use(backend):
            state = process.next(process.initialize(), clients).state
            results.append(float(process.get_model_weights(state).trainable))

    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_take_limits_the_examples_of_an_epoch() -> None:
    """`take=3` equals clients cut to their first three examples, in weights of the mean as well."""
    model, clients = make_model(), make_clients()
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.3), batch_size=2, epochs=2, take=3)
    cut = [{name: value[:3] for name, value in client.items()} for client in clients]
    expected, history = numpy_fed_avg(model.initial_weights.trainable, cut, rounds=1, batch_size=2, epochs=2, rate=0.3)

    weights, measured = run(process, clients, 1, "local")

    assert_close(weights, expected)
    assert_close(measured[0], history[0])


def test_partial_batches_can_be_left_out() -> None:
    """With `drop_remainder` only full batches count, in the steps and in the weights of the clients."""
    model, clients = make_model(), make_clients()
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.3), batch_size=3, drop_remainder=True)
    full = [{name: value[: len(value) // 3 * 3] for name, value in client.items()} for client in clients]
    expected, history = numpy_fed_avg(model.initial_weights.trainable, full, rounds=1, batch_size=3, epochs=1, rate=0.3)

    weights, measured = run(process, clients, 1, "local")

    assert_close(weights, expected)
    assert_close(measured[0], history[0])


def test_hyperparameters_of_clients_and_server_are_read_and_set() -> None:
    """A client rate set in the state gives the round of a process that was built with it."""
    model, clients = make_model(), make_clients()
    injected = optax.inject_hyperparams(optax.sgd)
    process = algorithms.build_weighted_fed_avg(model, injected(learning_rate=0.1), batch_size=3)
    state = process.initialize()

    assert {part: {k: round(float(v), 6) for k, v in h.items()} for part, h in process.get_hparams(state).items()} == {
        "client_work": {"learning_rate": 0.1},
        "finalizer": {"learning_rate": 1.0},
    }
    state = process.set_hparams(state, {"client_work": {"learning_rate": 0.3}, "finalizer": {"learning_rate": 0.5}})
    expected, _ = numpy_fed_avg(
        model.initial_weights.trainable, clients, rounds=1, batch_size=3, epochs=1, rate=0.3, server_rate=0.5
    )
    state, _ = process.next(state, clients)
    assert_close(process.get_model_weights(state).trainable, expected)
    assert float(process.get_hparams(state)["client_work"]["learning_rate"]) == np.float32(0.3)


def test_dropout_draws_anew_for_each_client_and_step() -> None:
    """A model whose gradient is its noise: clients and steps with equal data and weights get different ones."""

    def noisy(w, x, *, key, training):
        return w * (jax.random.normal(key, x.shape) if training else x)

    model = models.functional(
        noisy,
        jnp.zeros(()),
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=lambda output, y: output,
    )
    work = ko.learning.templates.build_model_delta_client_work(model, optax.sgd(1.0), batch_size=1)
    clients = [[{"x": 1.0, "y": 0.0}], [{"x": 1.0, "y": 0.0}], [{"x": 1.0, "y": 0.0}] * 2]
    weights = [model.initial_weights] * 3

    first = work.next(work.initialize(), weights, clients)
    draws = [float(result.update) for result in first.result]
    second = [float(result.update) for result in work.next(first.state, weights, clients).result]
    # The third client's delta is the sum of two draws; were they equal, it would be twice one of them.
    assert len({*draws, *second}) == 6
    assert all(abs(draws[2] - 2 * draw) > 1e-6 for draw in draws[:2])


def test_batch_statistics_of_clients_are_forgotten() -> None:
    """Non-trainable weights stay those of the server, though clients use their own while they train."""
    model = models.FunctionalModel(
        initial_weights=(jnp.float32(1.0), {"count": jnp.int32(7)}),
        predict_on_batch_fn=lambda weights, x: models.ModelOutput(
            weights.trainable * x * weights.non_trainable["count"], {"count": weights.non_trainable["count"] + 1}
        ),
        loss_fn=lambda output, y: output,
        input_spec={"x": jnp.float32, "y": jnp.float32},
    )
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(1.0), batch_size=1)
    state = process.next(process.initialize(), [[{"x": 1.0, "y": 0.0}] * 3]).state
    weights = process.get_model_weights(state)

    # Gradients are the counts 7, 8 and 9 of the three steps.
    assert float(weights.trainable) == 1.0 - (7 + 8 + 9)
    assert int(weights.non_trainable["count"]) == 7


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, KoinonValueError, "`batch_size` must be a positive int"),
        ({"batch_size": 2.0}, KoinonValueError, "`batch_size` must be a positive int"),
        ({"epochs": 0}, KoinonValueError, "`epochs` must be a positive int"),
        ({"take": -1}, KoinonValueError, "`take` must be a positive int"),
        ({"client_optimizer": 0.1}, KoinonTypeError, "optax.sgd"),
        ({"server_optimizer": lambda: optax.sgd(0.1)}, KoinonTypeError, "call the function"),
        ({"client_weighting": "examples"}, KoinonTypeError, "NUM_EXAMPLES"),
        ({"model_aggregator": UnweightedMeanFactory()}, KoinonTypeError, "as_weighted_aggregator"),
        ({"model_aggregator": MeanFactory}, KoinonTypeError, r"call it: MeanFactory\(\)"),
        ({"model_distributor": MeanFactory()}, KoinonTypeError, "DistributionProcess"),
    ],
)
def test_wrong_arguments_are_refused_when_the_process_is_built(options: dict, error, message: str) -> None:
    """Each mistake is one sentence that says what to pass."""
    arguments = {"client_optimizer": optax.sgd(0.1), "batch_size": 2, **options}

    with pytest.raises(error, match=message):
        algorithms.build_weighted_fed_avg(make_model(), **arguments)


def test_the_unweighted_algorithm_refuses_a_weighted_factory() -> None:
    """The message points to the weighted algorithm."""
    with pytest.raises(KoinonTypeError, match="weighted algorithm"):
        algorithms.build_unweighted_fed_avg(make_model(), optax.sgd(0.1), batch_size=2, model_aggregator=MeanFactory())


def test_another_aggregator_is_used() -> None:
    """With the sum instead of the mean, the update is the sum of the clients' updates."""
    model, clients = make_model(), make_clients((4, 4))
    process = algorithms.build_unweighted_fed_avg(model, optax.sgd(0.3), batch_size=4, model_aggregator=SumFactory())
    expected, _ = numpy_fed_avg(
        model.initial_weights.trainable, clients, rounds=1, batch_size=4, epochs=1, rate=0.3, server_rate=2.0
    )

    assert_close(run(process, clients, 1, "local")[0], expected)
