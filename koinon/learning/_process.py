"""The template of learning algorithms: what users drive round by round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from koinon._errors import (
    GetModelWeightsTypeSignatureError,
    LearningProcessOutputError,
    LearningProcessPlacementError,
    LearningProcessSequenceTypeError,
    SetModelWeightsTypeSignatureError,
    TemplateNextFnNumArgsError,
)
from koinon.computation import Computation
from koinon.learning._client_state import check_client_state
from koinon.learning._hparams import hparams_computations
from koinon.templates._checks import check_argument_count, check_computation, check_placement, mismatch
from koinon.templates._iterative import IterativeProcess
from koinon.templates._signature import arguments_of, output_of
from koinon.types import (
    CLIENTS,
    SERVER,
    StructType,
    Type,
    is_structure_of_sequences,
    register_container,
    strip_placement,
)


class LearningProcessOutput(NamedTuple):
    """What a round of a learning process returns.

    Attributes:
      state: the state for the next round, at the server.
      metrics: what is worth knowing about the round, at the server.
    """

    state: Any
    metrics: Any


class ClientStateLearningOutput(NamedTuple):
    """What a round of a learning process with client state returns.

    Attributes:
      state: the state for the next round, at the server.
      client_state: what each client of the cohort keeps until it takes part again, at the clients.
      metrics: what is worth knowing about the round, at the server.
    """

    state: Any
    client_state: Any
    metrics: Any


register_container("koinon.LearningProcessOutput", LearningProcessOutput)
register_container("koinon.ClientStateLearningOutput", ClientStateLearningOutput)


class LearningProcess(IterativeProcess):
    """A learning algorithm: a state at the server, and a round that takes the data of a cohort.

    Type: `initialize ( -> S@SERVER)`,
    `next (<S@SERVER,{D*}@CLIENTS> -> <state=S@SERVER,metrics=M@SERVER>)`,
    `get_model_weights (S -> W)`, `set_model_weights (<S,W> -> S)`, `get_hparams (S -> H)`, `set_hparams (<S,H> -> S)`

    The last four work on the unplaced state, which is what `initialize` and `next` return to Python.

    With `client_state_fn`, clients keep a state of their own from one participation to the next, which TFF has no
    template for:
    `next (<S@SERVER,{C}@CLIENTS,{D*}@CLIENTS> -> <state=S@SERVER,client_state={C}@CLIENTS,metrics=M@SERVER>)`,
    where `next` returns a `ClientStateLearningOutput`. Whoever drives the process keeps the states by client id and
    begins with that of `initialize_client_state`.

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state, at the server.
      next_fn: a `Computation` of the type above; it returns a `LearningProcessOutput`.
      get_model_weights: a `Computation` `(S -> W)` on the unplaced state.
      set_model_weights: a `Computation` `(<S,W> -> S)` on the unplaced state.
      get_hparams_fn: a `Computation` `(S -> H)` on the unplaced state; if None, there are no hyperparameters.
      set_hparams_fn: a `Computation` `(<S,H> -> S)` on the unplaced state; if None, it changes nothing.
      client_state_fn: a `Computation` `( -> C)` of the state of a client that has not taken part yet, unplaced; None
        if clients keep no state.
      next_is_multi_arg: see `IterativeProcess`.
      parts: see `IterativeProcess`.

    Raises:
      TypeError, TemplateInitFnParamNotEmptyError, TemplateStateNotAssignableError: see `IterativeProcess`.
      LearningProcessPlacementError: if the state or the metrics are not at the server, or the data not at the clients.
      LearningProcessOutputError: if `next_fn` does not return a `LearningProcessOutput`.
      TemplateNextFnNumArgsError: if `next_fn` does not take exactly two arguments, three with client state.
      LearningProcessSequenceTypeError: if the data is not a (struct of) sequence(s).
      GetModelWeightsTypeSignatureError: if `get_model_weights` does not take the state.
      SetModelWeightsTypeSignatureError: if `set_model_weights` does not take the state and the weights, or does not
        return the state.
      GetHparamsTypeError, SetHparamsTypeError: if a computation on hyperparameters does not fit the state.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> from koinon.learning.templates import LearningProcess, LearningProcessOutput
      >>> from koinon.types import SequenceType, at_clients, at_server
      >>> @ko.federated_computation
      ... def initialize():
      ...     return ko.federated_value(0.0, ko.SERVER)
      >>> @ko.federated_computation(at_server(jnp.float32), at_clients(SequenceType(jnp.float32)))
      ... def learn_mean(state, data):
      ...     total = ko.federated_map(lambda xs: xs.reduce(jnp.float32(0.0), lambda t, x: t + x), data)
      ...     count = ko.federated_map(lambda xs: xs.length.astype(jnp.float32), data)
      ...     mean = ko.federated_map(lambda t, n: t / n, (ko.federated_sum(total), ko.federated_sum(count)))
      ...     return LearningProcessOutput(mean, ko.federated_value((), ko.SERVER))
      >>> get = ko.jax_computation(jnp.float32)(lambda state: state)
      >>> set_ = ko.jax_computation(jnp.float32, jnp.float32)(lambda state, weights: weights)
      >>> process = LearningProcess(initialize, learn_mean, get, set_)
      >>> float(process.next(process.initialize(), [[1.0, 2.0], [6.0]]).state)
      3.0
    """

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        get_model_weights: Computation,
        set_model_weights: Computation,
        *,
        get_hparams_fn: Computation | None = None,
        set_hparams_fn: Computation | None = None,
        client_state_fn: Computation | None = None,
        next_is_multi_arg: bool | None = None,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg, parts=parts)
        template = type(self).__name__
        state = initialize_fn.type_signature.result
        check_placement(state, SERVER, "the state", template, LearningProcessPlacementError)
        _check_next(template, next_fn, client_state_fn)
        # `next` may take a wider state than `initialize` returns, and weights are read from and written to either.
        taken = arguments_of(next_fn.type_signature)[0]
        taken = check_placement(taken, SERVER, "the state", template, LearningProcessPlacementError)
        _check_get_model_weights(template, get_model_weights, taken.member)
        _check_set_model_weights(template, set_model_weights, taken.member)
        self._get_model_weights = get_model_weights
        self._set_model_weights = set_model_weights
        self._client_state_fn = client_state_fn
        self._get_hparams, self._set_hparams = hparams_computations(
            template, strip_placement(state), get_hparams_fn, set_hparams_fn
        )

    @property
    def get_model_weights(self) -> Computation:
        """The computation of the model's weights from the unplaced state."""
        return self._get_model_weights

    @property
    def set_model_weights(self) -> Computation:
        """The computation of the unplaced state with other weights of the model."""
        return self._set_model_weights

    @property
    def get_hparams(self) -> Computation:
        """The computation of the hyperparameters from the unplaced state."""
        return self._get_hparams

    @property
    def set_hparams(self) -> Computation:
        """The computation of the unplaced state with other hyperparameters."""
        return self._set_hparams

    @property
    def initialize_client_state(self) -> Computation | None:
        """The computation of the state of a client that has not taken part yet; None if clients keep no state."""
        return self._client_state_fn

    @property
    def client_state_type(self) -> Type | None:
        """The unplaced type of the state that a client keeps; None if clients keep no state."""
        if self._client_state_fn is None:
            return None
        return strip_placement(arguments_of(self.next.type_signature)[1])


