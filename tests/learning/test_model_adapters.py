"""Models of Equinox and Keras, and models in files."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from koinon.errors import (
    KoinonTypeError,
    KoinonValueError,
    MissingDependencyError,
    ProgramStateCorruptedError,
    ProgramStateStructureError,
)
from koinon.learning import algorithms, losses, models
from koinon.learning.models import NonTrainableRule

os.environ.setdefault("KERAS_BACKEND", "jax")
eqx = pytest.importorskip("equinox")

EXAMPLE = {"x": (jnp.float32, (4,)), "y": jnp.int32}


def make_clients() -> list[dict[str, np.ndarray]]:
    """Two clients with two classes that a linear model tells apart."""
    rng = np.random.default_rng(0)
    clients = []
    for shift in (1.0, 2.0):
        y = np.arange(16, dtype=np.int32) % 2
        x = rng.normal(size=(16, 4)) * 0.3 + np.where(y == 1, shift, -shift)[:, None]
        clients.append({"x": x.astype(np.float32), "y": y})
    return clients


def train(model: models.FunctionalModel, rounds: int = 3) -> tuple[Any, list[float]]:
    """The state after some rounds of federated averaging with batches of eight, and the losses of each round."""
    process = algorithms.build_weighted_fed_avg(model, optax.sgd(0.3), batch_size=8, drop_remainder=True)
    state, history = process.initialize(), []
    for _ in range(rounds):
        state, metrics = process.next(state, make_clients())
        history.append(float(metrics["client_work"]["train"]["loss"]))
    return process.get_model_weights(state), history


class EquinoxNet(eqx.Module):
    """Batch normalization, dropout, and an integer array."""

    first: Any
    norm: Any
    dropout: Any
    version: Any

    def __init__(self, key: Any) -> None:
        self.first = eqx.nn.Linear(4, 2, key=key)
        self.norm = eqx.nn.BatchNorm(2, axis_name="batch", momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(0.1)
        self.version = jnp.arange(3)

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> tuple[Any, Any]:
        x, state = self.norm(self.first(x), state)
        return self.dropout(x, key=key), state


def equinox_model() -> models.FunctionalModel:
    module, state = eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))
    return models.from_equinox(module, EXAMPLE, loss=losses.cross_entropy, state=state)


def test_an_equinox_module_is_trained_and_its_statistics_are_averaged() -> None:
    """The loss falls; the state moves at the server; integer arrays stay; evaluation draws nothing."""
    model = equinox_model()
    weights, history = train(model)

    assert model.uses_key
    assert history[-1] < 0.8 * history[0]
    rules = dict(zip(map(jax.tree_util.keystr, _paths(model)), model.non_trainable_rules, strict=True))
    assert rules["['arrays']['version']"] is NonTrainableRule.KEEP_SERVER
    assert NonTrainableRule.MEAN in rules.values()
    old, new = (jax.tree.leaves(w.non_trainable) for w in (model.initial_weights, weights))
    assert any(not np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    x = make_clients()[0]["x"]
    np.testing.assert_array_equal(model.predict_on_batch(weights, x), model.predict_on_batch(weights, x))


def test_an_equinox_module_predicts_as_it_does_itself() -> None:
    """A module without state and key, on a batch, equals the module mapped over the examples."""
    module = eqx.nn.MLP(4, 2, width_size=3, depth=1, key=jax.random.key(1))
    model = models.from_equinox(module, EXAMPLE, loss=losses.cross_entropy)
    x = make_clients()[0]["x"]

    np.testing.assert_allclose(model.predict_on_batch(model.initial_weights, x), jax.vmap(module)(x), rtol=1e-6)
    assert str(model.weights_type["trainable"]["layers"]["0"]) == "<bias=float32[3],weight=float32[3,4]>"


class NotCallable(eqx.Module):
    """A module that is only a container."""

    weight: Any


class LinenDense(linen.Module):
    """A module of another library."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(2)(x)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: eqx.nn.MLP, KoinonTypeError, r"no Equinox module[\s\S]*not its class"),
        (lambda: lambda x: x, KoinonTypeError, r"no Equinox module[\s\S]*models\.functional"),
        (LinenDense, KoinonTypeError, r"no Equinox module[\s\S]*models\.from_flax is for modules of flax"),
        (lambda: NotCallable(jnp.ones(2)), KoinonTypeError, "NotCallable cannot be called"),
        (lambda: eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0)), KoinonTypeError, "pass the module and state="),
        (lambda: eqx.nn.make_with_state(EquinoxNet)(jax.random.key(0))[0], KoinonValueError, "has a state, and none"),
    ],
)
def test_what_is_no_equinox_module_is_refused(build: Any, error: type[Exception], message: str) -> None:
    """Classes, functions, modules of other libraries, and modules without their state are answered by what to do."""
    with pytest.raises(error, match=message):
        models.from_equinox(build(), EXAMPLE, loss=losses.cross_entropy)


@pytest.mark.parametrize("build", [models.from_flax, models.from_keras])
def test_a_module_of_equinox_is_sent_to_its_own_adapter(build: Any) -> None:
    """Each adapter knows what the others are for."""
    if build is models.from_keras:
        pytest.importorskip("keras")
    with pytest.raises(KoinonTypeError, match=r"models\.from_equinox is for modules of equinox"):
        build(eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0)), EXAMPLE, loss=losses.cross_entropy)


