"""Federated algorithms against closed forms on parabolas, and against a few lines of numpy."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import KoinonTypeError, KoinonValueError, UnknownHparamError
from koinon.learning import ClientWeighting, algorithms, optimizers
from tests import quadratics
from tests.quadratics import Parabola, weighted_optimum

# Unequal curvatures, optima and numbers of local steps: what makes averaging drift.
CLIENTS = [Parabola(1.0, -1.0, 1), Parabola(2.0, 0.5, 5), Parabola(0.5, 3.0, 3)]
RATE = 0.2


def contraction(client: Parabola, extra: float = 0.0) -> float:
    """The part of the way to its optimum that a client goes in its steps; `extra` adds to its curvature."""
    return 1 - (1 - RATE * (client.curvature + extra)) ** client.examples


def true_optimum(clients: list[Parabola]) -> float:
    """The minimum of the sum of all examples' losses."""
    return weighted_optimum(clients, [c.examples * c.curvature for c in clients])


def test_federated_averaging_ends_at_its_biased_fixed_point() -> None:
    """Each client pulls by the part of the way that its steps go, not by its curvature."""
    process = algorithms.build_weighted_fed_avg(quadratics.model(), optax.sgd(RATE), batch_size=1)
    expected = weighted_optimum(CLIENTS, [c.examples * contraction(c) for c in CLIENTS])

    assert quadratics.run(process, CLIENTS, 60) == pytest.approx(expected, abs=1e-5)
    assert abs(expected - true_optimum(CLIENTS)) > 0.05


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_fed_prox_ends_at_its_fixed_point(strength: float) -> None:
    """A client goes a part of the way to (a b + mu w) / (a + mu); with strength 0 this is federated averaging."""
    process = algorithms.build_weighted_fed_prox(quadratics.model(), strength, optax.sgd(RATE), batch_size=1)
    pulls = [c.examples * contraction(c, strength) * c.curvature / (c.curvature + strength) for c in CLIENTS]

    assert quadratics.run(process, CLIENTS, 100) == pytest.approx(weighted_optimum(CLIENTS, pulls), abs=1e-5)


def test_fed_prox_pulls_towards_the_server() -> None:
    """One client, two steps by hand: the second gradient has + mu (w_k - w), the paper's sign."""
    process = algorithms.build_unweighted_fed_prox(quadratics.model(), 0.5, optax.sgd(RATE), batch_size=1)
    first = RATE * 1.0 * (3.0 - 0.0)
    second = first - RATE * (1.0 * (first - 3.0) + 0.5 * (first - 0.0))

    assert quadratics.run(process, [Parabola(1.0, 3.0, 2)], 1) == pytest.approx(second, rel=1e-6)


@pytest.mark.parametrize("strength", [1, -0.1, float("nan"), "0.1", True])
def test_a_proximal_strength_that_is_no_float_or_negative_is_refused(strength: Any) -> None:
    """Also an int, as in TensorFlow Federated; the message says what to pass."""
    with pytest.raises(KoinonValueError, match="float that is not negative"):
        algorithms.build_fed_prox(quadratics.model(), strength, optax.sgd(RATE), batch_size=1)


def test_fed_nova_ends_where_normalized_directions_cancel() -> None:
    """With steps of a size, each client pulls by the part of the way that it goes, for each of its steps."""
    process = algorithms.build_fed_nova(quadratics.model(), optax.sgd(RATE), batch_size=1)
    expected = weighted_optimum(CLIENTS, [c.examples * contraction(c) / c.examples for c in CLIENTS])

    assert quadratics.run(process, CLIENTS, 80) == pytest.approx(expected, abs=1e-5)


def test_fed_nova_reaches_the_true_optimum_for_a_small_rate_where_averaging_does_not() -> None:
    """The optimum is at 0, so that float32 resolves the small steps; the server's rate makes them large again."""
    # n a b adds up to 1 * -6 + 10 * 0.5 + 4 * 0.25 = 0.
    clients = [Parabola(1.0, -6.0, 1), Parabola(2.0, 0.25, 10), Parabola(0.5, 0.5, 4)]
    rate, mean_steps = 1e-6, (1 * 1 + 10 * 10 + 4 * 4) / 15
    curvature = sum(c.examples * c.curvature for c in clients) / 15
    server = optimizers.build_sgdm(1 / (rate * mean_steps * curvature))
    nova = algorithms.build_fed_nova(quadratics.model(1.0), optax.sgd(rate), server, batch_size=1)
    averaging = algorithms.build_weighted_fed_avg(quadratics.model(1.0), optax.sgd(rate), server, batch_size=1)

    assert true_optimum(clients) == 0.0
    assert quadratics.run(nova, clients, 30) == pytest.approx(0.0, abs=1e-5)
    assert abs(quadratics.run(averaging, clients, 30)) > 0.1


