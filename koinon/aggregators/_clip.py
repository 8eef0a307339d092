"""Clipping and zeroing: what bounds the influence of one client, before an inner aggregation."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._factory import (
    AggregationFactory,
    UnweightedAggregationFactory,
    ValueType,
    check_factory,
    check_floats,
    check_unweighted_factory,
    factory_like,
    next_parameter,
    prints_as_called,
)
from koinon.aggregators._norms import global_inf_norm, global_l1_norm, global_l2_norm
from koinon.aggregators._sum import SumFactory
from koinon.computation import (
    federated_broadcast,
    federated_computation,
    federated_map,
    federated_value,
    federated_zip,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._checks import mismatch
from koinon.templates._estimation import EstimationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import CLIENTS, SERVER, StructType, TensorType, at_clients, at_server, strip_placement, to_type

_NORM = TensorType(jnp.float32)


class _Names(NamedTuple):
    """What the state and the measurements call a bound."""

    norm: str
    limited_count_agg: str
    inner: str
    limited_count: str


_CLIPPING = _Names("clipping_norm", "clipped_count_agg", "clipping", "clipped_count")
_ZEROING = _Names("zeroing_norm", "zeroed_count_agg", "zeroing", "zeroed_count")


@prints_as_called
def clipping_factory(
    clipping_norm: float | EstimationProcess,
    inner_agg_factory: AggregationFactory,
    clipped_count_sum_factory: UnweightedAggregationFactory | None = None,
) -> AggregationFactory:
    """Scales each client's value down to a global L2 norm, before an inner aggregation.

    `value * min(1, clipping_norm / ||value||)`, where the norm is over all leaves together.

    Type: `(<S@SERVER,{V}@CLIENTS,*> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state is `<clipping_norm,inner_agg,clipped_count_agg>`, the measurements are
    `<clipping=those of the inner aggregation,clipping_norm,clipped_count>`; the norm is the one that was used this
    round, before it was updated. The norms are computed in float32, whatever the dtypes of the leaves. A value whose
    norm is not a number is passed on as it is; zeroing stops it. A client of weight 0 is not counted, and the
    estimation process is given NaN for its norm.

    Args:
      clipping_norm: a non-negative float, or an `EstimationProcess` that reports a float32 at the server and whose
        `next` takes the norms of the clients.
      inner_agg_factory: aggregates the clipped values; the result is weighted if and only if this is.
      clipped_count_sum_factory: sums an int32 per client, 1 if its value was clipped; `SumFactory()` if None.

    Raises:
      TypeError: if an argument has another type (an int is no norm), or the estimation process another signature.
      ValueError: if the norm is negative or not a number.

    References:
      Galen Andrew, Om Thakkar, H. Brendan McMahan, Swaroop Ramaswamy: Differentially Private Learning with Adaptive
      Clipping, 2021. https://arxiv.org/abs/1905.03871

    Example:
      >>> import numpy as np, koinon as ko
      >>> factory = ko.aggregators.clipping_factory(5.0, ko.aggregators.SumFactory())
      >>> process = factory.create(ko.types.TensorType("float32", (2,)))
      >>> output = process.next(process.initialize(), [np.float32([6.0, 8.0]), np.float32([1.0, 1.0])])
      >>> output.result.tolist(), int(output.measurements["clipped_count"])
      ([4.0, 5.0], 1)
    """
    return _bound(clipping_norm, inner_agg_factory, clipped_count_sum_factory, global_l2_norm, _clip, _CLIPPING)


@prints_as_called
def zeroing_factory(
    zeroing_norm: float | EstimationProcess,
    inner_agg_factory: AggregationFactory,
    norm_order: float = math.inf,
    zeroed_count_sum_factory: UnweightedAggregationFactory | None = None,
    *,
    pass_non_finite: bool = False,
) -> AggregationFactory:
    """Replaces each client's value of a too large norm by zero, before an inner aggregation.

    Type: `(<S@SERVER,{V}@CLIENTS,*> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state is `<zeroing_norm,inner_agg,zeroed_count_agg>`, the measurements are
    `<zeroing=those of the inner aggregation,zeroing_norm,zeroed_count>`; the norm is the one that was used this round,
    before it was updated. The weight of a client is left alone. A value with an element that is not a number is
    zeroed too, which TFF does not do. A client of weight 0 is not counted, and the estimation process is given NaN for
    its norm.

    Args:
      zeroing_norm: a non-negative float, or an `EstimationProcess` that reports a float32 at the server and whose
        `next` takes the norms of the clients.
      inner_agg_factory: aggregates what is left; the result is weighted if and only if this is.
      norm_order: 1.0, 2.0 or `math.inf`.
      zeroed_count_sum_factory: sums an int32 per client, 1 if its value was zeroed; `SumFactory()` if None.
      pass_non_finite: whether a value whose norm is not finite is passed on as it is, and not counted: for an inner
        aggregation that leaves such clients out by itself.

    Raises:
      TypeError: if an argument has another type (an int is no norm), or the estimation process another signature.
      ValueError: if the norm is negative or not a number, or the order is another one.

    Example:
      >>> import numpy as np, koinon as ko
      >>> factory = ko.aggregators.zeroing_factory(10.0, ko.aggregators.SumFactory())
      >>> process = factory.create(ko.types.TensorType("float32", (2,)))
      >>> output = process.next(process.initialize(), [np.float32([1.0, 99.0]), np.float32([1.0, 2.0])])
      >>> output.result.tolist(), int(output.measurements["zeroed_count"])
      ([1.0, 2.0], 1)
    """
    if not isinstance(norm_order, float):
        raise KoinonTypeError("The order of a norm must be a float.", found=repr(norm_order), hint="write 2.0, not 2")
    norms = {1.0: global_l1_norm, 2.0: global_l2_norm, math.inf: global_inf_norm}
    if norm_order not in norms:
        raise KoinonValueError("There is no norm of this order.", expected="1.0, 2.0 or math.inf", found=norm_order)
    measure, limit = norms[norm_order], _zero
    if pass_non_finite:
        measure, limit = (lambda value: _finite_or_nan(norms[norm_order](value))), _zero_numbers
    return _bound(zeroing_norm, inner_agg_factory, zeroed_count_sum_factory, measure, limit, _ZEROING)


def _clip(value: Any, norm: jax.Array, bound: jax.Array) -> tuple[Any, jax.Array]:
    is_clipped = norm > bound
    factor = jnp.where(is_clipped, bound / norm, jnp.float32(1.0))

    def scale(leaf: jax.Array) -> jax.Array:
        # In the wider of the two dtypes, since the factor may be too small for a half-precision leaf.
        wide = jnp.promote_types(leaf.dtype, jnp.float32)
        return (leaf.astype(wide) * factor.astype(wide)).astype(leaf.dtype)

    return jax.tree.map(scale, value), is_clipped


def _zero(value: Any, norm: jax.Array, bound: jax.Array) -> tuple[Any, jax.Array]:
    # Not `norm > bound`, which is False for NaN.
    is_zeroed = ~(norm <= bound)
    return jax.tree.map(lambda leaf: jnp.where(is_zeroed, jnp.zeros_like(leaf), leaf), value), is_zeroed


def _zero_numbers(value: Any, norm: jax.Array, bound: jax.Array) -> tuple[Any, jax.Array]:
    is_zeroed = norm > bound  # False for NaN
    return jax.tree.map(lambda leaf: jnp.where(is_zeroed, jnp.zeros_like(leaf), leaf), value), is_zeroed


def _finite_or_nan(norm: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(norm), norm, jnp.nan)


def _bound(
    norm: float | EstimationProcess,
    inner_factory: AggregationFactory,
    count_factory: UnweightedAggregationFactory | None,
    measure: Callable[[Any], jax.Array],
    limit: Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]],
    names: _Names,
) -> AggregationFactory:
    """The factory that measures each client's value, limits it, and hands it to an inner aggregation."""
    norms = norm if isinstance(norm, EstimationProcess) else _constant_norm(norm, names.norm)
    check_norm_process(norms, names.norm)
    check_factory(inner_factory, "inner_agg_factory")
    count_factory = SumFactory() if count_factory is None else count_factory
    check_unweighted_factory(count_factory, f"{names.limited_count}_sum_factory")
    counts = count_factory.create(TensorType(jnp.int32))

    def limit_client(value: Any, bound: jax.Array, weight: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        value_norm = measure(value)
        limited, is_limited = limit(value, value_norm, bound)
        # Whoever has no weight must leave no trace, so that leaving it out changes nothing.
        is_there = weight != 0
        return limited, jnp.where(is_there, value_norm, jnp.nan), (is_limited & is_there).astype(jnp.int32)

    def create(value_type: ValueType, *weight_type: ValueType) -> AggregationProcess:
        check_floats(value_type, f"The {names.inner} of values")
        inner = inner_factory.create(value_type, *weight_type)
        parts = {names.norm: norms, "inner_agg": inner, names.limited_count_agg: counts}
        state_type = StructType([(name, strip_placement(part.state_type)) for name, part in parts.items()], OrderedDict)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_zip(OrderedDict((name, part.initialize()) for name, part in parts.items()))

        @federated_computation(next_parameter(at_server(state_type), value_type, *weight_type))
        def next_fn(arguments: Any) -> Any:
            state, value, *weight = arguments
            bound = norms.report(state[names.norm])
            counted = weight[0] if weight else federated_value(jnp.float32(1.0), CLIENTS)
            limited, value_norm, is_limited = federated_map(limit_client, (value, federated_broadcast(bound), counted))
            aggregate = inner.next(state["inner_agg"], limited, *weight)
            count = counts.next(state[names.limited_count_agg], is_limited)
            new_states = (norms.next(state[names.norm], value_norm), aggregate.state, count.state)
            measurements = (
                (names.inner, aggregate.measurements),
                (names.norm, bound),
                (names.limited_count, count.result),
            )
            return MeasuredProcessOutput(
                federated_zip(OrderedDict(zip(parts, new_states, strict=True))),
                aggregate.result,
                federated_zip(OrderedDict(measurements)),
            )

        return AggregationProcess(initialize_fn, next_fn, allow_type_change=True, parts=parts)

    return factory_like(inner_factory, create)


def _constant_norm(norm: object, label: str) -> EstimationProcess:
    """A process that always reports the same norm, and has no state."""
    if not isinstance(norm, float):
        raise KoinonTypeError(
            f"`{label}` must be a float or an EstimationProcess.",
            expected="float or EstimationProcess",
            found=f"{type(norm).__qualname__} {norm!r}",
            hint=f"write {norm}.0" if isinstance(norm, int) and not isinstance(norm, bool) else None,
        )
    if not norm >= 0.0:
        raise KoinonValueError(f"`{label}` must not be negative.", expected="at least 0.0", found=norm)

    @federated_computation
    def initialize_fn() -> Any:
        return federated_value((), SERVER)

    @federated_computation(at_server(to_type(())), at_clients(_NORM))
    def next_fn(state: Any, norms: Any) -> Any:
        del norms  # The norm does not adapt to them.
        return state

    @federated_computation(at_server(to_type(())))
    def report_fn(state: Any) -> Any:
        del state
        return federated_value(jnp.float32(norm), SERVER)

    return EstimationProcess(initialize_fn, next_fn, report_fn)


def check_norm_process(process: EstimationProcess, label: str) -> None:
    """Raises a TypeError unless a process takes float32 norms at the clients and reports one at the server."""
    parameter = process.next.type_signature.parameter
    if not isinstance(parameter, StructType) or len(parameter) != 2:
        raise KoinonTypeError(
            f"The `next` of `{label}` must take two arguments, its state and the clients' norms.",
            expected=f"(<S@SERVER,{at_clients(_NORM)}> -> S@SERVER)",
            found=process.next.type_signature,
        )
    if not parameter[1].is_assignable_from(at_clients(_NORM)):
        raise mismatch(
            KoinonTypeError,
            f"The `next` of `{label}` must take the clients' norms as its second argument.",
            parameter[1],
            at_clients(_NORM),
        )
    result = process.next.type_signature.result
    if not process.state_type.is_assignable_from(result):
        raise mismatch(
            KoinonTypeError,
            f"The `next` of `{label}` must return its state and nothing else.",
            process.state_type,
            result,
        )
    report = process.report.type_signature.result
    if not at_server(_NORM).is_assignable_from(report):
        raise mismatch(KoinonTypeError, f"`{label}` must report one float32 at the server.", at_server(_NORM), report)