def _check_next(template: str, next_fn: Computation, client_state_fn: Computation | None) -> None:
    signature = next_fn.type_signature
    output = LearningProcessOutput if client_state_fn is None else ClientStateLearningOutput
    if not isinstance(signature.result, StructType) or signature.result.container is not output:
        raise LearningProcessOutputError(
            f"{template}: `next` must return a `{output.__name__}`.",
            expected=f"<{','.join(output._fields)}> as {output.__name__}",
            found=repr(signature.result),
            hint=f"return `{output.__name__}({', '.join(output._fields)})` from `next`",
        )
    count = 2 if client_state_fn is None else 3
    arguments = check_argument_count(signature, range(count, count + 1), template, TemplateNextFnNumArgsError)
    data = arguments[-1]
    data = check_placement(data, CLIENTS, "the last argument of `next`", template, LearningProcessPlacementError)
    if not is_structure_of_sequences(data.member):
        raise LearningProcessSequenceTypeError(
            f"{template}: the data of a client must be a sequence, or a struct of sequences.",
            expected="{D*}@CLIENTS",
            found=data,
            hint="declare it as `at_clients(SequenceType(D))`, where D is one example",
        )
    metrics = output_of(signature, "metrics")
    check_placement(metrics, SERVER, "`metrics` of `next`", template, LearningProcessPlacementError)
    if client_state_fn is not None:
        returned = output_of(signature, "client_state")
        check_client_state(template, client_state_fn, arguments[1], returned, LearningProcessPlacementError)


def _check_get_model_weights(template: str, get_model_weights: Computation, state_type: Type) -> None:
    check_computation(get_model_weights, "get_model_weights", template)
    parameter = get_model_weights.type_signature.parameter
    what = f"{template}: `get_model_weights` must take the unplaced state of `next`."
    if parameter is None:
        found = get_model_weights.type_signature
        raise GetModelWeightsTypeSignatureError(what, expected=f"({state_type} -> W)", found=found)
    if not parameter.is_equivalent_to(state_type):
        hint = "declare its parameter as `next.type_signature.parameter[0].member`"
        raise mismatch(GetModelWeightsTypeSignatureError, what, state_type, parameter, hint)


def _check_set_model_weights(template: str, set_model_weights: Computation, state_type: Type) -> None:
    check_computation(set_model_weights, "set_model_weights", template)
    signature = set_model_weights.type_signature
    parameter = signature.parameter
    what = f"{template}: `set_model_weights` must take the unplaced state of `next`, and weights."
    if not isinstance(parameter, StructType) or len(parameter) == 0:
        expected = f"(<{state_type},W> -> {state_type})"
        raise SetModelWeightsTypeSignatureError(what, expected=expected, found=signature)
    if not parameter[0].is_equivalent_to(state_type):
        hint = "declare its first parameter as `next.type_signature.parameter[0].member`"
        raise mismatch(SetModelWeightsTypeSignatureError, what, state_type, parameter[0], hint)
    if not state_type.is_assignable_from(signature.result):
        what = f"{template}: `set_model_weights` must return a state that `next` accepts."
        hint = "return the whole state with other weights in it"
        raise mismatch(SetModelWeightsTypeSignatureError, what, state_type, signature.result, hint)