def test_fed_nova_normalizes_momentum_as_the_paper_does() -> None:
    """With momentum rho, |a|_1 of tau steps is the sum over k of (1 - rho^k) / (1 - rho)."""
    rho, tau = 0.5, 4
    length = sum((1 - rho**k) / (1 - rho) for k in range(1, tau + 1))
    work_length = ko.learning._fed_nova.length_of_steps(optimizers.build_sgdm(RATE, momentum=rho), {}, jnp.int32(tau))

    assert float(work_length) == pytest.approx(RATE * length, rel=1e-6)


def test_fed_sgd_is_gradient_descent_on_all_examples() -> None:
    """A round with the whole population is one step along the gradient of the mean loss, whatever the batch size."""
    process = algorithms.build_fed_sgd(quadratics.model(), optax.sgd(0.5), batch_size=2)
    gradient = sum(c.examples * c.curvature * (0.0 - c.optimum) for c in CLIENTS) / sum(c.examples for c in CLIENTS)

    assert quadratics.run(process, CLIENTS, 1) == pytest.approx(-0.5 * gradient, rel=1e-6)


def test_fed_sgd_takes_an_unweighted_aggregator() -> None:
    """Then every client counts the same."""
    aggregator = ko.aggregators.UnweightedMeanFactory()
    process = algorithms.build_fed_sgd(quadratics.model(), optax.sgd(1.0), batch_size=4, model_aggregator=aggregator)

    expected = np.mean([c.curvature * c.optimum for c in CLIENTS])
    assert quadratics.run(process, CLIENTS, 1) == pytest.approx(expected, rel=1e-6)


def test_a_schedule_gives_each_round_its_rate() -> None:
    """Weights equal those of rounds by hand with rates 0.4, 0.2 and 0.1."""
    process = algorithms.build_weighted_fed_avg_with_optimizer_schedule(
        quadratics.model(), lambda t: 0.4 * 0.5**t, optax.sgd, batch_size=1
    )
    w, client = 0.0, CLIENTS[1]
    for rate in (0.4, 0.2, 0.1):
        for _ in range(client.examples):
            w -= rate * client.curvature * (w - client.optimum)

    assert quadratics.run(process, [client], 3) == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize(
    "arguments", [(0.1, optax.sgd), (lambda t: 0.1, optax.sgd(0.1)), (lambda t: 0.1, lambda rate: 1)]
)
def test_a_schedule_is_made_of_two_functions(arguments: Any) -> None:
    """A rate instead of a schedule, or an optimizer instead of a builder, is refused when the process is built."""
    with pytest.raises(KoinonTypeError):
        algorithms.build_weighted_fed_avg_with_optimizer_schedule(quadratics.model(), *arguments, batch_size=1)


def numpy_mime_lite(clients: list[Parabola], rounds: int, momentum: float, rates: list[float]) -> float:
    """The paper's algorithm with SGD with momentum, whose step is `rate (momentum m + g)`."""
    w, m = 0.0, 0.0
    total = sum(c.examples for c in clients)
    for t in range(rounds):
        change, gradient = 0.0, 0.0
        for c in clients:
            own = w
            for _ in range(c.examples):
                own -= rates[t] * (momentum * m + c.curvature * (own - c.optimum))
            change += c.examples / total * (w - own)
            gradient += c.examples / total * c.curvature * (w - c.optimum)
        w, m = w - change, momentum * m + gradient
    return w


@pytest.mark.parametrize("schedule", [False, True])
def test_mime_lite_equals_numpy(schedule: bool) -> None:
    """The clients' momentum is the server's, which the full gradients at the server's weights change."""
    base, rates = optimizers.build_sgdm(RATE, momentum=0.9), [RATE] * 4
    if schedule:
        rates = [RATE / (1 + t) for t in range(4)]
        process = algorithms.build_mime_lite_with_optimizer_schedule(
            quadratics.model(), lambda t: RATE / (1 + t), base, batch_size=1
        )
    else:
        process = algorithms.build_weighted_mime_lite(quadratics.model(), base, batch_size=1)

    assert quadratics.run(process, CLIENTS, 4) == pytest.approx(numpy_mime_lite(CLIENTS, 4, 0.9, rates), rel=1e-5)
    assert ("learning_rate" in process.get_hparams(process.initialize())["client_work"]) is not schedule


