"""The template of every stateful process: a state, and a step that takes it to the next."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from koinon._errors import (
    TemplateInitFnParamNotEmptyError,
    TemplateNextFnNumArgsError,
    TemplateStateNotAssignableError,
)
from koinon.computation import Computation
from koinon.templates._checks import check_computation, mismatch
from koinon.templates._show import show_process
from koinon.types import FederatedType, StructType, Type


class IterativeProcess:
    """A state and a step: `initialize` makes the first state, `next` takes a state to the next one.

    Type: `initialize ( -> S)`, `next (S -> S)`, `(<S,...> -> S)`, `(S -> <S,...>)` or `(<S,...> -> <S,...>)`

    The state that `initialize` makes, and the one that `next` returns, must be assignable to the state that `next`
    takes; they need not be equal (a state may widen to `?` dimensions).

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state.
      next_fn: a `Computation` that takes the state, alone or as the first of several arguments, and returns the new
        state, alone or as the first element of a struct.
      next_is_multi_arg: whether the state is the first of several arguments of `next_fn` (True), its only argument
        (False), or whichever of the two fits, the whole parameter first (None).
      parts: the processes that this one is composed of, by name; `repr` shows them.

    Raises:
      TypeError: if `initialize_fn` or `next_fn` is not a `Computation`.
      TemplateInitFnParamNotEmptyError: if `initialize_fn` takes a parameter.
      TemplateNextFnNumArgsError: if `next_fn` takes no argument, or not several where `next_is_multi_arg` says so.
      TemplateStateNotAssignableError: if the state that `initialize_fn` or `next_fn` returns cannot be given to
        `next_fn`.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> counter = ko.templates.IterativeProcess(
      ...     ko.jax_computation()(lambda: jnp.int32(0)),
      ...     ko.jax_computation(jnp.int32)(lambda count: count + 1),
      ... )
      >>> print(counter.state_type)
      int32
      >>> int(counter.next(counter.next(counter.initialize())))
      2
    """

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        next_is_multi_arg: bool | None = None,
        *,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        template = type(self).__name__
        check_computation(initialize_fn, "initialize_fn", template)
        if initialize_fn.type_signature.parameter is not None:
            raise TemplateInitFnParamNotEmptyError(
                f"{template}: `initialize` must not take a parameter.",
                expected=f"( -> {initialize_fn.type_signature.result})",
                found=initialize_fn.type_signature,
                hint="close over what the first state depends on, instead of passing it",
            )
        check_computation(next_fn, "next_fn", template)
        self._initialize = initialize_fn
        self._next = next_fn
        self._state_type = _state_parameter(template, initialize_fn, next_fn, next_is_multi_arg)
        _check_state_returned(template, next_fn, self._state_type)
        self._parts: Mapping[str, IterativeProcess] = MappingProxyType(dict(parts or {}))

    @property
    def initialize(self) -> Computation:
        """The computation of the first state."""
        return self._initialize

    @property
    def next(self) -> Computation:
        """The computation of one step."""
        return self._next

    @property
    def state_type(self) -> Type:
        """The type of the state that `next` takes."""
        return self._state_type

    @property
    def parts(self) -> Mapping[str, IterativeProcess]:
        """The processes that this one is composed of, by name; empty for a process that is not composed."""
        return self._parts

    def __repr__(self) -> str:
        return show_process(self)


def is_stateful(process: IterativeProcess) -> bool:
    """Whether the state of a process holds anything: any leaf of its type that is not a struct.

    Example:
      >>> import koinon as ko
      >>> ko.templates.is_stateful(ko.aggregators.SumFactory().create(ko.types.TensorType("float32")))
      False
    """
    return _holds_values(process.state_type)


def _holds_values(state_type: Type) -> bool:
    if isinstance(state_type, FederatedType):
        return _holds_values(state_type.member)
    if isinstance(state_type, StructType):
        return any(_holds_values(element) for _, element in state_type.items())
    return True


def _state_parameter(
    template: str, initialize_fn: Computation, next_fn: Computation, next_is_multi_arg: bool | None
) -> Type:
    """The type of the state that `next_fn` takes, after checking that it takes what `initialize_fn` returns."""
    state = initialize_fn.type_signature.result
    parameter = next_fn.type_signature.parameter
    first = parameter[0] if isinstance(parameter, StructType) and len(parameter) > 0 else None
    if parameter is None or (next_is_multi_arg and first is None):
        several = "several arguments, the first of which is " if next_is_multi_arg else ""
        raise TemplateNextFnNumArgsError(
            f"{template}: `next` must take {several}the state.",
            expected=f"(<{state},...> -> ...)" if next_is_multi_arg else f"({state} -> ...)",
            found=next_fn.type_signature,
            hint="give `next` the state as its first parameter",
        )
    if not next_is_multi_arg and parameter.is_assignable_from(state):
        return parameter
    if next_is_multi_arg is False:
        first = None
    if first is not None and first.is_assignable_from(state):
        return first
    taken = parameter if first is None else first
    raise mismatch(
        TemplateStateNotAssignableError,
        f"{template}: `next` must accept the state that `initialize` returns.",
        taken,
        state,
        hint="declare the first parameter of `next` as `initialize.type_signature.result`",
    )


def _check_state_returned(template: str, next_fn: Computation, state_type: Type) -> None:
    result = next_fn.type_signature.result
    if state_type.is_assignable_from(result):
        return
    if not isinstance(result, StructType) or len(result) == 0:
        raise state_not_returned_error(template, state_type, result)
    if not state_type.is_assignable_from(result[0]):
        # Which of the two readings the author meant shows in the names, as far as there are any.
        is_whole = isinstance(state_type, StructType) and state_type.fields() == result.fields()
        raise state_not_returned_error(template, state_type, result if is_whole else result[0])


def state_not_returned_error(template: str, state_type: Type, found: Type) -> TemplateStateNotAssignableError:
    """The error of a `next` that returns a state of another type than it takes."""
    member = found.member if isinstance(found, FederatedType) else None
    if isinstance(member, StructType) and "state" in member.fields():
        hint = "return the fields one by one, without `federated_zip` around the whole result"
    elif isinstance(state_type, FederatedType) and not isinstance(found, FederatedType):
        hint = "wrap the returned state in `federated_zip`"
    else:
        hint = "return a state of the type that `next` takes, or widen that type"
    what = f"{template}: `next` must return a state that it accepts back."
    return mismatch(TemplateStateNotAssignableError, what, state_type, found, hint)
