"""Error feedback: clients make up for what compression left out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.aggregators import (
    EncodedSumFactory,
    MeanFactory,
    QSGDQuantizer,
    RandomKSparsifier,
    TopKSparsifier,
    UniformQuantizer,
)
from koinon.learning import algorithms, error_feedback_aggregator, losses, models, optimizers, templates
from koinon.learning.models import NonTrainableRule
from koinon.program import ClientStateStore
from koinon.simulation import ClientData

SIZE = 20
OPTIMUM = np.linspace(-1.0, 2.0, SIZE).astype(np.float32)
SGD = optimizers.build_sgdm(0.05)


def make_model():
    """Linear regression with twenty weights."""
    return models.functional(
        lambda w, x: x @ w,
        jnp.zeros(SIZE),
        example_spec={"x": (jnp.float32, (SIZE,)), "y": jnp.float32},
        loss=losses.squared_error,
    )


def make_data(sizes=(30, 10, 20)):
    """Clients whose examples have one optimum; the columns are of different scales, so gradients are, too."""
    rng = np.random.default_rng(0)
    scales = np.linspace(0.7, 1.3, SIZE)
    x = (rng.normal(size=(sum(sizes), SIZE)) * scales).astype(np.float32)
    ends = np.cumsum((0, *sizes))
    parts = {i: np.arange(ends[i], ends[i + 1]) for i in range(len(sizes))}
    return ClientData.from_partition({"x": x, "y": x @ OPTIMUM}, parts)


def train(aggregator, rounds=150, algorithm=algorithms.build_weighted_fed_avg, **options):
    """The distance of the weights from the optimum after some rounds, with the clients' states kept in a store."""
    process = algorithm(make_model(), SGD, batch_size=10, model_aggregator=aggregator, **options)
    data = make_data()
    cohort, state = data.cohort((0, 1, 2)), process.initialize()
    fresh = process.initialize_client_state
    store = None if fresh is None else ClientStateStore(fresh, data.client_ids)
    for _ in range(rounds):
        if store is None:
            state, metrics = process.next(state, cohort)
        else:
            state, kept, metrics = process.next(state, store.rows((0, 1, 2)), cohort)
            store.update((0, 1, 2), kept)
    weights = process.get_model_weights(state).trainable
    return float(np.linalg.norm(np.asarray(weights) - OPTIMUM)), metrics


def test_the_optimum_is_reached_with_feedback_and_a_fraction_of_the_bytes():
    """One number in twenty: close to the optimum with feedback; the same compression without it stays far away."""
    compressor = TopKSparsifier(0.05)
    exact, _ = train(MeanFactory())
    with_feedback, metrics = train(error_feedback_aggregator(compressor))
    without, _ = train(MeanFactory(EncodedSumFactory(compressor)))

    assert exact < 0.08
    assert with_feedback < 0.08
    assert without > 0.8
    assert float(metrics["aggregator"]["bytes_per_client"]) == 6.0
    assert float(metrics["aggregator"]["uncompressed_bytes_per_client"]) == 80.0


@pytest.mark.parametrize(
    "compressor",
    [
        RandomKSparsifier(0.2, unbiased=False),
        UniformQuantizer(2, stochastic=False),
        pytest.param(TopKSparsifier(0.2, values=UniformQuantizer(4)), marks=pytest.mark.soak),
    ],
    ids=repr,
)
def test_other_compressors_reach_it_too(compressor):
    """Random places, rough rounding, and quantized values."""
    assert train(error_feedback_aggregator(compressor))[0] < 0.3


def test_what_a_client_meant_to_send_is_what_it_sent_and_keeps():
    """Over three rounds the sums of messages and of what is kept are those of the updates, on both engines."""
    data = [[{"x": np.eye(SIZE, dtype=np.float32)[i % SIZE] * (i + 1), "y": 1.0} for i in range(n)] for n in (3, 5)]
    aggregator = error_feedback_aggregator(TopKSparsifier(0.1))
    kept = {}
    for backend in ("local", "reference"):
        with ko.backends.use(backend):
            process = algorithms.build_weighted_fed_avg(
                make_model(),
                SGD,
                batch_size=2,
                model_aggregator=aggregator,
                server_optimizer=optimizers.build_sgdm(0.0),
            )
            state, clients = process.initialize(), [process.initialize_client_state()] * 2
            for _ in range(3):
                state, clients, _ = process.next(state, clients, data)
            kept[backend] = clients
    # Without a step of the server, a client's update is the same in each round.
    work = templates.build_model_delta_client_work(make_model(), SGD, batch_size=2)
    updates = [
        result.update for result in work.next(work.initialize(), [make_model().initial_weights] * 2, data).result
    ]
    for i in range(2):
        error = np.zeros(SIZE, np.float32)
        for _ in range(3):
            corrected = error + np.asarray(updates[i])
            sent = np.zeros(SIZE, np.float32)
            largest = np.argsort(-np.abs(corrected), kind="stable")[:2]
            sent[largest] = corrected[largest]
            error = corrected - sent
        for clients in kept.values():
            np.testing.assert_allclose(clients[i].error, error, atol=1e-6)


