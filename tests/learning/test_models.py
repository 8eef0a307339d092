"""Functional models: masked losses and metrics, what their construction checks, and models from functions and Flax."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon._errors import KoinonError, KoinonTypeError, KoinonValueError
from koinon.learning import losses, metrics, models
from koinon.types import SequenceType, TensorType, at_clients, to_type

DIGIT = {"x": (jnp.float32, (4,)), "y": jnp.int32}


def softmax_regression(**options) -> models.FunctionalModel:
    """A linear classifier of 3 classes."""
    weights = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.array([0.1, -0.2, 0.3])}
    defaults = {
        "example_spec": DIGIT,
        "loss": losses.cross_entropy,
        "metrics": {"accuracy": metrics.accuracy()},
    }
    return models.functional(lambda w, x: x @ w["w"] + w["b"], weights, **{**defaults, **options})


def digits(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random examples of the classifier."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(count, 4)).astype(np.float32), "y": rng.integers(0, 3, count).astype(np.int32)}


def numpy_cross_entropy(weights: dict, data: dict) -> np.ndarray:
    """The loss of each example, in float64."""
    logits = data["x"].astype(np.float64) @ np.asarray(weights["w"], np.float64) + np.asarray(weights["b"], np.float64)
    return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), data["y"]]


@functools.cache
def softmax_regression_and_its_measures():
    """The classifier, and what computes loss, gradient and metrics of a batch; compiled once for each size."""
    model = softmax_regression()

    @jax.jit
    def measure(trainable, examples, mask):
        def loss(trainable):
            outputs = model.forward((trainable, ()), examples, mask, training=True)
            return outputs.loss, outputs.batch_output

        (value, output), gradient = jax.value_and_grad(loss, has_aux=True)(trainable)
        state = model.update_metrics_state(model.initialize_metrics_state(), output)
        return value, gradient, model.finalize_metrics(state)

    return model, measure


@settings(deadline=None, max_examples=25)
@given(st.lists(st.booleans(), min_size=5, max_size=5), st.integers(0, 100))
def test_a_masked_batch_equals_the_exact_smaller_batch(mask: list[bool], seed: int) -> None:
    """Loss, gradient and metrics of a masked batch are those of the rows that the mask keeps."""
    model, measure = softmax_regression_and_its_measures()
    data, keep, weights = digits(5, seed), np.array(mask), model.initial_weights
    poisoned = {"x": np.where(keep[:, None], data["x"], data["x"][np.argmax(keep)]), "y": data["y"]}
    exact = {name: value[keep] for name, value in data.items()}

    masked_loss, masked_gradient, masked_metrics = measure(weights.trainable, poisoned, keep)
    if not keep.any():
        assert float(masked_loss) == 0.0
        assert all((np.asarray(g) == 0).all() for g in masked_gradient.values())
        assert np.isnan(masked_metrics["loss"])
        assert int(masked_metrics["num_batches"]) == 0
        return
    exact_loss, exact_gradient, exact_metrics = measure(weights.trainable, exact, np.ones(keep.sum(), bool))
    np.testing.assert_allclose(masked_loss, exact_loss, rtol=1e-5)
    np.testing.assert_allclose(exact_loss, numpy_cross_entropy(weights.trainable, exact).mean(), rtol=1e-5)
    for actual, expected in zip(
        jax.tree.leaves((masked_gradient, masked_metrics)),
        jax.tree.leaves((exact_gradient, exact_metrics)),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_evaluate_is_the_mean_over_all_examples_whatever_the_batch_size(batch_size: int) -> None:
    """Loss and accuracy equal numpy's over the whole set, and every example counts once."""
    model, data = softmax_regression(), digits(7)
    weights = model.initial_weights
    result = models.evaluate(model, weights, data, batch_size=batch_size)

    logits = data["x"] @ np.asarray(weights.trainable["w"]) + np.asarray(weights.trainable["b"])
    np.testing.assert_allclose(result["loss"], numpy_cross_entropy(weights.trainable, data).mean(), rtol=1e-5)
    np.testing.assert_allclose(result["accuracy"], (logits.argmax(1) == data["y"]).mean(), rtol=1e-6)
    assert int(result["num_examples"]) == 7
    assert int(result["num_batches"]) == -(-7 // batch_size)


def test_evaluate_of_no_examples_is_not_a_number() -> None:
    """The mean loss of an empty set is NaN, and the count 0."""
    result = models.evaluate(softmax_regression(), softmax_regression().initial_weights, digits(0))

    assert np.isnan(result["loss"])
    assert int(result["num_examples"]) == 0


def test_evaluate_matches_fields_by_name_and_refuses_other_types() -> None:
    """The order of a dictionary does not matter; a wrong dtype is named by its field."""
    model, data = softmax_regression(), digits(3)
    reordered = {"y": data["y"], "x": data["x"]}

    np.testing.assert_allclose(
        models.evaluate(model, model.initial_weights, reordered)["loss"],
        models.evaluate(model, model.initial_weights, data)["loss"],
    )
    with pytest.raises(KoinonTypeError, match=r"expected +float32\[4\][\s\S]*float64\[3, 4\][\s\S]*\.x"):
        models.evaluate(model, model.initial_weights, {**data, "x": data["x"].astype(np.float64)})
    with pytest.raises(KoinonTypeError, match=r"number of rows[\s\S]*\[2, 3\]"):
        models.evaluate(model, model.initial_weights, {**data, "y": data["y"][:2]})


def test_a_model_tells_the_types_of_its_weights_and_examples() -> None:
    """The types print in the notation of koinon; dictionaries have their keys sorted."""
    model = softmax_regression()

    assert str(model.input_spec) == "<x=float32[4],y=int32>"
    assert str(models.weights_type_from_model(model)) == "<trainable=<b=float32[3],w=float32[4,3]>,non_trainable=<>>"
    assert model.num_parameters == 15
    assert list(model.metrics) == ["loss", "accuracy", "num_examples", "num_batches"]
    assert model.uses_key is False


class Pair(NamedTuple):
    """An example with fields x and y."""

    x: object
    y: object


@pytest.mark.parametrize(
    "spec",
    [
        {"x": TensorType("float32"), "y": TensorType("float32")},
        (TensorType("float32"), TensorType("float32")),
        Pair(TensorType("float32"), TensorType("float32")),
    ],
)
def test_examples_are_mappings_named_tuples_or_pairs(spec) -> None:
    """All three say what is x and what is y."""
    model = models.functional(lambda w, x: w * x, jnp.float32(3.0), example_spec=spec, loss=losses.squared_error)
    examples = jax.tree.map(lambda _: jnp.ones(2), spec, is_leaf=lambda leaf: isinstance(leaf, TensorType))

    # (3 - 1)^2
    assert float(model.forward(model.initial_weights, examples, jnp.ones(2, bool), training=False).loss) == 4.0


def test_other_field_names_are_given_by_a_function() -> None:
    """`split_example` says which fields are x and y; without it the error says so."""
    options = {"example_spec": {"pixels": (jnp.float32, (4,)), "label": jnp.int32}}
    model = softmax_regression(**options, split_example=lambda e: (e["pixels"], e["label"]))
    data = digits(5)

    np.testing.assert_allclose(
        models.evaluate(model, model.initial_weights, {"pixels": data["x"], "label": data["y"]})["loss"],
        models.evaluate(softmax_regression(), model.initial_weights, data)["loss"],
    )
    with pytest.raises(KoinonTypeError, match="split_example"):
        softmax_regression(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda output, y: losses.cross_entropy(output, y).mean()}, "one loss for each example"),
        ({"loss": lambda output, y: jnp.argmax(output, -1) == y}, "one loss for each example"),
        ({"metrics": {"accuracy": metrics.accuracy}}, "with the parentheses"),
        ({"metrics": {"accuracy": 1.0}}, "is no Metric"),
        ({"metrics": {"matrix": metrics.mean(lambda output, y: output @ y)}}, "'matrix' cannot be computed"),
        (
            {"metrics": {"count": metrics.Metric(lambda: jnp.int32(0), lambda s, b: s + b.losses.sum(), lambda s: s)}},
            "'count' must keep the type of its state",
        ),
        ({"example_spec": {"x": jnp.float32, "z": jnp.float32}}, r"fields `x` and `y`[\s\S]*<x=float32,z=float32>"),
        ({"example_spec": None}, r"needs the type of one example[\s\S]*jnp\.float32"),
        ({"example_spec": SequenceType(to_type(DIGIT))}, r"give the type of one example: <x=float32\[4\],y=int32>"),
        ({"example_spec": at_clients(to_type(DIGIT))}, r"give the type of one example: <x=float32\[4\],y=int32>"),
        ({"example_spec": {**DIGIT, "x": (jnp.float32, (5,))}}, r"does not take its examples[\s\S]*float32\[2,5\]"),
        ({"loss": "cross_entropy"}, r"is a function of predictions and labels[\s\S]*losses\.cross_entropy"),
        ({"loss": losses.squared_error}, r"loss cannot be computed[\s\S]*float32\[2,3\] and labels int32\[2\]"),
        ({"loss": lambda y, output: output[jnp.arange(2), y]}, "in the other order is wrapped"),
        ({"metrics": [metrics.accuracy()]}, r"have names[\s\S]*accuracy\(\)"),
    ],
)
def test_a_model_whose_parts_do_not_fit_is_refused_when_it_is_made(options: dict, message: str) -> None:
    """Mistakes show at the construction of the model, with what was expected and found."""
    with pytest.raises(KoinonError, match=message):
        softmax_regression(**options)


