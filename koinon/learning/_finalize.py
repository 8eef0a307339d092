"""The template of the server's last step, and two of its kind: one optimizer step, and none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from koinon._errors import (
    FinalizerResultTypeError,
    KoinonTypeError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplatePlacementError,
)
from koinon.aggregators._norms import all_finite
from koinon.computation import (
    Computation,
    federated_computation,
    federated_eval,
    federated_map,
    federated_value,
    federated_zip,
    jax_computation,
)
from koinon.learning._hparams import hparams_computations
from koinon.learning._non_trainable import NonTrainableRule, are_shared, update_of, updated_values
from koinon.learning._optimizer import as_optimizer
from koinon.learning._weights import ModelWeights
from koinon.templates._checks import (
    check_all_placed,
    check_argument_count,
    check_placement,
    check_returns_placed,
    mismatch,
)
from koinon.templates._iterative import IterativeProcess
from koinon.templates._measured import MeasuredProcess, MeasuredProcessOutput
from koinon.templates._signature import output_of
from koinon.templates._specs import specs_of
from koinon.types import (
    SERVER,
    StructType,
    Type,
    at_server,
    contains_federated_types,
    is_structure_of_tensors,
    strip_placement,
    to_type,
)


class FinalizerProcess(MeasuredProcess):
    """A process that updates a value of the server with what was aggregated from the clients.

    Type: `initialize ( -> S@SERVER)`,
    `next (<S@SERVER,A@SERVER,B@SERVER> -> <state=S@SERVER,result=A@SERVER,measurements=M@SERVER>)`

    The second argument is the value, the third the aggregate; the result has the type of the second.

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state, at the server.
      next_fn: a `Computation` of the type above; it returns a `MeasuredProcessOutput`.
      get_hparams_fn: a `Computation` `(S -> H)` on the unplaced state; if None, there are no hyperparameters.
      set_hparams_fn: a `Computation` `(<S,H> -> S)` on the unplaced state; if None, it changes nothing.
      next_is_multi_arg: see `IterativeProcess`; None counts as True, since `next` takes several arguments.
      parts: see `IterativeProcess`.

    Raises:
      TypeError, TemplateInitFnParamNotEmptyError, TemplateStateNotAssignableError,
        TemplateNotMeasuredProcessOutputError: see `MeasuredProcess`.
      TemplateNotFederatedError: if the state, an argument or a result is not placed.
      TemplatePlacementError: if one of them is not at the server.
      TemplateNextFnNumArgsError: if `next_fn` does not take exactly three arguments.
      FinalizerResultTypeError: if the result does not have the type of the second argument.
      GetHparamsTypeError, SetHparamsTypeError: if a computation on hyperparameters does not fit the state.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> from koinon.types import at_server
      >>> @ko.federated_computation
      ... def no_state():
      ...     return ko.federated_value((), ko.SERVER)
      >>> @ko.federated_computation(no_state.type_signature.result, at_server(jnp.float32), at_server(jnp.float32))
      ... def add(state, value, aggregate):
      ...     total = ko.federated_map(lambda a, b: a + b, (value, aggregate))
      ...     return ko.templates.MeasuredProcessOutput(state, total, ko.federated_value((), ko.SERVER))
      >>> finalizer = ko.learning.templates.FinalizerProcess(no_state, add)
      >>> float(finalizer.next(finalizer.initialize(), 1.0, 2.0).result)
      3.0
    """

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        *,
        get_hparams_fn: Computation | None = None,
        set_hparams_fn: Computation | None = None,
        next_is_multi_arg: bool | None = None,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg is not False, parts=parts)
        template = type(self).__name__
        signature = next_fn.type_signature
        state = initialize_fn.type_signature.result
        check_returns_placed(state, template, TemplateNotFederatedError)
        check_all_placed(signature, template, TemplateNotFederatedError)
        check_placement(state, SERVER, "the state", template, TemplatePlacementError)
        _, value, aggregate = check_argument_count(signature, range(3, 4), template, TemplateNextFnNumArgsError)
        value = check_placement(value, SERVER, "the second argument of `next`", template, TemplatePlacementError)
        check_placement(aggregate, SERVER, "the third argument of `next`", template, TemplatePlacementError)
        result = output_of(signature, "result")
        result = check_placement(result, SERVER, "`result` of `next`", template, TemplatePlacementError)
        if not value.member.is_assignable_from(result.member):
            raise mismatch(
                FinalizerResultTypeError,
                f"{template}: the result must have the type of the second argument, which it updates.",
                value.member,
                result.member,
                "return the updated value, in the type in which it came",
            )
        measurements = output_of(signature, "measurements")
        check_placement(measurements, SERVER, "`measurements` of `next`", template, TemplatePlacementError)
        self._get_hparams, self._set_hparams = hparams_computations(
            template, strip_placement(state), get_hparams_fn, set_hparams_fn
        )

    @property
    def get_hparams(self) -> Computation:
        """The computation of the hyperparameters from the unplaced state."""
        return self._get_hparams

    @property
    def set_hparams(self) -> Computation:
        """The computation of the unplaced state with other hyperparameters."""
        return self._set_hparams


def reject_non_finite_update(state: Any, update: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether an update has an element that is not finite, and the measurement of it.

    Args:
      state: the state of the optimizer after the step; not looked at.
      update: the aggregated update, a pytree of arrays.

    Returns:
      A bool scalar, True if the update is to be rejected, and `{"update_non_finite": int32}`, 1 if it is.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> rejected, _ = ko.learning.templates.reject_non_finite_update((), {"w": jnp.array([1.0, jnp.nan])})
      >>> bool(rejected)
      True
    """
    del state
    is_rejected = ~all_finite(update)
    return is_rejected, {"update_non_finite": is_rejected.astype(jnp.int32)}