def test_a_client_that_sends_nothing_keeps_what_it_had():
    """Without examples, or with a number that is none; the round is that of the others."""
    good = [{"x": np.ones(SIZE, np.float32), "y": 1.0}]
    bad = [{"x": np.full(SIZE, np.nan, np.float32), "y": 1.0}]
    process = algorithms.build_weighted_fed_avg(
        make_model(), SGD, batch_size=2, model_aggregator=error_feedback_aggregator(TopKSparsifier(0.1))
    )
    fresh = process.initialize_client_state()
    before = fresh._replace(error=jnp.arange(1.0, SIZE + 1))
    state = process.initialize()
    with_them, kept, _ = process.next(state, [fresh, before, before], [good, [], bad])
    without, _, _ = process.next(state, [fresh], [good])

    np.testing.assert_array_equal(kept[1].error, before.error)
    np.testing.assert_array_equal(kept[2].error, before.error)
    np.testing.assert_array_equal(
        process.get_model_weights(with_them).trainable, process.get_model_weights(without).trainable
    )


def test_the_client_state_of_an_algorithm_is_kept_too():
    """SCAFFOLD's control variates stand beside the error; hyperparameters reach the client work."""
    process = algorithms.build_scaffold(
        make_model(),
        SGD,
        num_clients=3,
        batch_size=10,
        model_aggregator=error_feedback_aggregator(TopKSparsifier(0.25)),
    )
    assert str(process.client_state_type) == "<error=float32[20],work=<control=float32[20]>>"
    hparams = process.get_hparams(process.initialize())
    changed = jax.tree.map(lambda leaf: 0.5 * leaf, hparams)
    assert float(changed["client_work"]["learning_rate"]) == pytest.approx(0.025)
    again = process.get_hparams(process.set_hparams(process.initialize(), changed))
    assert float(again["client_work"]["learning_rate"]) == pytest.approx(0.025)
    distance, _ = train(error_feedback_aggregator(TopKSparsifier(0.25)), 60, algorithms.build_scaffold, num_clients=3)
    assert distance < 1.0  # from 4.6


def test_statistics_of_a_model_are_compressed_with_it_and_maxima_are_refused():
    """Non-trainable means are part of the update; a maximum is no sum."""

    def make(rule):
        def predict(weights, x):
            return models.ModelOutput(x @ weights.trainable, (weights.non_trainable[0] + 1.0,))

        return models.FunctionalModel(
            initial_weights=(jnp.zeros(SIZE), (jnp.float32(0.0),)),
            predict_on_batch_fn=predict,
            loss_fn=losses.squared_error,
            input_spec={"x": (jnp.float32, (SIZE,)), "y": jnp.float32},
            non_trainable_rules=(rule,),
        )

    aggregator = error_feedback_aggregator(TopKSparsifier(0.1), threshold=1)
    options = {"batch_size": 1, "model_aggregator": aggregator}
    process = algorithms.build_weighted_fed_avg(make(NonTrainableRule.MEAN), SGD, **options)
    data = [[{"x": np.ones(SIZE, np.float32), "y": 1.0}] * 3]
    state, _, _ = process.next(process.initialize(), [process.initialize_client_state()], data)
    assert float(process.get_model_weights(state).non_trainable[0]) == 3.0
    with pytest.raises(ValueError, match="maximum"):
        algorithms.build_weighted_fed_avg(make(NonTrainableRule.MAX), SGD, **options)


def test_compressors_whose_errors_grow_are_refused():
    """Scaled random places, one bit, and QSGD by the l2 norm; and what is no compressor."""
    for compressor in (RandomKSparsifier(0.1), UniformQuantizer(1), QSGDQuantizer(4)):
        with pytest.raises(ValueError, match="bounded"):
            error_feedback_aggregator(compressor)
    with pytest.raises(TypeError, match="must be a compressor"):
        error_feedback_aggregator(TopKSparsifier)
    with pytest.raises(TypeError, match="client work"):
        templates.add_error_feedback(None, error_feedback_aggregator(TopKSparsifier(0.1)))
