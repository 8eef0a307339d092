"""Hyperparameters of processes: two computations that read them from the state and write them into it."""

from __future__ import annotations

from typing import Any

from koinon._errors import GetHparamsTypeError, SetHparamsTypeError
from koinon.computation import Computation, federated_computation
from koinon.templates._checks import check_computation, mismatch
from koinon.types import StructType, Type


def hparams_computations(
    template: str, state_type: Type, get_hparams_fn: Computation | None, set_hparams_fn: Computation | None
) -> tuple[Computation, Computation]:
    """The checked getter and setter of a process; without them, a getter of nothing and a setter that changes nothing.

    Args:
      template: the name of the template, for messages.
      state_type: the unplaced type of the state that `initialize` returns.
      get_hparams_fn: a `Computation` `(S -> H)`, or None.
      set_hparams_fn: a `Computation` `(<S,H> -> S)`, or None.

    Raises:
      TypeError: if one of them is not a `Computation`.
      GetHparamsTypeError: if the getter does not accept the state.
      SetHparamsTypeError: if the setter does not take the state and the hyperparameters, or does not return the state.
    """
    getter = _no_hparams(state_type) if get_hparams_fn is None else get_hparams_fn
    _check_getter(template, state_type, getter)
    setter = _unchanged(state_type, getter.type_signature.result) if set_hparams_fn is None else set_hparams_fn
    _check_setter(template, state_type, setter)
    return getter, setter


def _no_hparams(state_type: Type) -> Computation:
    @federated_computation(state_type)
    def get_hparams(state: Any) -> Any:
        del state
        return {}

    return get_hparams


def _unchanged(state_type: Type, hparams_type: Type) -> Computation:
    @federated_computation(state_type, hparams_type)
    def set_hparams(state: Any, hparams: Any) -> Any:
        del hparams
        return state

    return set_hparams


def _check_getter(template: str, state_type: Type, getter: Computation) -> None:
    check_computation(getter, "get_hparams_fn", template)
    parameter = getter.type_signature.parameter
    what = f"{template}: `get_hparams` must accept the state of the process."
    if parameter is None:
        raise GetHparamsTypeError(what, expected=f"({state_type} -> H)", found=getter.type_signature)
    if not parameter.is_assignable_from(state_type):
        raise mismatch(GetHparamsTypeError, what, parameter, state_type, "declare its parameter as the unplaced state")


def _check_setter(template: str, state_type: Type, setter: Computation) -> None:
    check_computation(setter, "set_hparams_fn", template)
    parameter = setter.type_signature.parameter
    if not isinstance(parameter, StructType) or len(parameter) != 2:
        raise SetHparamsTypeError(
            f"{template}: `set_hparams` must take the state and the hyperparameters.",
            expected=f"(<{state_type},H> -> {state_type})",
            found=setter.type_signature,
            hint="write one parameter for the state and one for the hyperparameters",
        )
    if not parameter[0].is_assignable_from(state_type):
        what = f"{template}: `set_hparams` must accept the state of the process."
        raise mismatch(SetHparamsTypeError, what, parameter[0], state_type, "declare it as the unplaced state")
    result = setter.type_signature.result
    if not result.is_assignable_from(state_type):
        what = f"{template}: `set_hparams` must return the state of the process."
        raise mismatch(
            SetHparamsTypeError, what, result, state_type, "return the state with other hyperparameters in it"
        )