def build_apply_optimizer_finalizer(
    optimizer: Any,
    model_weights_type: Type,
    should_reject_update: Callable[[Any, Any], tuple[Any, Any]] = reject_non_finite_update,
    *,
    non_trainable_rules: Sequence[NonTrainableRule] = (),
) -> FinalizerProcess:
    """The finalizer that applies one step of an optimizer, with the aggregated update as the gradient.

    Type: `(<S@SERVER,<trainable=T,non_trainable=N>@SERVER,T@SERVER> ->
    <state=S@SERVER,result=<trainable=T,non_trainable=N>@SERVER,measurements=M@SERVER>)`

    Only the trainable weights are stepped. A rejected update leaves both the weights and the state of the optimizer as
    they were, so that a round without clients, or with a broken one, is as if it had not been.

    If the server takes some of the non-trainable weights (`NonTrainableRule.MEAN` or `MAX`), the update is
    `<trainable=T,mean=...,max=...>`, and these leaves change with it.

    Args:
      optimizer: an `Optimizer` or an optax `GradientTransformation`.
      model_weights_type: the unplaced type of the weights, a struct with the container `ModelWeights`.
      should_reject_update: called as `should_reject_update(optimizer_state, update)` with the state after the step;
        returns whether to reject the update, a bool, and measurements or None.
      non_trainable_rules: the rule of each leaf of the non-trainable weights, `model.non_trainable_rules`.

    Raises:
      TypeError: if `optimizer` is no optimizer, or `model_weights_type` another type.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> from koinon.learning.models import ModelWeights
      >>> weights = ModelWeights(trainable=jnp.float32([1.0, 2.0]), non_trainable=())
      >>> finalizer = ko.learning.templates.build_apply_optimizer_finalizer(
      ...     ko.learning.optimizers.build_sgdm(learning_rate=0.5), ko.to_type(weights)
      ... )
      >>> finalizer.next(finalizer.initialize(), weights, jnp.float32([2.0, 2.0])).result.trainable.tolist()
      [0.0, 1.0]
    """
    optimizer = as_optimizer(optimizer)
    weights_type = _check_model_weights_type(model_weights_type)
    trainable_type, update_type = weights_type["trainable"], weights_type["trainable"]
    rules, takes_others = tuple(non_trainable_rules), are_shared(tuple(non_trainable_rules))
    if takes_others:
        specs = specs_of(weights_type)
        update_type = to_type(jax.eval_shape(functools.partial(update_of, rules), specs[0], specs[1], specs[1]))

    @jax_computation
    def initialize_optimizer() -> Any:
        return optimizer.initialize(specs_of(trainable_type))

    state_type = initialize_optimizer.type_signature.result

    @federated_computation
    def initialize_fn() -> Any:
        return federated_eval(initialize_optimizer, SERVER)

    def step(state: Any, weights: tuple[Any, ...], update: Any) -> tuple[Any, Any, Any]:
        new_state, trainable = optimizer.next(state, weights[0], update.trainable if takes_others else update)
        is_rejected, measurements = should_reject_update(new_state, update)
        new_weights = (trainable, updated_values(rules, weights[1], update)) if takes_others else (trainable,)
        kept = jax.tree.map(
            lambda old, new: jnp.where(is_rejected, old, new), (state, weights), (new_state, new_weights)
        )
        return (*kept, {} if measurements is None else measurements)

    @federated_computation(at_server(state_type), at_server(model_weights_type), at_server(update_type))
    def next_fn(state: Any, weights: Any, update: Any) -> Any:
        stepped = (weights.trainable, weights.non_trainable) if takes_others else (weights.trainable,)
        state, stepped, measurements = federated_map(step, (state, stepped, update))
        non_trainable = stepped[1] if takes_others else weights.non_trainable
        return MeasuredProcessOutput(state, federated_zip(ModelWeights(stepped[0], non_trainable)), measurements)

    get_hparams = jax_computation(state_type)(optimizer.get_hparams)
    set_hparams = jax_computation(state_type, get_hparams.type_signature.result)(optimizer.set_hparams)
    return FinalizerProcess(initialize_fn, next_fn, get_hparams_fn=get_hparams, set_hparams_fn=set_hparams)


