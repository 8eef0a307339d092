"""The template of the work that clients do on their own data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from koinon._errors import (
    ClientDataTypeError,
    ClientResultTypeError,
    TemplateNextFnNumArgsError,
    TemplateNotFederatedError,
    TemplateNotMeasuredProcessOutputError,
    TemplatePlacementError,
)
from koinon.computation import Computation
from koinon.learning._client_state import check_client_state
from koinon.learning._hparams import hparams_computations
from koinon.templates._checks import (
    check_all_placed,
    check_argument_count,
    check_placement,
    check_returns_placed,
)
from koinon.templates._iterative import IterativeProcess
from koinon.templates._measured import MeasuredProcess, MeasuredProcessOutput
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


class ClientResult(NamedTuple):
    """What a client work returns for each client.

    Attributes:
      update: what is aggregated, for example the change of the model's weights.
      update_weight: how much it counts in the aggregation.
    """

    update: Any
    update_weight: Any


class ClientStateWorkOutput(NamedTuple):
    """What the step of a client work with client state returns.

    Attributes:
      state: the state of the process for the next step, at the server.
      client_state: what each client keeps until it takes part again, at the clients.
      result: a `ClientResult` at the clients.
      measurements: what is worth knowing about the step, at the server.
    """

    state: Any
    client_state: Any
    result: Any
    measurements: Any


register_container("koinon.ClientResult", ClientResult)
register_container("koinon.ClientStateWorkOutput", ClientStateWorkOutput)


class ClientWorkProcess(MeasuredProcess):
    """A process in which every client works on its data, given a value of the server's.

    Type: `initialize ( -> S@SERVER)`,
    `next (<S@SERVER,A@CLIENTS,{D*}@CLIENTS> ->
    <state=S@SERVER,result={<update=U,update_weight=W>}@CLIENTS,measurements=M@SERVER>)`

    The result is a `ClientResult` at the clients, so its two fields are zipped. The data of a client is a sequence, or
    a struct of sequences.

    With `client_state_fn`, clients keep a state of their own from one participation to the next, which TFF has no
    template for:
    `next (<S@SERVER,A@CLIENTS,{C}@CLIENTS,{D*}@CLIENTS> ->
    <state=S@SERVER,client_state={C}@CLIENTS,result={<update=U,update_weight=W>}@CLIENTS,measurements=M@SERVER>)`,
    where `next` returns a `ClientStateWorkOutput`.

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state, at the server.
      next_fn: a `Computation` of the type above; it returns a `MeasuredProcessOutput`.
      get_hparams_fn: a `Computation` `(S -> H)` on the unplaced state; if None, there are no hyperparameters.
      set_hparams_fn: a `Computation` `(<S,H> -> S)` on the unplaced state; if None, it changes nothing.
      client_state_fn: a `Computation` `( -> C)` of the state of a client that has not taken part yet, unplaced; None
        if clients keep no state.
      next_is_multi_arg: see `IterativeProcess`; None counts as True, since `next` takes several arguments.
      parts: see `IterativeProcess`.

    Raises:
      TypeError, TemplateInitFnParamNotEmptyError, TemplateStateNotAssignableError,
        TemplateNotMeasuredProcessOutputError: see `MeasuredProcess`.
      TemplateNotFederatedError: if the state, an argument or a result is not placed.
      TemplatePlacementError: if one of them is at the wrong place.
      TemplateNextFnNumArgsError: if `next_fn` does not take exactly three arguments, four with client state.
      ClientDataTypeError: if the data is not a (struct of) sequence(s).
      ClientResultTypeError: if the result is not a `ClientResult`.
      GetHparamsTypeError, SetHparamsTypeError: if a computation on hyperparameters does not fit the state.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> from koinon.learning.templates import ClientResult, ClientWorkProcess
      >>> from koinon.types import SequenceType, at_clients
      >>> @ko.federated_computation
      ... def no_state():
      ...     return ko.federated_value((), ko.SERVER)
      >>> def shift(mean, data):
      ...     total = data.reduce(jnp.float32(0.0), lambda carry, x: carry + (x - mean))
      ...     return ClientResult(total, data.length.astype(jnp.float32))
      >>> data_type = at_clients(SequenceType(jnp.float32))
      >>> @ko.federated_computation(no_state.type_signature.result, at_clients(jnp.float32), data_type)
      ... def next_fn(state, mean, data):
      ...     result = ko.federated_map(shift, (mean, data))
      ...     return ko.templates.MeasuredProcessOutput(state, result, ko.federated_value((), ko.SERVER))
      >>> work = ClientWorkProcess(no_state, next_fn)
      >>> work.next(work.initialize(), [1.0, 1.0], [[2.0, 3.0], [1.0]]).result[0]
      ClientResult(update=Array(3., dtype=float32), update_weight=Array(2., dtype=float32))
    """

    _outputs: ClassVar[tuple[type, ...]] = (MeasuredProcessOutput, ClientStateWorkOutput)

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        *,
        get_hparams_fn: Computation | None = None,
        set_hparams_fn: Computation | None = None,
        client_state_fn: Computation | None = None,
        next_is_multi_arg: bool | None = None,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg is not False, parts=parts)
        template = type(self).__name__
        signature = next_fn.type_signature
        state = initialize_fn.type_signature.result
        _check_output(template, signature.result, client_state_fn)
        check_returns_placed(state, template, TemplateNotFederatedError)
        check_placement(state, SERVER, "the state", template, TemplatePlacementError)
        check_all_placed(signature, template, TemplateNotFederatedError)
        count = 3 if client_state_fn is None else 4
        arguments = check_argument_count(signature, range(count, count + 1), template, TemplateNextFnNumArgsError)
        check_placement(arguments[1], CLIENTS, "the second argument of `next`", template, TemplatePlacementError)
        data = arguments[count - 1]
        data = check_placement(data, CLIENTS, "the last argument of `next`", template, TemplatePlacementError)
        if not is_structure_of_sequences(data.member):
            raise ClientDataTypeError(
                f"{template}: the data of a client must be a sequence, or a struct of sequences.",
                expected="{D*}@CLIENTS",
                found=data,
                hint="declare it as `at_clients(SequenceType(D))`, where D is one example",
            )
        _check_result(template, output_of(signature, "result"))
        measurements = output_of(signature, "measurements")
        check_placement(measurements, SERVER, "`measurements` of `next`", template, TemplatePlacementError)
        if client_state_fn is not None:
            returned = output_of(signature, "client_state")
            check_client_state(template, client_state_fn, arguments[2], returned, TemplatePlacementError)
        self._client_state_fn = client_state_fn
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

    @property
    def initialize_client_state(self) -> Computation | None:
        """The computation of the state of a client that has not taken part yet; None if clients keep no state."""
        return self._client_state_fn

    @property
    def client_state_type(self) -> Type | None:
        """The unplaced type of the state that a client keeps; None if clients keep no state."""
        if self._client_state_fn is None:
            return None
        return strip_placement(arguments_of(self.next.type_signature)[2])


def _check_output(template: str, result: Type, client_state_fn: Computation | None) -> None:
    expected = MeasuredProcessOutput if client_state_fn is None else ClientStateWorkOutput
    if not isinstance(result, StructType) or result.container is not expected:
        raise TemplateNotMeasuredProcessOutputError(
            f"{template}: `next` must return a `{expected.__name__}`.",
            expected=f"<{','.join(expected._fields)}> as {expected.__name__}",
            found=repr(result),
            hint="pass `client_state_fn` if, and only if, `next` takes and returns a state of the clients",
        )


def _check_result(template: str, result: Type) -> None:
    member = check_placement(result, CLIENTS, "`result` of `next`", template, TemplatePlacementError).member
    if not isinstance(member, StructType) or member.container is not ClientResult:
        raise ClientResultTypeError(
            f"{template}: the result of a client must be a `ClientResult`.",
            expected="{<update=U,update_weight=W>}@CLIENTS as ClientResult",
            found=repr(result),
            hint="return `ClientResult(update, update_weight)` from the function that is mapped over the clients",
        )
