"""The optimizers: their formulas against numpy in float64, states, hyperparameters, and optax as an optimizer."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon._errors import KoinonTypeError, KoinonValueError, UnknownHparamError
from koinon.learning import optimizers
from koinon.learning._optimizer import as_optimizer

WEIGHTS = {
    "kernel": np.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]], np.float32),
    "bias": np.array([0.5, -0.5, 2.0], np.float32),
}
STEPS = 7


def gradients_of_step(step: int) -> dict[str, np.ndarray]:
    """Gradients that vary in sign and size from step to step."""
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=value.shape).astype(np.float32) * (1 + step) for name, value in WEIGHTS.items()}


def run(optimizer: optimizers.Optimizer, steps: int = STEPS) -> dict[str, np.ndarray]:
    """The weights after some steps of an optimizer, each of them compiled."""
    state = optimizer.initialize(jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, w.dtype), WEIGHTS))
    weights = jax.tree.map(jnp.asarray, WEIGHTS)
    step = jax.jit(optimizer.next)
    for i in range(steps):
        state, weights = step(state, weights, gradients_of_step(i))
    return jax.tree.map(np.asarray, weights)


def run_numpy(rule, steps: int = STEPS) -> dict[str, np.ndarray]:
    """The weights after some steps of `rule(memory, w, g, t) -> w`, in float64."""
    weights = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    memory = {name: {} for name in weights}
    for i in range(steps):
        for name, gradient in gradients_of_step(i).items():
            weights[name] = rule(memory[name], weights[name], gradient.astype(np.float64), i + 1)
    return weights


def assert_trees_close(actual, expected, *, rtol=1e-6, atol=1e-6) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


def sgd_rule(memory, w, g, t):
    return w - 0.1 * g


def momentum_rule(memory, w, g, t):
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return w - 0.1 * memory["v"]


def nesterov_rule(memory, w, g, t):
    memory["v"] = 0.9 * memory.get("v", 0) + g
    return w - 0.1 * (g + 0.9 * memory["v"])


def adam_direction(memory, g, t, s, b1, b2, eps):
    memory["a"] = b1 * memory.get("a", 0) + (1 - b1) * g
    memory["s"] = s
    return np.sqrt(1 - b2**t) / (1 - b1**t) * memory["a"] / (np.sqrt(s) + eps)


def adam_rule(memory, w, g, t, b1=0.9, b2=0.99, eps=1e-3):
    s = b2 * memory.get("s", 0) + (1 - b2) * g**2
    return w - 0.1 * adam_direction(memory, g, t, s, b1, b2, eps)


def adamw_rule(memory, w, g, t):
    s = 0.99 * memory.get("s", 0) + 0.01 * g**2
    return w - 0.1 * (adam_direction(memory, g, t, s, 0.9, 0.99, 1e-3) + 0.02 * w)


def yogi_rule(memory, w, g, t):
    s = memory.get("s", 1e-2)
    return w - 0.1 * adam_direction(memory, g, t, s + 0.01 * np.sign(g**2 - s) * g**2, 0.9, 0.99, 1e-3)


def adagrad_rule(memory, w, g, t):
    memory["s"] = memory.get("s", 0.1) + g**2
    return w - 0.1 * g / np.sqrt(memory["s"] + 1e-2)


def rmsprop_rule(memory, w, g, t):
    memory["s"] = 0.8 * memory.get("s", 0) + 0.2 * g**2
    return w - 0.1 * g / (np.sqrt(memory["s"]) + 1e-2)


def adafactor_rule(memory, w, g, t, relative_step=True):
    decay = 1 - t**-0.8
    square = g**2 + 1e-30
    if w.ndim < 2:
        memory["v"] = v = decay * memory.get("v", 0) + (1 - decay) * square
    else:
        memory["r"] = decay * memory.get("r", 0) + (1 - decay) * square.mean(axis=1)
        memory["c"] = decay * memory.get("c", 0) + (1 - decay) * square.mean(axis=0)
        v = np.outer(memory["r"], memory["c"]) / memory["r"].mean()
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt((u**2).mean()))
    rate = min(0.6, t**-0.5) if relative_step else 0.6
    return w - rate * max(1e-3, np.sqrt((w**2).mean())) * u


CLASSICS = {
    "sgd": (optimizers.build_sgdm(0.1), sgd_rule),
    "sgd without momentum": (optimizers.build_sgdm(0.1, momentum=0.0), sgd_rule),
    "momentum": (optimizers.build_sgdm(0.1, momentum=0.9), momentum_rule),
    "nesterov": (optimizers.build_sgdm(0.1, momentum=0.9, nesterov=True), nesterov_rule),
    "adam": (optimizers.build_adam(0.1, 0.9, 0.99, 1e-3), adam_rule),
    "adamw": (optimizers.build_adamw(0.1, 0.9, 0.99, 1e-3, weight_decay=0.02), adamw_rule),
    "yogi": (optimizers.build_yogi(0.1, 0.9, 0.99, 1e-3, initial_preconditioner_value=1e-2), yogi_rule),
    "adagrad": (optimizers.build_adagrad(0.1, 0.1, 1e-2), adagrad_rule),
    "rmsprop": (optimizers.build_rmsprop(0.1, 0.8, 1e-2), rmsprop_rule),
    "adafactor": (optimizers.build_adafactor(0.6), adafactor_rule),
    "adafactor, fixed rate": (
        optimizers.build_adafactor(0.6, relative_step=False),
        lambda *args: adafactor_rule(*args, relative_step=False),
    ),
}


@pytest.mark.parametrize("name", CLASSICS)
def test_a_classic_optimizer_follows_its_formula(name: str) -> None:
    """Seven steps agree with the published update rule in float64."""
    optimizer, rule = CLASSICS[name]

    assert_trees_close(run(optimizer), run_numpy(rule), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", CLASSICS)
def test_an_optimizer_keeps_the_types_of_its_state_and_weights(name: str) -> None:
    """A step changes neither structure nor shape nor dtype, also of half-precision weights."""
    optimizer, _ = CLASSICS[name]
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), WEIGHTS)
    state = optimizer.initialize(weights)
    gradients = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), gradients_of_step(0))
    new_state, new_weights = optimizer.next(state, weights, gradients)

    def types(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert types((new_state, new_weights)) == types((state, weights))


@pytest.mark.parametrize("name", CLASSICS)
def test_hparams_that_are_set_are_read_back(name: str) -> None:
    """`get_hparams` returns what `set_hparams` was given, and the other entries unchanged."""
    optimizer, _ = CLASSICS[name]
    state = optimizer.initialize(WEIGHTS)
    old = optimizer.get_hparams(state)
    new = optimizer.get_hparams(optimizer.set_hparams(state, {"learning_rate": 0.03125}))

    assert {key: float(value) for key, value in new.items()} == {
        **{key: float(value) for key, value in old.items()},
        "learning_rate": 0.03125,
    }


def test_a_learning_rate_set_in_the_state_is_used() -> None:
    """After `set_hparams` the step is the one of an optimizer built with that rate."""
    slow, fast = optimizers.build_adam(0.1), optimizers.build_adam(0.7)
    state = slow.set_hparams(slow.initialize(WEIGHTS), {"learning_rate": 0.7})
    gradients = gradients_of_step(0)

    _, actual = slow.next(state, WEIGHTS, gradients)
    _, expected = fast.next(fast.initialize(WEIGHTS), WEIGHTS, gradients)

    assert_trees_close(actual, expected, rtol=0, atol=0)


def test_setting_an_unknown_hparam_names_it_and_lists_the_known_ones() -> None:
    """An unknown name is a `UnknownHparamError`, which is also a `KeyError` and a `ValueError`."""
    optimizer = optimizers.build_sgdm(0.1)

    with pytest.raises(
        UnknownHparamError, match=r"no hyperparameter named 'rate'[\s\S]*expected +learning_rate"
    ) as caught:
        optimizer.set_hparams(optimizer.initialize(WEIGHTS), {"rate": 1.0})
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "build",
    [
        lambda: optimizers.build_sgdm(-0.1),
        lambda: optimizers.build_sgdm(0.1, momentum=1.5),
        lambda: optimizers.build_sgdm(0.1, momentum=-0.5),
        lambda: optimizers.build_sgdm(0.1, nesterov=True),
        lambda: optimizers.build_sgdm(float("nan")),
        lambda: optimizers.build_adam(-1.0),
        lambda: optimizers.build_adam(0.1, beta_1=1.0),
        lambda: optimizers.build_adam(0.1, beta_2=-0.1),
        lambda: optimizers.build_adam(0.1, epsilon=-1e-7),
        lambda: optimizers.build_adamw(0.1, weight_decay=-0.1),
        lambda: optimizers.build_yogi(0.1, initial_preconditioner_value=0.0),
        lambda: optimizers.build_adagrad(0.1, initial_preconditioner_value=-0.1),
        lambda: optimizers.build_rmsprop(0.1, decay=1.0),
        lambda: optimizers.build_adafactor(-0.1),
        lambda: optimizers.build_adafactor(0.1, clip_threshold=0.0),
    ],
)
def test_hyperparameters_out_of_range_are_refused(build) -> None:
    """Building with a value out of its range is a `ValueError`."""
    with pytest.raises(KoinonValueError, match="found"):
        build()


def test_a_gradient_of_another_structure_is_refused() -> None:
    """The message shows both structures."""
    optimizer = optimizers.build_sgdm(0.1)

    with pytest.raises(KoinonValueError, match="structure of the weights"):
        optimizer.next(optimizer.initialize(WEIGHTS), WEIGHTS, {"kernel": WEIGHTS["kernel"]})


def test_a_gradient_of_another_shape_is_refused_by_its_path() -> None:
    """The message names the leaf and both shapes."""
    optimizer = optimizers.build_sgdm(0.1)
    gradients = {**gradients_of_step(0), "bias": np.zeros(2, np.float32)}

    with pytest.raises(KoinonValueError, match=r"float32\[3\][\s\S]*float32\[2\][\s\S]*\['bias'\]"):
        optimizer.next(optimizer.initialize(WEIGHTS), WEIGHTS, gradients)


@settings(deadline=None, max_examples=20)
@given(
    learning_rate=st.floats(0.0, 1.0, width=32),
    momentum=st.floats(0.0625, 1.0, width=32),
    nesterov=st.booleans(),
)
def test_momentum_agrees_with_optax(learning_rate: float, momentum: float, nesterov: bool) -> None:
    """For all rates and momenta the builder and `optax.sgd` make the same steps."""
    ours = run(optimizers.build_sgdm(learning_rate, momentum, nesterov), steps=3)
    theirs = run(optimizers.from_optax(optax.sgd(learning_rate, momentum, nesterov)), steps=3)

    assert_trees_close(ours, theirs, rtol=1e-5, atol=1e-5)


OPTAX = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "scheduled": optax.sgd(optax.exponential_decay(0.1, 1, 0.5)),
}


@pytest.mark.parametrize("name", OPTAX)
def test_an_optax_transformation_is_an_optimizer(name: str) -> None:
    """The adapter makes the steps that optax's own loop makes."""
    transformation = OPTAX[name]
    weights, state = jax.tree.map(jnp.asarray, WEIGHTS), transformation.init(WEIGHTS)
    for i in range(STEPS):
        updates, state = transformation.update(gradients_of_step(i), state, weights)
        weights = optax.apply_updates(weights, updates)

    assert_trees_close(run(as_optimizer(transformation)), weights, rtol=1e-6)