def test_a_schedule_of_mime_lite_needs_a_learning_rate() -> None:
    """An optax optimizer that hides its rate is refused with the way out."""
    with pytest.raises(UnknownHparamError, match="inject_hyperparams"):
        algorithms.build_mime_lite(quadratics.model(), optax.sgd(0.1), batch_size=1, learning_rate_fn=lambda t: 0.1)


def test_a_round_without_clients_leaves_mime_lite_as_it_was() -> None:
    """No momentum is learned from no gradient."""
    process = algorithms.build_unweighted_mime_lite(quadratics.model(), optax.sgd(0.1, momentum=0.9), batch_size=1)
    state = process.next(process.initialize(), []).state

    assert float(process.get_model_weights(state).trainable) == 0.0
    assert not np.any(np.isnan([np.asarray(leaf) for leaf in state.client_work.shared.optimizer[0]]))


def test_adaptive_servers_are_federated_averaging_with_that_optimizer() -> None:
    """Two rounds of FedYogi equal Yogi's formulas on the mean of the clients' changes."""
    process = algorithms.build_fed_yogi(
        quadratics.model(), optax.sgd(RATE), server_learning_rate=0.1, tau=0.01, batch_size=1
    )
    total = sum(c.examples for c in CLIENTS)
    w, m, v = 0.0, 0.0, 0.01**2
    for t in (1, 2):
        delta = sum(c.examples / total * contraction(c) * (w - c.optimum) for c in CLIENTS)
        m = 0.9 * m + 0.1 * delta
        v += 0.01 * np.sign(delta**2 - v) * delta**2
        w -= 0.1 * np.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 0.01)

    assert quadratics.run(process, CLIENTS, 2) == pytest.approx(w, rel=1e-5)


@pytest.mark.parametrize("build", [algorithms.build_fed_adam, algorithms.build_fed_adagrad])
def test_the_server_optimizer_of_an_adaptive_algorithm_has_its_hyperparameters(build: Any) -> None:
    """They are those of the finalizer, and can be set; a wrong one is refused."""
    process = build(quadratics.model(), optax.sgd(RATE), server_learning_rate=0.5, tau=0.1, batch_size=1)
    hparams = process.get_hparams(process.initialize())["finalizer"]

    assert float(hparams["learning_rate"]) == 0.5
    with pytest.raises(KoinonValueError, match="learning_rate"):
        build(quadratics.model(), optax.sgd(RATE), server_learning_rate=-1.0, batch_size=1)


