"""Non-trainable weights follow the rule that the model declares for each of them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.errors import KoinonTypeError
from koinon.learning import algorithms, models
from koinon.learning.models import NonTrainableRule

RULES = {
    "mean": None,
    "count": NonTrainableRule.MAX,
    "at_server": NonTrainableRule.KEEP_SERVER,
    "at_client": NonTrainableRule.KEEP_CLIENT,
    "scratch": NonTrainableRule.DROP,
    "seed": NonTrainableRule.SEED,
    "key": None,
}
# The second client's mean is the greater one, its count the smaller one.
CLIENTS = [[{"x": 1.0, "y": 0.0}] * 3, [{"x": 6.0, "y": 0.0}]]


def make_model(rules: Any = RULES) -> models.FunctionalModel:
    """A model whose every leaf changes in training: statistics become the batch's, counters count steps."""

    def predict(weights: Any, x: Any, *, training: bool) -> Any:
        del training
        old = weights.non_trainable
        new = {
            "mean": jnp.mean(x),
            "count": old["count"] + 1,
            "at_server": old["at_server"] + 1,
            "at_client": old["at_client"] + 1,
            "scratch": old["scratch"] + 1,
            "seed": old["seed"] + jnp.uint32(1),
            "key": jax.random.fold_in(old["key"], 0),
        }
        drawn = old["seed"][0].astype(jnp.float32) / 2.0**32 + jax.random.uniform(old["key"])
        return models.ModelOutput(weights.trainable["w"] * x + weights.trainable["drawn"] * drawn, new)

    initial = {
        "mean": jnp.float32(0.0),
        "count": jnp.int32(5),
        "at_server": jnp.int32(7),
        "at_client": jnp.float32(11.0),
        "scratch": jnp.float32(13.0),
        "seed": jnp.array([17, 19], jnp.uint32),
        "key": jax.random.key(23),
    }
    return models.FunctionalModel(
        initial_weights=({"w": jnp.float32(0.0), "drawn": jnp.float32(0.0)}, initial),
        predict_on_batch_fn=predict,
        loss_fn=lambda output, y: output - y,
        input_spec={"x": jnp.float32, "y": jnp.float32},
        non_trainable_rules=rules,
    )