def test_injected_hyperparameters_are_read_and_set_wherever_they_stand() -> None:
    """Names that occur twice in a chain are numbered; scheduled ones are left out."""
    injected = optax.inject_hyperparams(optax.sgd)
    optimizer = optimizers.from_optax(
        optax.chain(
            injected(learning_rate=0.5),
            injected(learning_rate=0.25),
            injected(learning_rate=optax.constant_schedule(2.0)),
        )
    )
    state = optimizer.initialize(jnp.zeros(2))

    assert {k: float(v) for k, v in optimizer.get_hparams(state).items()} == {
        "learning_rate": 0.5,
        "learning_rate_1": 0.25,
    }
    state = optimizer.set_hparams(state, {"learning_rate_1": 4.0})
    _, weights = optimizer.next(state, jnp.zeros(2), jnp.ones(2))
    # Each of the three steps of the chain multiplies by minus its rate.
    np.testing.assert_allclose(weights, np.full(2, -0.5 * 4.0 * 2.0), rtol=1e-6)


def test_a_plain_optax_optimizer_has_no_hyperparameters() -> None:
    """Without `inject_hyperparams` the rate is no part of the state, and the error says what to do."""
    optimizer = as_optimizer(optax.sgd(0.1))
    state = optimizer.initialize(WEIGHTS)

    assert optimizer.get_hparams(state) == {}
    with pytest.raises(UnknownHparamError, match="inject_hyperparams"):
        optimizer.set_hparams(state, {"learning_rate": 1.0})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(0.1, "optax.sgd"), (optax.sgd, "call the function and pass its result"), (None, "optax.sgd")],
)
def test_what_is_no_optimizer_is_refused_with_a_hint(wrong, message: str) -> None:
    """A number, a builder or None gives a `TypeError` that shows how to write it."""
    with pytest.raises(KoinonTypeError, match=message):
        as_optimizer(wrong)


