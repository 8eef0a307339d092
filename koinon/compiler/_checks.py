"""Assertions about what a computation lets come to the server, and about its shape; all decided without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from koinon._errors import NotCompilableError, PrivacyError, SecureSumFieldError
from koinon.compiler._plan import Plan, plan
from koinon.compiler._privacy import PrivacyRow, bits_of_sum, privacy_report
from koinon.compiler._show import step_texts
from koinon.compiler._steps import AGGREGATIONS, Step
from koinon.computation import INTRINSICS, Computation, Route
from koinon.computation import _ir as ir
from koinon.computation._flat import leaf_types
from koinon.computation._print import compact
from koinon.types import FederatedType, PlacementLiteral, StructType, preorder_types

_MAX_TEXT = 200


# --- what comes to the server ----------------------------------------------------------------------------------------


def computation_contains_secure_aggregation(computation: Computation) -> bool:
    """Whether an aggregation of the computation shows the server nothing but the sum.

    Aggregations without a tensor in them, and those that the result does not need, do not count.

    Raises:
      NotCompilableError: where the computation has no plan.
    """
    return any(_route(step) is Route.SECURE for step in _aggregations(plan(computation)))


def computation_contains_unsecure_aggregation(computation: Computation) -> bool:
    """Whether an aggregation of the computation shows the server more than the sum.

    Aggregations without a tensor in them, and those that the result does not need, do not count.

    Raises:
      NotCompilableError: where the computation has no plan.
    """
    return any(_route(step) is not Route.SECURE for step in _aggregations(plan(computation)))


def assert_contains_secure_aggregation(computation: Computation) -> None:
    """Asserts that the computation has a secure aggregation.

    Raises:
      PrivacyError: where it has none.
      NotCompilableError: where the computation has no plan.
    """
    if not computation_contains_secure_aggregation(computation):
        raise PrivacyError(
            f"The computation `{computation.name}` has no secure aggregation.",
            expected="federated_secure_sum, federated_secure_sum_bitwidth or federated_secure_modular_sum",
            found=", ".join(sorted({step.operator for step in _aggregations(plan(computation))})) or "no aggregation",
        )


def assert_no_unsecure_aggregation(computation: Computation) -> None:
    """Asserts that every aggregation of the computation is secure: the server sees nothing but sums.

    Raises:
      PrivacyError: naming an aggregation that is not, and what of the result comes through it.
      NotCompilableError: where the computation has no plan.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.federated_computation(ko.types.at_clients(jnp.int32))
    ... def secure_total(values):
    ...     return ko.federated_secure_sum_bitwidth(values, 8)
    >>> ko.compiler.assert_no_unsecure_aggregation(secure_total)
    """
    lowered = plan(computation)
    unsecure = [step for step in _aggregations(lowered) if _route(step) is not Route.SECURE]
    if unsecure:
        texts = step_texts(lowered.type, lowered.parameter, lowered.phases)
        expressions = [texts[step] for step in unsecure]
        paths = [row.path for row in privacy_report(lowered).rows if row.expression in expressions]
        raise PrivacyError(
            f"The computation `{computation.name}` has aggregations that are not secure.",
            expected="secure sums alone",
            found="; ".join(expressions),
            differs=_listed(paths),
            hint="aggregate with ko.federated_secure_sum_bitwidth, after quantizing what is no integer",
        )


def assert_secure_sums_fit(computation: Computation, *, clients: int) -> None:
    """Asserts that no secure sum over so many clients leaves its dtype, whatever they send in its range.

    Args:
      computation: a computation.
      clients: the size of the largest cohort.

    Raises:
      SecureSumFieldError: naming a sum that may, with the bits that it needs and has, and how many clients it is for;
        or one whose bound is known only at run time.
      NotCompilableError: where the computation has no plan.

    >>> import jax.numpy as jnp, koinon as ko
    >>> @ko.federated_computation(ko.types.at_clients(jnp.int32))
    ... def secure_total(values):
    ...     return ko.federated_secure_sum_bitwidth(values, 20)
    >>> ko.compiler.assert_secure_sums_fit(secure_total, clients=2000)
    >>> ko.compiler.assert_secure_sums_fit(secure_total, clients=3000)
    Traceback (most recent call last):
    ...
    koinon._errors.SecureSumFieldError: A secure sum of `secure_total` may not fit its dtype.
      expected   at most 31 bits
      found      32 bits for 3000 clients; 2048 clients are allowed
      differs at %1 = secure_sum_bitwidth(<argument,20>)
      try        sum in a wider dtype, narrow the range, or use ko.aggregators.SecureSumFactory
    """
    lowered = plan(computation)
    texts = step_texts(lowered.type, lowered.parameter, lowered.phases)
    for step in _aggregations(lowered):
        if _route(step) is not Route.SECURE:
            continue
        for leaf in range(len(leaf_types(_value_type(step)))):
            needed, held = bits_of_sum(step, leaf, clients)
            if needed is None or needed > held:
                found = f"{needed} bits for {clients} clients; {_most_clients(step, leaf, clients)} clients are allowed"
                raise SecureSumFieldError(
                    f"A secure sum of `{computation.name}` may not fit its dtype.",
                    expected=f"at most {held} bits",
                    found="a bound that is known only at run time" if needed is None else found,
                    differs=texts[step],
                    hint="sum in a wider dtype, narrow the range, or use ko.aggregators.SecureSumFactory",
                )


def _most_clients(step: Step, leaf: int, clients: int) -> int:
    """For how many clients a sum fits that does not for so many."""
    fits, does_not = 0, clients
    while does_not - fits > 1:
        middle = (fits + does_not) // 2
        needed, held = bits_of_sum(step, leaf, middle)
        fits, does_not = (middle, does_not) if needed is not None and needed <= held else (fits, middle)
    return fits


def assert_no_collect(computation: Computation) -> None:
    """Asserts that no value of a single client comes to the server.

    By `federated_collect`, by a minimum or maximum, by a user's fold that may keep single values, or by the keys of a
    `federated_select`, unless local noise protects it.

    Raises:
      PrivacyError: naming what comes to the server, and by which expression.
      NotCompilableError: where the computation has no plan.
    """
    _assert_no_rows(
        computation,
        lambda row: row.route == "revealing" and not row.protected,
        "lets values of single clients come to the server",
        "sums over clients alone",
    )


def assert_all_released_through_dp(computation: Computation, *, allow_simulation_only: bool = True) -> None:
    """Asserts that all that depends on clients' data is clipped and noised before the server keeps or releases it.

    Args:
      computation: a computation.
      allow_simulation_only: whether noise counts that protects nobody outside of a simulation.

    Raises:
      PrivacyError: naming what is not protected, why, and the expression by which it comes to the server.
      NotCompilableError: where the computation has no plan.
    """
    _assert_no_rows(
        computation,
        lambda row: not row.protected or (row.simulation_only and not allow_simulation_only),
        "releases what no differential privacy protects",
        "ko.annotate_clip before each aggregation, and ko.annotate_noise after it",
    )


def _assert_no_rows(computation: Computation, bad: Callable[[PrivacyRow], bool], what: str, expected: str) -> None:
    rows = [row for row in privacy_report(computation).rows if bad(row)]
    if rows:
        found = dict.fromkeys(f"{row.expression} ({row.reason or 'noise for simulations only'})" for row in rows)
        raise PrivacyError(
            f"The computation `{computation.name}` {what}.",
            expected=expected,
            found="; ".join(found),
            differs=_listed([row.path for row in rows]),
            hint="read ko.compiler.privacy_report(computation)",
        )


def _listed(paths: list[str]) -> str | None:
    return ", ".join(dict.fromkeys(paths)) or None


def _aggregations(lowered: Plan) -> Iterator[Step]:
    for step in lowered.steps():
        if step.operator in AGGREGATIONS and leaf_types(_value_type(step)):
            yield step


def _value_type(step: Step) -> FederatedType:
    """The type of the clients' values that an aggregation takes."""
    parameter = step.node.type.parameter
    value = parameter[0] if isinstance(parameter, StructType) else parameter
    assert isinstance(value, FederatedType)
    return value