def build_identity_finalizer(model_weights_type: Type, update_type: Type) -> FinalizerProcess:
    """The finalizer that changes nothing: for processes that only look, such as an evaluation.

    Type: `(<<>@SERVER,A@SERVER,B@SERVER> -> <state=<>@SERVER,result=A@SERVER,measurements=<>@SERVER>)`

    Args:
      model_weights_type: the unplaced type of the value that stays as it is.
      update_type: the unplaced type of the aggregate that is not looked at.

    Example:
      >>> import koinon as ko
      >>> tensor = ko.types.TensorType("float32")
      >>> finalizer = ko.learning.templates.build_identity_finalizer(tensor, tensor)
      >>> float(finalizer.next(finalizer.initialize(), 1.0, 9.0).result)
      1.0
    """

    @federated_computation
    def initialize_fn() -> Any:
        return federated_value((), SERVER)

    @federated_computation(at_server(to_type(())), at_server(model_weights_type), at_server(update_type))
    def next_fn(state: Any, weights: Any, update: Any) -> Any:
        del update
        return MeasuredProcessOutput(state, weights, federated_value((), SERVER))

    return FinalizerProcess(initialize_fn, next_fn)


def _check_model_weights_type(model_weights_type: Type) -> StructType:
    is_placed = contains_federated_types(model_weights_type)
    is_struct = isinstance(model_weights_type, StructType)
    if not is_struct or model_weights_type.container is not ModelWeights or is_placed:
        raise KoinonTypeError(
            "The type of a model's weights must be an unplaced struct with the container ModelWeights.",
            expected="<trainable=T,non_trainable=N> as ModelWeights",
            found=repr(model_weights_type),
            hint="pass `ko.to_type(ModelWeights(trainable, non_trainable))`",
        )
    if not is_structure_of_tensors(model_weights_type):
        raise KoinonTypeError("The weights of a model must be tensors.", found=model_weights_type)
    return model_weights_type
