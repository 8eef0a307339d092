"""The geometric median of the clients' values, RFA: the point of the least total distance to them."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._factory import ValueType, WeightedAggregationFactory, check_int, check_value_type
from koinon.aggregators._rows import RobustRule, Rows, check_rows, distance, norm, rows_of, to_value
from koinon.computation import (
    Sequence,
    federated_collect,
    federated_computation,
    federated_map,
    federated_value,
    federated_zip,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, TensorType, at_clients, at_server, is_sum_compatible, to_type

# A step of the iteration that is shorter than this share of the typical distance ends it.
_TOLERANCE = 1e-6


@final
class GeometricMedianFactory(WeightedAggregationFactory):
    """The point of the least weighted sum of distances to the clients' values, as in RFA.

    It is robust while the corrupted clients have less than half of the weight. A client states its own weight, so
    where the server does not know better, take `UnweightedGeometricMedianFactory`.

        minimize over v:  sum_k weight_k * max(smoothing, ||v - value_k||)      roughly; see the paper for the smoothing

    Type: `(<<>@SERVER,{V}@CLIENTS,{W}@CLIENTS> ->
    <state=<>@SERVER,result=V@SERVER,measurements=<iterations,non_finite_clients>@SERVER>)`

    It is found by the smoothed Weiszfeld iteration, from the coordinate median on, with a smoothing that begins at the
    typical distance and is halved in each step down to `smoothing`; so values of any size do not lead it astray. It
    ends when a step is shorter than a millionth of the typical distance; `iterations` is the number of steps. Norms
    are over all leaves together, in float32.

    A client with an element or a weight that is not finite is left out, and counted in `non_finite_clients`; one whose
    weight is not positive is left out. Over no client the result is zero. The result does not depend on the order of
    the clients, to the bit. The server holds the values of all clients, in the dtypes that they have and once more in
    float32, and sees each of them, so no secure sum can take the place of the rule.

    Args:
      max_iterations: the largest number of steps, a positive int.
      smoothing: nu of the paper, the distance below which values are not told apart, a positive float; far less than
        the distance between values of honest clients.

    Raises:
      TypeError: if an argument has another type.
      ValueError: if one is not positive.

    References:
      Pillutla, Kakade, Harchaoui: Robust Aggregation for Federated Learning, IEEE Transactions on Signal Processing
      70, 2022, https://arxiv.org/abs/1912.13445, algorithm 2.

    Example:
      >>> import numpy as np, koinon as ko
      >>> factory = ko.aggregators.GeometricMedianFactory()
      >>> process = factory.create(ko.types.TensorType("float32", (2,)), ko.types.TensorType("float32"))
      >>> values = [np.float32([1, 0]), np.float32([-1, 0]), np.float32([0, 2]), np.float32([0, -1e9])]
      >>> output = process.next(process.initialize(), values, [1.0, 1.0, 1.0, 1.0])
      >>> bool(np.linalg.norm(output.result) < 1e-3)  # where the diagonals of the four cross
      True
    """

    needs_each_value = True

    def __init__(self, max_iterations: int = 100, smoothing: float = 1e-6) -> None:
        _check_options(max_iterations, smoothing)
        self._max_iterations, self._smoothing = max_iterations, smoothing

    def create(self, value_type: ValueType, weight_type: ValueType) -> AggregationProcess:
        """See `WeightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape, or has no leaf; or
            `weight_type` is not one numeric scalar.
        """
        check_rows(value_type, "The geometric median")
        check_value_type(weight_type, "weight_type")
        if not isinstance(weight_type, TensorType) or weight_type.shape != () or not is_sum_compatible(weight_type):
            raise KoinonTypeError(
                "The weight of a geometric median must be one number.",
                expected="a scalar of an integer or floating dtype",
                found=weight_type,
                hint="reduce the weights of a client to one number",
            )

        def combine(values: Sequence) -> tuple[Any, Any]:
            rows, excluded = rows_of(value_type, values, weighted=True)
            result, iterations = _geometric_median(rows, self._max_iterations, self._smoothing)
            return to_value(value_type, result), OrderedDict(iterations=iterations, non_finite_clients=excluded)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(to_type(())), at_clients(value_type), at_clients(weight_type))
        def next_fn(state: Any, value: Any, weight: Any) -> Any:
            pairs = federated_collect(federated_zip((value, weight)))
            result, measurements = federated_map(combine, pairs)
            return MeasuredProcessOutput(state, result, measurements)

        return AggregationProcess(initialize_fn, next_fn)


@final
class UnweightedGeometricMedianFactory(RobustRule):
    """The point of the least sum of distances to the clients' values, robust while most clients are honest.

    Type: `(<<>@SERVER,{V}@CLIENTS> ->
    <state=<>@SERVER,result=V@SERVER,measurements=<iterations,non_finite_clients>@SERVER>)`

    It is `GeometricMedianFactory` with equal weights; see there.

    Args:
      max_iterations: see `GeometricMedianFactory`.
      smoothing: likewise.

    Raises:
      TypeError: if an argument has another type.
      ValueError: if one is not positive.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.UnweightedGeometricMedianFactory().create(ko.types.TensorType("float32"))
      >>> output = process.next(process.initialize(), [1.0, 2.0, 1e30])
      >>> round(float(output.result), 3)
      2.0
    """

    def __init__(self, max_iterations: int = 100, smoothing: float = 1e-6) -> None:
        _check_options(max_iterations, smoothing)
        self._max_iterations, self._smoothing = max_iterations, smoothing

    @property
    def name(self) -> str:
        """What messages call the rule."""
        return "The geometric median"

    def combine(self, rows: Rows) -> tuple[jax.Array, dict[str, Any]]:
        """See `RobustRule.combine`."""
        result, iterations = _geometric_median(rows, self._max_iterations, self._smoothing)
        return result, {"iterations": iterations}


def _check_options(max_iterations: int, smoothing: float) -> None:
    check_int(max_iterations, "max_iterations")
    if not isinstance(smoothing, float):
        raise KoinonTypeError("`smoothing` must be a float.", found=repr(smoothing))
    if max_iterations < 1:
        raise KoinonValueError("`max_iterations` must be positive.", expected="at least 1", found=max_iterations)
    if not 0.0 < smoothing < float("inf"):
        raise KoinonValueError("`smoothing` must be positive.", expected="more than 0.0", found=smoothing)


def _geometric_median(rows: Rows, max_iterations: int, smoothing: float) -> tuple[jax.Array, jax.Array]:
    """The geometric median, zero of no rows, and how many steps it took."""
    dtype = rows.matrix.dtype
    numbers = jnp.arange(rows.order.shape[0], dtype=jnp.int32)
    weights = jnp.where(numbers < rows.count, jax.vmap(rows.weight)(numbers), 0)
    weights = weights / jnp.maximum(jnp.max(weights, initial=0.0), jnp.finfo(dtype).tiny)
    start = rows.coordinate_median()

    def distances(center: jax.Array) -> jax.Array:
        return rows.map(lambda _, row: distance(row, center), beyond=jnp.inf)

    middle = jnp.sort(distances(start))[jnp.maximum(rows.count - 1, 0) // 2]

    def step(state: Any) -> Any:
        number, center, _ = state
        radius = jnp.maximum(jnp.asarray(smoothing, dtype), middle * jnp.exp2(-number.astype(dtype)))
        lengths = distances(center)
        pulls = weights / jnp.maximum(radius, lengths)
        total = _sum(pulls, rows.count)
        # Where all are infinitely far away, there is no telling where to go.
        new = jnp.where(total > 0, rows.sum(pulls / jnp.where(total > 0, total, 1)), center)
        typical = _sum(weights, rows.count) / jnp.where(total > 0, total, 1)
        # Where the smoothing is felt, the end of the steps is not yet the median.
        is_smoothed = (radius > smoothing) & jnp.any(lengths < radius)
        return number + 1, new, is_smoothed | (norm(new - center) > _TOLERANCE * typical)

    def goes_on(state: Any) -> jax.Array:
        number, _, is_moving = state
        return is_moving & (number < max_iterations)

    number, center, _ = jax.lax.while_loop(goes_on, step, (jnp.int32(0), start, rows.count > 1))
    return center, number


def _sum(numbers: jax.Array, count: jax.Array) -> jax.Array:
    """The sum of the first numbers, one after the other."""
    return jax.lax.fori_loop(0, count, lambda i, total: total + numbers[i], jnp.zeros((), numbers.dtype))