def _route(step: Step) -> Route:
    return INTRINSICS[step.operator].route


# --- the shape of a computation --------------------------------------------------------------------------------------


def check_broadcast_not_dependent_on_aggregate(computation: Computation | Plan) -> None:
    """Checks that nothing goes to the clients that depends on what came from them: they are talked to once.

    Raises:
      NotCompilableError: naming a broadcast that depends on an aggregation.
    """
    lowered = computation if isinstance(computation, Plan) else plan(computation)
    for step in lowered.steps():
        if step.operator in _SENDS and step.phase > 0:
            raise _refusal(lowered, step, "sends clients what depends on an aggregation")


def check_aggregate_not_dependent_on_aggregate(computation: Computation | Plan) -> None:
    """Checks that no aggregation takes what depends on another one.

    Raises:
      NotCompilableError: naming an aggregation that does.
    """
    lowered = computation if isinstance(computation, Plan) else plan(computation)
    for step in lowered.steps():
        if step.operator in AGGREGATIONS and step.phase > 0:
            raise _refusal(lowered, step, "aggregates what depends on another aggregation")


def _refusal(lowered: Plan, step: Step, what: str) -> NotCompilableError:
    return NotCompilableError(
        f"The computation `{lowered.name}` {what}.",
        expected="one exchange between the server and the clients",
        found=step_texts(lowered.type, lowered.parameter, lowered.phases)[step],
    )


