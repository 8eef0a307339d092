"""`koinon.simulation.attacks`: what corrupted clients send, and who is corrupted."""

from __future__ import annotations

import math
import statistics

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.aggregators import (
    CoordinateMedianFactory,
    KrumFactory,
    MeanFactory,
    UnweightedGeometricMedianFactory,
    UnweightedMeanFactory,
)
from koinon.errors import UnknownClientError
from koinon.simulation import ClientData
from koinon.simulation.attacks import (
    Attack,
    a_little_is_enough,
    byzantine_factory,
    constant,
    flip_labels,
    gaussian,
    random_sign,
    sign_flip,
)
from koinon.types import TensorType, to_type

VECTOR = TensorType(jnp.float32, (4,))
CLIENTS = list(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))


def step(attack, num_byzantine=3, clients=CLIENTS):
    """The mean of a round under attack."""
    process = byzantine_factory(UnweightedMeanFactory(), attack, num_byzantine).create(VECTOR)
    return np.asarray(process.next(process.initialize(), clients).result)


@pytest.mark.parametrize("engine", ["local", pytest.param("reference", marks=pytest.mark.soak)])
def test_the_first_clients_of_a_cohort_are_corrupted(engine):
    """As many as the state says, which can be changed without another process; never more than there are."""
    process = byzantine_factory(UnweightedMeanFactory(), sign_flip(10.0), 2).create(VECTOR)
    state = process.initialize()
    for count in (2, 0, 8, 20):
        state["num_byzantine"] = jnp.int32(count)
        signs = np.where(np.arange(8) < count, -10.0, 1.0)[:, None]
        with ko.backends.use(engine):
            output = process.next(state, CLIENTS)

        np.testing.assert_allclose(output.result, np.mean(signs * CLIENTS, axis=0), rtol=1e-5, atol=1e-6)


def test_weights_are_left_alone():
    """A weighted aggregation stays weighted, with the measurements of the inner one."""
    process = byzantine_factory(MeanFactory(), constant(7.0), 1).create(VECTOR, TensorType(jnp.float32))
    output = process.next(process.initialize(), CLIENTS[:2], [1.0, 3.0])

    np.testing.assert_allclose(output.result, (7.0 + 3 * CLIENTS[1]) / 4, rtol=1e-6)
    assert list(output.measurements) == ["mean_value", "mean_weight"]


def test_a_little_is_enough_is_the_honest_mean_moved_by_deviations():
    """Mean and deviation are those of the honest clients, and z follows from the numbers of clients as in the paper."""
    honest = np.array(CLIENTS[3:], np.float64)
    supporters = math.floor(8 / 2 + 1) - 3
    z = statistics.NormalDist().inv_cdf((8 - 3 - supporters) / (8 - 3))
    sent = honest.mean(axis=0) - z * honest.std(axis=0)

    np.testing.assert_allclose(step(a_little_is_enough()), (honest.sum(axis=0) + 3 * sent) / 8, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "size"), [(random_sign(1e6), 1e6), pytest.param(gaussian(5.0), None, marks=pytest.mark.soak)]
)
def test_noise_is_the_clients_own_and_new_each_round(attack, size):
    """Of the stated size, different for every corrupted client and in every round; one seed gives the same."""
    zeros = [np.zeros(4, np.float32)] * 8
    process = byzantine_factory(UnweightedMeanFactory(), attack, 1, seed=3).create(VECTOR)
    state, first, _ = process.next(process.initialize(), zeros)
    second = process.next(state, zeros).result
    again = process.initialize()
    again["num_byzantine"] = jnp.int32(2)
    both = process.next(again, zeros).result

    assert not np.array_equal(first, second)
    assert not np.array_equal(both, 2 * first)  # the other one sends something else
    np.testing.assert_array_equal(first, process.next(process.initialize(), zeros).result)
    if size is not None:
        np.testing.assert_allclose(np.abs(8 * first), size)


@pytest.mark.soak
def test_an_attack_of_ones_own():
    """It is given the value, a key, and what the attack asks for."""
    mimic = Attack(lambda value, key, honest: honest.mean, needs_statistics=True)

    np.testing.assert_allclose(step(mimic), np.mean(CLIENTS[3:], axis=0), rtol=1e-5, atol=1e-6)