def test_an_optimizer_stays_itself() -> None:
    """`as_optimizer` does not wrap what is an optimizer already."""
    optimizer = optimizers.build_sgdm(0.1)

    assert as_optimizer(optimizer) is optimizer


@pytest.mark.parametrize(
    "optimizer", [optimizers.build_sgdm(9.0), optax.inject_hyperparams(optax.sgd)(learning_rate=9.0)]
)
def test_a_schedule_gives_step_i_the_rate_i(optimizer) -> None:
    """With gradient -1 the weight is the sum of the rates of the steps so far, counted from 0."""
    scheduled = optimizers.schedule_learning_rate(optimizer, lambda i: 0.1 * (i + 1))
    state, weight = scheduled.initialize(jnp.zeros(())), jnp.float32(0)
    step = jax.jit(scheduled.next)

    for rates in (0.1, 0.1 + 0.2, 0.1 + 0.2 + 0.3):
        state, weight = step(state, weight, jnp.float32(-1))
        np.testing.assert_allclose(weight, rates, rtol=1e-6)
    assert int(state["round_num"]) == 3


def test_a_scheduled_rate_is_no_hyperparameter() -> None:
    """The other hyperparameters can be set, the rate cannot."""
    scheduled = optimizers.schedule_learning_rate(optimizers.build_sgdm(1.0, momentum=0.5), lambda i: 0.1)
    state = scheduled.initialize(WEIGHTS)

    assert list(scheduled.get_hparams(state)) == ["momentum"]
    assert float(scheduled.set_hparams(state, {"momentum": 0.25})["optimizer"]["momentum"]) == 0.25
    with pytest.raises(UnknownHparamError, match="follows a schedule"):
        scheduled.set_hparams(state, {"learning_rate": 1.0})


def test_an_optimizer_without_a_rate_cannot_be_scheduled() -> None:
    """The error is a `KeyError` as well, and names what is missing."""
    scheduled = optimizers.schedule_learning_rate(optax.sgd(0.1), lambda i: 0.1)

    with pytest.raises(KeyError, match="learning_rate"):
        scheduled.initialize(WEIGHTS)


@pytest.mark.parametrize(("optimizer", "schedule"), [(0.1, lambda i: 0.1), (optimizers.build_sgdm(0.1), 0.1)])
def test_a_schedule_needs_an_optimizer_and_a_function(optimizer, schedule) -> None:
    """Anything else is a `TypeError`."""
    with pytest.raises(KoinonTypeError):
        optimizers.schedule_learning_rate(optimizer, schedule)
