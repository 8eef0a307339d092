"""The state that clients keep from one participation to the next, as processes declare it."""

from __future__ import annotations

from koinon._errors import (
    TemplateError,
    TemplateInitFnParamNotEmptyError,
    TemplateNotFederatedError,
    TemplateStateNotAssignableError,
)
from koinon.computation import Computation
from koinon.templates._checks import check_computation, check_placement, mismatch
from koinon.types import CLIENTS, Type, contains_federated_types


def check_client_state(
    template: str,
    client_state_fn: Computation,
    taken: Type,
    returned: Type,
    placement_error: type[TemplateError],
) -> None:
    """Raises unless `next` takes the state of a new client, and takes back the one that it returns.

    Args:
      template: the name of the template, for messages.
      client_state_fn: what computes the state of one new client.
      taken: the type of the clients' states that `next` takes.
      returned: the type of those that it returns.
      placement_error: what to raise where one of the two is not placed at the clients.

    Raises:
      TypeError: if `client_state_fn` is not a `Computation`.
      TemplateInitFnParamNotEmptyError: if it takes a parameter.
      TemplateNotFederatedError: if it returns a placed value; the runtime places the states of a cohort.
      TemplateStateNotAssignableError: if `next` does not take one of the states.
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
    taken = check_placement(taken, CLIENTS, "the client state that `next` takes", template, placement_error)
    returned = check_placement(returned, CLIENTS, "`client_state` of `next`", template, placement_error)
    if not taken.member.is_assignable_from(signature.result):
        what = f"{template}: `next` must accept the client state that `client_state_fn` returns."
        raise mismatch(TemplateStateNotAssignableError, what, taken.member, signature.result)
    if not taken.is_assignable_from(returned):
        what = f"{template}: `next` must return a client state that it accepts back."
        raise mismatch(TemplateStateNotAssignableError, what, taken, returned)