def test_the_state_has_that_of_the_inner_aggregation():
    """Beside the number of the corrupted and the key."""
    process = byzantine_factory(CoordinateMedianFactory(), gaussian(), 1).create(VECTOR)

    assert str(process.state_type) == "<num_byzantine=int32,key=key<fry>,inner_agg=<>>@SERVER"


@pytest.mark.parametrize("arguments", [(sign_flip(), -1), (sign_flip(), 1, -1)])
def test_negative_numbers_are_refused(arguments):
    """Of clients, and as a seed."""
    with pytest.raises(ValueError, match="must not be negative"):
        byzantine_factory(UnweightedMeanFactory(), *arguments)


@pytest.mark.parametrize("arguments", [(lambda v: v, 1), (sign_flip(), 1.0), (sign_flip(), True)])
def test_arguments_of_another_type_are_refused(arguments):
    """An attack is an `Attack`, a number of clients an int."""
    with pytest.raises(TypeError, match="must be an"):
        byzantine_factory(UnweightedMeanFactory(), *arguments)


def test_only_floats_are_attacked():
    """Noise on integers would be no integer."""
    with pytest.raises(TypeError, match="An attack needs values of floating dtypes"):
        byzantine_factory(UnweightedMeanFactory(), gaussian(), 1).create(to_type(jnp.int32))


@pytest.mark.soak
def test_digits_are_learnt_under_attack_by_robust_rules_and_not_by_the_mean():
    """Softmax regression on 20 clients of which 4 are corrupted, 40 rounds."""
    split = ko.simulation.datasets.load_digits(num_clients=21, alpha=1000.0, num_test_clients=1)
    model = ko.learning.models.functional(
        lambda w, x: x @ w["kernel"] + w["bias"],
        {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)},
        example_spec=split.train.element_type,
        loss=ko.learning.losses.cross_entropy,
    )

    def accuracy(rule, attack, num_byzantine=4):
        process = ko.learning.algorithms.build_unweighted_fed_avg(
            model,
            optax.sgd(0.5),
            batch_size=16,
            shuffle=True,
            model_aggregator=byzantine_factory(rule, attack, num_byzantine),
        )
        state = process.initialize()
        for _ in range(40):
            state = process.next(state, split.train.cohort()).state
        weights = process.get_model_weights(state).trainable
        logits = split.centralized_test["x"] @ weights["kernel"] + weights["bias"]
        return float(np.mean(np.argmax(logits, axis=1) == split.centralized_test["y"]))

    clean = accuracy(UnweightedMeanFactory(), sign_flip(), 0)
    assert clean > 0.9
    assert accuracy(UnweightedMeanFactory(), sign_flip(10.0)) < 0.35
    assert accuracy(UnweightedMeanFactory(), gaussian(10.0)) < 0.4
    assert accuracy(CoordinateMedianFactory(), sign_flip(10.0)) > clean - 0.03
    assert accuracy(UnweightedGeometricMedianFactory(), gaussian(10.0)) > clean - 0.03
    assert accuracy(KrumFactory(4, None), constant(float("nan"))) > clean - 0.03


def test_flipped_labels_are_those_of_the_chosen_clients():
    """The others, and the other fields, stay; the order of the clients too."""
    data = ClientData.from_clients({n: {"x": np.arange(3.0) + n, "y": np.array([0, 2, n])} for n in range(3)})
    flipped = flip_labels(data, [2, 0], num_classes=4)

    assert flipped.client_ids == data.client_ids
    assert flipped.element_type == data.element_type
    assert [flipped.dataset(n)["y"].tolist() for n in range(3)] == [[3, 1, 3], [0, 2, 1], [3, 1, 1]]
    for n in range(3):
        np.testing.assert_array_equal(flipped.dataset(n)["x"], data.dataset(n)["x"])
    with pytest.raises(UnknownClientError, match="no such client"):
        flip_labels(data, [5], num_classes=4)
    with pytest.raises(ValueError, match="no field 'label'"):
        flip_labels(data, [1], num_classes=4, label="label")
