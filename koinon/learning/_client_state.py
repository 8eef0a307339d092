"""The state that clients keep from one participation to the next, as processes declare it."""

from __future__ import annotations

from koinon._errors import (
    TemplateInitFnParamNotEmptyError,
    TemplateNotFederatedError,
    TemplateStateNotAssignableError,
)
from koinon.computation import Computation
from koinon.templates._checks import check_computation, mismatch
from koinon.types import FederatedType, contains_federated_types


def check_client_state_computation(template: str, client_state_fn: Computation) -> None:
    """Raises unless an argument computes the state of one new client, from nothing and unplaced.

    Raises:
      TypeError: if it is not a `Computation`.
      TemplateInitFnParamNotEmptyError: if it takes a parameter.
      TemplateNotFederatedError: if it returns a placed value; the runtime places the states of a cohort.
    """
    check_computation(client_state_fn, "client_state_fn", template)
    signature = client_state_fn.type_signature
    if signature.parameter is not None:
        raise TemplateInitFnParamNotEmptyError(
            f"{template}: `client_state_fn` must not take a parameter.", expected="( -> C)", found=signature
        )
    if contains_federated_types(signature.result):
        raise TemplateNotFederatedError(
            f"{template}: `client_state_fn` must return the state of one client, unplaced.",
            expected="( -> C)",
            found=signature,
            hint="make it a `jax_computation`",
        )


def check_client_state_returned(
    template: str, client_state_fn: Computation, taken: FederatedType, returned: FederatedType
) -> None:
    """Raises unless `next` takes the state of a new client, and the one that it returned itself.

    Raises:
      TemplateStateNotAssignableError: if it does not.
    """
    first = client_state_fn.type_signature.result
    if not taken.member.is_assignable_from(first):
        what = f"{template}: `next` must accept the client state that `client_state_fn` returns."
        raise mismatch(TemplateStateNotAssignableError, what, taken.member, first)
    if not taken.is_assignable_from(returned):
        what = f"{template}: `next` must return a client state that it accepts back."
        raise mismatch(TemplateStateNotAssignableError, what, taken, returned)