def bits(leaf: Any) -> Any:
    """The numbers of a leaf, those of a PRNG key among them."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@functools.cache
def make_process() -> Any:
    return algorithms.build_weighted_fed_avg(make_model(), optax.sgd(1.0), batch_size=1)


def test_every_leaf_follows_its_rule(backend: str) -> None:
    """Two rounds: means by weight, the greatest count, what the server keeps, and what each client keeps."""
    process = make_process()
    state = process.initialize()
    initial = state.global_model_weights.non_trainable
    fresh = process.initialize_client_state()
    first = process.next(state, [fresh, fresh], CLIENTS)
    weights = first.state.global_model_weights

    assert list(fresh) == ["non_trainable"]
    # Three examples with statistic 1, one with statistic 6.
    assert float(weights.non_trainable["mean"]) == pytest.approx((3 * 1.0 + 1 * 6.0) / 4)
    assert int(weights.non_trainable["count"]) == 5 + 3
    for name in ("at_server", "at_client", "scratch", "seed"):
        np.testing.assert_array_equal(weights.non_trainable[name], initial[name])
    assert weights.non_trainable["key"] == initial["key"]
    assert [float(kept["non_trainable"][0]) for kept in first.client_state] == [11.0 + 3, 11.0 + 1]
    if backend == "reference":
        return
    second = process.next(first.state, list(first.client_state), CLIENTS)
    assert int(second.state.global_model_weights.non_trainable["count"]) == 5 + 3 + 3
    assert [float(kept["non_trainable"][0]) for kept in second.client_state] == [11.0 + 6, 11.0 + 2]


def test_each_client_folds_a_key_of_its_own_into_seeds() -> None:
    """Two clients with the same single example draw different numbers, and each other numbers in the next round."""
    process = make_process()
    state, fresh = process.initialize(), process.initialize_client_state()
    draws = []
    for _ in range(2):
        for position in range(2):
            # The gradient in `drawn` is what the client has drawn; the other client has no examples.
            clients = [CLIENTS[1] if i == position else [] for i in range(2)]
            new = process.next(state, [fresh, fresh], clients).state
            before, after = (s.global_model_weights.trainable["drawn"] for s in (state, new))
            draws.append(float(before - after))
        state = new

    assert len(set(draws)) == 4
    assert all(0 < draw < 2 for draw in draws)


def test_a_client_that_is_not_finite_changes_no_leaf() -> None:
    """Means, maxima and what the client keeps are those of the other client and of before."""
    process = make_process()
    state, fresh = process.initialize(), process.initialize_client_state()
    broken = [{"x": np.nan, "y": 0.0}] * 9
    output = process.next(state, [fresh, fresh], [broken, CLIENTS[1]])
    weights = output.state.global_model_weights

    assert float(weights.non_trainable["mean"]) == 6.0
    assert int(weights.non_trainable["count"]) == 5 + 1
    assert [float(kept["non_trainable"][0]) for kept in output.client_state] == [11.0, 12.0]
    assert int(output.metrics["client_work"]["train"]["num_non_finite_clients"]) == 1


@pytest.mark.parametrize("clients", [[], [[], []]])
def test_a_round_without_examples_changes_no_leaf(clients: list[Any]) -> None:
    """No clients, or clients without examples: the update is rejected as a whole."""
    process = make_process()
    state, fresh = process.initialize(), process.initialize_client_state()
    new = process.next(state, [fresh] * len(clients), clients).state

    pairs = (jax.tree.leaves(s.global_model_weights) for s in (state, new))
    for old, leaf in zip(*pairs, strict=True):
        np.testing.assert_array_equal(*map(bits, (old, leaf)))


def test_the_types_say_what_leaves_the_client_and_what_stays() -> None:
    """The update has the averaged and the maximal leaves, the client state the kept one, and neither has the others."""
    process = ko.learning.templates.build_model_delta_client_work(make_model(), optax.sgd(1.0), batch_size=1)
    result = process.next.type_signature.result

    assert str(result["client_state"]) == "{<non_trainable=<float32>>}@CLIENTS"
    assert str(result["result"].member["update"]) == "<trainable=<drawn=float32,w=float32>,mean=<float32>,max=<int32>>"


def test_the_aggregator_of_the_update_also_clips_the_averaged_leaves() -> None:
    """The mean of a statistic is made by the same aggregator, so what bounds updates bounds it."""
    rules = dict.fromkeys(RULES, NonTrainableRule.KEEP_SERVER) | {"mean": NonTrainableRule.MEAN}
    process = algorithms.build_unweighted_fed_avg(
        make_model(rules),
        optax.sgd(0.0),
        batch_size=1,
        model_aggregator=ko.aggregators.clipping_factory(2.0, ko.aggregators.UnweightedMeanFactory()),
    )
    state = process.next(process.initialize(), CLIENTS).state

    # Changes of 1 and 6, the second clipped to 2.
    assert float(state.global_model_weights.non_trainable["mean"]) == pytest.approx((1.0 + 2.0) / 2)


def test_the_default_averages_floats_folds_keys_and_leaves_the_rest_at_the_server() -> None:
    """A declaration may be None, one rule, or rules for the top of the tree, with None for the default."""
    rules = dict(zip(sorted(RULES), make_model(None).non_trainable_rules, strict=True))
    kept = NonTrainableRule.KEEP_SERVER

    assert rules == {
        **dict.fromkeys(("at_client", "mean", "scratch"), NonTrainableRule.MEAN),
        **dict.fromkeys(("at_server", "count", "seed"), kept),
        "key": NonTrainableRule.SEED,
    }
    assert set(make_model(kept).non_trainable_rules) == {kept}


def test_a_float_that_training_does_not_change_stays_at_the_server() -> None:
    """Frozen weights are neither sent up nor exposed to the noise of an aggregator."""
    model = models.FunctionalModel(
        initial_weights=(jnp.float32(0.0), {"frozen": jnp.ones(3), "seen": jnp.float32(0.0)}),
        predict_on_batch_fn=lambda weights, x: models.ModelOutput(
            weights.trainable * x * weights.non_trainable["frozen"][0],
            {"frozen": weights.non_trainable["frozen"], "seen": weights.non_trainable["seen"] + 1},
        ),
        loss_fn=lambda output, y: output,
        input_spec={"x": jnp.float32, "y": jnp.float32},
    )

    assert model.non_trainable_rules == (NonTrainableRule.KEEP_SERVER, NonTrainableRule.MEAN)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (RULES | {"count": NonTrainableRule.MEAN}, r"MEAN is for floats(.|\n)*int32(.|\n)*'count'(.|\n)*use MAX"),
        (RULES | {"mean": NonTrainableRule.SEED}, "SEED is for PRNG keys or uint32"),
        (RULES | {"key": NonTrainableRule.MAX}, "MAX is for integers or floats"),
        (RULES | {"mean": "mean"}, "declared by a NonTrainableRule"),
        ({"mean": NonTrainableRule.MEAN}, "structure of the weights"),
    ],
)
def test_a_rule_that_a_leaf_cannot_follow_is_refused(rules: Any, message: str) -> None:
    """Integers are never averaged; the message names the leaf and what to declare instead."""
    with pytest.raises(KoinonTypeError, match=message):
        make_model(rules)