_SENDS = frozenset({"federated_broadcast", "federated_split_key", "federated_select", "federated_secure_select"})
_NOT_REDUCIBLE = frozenset({"federated_collect", "federated_select", "federated_secure_select"})


def check_contains_only_reducible_intrinsics(computation: Computation) -> None:
    """Checks that every operator is a broadcast, work at one place, or a fold over the clients.

    Raises:
      NotCompilableError: naming an operator that is none of these, such as `federated_collect`.
    """
    for node in ir.walk(computation.expression):
        if isinstance(node, ir.Call) and isinstance(node.function, ir.Intrinsic):
            if node.function.name in _NOT_REDUCIBLE:
                raise NotCompilableError(
                    f"The computation `{computation.name}` uses {node.function.name}, which is no fold over clients.",
                    found=_text(node),
                    made_in=node.made_in,
                )


def check_has_single_placement(computation: Computation, placement: PlacementLiteral) -> None:
    """Checks that every placed value of the computation is at one placement.

    Raises:
      NotCompilableError: naming an expression with a value that is placed elsewhere.
    """
    for node in ir.walk(computation.expression):
        for type_ in preorder_types(node.type):
            if isinstance(type_, FederatedType) and type_.placement is not placement:
                raise NotCompilableError(
                    f"The computation `{computation.name}` has a value that is not placed at {placement}.",
                    expected=f"values placed at {placement}",
                    found=f"{_text(node)}, of type {node.type}",
                    made_in=getattr(node, "made_in", None),
                )


def check_has_unique_names(computation: Computation) -> None:
    """Checks that every name is bound once in the computation.

    Raises:
      NotCompilableError: naming an expression that binds a name again.
    """
    seen: set[str] = set()
    for node in ir.walk(computation.expression):
        bound: list[str] = []
        if isinstance(node, ir.Lambda) and node.parameter_name is not None:
            bound = [node.parameter_name]
        elif isinstance(node, ir.Block):
            bound = [name for name, _ in node.locals]
        for name in bound:
            if name in seen:
                raise NotCompilableError(
                    f"The computation `{computation.name}` binds the name {name} more than once.", found=_text(node)
                )
            seen.add(name)


def check_contains_no_unbound_references(computation: Computation) -> None:
    """Checks that the computation refers to no name that it does not bind.

    Raises:
      NotCompilableError: naming what is not bound.
    """
    names = sorted(ir.free_names(computation.expression))
    if names:
        raise NotCompilableError(
            f"The computation `{computation.name}` refers to names that it does not bind.",
            expected="a computation that is closed",
            found=", ".join(names),
        )


def _text(node: ir.Expression) -> str:
    text = compact(node)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."