def numpy_k_means(
    clients: list[np.ndarray], centroids: np.ndarray, rounds: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Centroids and their counts after some rounds, and the mean squared distance in the last one."""
    counts, distance = np.ones(len(centroids)), 0.0
    points = np.concatenate(clients)
    for _ in range(rounds):
        distances = ((points[:, None] - centroids) ** 2).sum(axis=-1)
        nearest, distance = distances.argmin(axis=1), distances.min(axis=1).mean()
        added = np.bincount(nearest, minlength=len(centroids))
        sums = np.stack([points[nearest == j].sum(axis=0) for j in range(len(centroids))])
        centroids = (counts[:, None] * centroids + sums) / (counts + added)[:, None]
        counts = counts + added
    return centroids, counts, distance


def test_k_means_equals_numpy() -> None:
    """Ragged clients, one without points, partial batches: centroids, counts and distances of three rounds."""
    rng = np.random.default_rng(3)
    clients = [rng.normal(size=(n, 2)).astype(np.float32) + rng.integers(0, 3, (n, 1)) * 4 for n in (7, 0, 1, 20)]
    clients = [points.astype(np.float32) for points in clients]
    process = algorithms.build_fed_kmeans(3, (2,), batch_size=4, seed=5)
    state = process.initialize()
    expected = numpy_k_means(clients, np.asarray(process.get_model_weights(state), np.float64), 3)
    for _ in range(3):
        state, metrics = process.next(state, clients)

    np.testing.assert_allclose(process.get_model_weights(state), expected[0], rtol=1e-5)
    np.testing.assert_array_equal(metrics["finalizer"]["cluster_sizes"], expected[1])
    assert float(metrics["client_work"]["mean_squared_distance"]) == pytest.approx(expected[2], rel=1e-5)
    assert int(metrics["client_work"]["num_examples"]) == 28
    assert str(process.next.type_signature.parameter[1]) == "{float32[2]*}@CLIENTS"


def test_k_means_leaves_out_a_client_with_a_point_that_is_no_number() -> None:
    """It is counted, and changes no centroid."""
    process = algorithms.build_fed_kmeans(1, (1,), initial_centroids=[[1.0]])
    state, metrics = process.next(process.initialize(), [np.float32([[3.0]]), np.float32([[np.nan], [7.0]])])

    assert process.get_model_weights(state).tolist() == [[2.0]]
    assert int(metrics["client_work"]["num_non_finite_clients"]) == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_clusters": 0}, KoinonValueError),
        ({"dtype": jnp.int32}, KoinonTypeError),
        ({"initial_centroids": [[0.0]]}, KoinonValueError),
        ({"sum_aggregator": ko.aggregators.MeanFactory()}, KoinonTypeError),
    ],
)
def test_wrong_arguments_of_k_means_are_refused(options: Any, error: Any) -> None:
    """When the process is built, not in a round."""
    with pytest.raises(error):
        algorithms.build_fed_kmeans(**{"num_clusters": 2, "data_shape": (2,), **options})


def test_clients_may_count_the_same_in_every_algorithm() -> None:
    """Uniform weights in FedNova: each client pulls by its contraction for each step."""
    process = algorithms.build_fed_nova(
        quadratics.model(), optax.sgd(RATE), batch_size=1, client_weighting=ClientWeighting.UNIFORM
    )
    expected = weighted_optimum(CLIENTS, [contraction(c) / c.examples for c in CLIENTS])

    assert quadratics.run(process, CLIENTS, 80) == pytest.approx(expected, abs=1e-5)


def personalization_clients(count: int) -> list[dict[str, Any]]:
    """Clients whose curvature is 1 and whose optimum is their position, apart by one test example."""
    parabolas = [Parabola(1.0, float(i), 2) for i in range(count)]
    return [{"train_data": p.data(), "test_data": p._replace(examples=1).data()} for p in parabolas]


def test_personalization_is_judged_before_and_after_training_on_the_own_data(backend: str) -> None:
    """The loss of each client before it, 1/2 b^2, shrinks by (1 - rate)^(2 steps)."""
    evaluate = algorithms.build_personalization_eval_computation(
        quadratics.model(), {"sgd": algorithms.build_fine_tuning_fn(optax.sgd(RATE), batch_size=1)}, max_num_clients=4
    )
    sample = evaluate(quadratics.model().initial_weights, personalization_clients(3))
    before, after = (np.sort(np.asarray(sample.values[name]["loss"])) for name in ("baseline_metrics", "sgd"))

    assert int(sample.count) == 3
    # One row is free, and zero like that of the client whose optimum is 0.
    np.testing.assert_allclose(before, [0, 0, 0.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(after, before * (1 - RATE) ** 4, rtol=1e-5)


def test_personalization_evaluation_samples_so_many_clients() -> None:
    """Ten clients, three rows, each a client's own: baseline and personalized losses belong together."""
    evaluate = algorithms.build_personalization_eval_computation(
        quadratics.model(),
        {"nothing": lambda model, weights, train_data, test_data, key: {"n": train_data.length}},
        lambda model, weights, test_data: {"b": test_data.reduce(jnp.float32(0.0), lambda c, e: c + e["y"] / e["x"])},
        max_num_clients=3,
    )
    sample = evaluate(quadratics.model().initial_weights, personalization_clients(10))
    optima = np.round(np.asarray(sample.values["baseline_metrics"]["b"]), 3).tolist()

    assert int(sample.count) == 3
    assert len(set(optima)) == 3
    assert set(optima) <= set(map(float, range(10)))
    assert sample.values["nothing"]["n"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("fns", "options", "error"),
    [
        ([optax.sgd(0.1)], {}, KoinonTypeError),
        ({"baseline_metrics": lambda *_: {}}, {}, KoinonValueError),
        ({}, {"max_num_clients": 0}, KoinonValueError),
    ],
)
def test_wrong_arguments_of_personalization_evaluation_are_refused(fns: Any, options: Any, error: Any) -> None:
    """When the computation is built."""
    with pytest.raises(error):
        algorithms.build_personalization_eval_computation(quadratics.model(), fns, **options)