@pytest.mark.parametrize("weights", [jnp.zeros(3), {"trainable": 1.0}, ("text", ()), (jnp.zeros(3), (), ())])
def test_weights_that_are_no_pair_of_pytrees_of_arrays_are_refused(weights) -> None:
    """The constructor wants trainable and non-trainable weights."""
    with pytest.raises(KoinonTypeError, match="Initial weights"):
        models.FunctionalModel(
            initial_weights=weights,
            predict_on_batch_fn=lambda weights, x: x,
            loss_fn=losses.squared_error,
            input_spec={"x": jnp.float32, "y": jnp.float32},
        )


def test_non_trainable_weights_of_another_type_are_refused() -> None:
    """A model may not change the type of its non-trainable weights."""
    with pytest.raises(KoinonTypeError, match=r"non-trainable[\s\S]*expected +int32[\s\S]*found +float32"):
        models.FunctionalModel(
            initial_weights=(jnp.zeros(()), jnp.int32(0)),
            predict_on_batch_fn=lambda weights, x: models.ModelOutput(x, weights.non_trainable + 0.5),
            loss_fn=losses.squared_error,
            input_spec={"x": jnp.float32, "y": jnp.float32},
        )


def test_training_and_key_reach_a_function_that_takes_them() -> None:
    """`training` is a Python bool; whether a key is used is found by tracing."""

    def noisy(w, x, *, training, key):
        return w * x + (jax.random.normal(key, x.shape) if training else 0.0)

    model = models.functional(
        noisy,
        lambda key: jax.random.normal(key),
        example_spec={"x": jnp.float32, "y": jnp.float32},
        loss=optax.squared_error,
        key=jax.random.key(1),
    )

    assert model.uses_key is True
    x, key = jnp.arange(3.0), jax.random.key(7)
    expected = jax.random.normal(jax.random.key(1)) * x
    np.testing.assert_allclose(model.predict_on_batch(model.initial_weights, x), expected, rtol=1e-6)
    np.testing.assert_allclose(
        model.predict_on_batch(model.initial_weights, x, True, key), expected + jax.random.normal(key, (3,)), rtol=1e-6
    )


