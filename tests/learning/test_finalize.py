"""`FinalizerProcess`, the step of an optimizer, and the step of none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import koinon as ko
from koinon.computation import to_value
from koinon.learning._weights import ModelWeights
from koinon.learning.optimizers import build_adam, build_sgdm
from koinon.learning.templates import (
    FinalizerProcess,
    FinalizerResultTypeError,
    GetHparamsTypeError,
    SetHparamsTypeError,
    build_apply_optimizer_finalizer,
    build_identity_finalizer,
    reject_non_finite_update,
)
from koinon.templates import (
    MeasuredProcess,
    MeasuredProcessOutput,
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplateNotMeasuredProcessOutputError,
    TemplatePlacementError,
    TemplateStateNotAssignableError,
)
from koinon.types import FederatedType, StructType, TensorType, at_clients, at_server, to_type

INT, FLOAT = TensorType(jnp.int32), TensorType(jnp.float32)
STATE, VALUE, UPDATE = at_server(INT), at_server(FLOAT), at_server(TensorType(jnp.float32, (2,)))


def server(value):
    """A constant at the server."""
    return ko.federated_value(value, ko.SERVER)


def next_of(fn, *types):
    """A `next` of these types, by default of a state, a value and an update."""
    return ko.federated_computation(*(types or (STATE, VALUE, UPDATE)))(fn)


first = ko.federated_computation(lambda: server(0))
add = next_of(
    lambda s, v, u: MeasuredProcessOutput(s, ko.federated_map(lambda a, b: a + jnp.sum(b), (v, u)), server(()))
)


def test_a_finalizer_updates_a_value_of_the_server(backend):
    """The update may have another type than the value."""
    process = FinalizerProcess(first, add)

    assert float(process.next(process.initialize(), 1.0, np.float32([2.0, 3.0])).result) == 6.0
    assert isinstance(process, MeasuredProcess)


def test_the_result_has_the_type_of_the_second_argument_not_the_third():
    """A result of the type of the update is refused."""
    next_fn = next_of(lambda s, v, u: MeasuredProcessOutput(s, u, server(())))
    with pytest.raises(FinalizerResultTypeError, match=r"expected   float32\n  found      float32\[2\]"):
        FinalizerProcess(first, next_fn)


ILL_FORMED = {
    # in the order of the checks
    "initialize takes a parameter": (
        ko.federated_computation(STATE)(lambda s: s),
        add,
        TemplateInitFnParamNotEmptyError,
    ),
    "the state does not go in": (
        ko.federated_computation(lambda: server(0.0)),
        add,
        TemplateStateNotAssignableError,
    ),
    "the output is a tuple": (
        first,
        next_of(lambda s, v, u: (s, v, server(()))),
        TemplateNotMeasuredProcessOutputError,
    ),
    "nothing is placed": (
        ko.jax_computation(lambda: jnp.int32(0)),
        ko.jax_computation(INT, FLOAT)(lambda s, v: MeasuredProcessOutput(s, v, ())),
        TemplateNotFederatedError,
    ),
    "the measurements are an unplaced number": (
        first,
        next_of(lambda s, v, u: MeasuredProcessOutput(s, v, to_value(1.0))),
        TemplateNotFederatedError,
    ),
    "the state is at the clients, and an argument unplaced": (
        ko.federated_computation(lambda: ko.federated_value(0, ko.CLIENTS)),
        next_of(
            lambda s, v, u: MeasuredProcessOutput(s, v, server(())),
            FederatedType(INT, ko.CLIENTS, all_equal=True),
            VALUE,
            FLOAT,
        ),
        TemplateNotFederatedError,
    ),
    "the state is at the clients": (
        ko.federated_computation(lambda: ko.federated_value(0, ko.CLIENTS)),
        next_of(
            lambda s, v, u: MeasuredProcessOutput(s, v, server(())),
            FederatedType(INT, ko.CLIENTS, all_equal=True),
            VALUE,
            UPDATE,
        ),
        TemplatePlacementError,
    ),
    "next takes two arguments": (
        first,
        next_of(lambda s, v: MeasuredProcessOutput(s, v, server(())), STATE, VALUE),
        TemplateNextFnNumArgsError,
    ),
    "next takes four arguments": (
        first,
        next_of(lambda s, v, u, w: MeasuredProcessOutput(s, v, server(())), STATE, VALUE, UPDATE, UPDATE),
        TemplateNextFnNumArgsError,
    ),
    "the value is at the clients": (
        first,
        next_of(
            lambda s, v, u: MeasuredProcessOutput(s, ko.federated_sum(v), server(())), STATE, at_clients(FLOAT), UPDATE
        ),
        TemplatePlacementError,
    ),
    "the update is at the clients": (
        first,
        next_of(lambda s, v, u: MeasuredProcessOutput(s, v, server(())), STATE, VALUE, at_clients(FLOAT)),
        TemplatePlacementError,
    ),
    "the result is at the clients": (
        first,
        next_of(lambda s, v, u: MeasuredProcessOutput(s, ko.federated_broadcast(v), server(()))),
        TemplatePlacementError,
    ),
    "the result is an int": (
        first,
        next_of(lambda s, v, u: MeasuredProcessOutput(s, s, server(()))),
        FinalizerResultTypeError,
    ),
    "the measurements are at the clients": (
        first,
        next_of(lambda s, v, u: MeasuredProcessOutput(s, v, ko.federated_broadcast(v))),
        TemplatePlacementError,
    ),
    "the measurements are an unplaced empty tuple": (
        first,
        next_of(lambda s, v, u: MeasuredProcessOutput(s, v, ())),
        TemplatePlacementError,
    ),
}


@pytest.mark.parametrize("case", ILL_FORMED)
def test_an_ill_formed_finalizer_raises_the_error_of_its_contract(case):
    """Each violation has its own class, and the first in the order of the checks wins."""
    initialize, next_fn, error = ILL_FORMED[case]
    with pytest.raises(TypeError) as raised:
        FinalizerProcess(initialize, next_fn)

    assert type(raised.value) is error


def test_what_is_no_computation_is_refused_by_name():
    """A Python function is not a computation."""
    with pytest.raises(TypeError, match=r"Expected .*\.Computation, .*"):
        FinalizerProcess(first, lambda state, value, update: value)


def test_hyperparameters_are_checked_against_the_unplaced_state():
    """As for client works."""
    with pytest.raises(GetHparamsTypeError):
        FinalizerProcess(first, add, get_hparams_fn=ko.jax_computation(FLOAT)(lambda s: s))
    with pytest.raises(SetHparamsTypeError):
        FinalizerProcess(first, add, set_hparams_fn=ko.jax_computation(INT)(lambda s: s))


WEIGHTS = ModelWeights(trainable={"w": np.float32([[1.0, 2.0]]), "b": np.float32([0.5])}, non_trainable=(np.int32(7),))
GRADIENT = {"w": np.float32([[0.5, -1.0]]), "b": np.float32([2.0])}


def plain(tree):
    """A tree of arrays as nested lists."""
    return {name: np.asarray(leaf).tolist() for name, leaf in tree.items()}


def test_the_optimizer_steps_the_trainable_weights_only(backend):
    """SGD: w - rate * gradient; the rest is passed on."""
    process = build_apply_optimizer_finalizer(build_sgdm(0.5), to_type(WEIGHTS))
    output = process.next(process.initialize(), WEIGHTS, GRADIENT)

    assert isinstance(output.result, ModelWeights)
    assert plain(output.result.trainable) == {"w": [[0.75, 2.5]], "b": [-0.5]}
    assert int(output.result.non_trainable[0]) == 7
    assert int(output.measurements["update_non_finite"]) == 0


@pytest.mark.parametrize("make", [lambda: build_adam(0.1), lambda: optax.adam(0.1), lambda: optax.sgd(0.1, 0.9)])
def test_several_steps_are_those_of_the_optimizer(backend, make):
    """The state of the optimizer is the state of the process, for those of koinon and of optax."""
    optimizer = make()
    process = build_apply_optimizer_finalizer(optimizer, to_type(WEIGHTS))
    if isinstance(optimizer, optax.GradientTransformation):
        expected, opt_state = WEIGHTS.trainable, optimizer.init(WEIGHTS.trainable)
        for _ in range(3):
            updates, opt_state = optimizer.update(GRADIENT, opt_state, expected)
            expected = optax.apply_updates(expected, updates)
    else:
        expected, opt_state = WEIGHTS.trainable, optimizer.initialize(WEIGHTS.trainable)
        for _ in range(3):
            opt_state, expected = optimizer.next(opt_state, expected, GRADIENT)
    state, weights = process.initialize(), WEIGHTS
    for _ in range(3):
        output = process.next(state, weights, GRADIENT)
        state, weights = output.state, output.result

    for name, leaf in expected.items():
        np.testing.assert_allclose(weights.trainable[name], leaf, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_changes_neither_weights_nor_optimizer(backend, bad):
    """After it, the process continues as if the round had not been."""
    process = build_apply_optimizer_finalizer(build_adam(0.1), to_type(WEIGHTS))
    once = process.next(process.initialize(), WEIGHTS, GRADIENT)
    broken = {"w": np.float32([[0.5, bad]]), "b": np.float32([2.0])}
    rejected = process.next(once.state, once.result, broken)

    assert int(rejected.measurements["update_non_finite"]) == 1
    assert rejected.measurements["update_non_finite"].dtype == jnp.int32
    for kept, old in ((rejected.state, once.state), (rejected.result, once.result)):
        for kept_leaf, old_leaf in zip(_leaves(kept), _leaves(old), strict=True):
            np.testing.assert_array_equal(kept_leaf, old_leaf)


def _leaves(tree):
    return jax.tree.leaves(tree)


def test_the_rejection_may_be_another(backend):
    """The function sees the new state and the update, and may measure nothing."""
    process = build_apply_optimizer_finalizer(
        build_sgdm(1.0), to_type(WEIGHTS), lambda state, update: (update["b"][0] > 1.0, None)
    )
    rejected = process.next(process.initialize(), WEIGHTS, GRADIENT)
    accepted = process.next(process.initialize(), WEIGHTS, {"w": GRADIENT["w"], "b": np.float32([1.0])})

    assert plain(rejected.result.trainable) == plain(WEIGHTS.trainable)
    assert plain(accepted.result.trainable) == {"w": [[0.5, 3.0]], "b": [-0.5]}
    assert rejected.measurements == {}


def test_hyperparameters_live_in_the_state_of_the_optimizer(backend):
    """A learning rate that is set is the rate of the next step."""
    process = build_apply_optimizer_finalizer(build_sgdm(0.5), to_type(WEIGHTS))
    state = process.initialize()
    assert {name: float(value) for name, value in process.get_hparams(state).items()} == {"learning_rate": 0.5}

    state = process.set_hparams(state, {"learning_rate": 2.0})

    assert float(process.get_hparams(state)["learning_rate"]) == 2.0
    assert plain(process.next(state, WEIGHTS, GRADIENT).result.trainable) == {"w": [[0.0, 4.0]], "b": [-3.5]}


def test_the_types_are_those_of_a_finalizer():
    """Weights in, weights out; the update has the type of the trainable ones."""
    process = build_apply_optimizer_finalizer(build_sgdm(0.5), to_type(WEIGHTS))
    signature = process.next.type_signature

    assert signature.parameter[1] == at_server(to_type(WEIGHTS))
    assert signature.parameter[2].member == to_type(WEIGHTS).trainable
    assert signature.result["result"] == at_server(to_type(WEIGHTS))


@pytest.mark.parametrize(
    "weights_type",
    [
        to_type(tuple(WEIGHTS)),
        to_type(dict(WEIGHTS._asdict())),
        at_server(to_type(WEIGHTS)),
        StructType([("trainable", at_server(FLOAT)), ("non_trainable", StructType([]))], ModelWeights),
        FLOAT,
    ],
    ids=str,
)
def test_the_weights_are_unplaced_model_weights(weights_type):
    """Recognised by their container."""
    with pytest.raises(TypeError, match="ModelWeights"):
        build_apply_optimizer_finalizer(build_sgdm(0.5), weights_type)


def test_what_is_no_optimizer_is_refused():
    """A function that returns an optimizer is not one."""
    with pytest.raises(TypeError, match="optimizer"):
        build_apply_optimizer_finalizer(lambda: build_sgdm(0.5), to_type(WEIGHTS))


def test_the_identity_changes_nothing(backend):
    """Whatever the update is."""
    process = build_identity_finalizer(to_type(WEIGHTS), FLOAT)
    output = process.next(process.initialize(), WEIGHTS, np.nan)

    assert plain(output.result.trainable) == plain(WEIGHTS.trainable)
    assert output.state == output.measurements == ()


@pytest.mark.parametrize(
    ("update", "rejected"),
    [((), False), ({"a": jnp.ones(2)}, False), ({"a": jnp.ones(2), "b": jnp.float32(jnp.inf)}, True)],
)
def test_an_update_is_rejected_if_any_element_is_not_finite(update, rejected):
    """And never for having no element."""
    is_rejected, measurements = reject_non_finite_update((), update)

    assert bool(is_rejected) is rejected
    assert int(measurements["update_non_finite"]) == int(rejected)