def keras_model() -> models.FunctionalModel:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(2), keras.layers.BatchNormalization(momentum=0.9), keras.layers.Dropout(0.1)]
    return models.from_keras(keras.Sequential(layers), EXAMPLE, loss=losses.cross_entropy)


def test_a_keras_model_is_trained_and_no_two_clients_share_a_seed() -> None:
    """The loss falls, statistics are averaged, and seeds are folded with the client's key."""
    model = keras_model()
    weights, history = train(model)
    rules = dict(zip(map(jax.tree_util.keystr, _paths(model)), model.non_trainable_rules, strict=True))

    assert history[-1] < 0.8 * history[0]
    assert {rule for path, rule in rules.items() if "moving" in path} == {NonTrainableRule.MEAN}
    assert [rule for path, rule in rules.items() if "seed" in path] == [NonTrainableRule.SEED]
    old, new = (jax.tree.leaves(w.non_trainable) for w in (model.initial_weights, weights))
    assert any(not np.array_equal(a, b) for a, b in zip(old, new, strict=True))
    x = make_clients()[0]["x"]
    np.testing.assert_array_equal(model.predict_on_batch(weights, x), model.predict_on_batch(weights, x))


def _paths(model: models.FunctionalModel) -> list[Any]:
    return [path for path, _ in jax.tree_util.tree_leaves_with_path(model.initial_weights.non_trainable)]


def test_a_keras_model_predicts_as_it_does_itself() -> None:
    """Outside of training, with its own weights."""
    keras = pytest.importorskip("keras")
    module = keras.Sequential([keras.layers.Dense(3, activation="relu"), keras.layers.Dense(2)])
    model = models.from_keras(module, EXAMPLE, loss=losses.cross_entropy)
    x = make_clients()[0]["x"]

    np.testing.assert_allclose(model.predict_on_batch(model.initial_weights, x), module(x), rtol=1e-5)
    assert model.num_parameters == 4 * 3 + 3 + 3 * 2 + 2
    with pytest.raises(KoinonTypeError, match="not its class"):
        models.from_keras(keras.Sequential, EXAMPLE, loss=losses.cross_entropy)


def test_keras_on_another_backend_is_answered_by_how_to_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend cannot be changed any more when Keras has been imported, so the message says what to do before."""
    keras = pytest.importorskip("keras")
    monkeypatch.setattr(keras.config, "backend", lambda: "tensorflow")
    with pytest.raises(KoinonValueError, match="KERAS_BACKEND"):
        models.from_keras(keras.layers.Dense(2), EXAMPLE, loss=losses.cross_entropy)


@pytest.mark.parametrize(("package", "build"), [("equinox", models.from_equinox), ("keras", models.from_keras)])
def test_an_adapter_without_its_library_says_what_to_install(
    package: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The libraries are optional."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"koinon\[{package}\]"):
        build(None, EXAMPLE, loss=losses.cross_entropy)


def test_saved_weights_come_back_in_the_containers_of_the_model(tmp_path: pathlib.Path) -> None:
    """Bit for bit, also with non-trainable ones; those of another model are refused."""
    model, path = equinox_model(), tmp_path / "weights"
    models.save_weights(path, model.initial_weights)
    loaded = models.load_weights(path, model)

    jax.tree.map(np.testing.assert_array_equal, loaded, model.initial_weights)
    assert isinstance(loaded, models.ModelWeights)
    with pytest.raises(ProgramStateStructureError):
        models.load_weights(path, models.ModelWeights(jnp.ones(3), ()))


_USE = """
import sys
import jax.numpy as jnp
from koinon.learning.models import load_model
print(load_model(sys.argv[1]).predict_on_batch(jnp.ones((5, 4))).tolist())
"""


def test_a_saved_model_predicts_without_the_code_that_it_was_made_of(tmp_path: pathlib.Path) -> None:
    """In another process, for a batch of any size, in evaluation mode, with the weights that were saved."""
    model, path = equinox_model(), tmp_path / "model"
    weights = jax.tree.map(lambda leaf: leaf * 2, model.initial_weights)
    models.save_model(path, model, weights)
    saved = models.load_model(path)

    for size in (1, 5):
        x = jnp.ones((size, 4))
        np.testing.assert_allclose(saved.predict_on_batch(x), model.predict_on_batch(weights, x), rtol=1e-6)
    printed = subprocess.run([sys.executable, "-c", _USE, str(path)], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(printed), saved.predict_on_batch(jnp.ones((5, 4))), rtol=1e-5)


def test_what_is_no_saved_model_is_refused(tmp_path: pathlib.Path) -> None:
    """Weights alone, and a file that was changed."""
    path = tmp_path / "file"
    model = models.functional(lambda w, x: x @ w, jnp.ones((4, 2)), example_spec=EXAMPLE, loss=losses.cross_entropy)
    models.save_weights(path, model.initial_weights)
    with pytest.raises(ProgramStateCorruptedError, match="no model"):
        models.load_model(path)
    models.save_model(path, model)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ProgramStateCorruptedError):
        models.load_model(path)