def test_an_initializer_needs_a_key() -> None:
    """Weights given as a function of a key need one."""
    with pytest.raises(KoinonValueError, match=r"jax\.random\.key"):
        models.functional(lambda w, x: w, jnp.zeros_like, example_spec=DIGIT, loss=losses.cross_entropy)


class LinenNet(linen.Module):
    """Dense, batch normalization, dropout, dense."""

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(linen.Dense(8)(x))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(linen.relu(x)))


class NnxNet(nnx.Module):
    """The same with NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, x):
        x = self.dropout(nnx.relu(self.norm(self.first(x))))
        return self.rest[0](x)


def flax_model(library: str) -> models.FunctionalModel:
    module = LinenNet() if library == "linen" else NnxNet(nnx.Rngs(0))
    return models.from_flax(
        module,
        DIGIT,
        loss=losses.cross_entropy,
        metrics={"accuracy": metrics.accuracy()},
        key=jax.random.key(0) if library == "linen" else None,
    )


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_flax_module_splits_into_trained_weights_and_statistics(library: str) -> None:
    """Parameters are trainable, running statistics are not, and keys and counters of random streams are neither."""
    model = flax_model(library)
    expected_trainable = 4 * 8 + 8 + 8 + 8 + 8 * 3 + 3
    statistics = jax.tree.leaves(model.initial_weights.non_trainable)

    assert model.num_parameters == expected_trainable
    assert [(leaf.shape, leaf.dtype) for leaf in statistics] == [((8,), jnp.float32)] * 2
    assert model.uses_key


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_flax_module_predicts_deterministically_and_trains_with_the_key(library: str) -> None:
    """Evaluation ignores the key; training with equal keys gives equal predictions, with others other ones."""
    model = flax_model(library)
    weights, x = model.initial_weights, jnp.asarray(digits(6)["x"])
    first, second, other = (
        model.predict_on_batch(weights, x, True, key)
        for key in (jax.random.key(1), jax.random.key(1), jax.random.key(2))
    )

    np.testing.assert_array_equal(model.predict_on_batch(weights, x), model.predict_on_batch(weights, x))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_training_moves_the_running_statistics_of_a_flax_module(library: str) -> None:
    """With momentum 0.9 from mean 0, one batch moves the running mean to a tenth of the batch's mean."""
    model = flax_model(library)
    data = digits(6)
    weights = model.initial_weights
    outputs = model.forward(weights, data, np.ones(6, bool), training=True, key=jax.random.key(0))
    if library == "linen":
        first, old_mean = weights.trainable["Dense_0"], weights.non_trainable["batch_stats"]["BatchNorm_0"]["mean"]
        mean = outputs.non_trainable["batch_stats"]["BatchNorm_0"]["mean"]
    else:
        first, old_mean = weights.trainable["first"], weights.non_trainable["norm"]["mean"]
        mean = outputs.non_trainable["norm"]["mean"]

    np.testing.assert_array_equal(old_mean, 0.0)
    expected = 0.1 * (data["x"] @ np.asarray(first["kernel"]) + np.asarray(first["bias"])).mean(axis=0)
    np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_running_statistics_of_a_flax_module_are_averaged_by_default(library: str) -> None:
    """They are the only non-trainable weights that training changes."""
    assert set(flax_model(library).non_trainable_rules) == {models.NonTrainableRule.MEAN}


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_flax_model_learns(library: str) -> None:
    """A few compiled steps of gradient descent lower the loss of a batch."""
    model, data = flax_model(library), digits(30)
    mask = np.ones(30, bool)

    @jax.jit
    def step(weights, key):
        def loss(trainable):
            outputs = model.forward((trainable, weights.non_trainable), data, mask, training=True, key=key)
            return outputs.loss, outputs.non_trainable

        gradients, non_trainable = jax.grad(loss, has_aux=True)(weights.trainable)
        trainable = jax.tree.map(lambda w, g: w - 0.1 * g, weights.trainable, gradients)
        return models.ModelWeights(trainable, non_trainable)

    weights = model.initial_weights
    before = models.evaluate(model, weights, data)["loss"]
    for i in range(40):
        weights = step(weights, jax.random.key(i))

    assert models.evaluate(model, weights, data)["loss"] < 0.8 * before


def test_an_nnx_module_given_to_a_model_stays_as_it_is() -> None:
    """Neither its mode nor its variables change."""
    module = NnxNet(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    models.from_flax(module, DIGIT, loss=losses.cross_entropy)

    assert module.dropout.deterministic is False
    jax.tree.map(np.testing.assert_array_equal, before, nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def test_only_the_adapters_of_an_nnx_module_are_trained_if_asked_for() -> None:
    """With `trainable=nnx.LoRAParam` the base weights are non-trainable and stay constant."""
    module = nnx.LoRALinear(4, 3, lora_rank=2, rngs=nnx.Rngs(0))
    model = models.from_flax(module, DIGIT, loss=losses.cross_entropy, trainable=nnx.LoRAParam)
    outputs = model.forward(model.initial_weights, digits(4), np.ones(4, bool), training=True)

    assert model.num_parameters == 4 * 2 + 2 * 3
    assert set(model.non_trainable_rules) == {models.NonTrainableRule.KEEP_SERVER}
    jax.tree.map(np.testing.assert_array_equal, outputs.non_trainable, model.initial_weights.non_trainable)


class TakesOptions(linen.Module):
    """A dense layer that takes arbitrary keyword arguments."""

    @linen.compact
    def __call__(self, x, **options):
        del options
        return linen.Dense(3)(x)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_a_module_may_take_deterministic_instead_of_training(library: str) -> None:
    """`deterministic` is False while training and True otherwise."""

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x, *, deterministic):
            return linen.Dense(3)(x) + (0.0 if deterministic else 1.0)

    class Nnx(nnx.Module):
        def __init__(self):
            self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

        def __call__(self, x, *, deterministic):
            return self.dense(x) + (0.0 if deterministic else 1.0)

    model = models.from_flax(
        Linen() if library == "linen" else Nnx(),
        DIGIT,
        loss=losses.cross_entropy,
        key=jax.random.key(0) if library == "linen" else None,
    )
    x = jnp.ones((2, 4))
    difference = model.predict_on_batch(model.initial_weights, x, True, jax.random.key(0)) - model.predict_on_batch(
        model.initial_weights, x
    )

    np.testing.assert_allclose(difference, 1.0, rtol=1e-6)


def test_a_module_with_arbitrary_keyword_arguments_is_told_nothing() -> None:
    """`**options` are not taken for the names of a training flag."""
    model = models.from_flax(TakesOptions(), DIGIT, loss=losses.cross_entropy, key=jax.random.key(0))

    assert model.predict_on_batch(model.initial_weights, jnp.ones((2, 4)), True, jax.random.key(0)).shape == (2, 3)


@pytest.mark.parametrize(
    ("module", "key", "error", "message"),
    [
        (LinenNet(), None, KoinonValueError, "pass key"),
        (LinenNet(), 0, KoinonTypeError, "pass key"),
        (LinenNet, jax.random.key(0), KoinonTypeError, "not its class"),
        (TakesOptions, None, KoinonTypeError, "not its class"),
        (lambda: LinenNet(), None, KoinonTypeError, r"no Flax module[\s\S]*call it if it makes a module"),
        ({"params": {}}, None, KoinonTypeError, r"class dict[\s\S]*not its variables"),
        ((LinenNet(), {}), None, KoinonTypeError, "pass the module alone"),
        (None, None, KoinonTypeError, r"class NoneType$"),
        # Not a module, and of Flax: no other adapter is for it.
        (nnx.Rngs(0), None, KoinonTypeError, r"class Rngs$"),
    ],
)
def test_what_is_no_initializable_flax_module_is_refused(module, key, error, message: str) -> None:
    """A missing key, a class and a function are each answered by what to do."""
    with pytest.raises(error, match=message):
        models.from_flax(module, DIGIT, loss=losses.cross_entropy, key=key)


def test_a_filter_of_nnx_is_refused_for_a_linen_module() -> None:
    """Nothing chooses what of a Linen module is trained."""
    with pytest.raises(KoinonValueError, match="leave out `trainable`"):
        models.from_flax(LinenNet(), DIGIT, loss=losses.cross_entropy, key=jax.random.key(0), trainable=nnx.Param)


def test_what_a_model_raises_is_kept_as_the_cause() -> None:
    """The error of the user's own code stands behind the one that says what it was called with."""
    with pytest.raises(KoinonValueError, match="does not take its examples") as caught:
        softmax_regression(example_spec={**DIGIT, "x": (jnp.float32, (5,))})
    assert isinstance(caught.value.__cause__, TypeError)


def test_weights_and_function_in_the_other_order_are_refused() -> None:
    """`functional` takes the function first."""
    with pytest.raises(KoinonTypeError, match="the function of weights and inputs, the second the weights"):
        models.functional({"w": 1.0}, lambda w, x: x, example_spec=DIGIT, loss=losses.cross_entropy)  # pyright: ignore[reportArgumentType]


def test_unknown_dimensions_do_not_hinder_a_model() -> None:
    """An example may have a dimension that is known only with the data."""
    model = models.functional(
        lambda w, x: w * x.mean(axis=1),
        jnp.float32(1.0),
        example_spec={"x": (jnp.float32, (None,)), "y": jnp.float32},
        loss=losses.squared_error,
    )

    assert str(model.input_spec) == "<x=float32[?],y=float32>"
    assert str(to_type(model.input_spec)) == str(model.input_spec)
