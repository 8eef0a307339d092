"""Sums of which the server sees nothing but the total, as factories."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError, SecureSumFieldError
from koinon.aggregators._clip import check_norm_process
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_value_type, next_parameter
from koinon.aggregators._norms import all_finite
from koinon.aggregators._secure_field import check_max_clients
from koinon.aggregators._secure_quantized import Fit, check_dtype, fit_of, sum_within
from koinon.computation import (
    Value,
    federated_broadcast,
    federated_computation,
    federated_map,
    federated_secure_modular_sum,
    federated_secure_sum_bitwidth,
    federated_value,
    federated_zip,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._estimation import EstimationProcess
from koinon.templates._iterative import IterativeProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.templates._specs import specs_of
from koinon.types import (
    SERVER,
    FederatedType,
    StructType,
    at_clients,
    at_server,
    is_structure_of_integers,
    strip_placement,
    to_type,
)

Threshold: TypeAlias = int | float | np.integer | np.floating | EstimationProcess


@final
class SecureSumFactory(UnweightedAggregationFactory):
    """Sums the clients' values such that the server sees the sum alone.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    Values are clipped to the thresholds. Integers are then summed exactly, as their distance from the lower one; floats
    as numbers of steps in a range of 32 bits, see `secure_quantized_sum`. Nothing wraps: for more clients than the sum
    can hold, a run fails with `SecureSumRangeError`; with `max_clients`, `create` says so.

    A client with a number that is not finite is left out of all of it, and counted in `non_finite_clients`.

    The state is empty for constants, that of the process for one process, and a pair for two. The measurements are
    `secure_upper_clipped_count` and `secure_lower_clipped_count`, the numbers of clients of which a number was clipped,
    `secure_upper_threshold` and `secure_lower_threshold`, which were used this round, and for floats
    `non_finite_clients`. The counts are summed securely too.

    Args:
      upper_bound_threshold: an int for integers; for floats a float, or an `EstimationProcess` that reports a float32
        and whose `next` takes the greatest number of each client.
      lower_bound_threshold: one of the same kind, with the least numbers; None for minus the upper one, where a
        process is given the greatest absolute value of each client.
      max_clients: the size of the largest cohort, to be checked before anything runs; None for as many as fit.

    Raises:
      TypeError: if a threshold has another type, or the two are not of one kind; at `create`, if the values have more
        than one dtype, or one that does not go with the thresholds.
      ValueError: if the upper threshold is not above the lower one; at `create`, if the dtype does not hold it.
      SecureSumFieldError: at `create`, if the sum over `max_clients` does not fit its dtype.

    References:
      Keith Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017.
      https://doi.org/10.1145/3133956.3133982

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.SecureSumFactory(10, 0).create(ko.types.TensorType("int32"))
      >>> output = process.next(process.initialize(), [3, 4, 50])
      >>> int(output.result), int(output.measurements["secure_upper_clipped_count"])
      (17, 1)
    """

    def __init__(
        self,
        upper_bound_threshold: Threshold,
        lower_bound_threshold: Threshold | None = None,
        *,
        max_clients: int | None = None,
    ) -> None:
        check_max_clients(max_clients)
        self._bounds = _bounds_of(upper_bound_threshold, lower_bound_threshold)
        self._max_clients = max_clients

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`."""
        return _create(self._bounds, self._max_clients, value_type, counts_non_finite=not self._bounds.are_integers)


@final
class SumOfPresentFactory(UnweightedAggregationFactory):
    """`SecureSumFactory` for floats, where a client that is not finite is absent, and somebody else counts it."""

    def __init__(self, upper_bound_threshold: Threshold, lower_bound_threshold: Threshold | None = None) -> None:
        self._bounds = _bounds_of(upper_bound_threshold, lower_bound_threshold)

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`."""
        return _create(self._bounds, None, value_type, counts_non_finite=False)


class _Bounds(NamedTuple):
    """The thresholds: what follows them, and how they are read.

    Attributes:
      processes: none for constants; one; or two, of which the first is the upper one.
      constants: the upper and the lower one; None where processes estimate them.
      are_integers: whether they are for integers.
    """

    processes: tuple[EstimationProcess, ...]
    constants: tuple[Any, Any] | None
    are_integers: bool

    def initialize(self) -> Value:
        """The first state."""
        states = tuple(process.initialize() for process in self.processes)
        return states[0] if len(states) == 1 else federated_zip(states) if states else federated_value((), SERVER)

    @property
    def state_type(self) -> FederatedType:
        """The type of the state, at the server."""
        types = [strip_placement(process.state_type) for process in self.processes]
        return at_server(types[0] if len(types) == 1 else StructType(types, tuple) if types else to_type(()))

    def report(self, state: Value, dtype: np.dtype) -> tuple[Value, Value]:
        """The upper and the lower threshold of this round."""
        if self.constants is not None:
            upper, lower = (federated_value(dtype.type(constant), SERVER) for constant in self.constants)
            return upper, lower
        reported = [process.report(one) for process, one in zip(self.processes, self._states(state), strict=True)]
        bounds = [federated_map(lambda estimate: estimate.astype(dtype), estimate) for estimate in reported]
        if len(bounds) == 1:
            bounds.append(federated_map(lambda upper: -upper, bounds[0]))
        return bounds[0], bounds[1]

    def update(self, state: Value, greatest: Value, least: Value) -> Value:
        """The next state, from the greatest and the least number of each client; NaN for one that is not there."""
        if len(self.processes) == 1:
            largest = federated_map(lambda a, b: jnp.maximum(jnp.abs(a), jnp.abs(b)), (greatest, least))
            return self.processes[0].next(state, largest)
        if not self.processes:
            return state
        ends = zip(self.processes, self._states(state), (greatest, least), strict=True)
        return federated_zip(tuple(process.next(one, end) for process, one, end in ends))

    def _states(self, state: Value) -> list[Value]:
        return [state] if len(self.processes) == 1 else [state[0], state[1]]


def _create(
    bounds: _Bounds, max_clients: int | None, value_type: ValueType, counts_non_finite: bool
) -> AggregationProcess:
    dtype = _dtype_of(value_type, bounds.are_integers)
    # Floats take 32 bits in any range, so one that is not known yet fits as well as another.
    upper, lower = bounds.constants or (1.0, -1.0)
    one = fit_of(dtype, lower, upper, max_clients)
    fit = Fit(one.clients, one.widths * len(jax.tree.leaves(specs_of(value_type))))

    @federated_computation
    def initialize_fn() -> Any:
        return bounds.initialize()

    @federated_computation(next_parameter(bounds.state_type, value_type))
    def next_fn(arguments: Any) -> Any:
        state, value = arguments
        upper, lower = bounds.report(state, dtype)
        ends = federated_map(_ends, (value, federated_broadcast(upper), federated_broadcast(lower)))
        summed = sum_within(value, lower, upper, fit)
        clipped = federated_secure_sum_bitwidth(ends["clipped"], 1)
        measurements = OrderedDict(
            secure_upper_clipped_count=clipped["upper"],
            secure_lower_clipped_count=clipped["lower"],
            secure_upper_threshold=upper,
            secure_lower_threshold=lower,
        )
        if counts_non_finite:
            measurements["non_finite_clients"] = summed.non_finite
        new_state = bounds.update(state, ends["greatest"], ends["least"])
        return MeasuredProcessOutput(new_state, summed.total, federated_zip(measurements))

    parts: dict[str, IterativeProcess] = dict(zip(("upper_bound", "lower_bound"), bounds.processes, strict=False))
    return AggregationProcess(initialize_fn, next_fn, parts=parts)


def _ends(value: Any, upper: jax.Array, lower: jax.Array) -> dict[str, Any]:
    """The greatest and the least number of a client, NaN where one is not finite, and whether they are clipped."""
    leaves = [leaf for leaf in jax.tree.leaves(value) if leaf.size] or [jnp.zeros(1, upper.dtype)]
    greatest = jnp.stack([leaf.max() for leaf in leaves]).max()
    least = jnp.stack([leaf.min() for leaf in leaves]).min()
    is_finite = all_finite(leaves)
    return {
        "greatest": jnp.where(is_finite, greatest.astype(jnp.float32), jnp.nan),
        "least": jnp.where(is_finite, least.astype(jnp.float32), jnp.nan),
        "clipped": {
            "upper": (is_finite & (greatest > upper)).astype(jnp.int32),
            "lower": (is_finite & (least < lower)).astype(jnp.int32),
        },
    }


def _dtype_of(value_type: ValueType, are_integers: bool) -> np.dtype:
    """The one dtype of values that are to be summed."""
    check_value_type(value_type)
    dtypes = {np.dtype(spec.dtype) for spec in jax.tree.leaves(specs_of(value_type))}
    if len(dtypes) != 1:
        raise KoinonTypeError(
            "A secure sum needs values of one dtype.", expected="one dtype in all tensors", found=value_type
        )
    dtype = dtypes.pop()
    if jnp.issubdtype(dtype, jnp.integer) != are_integers:
        raise KoinonTypeError(
            "The thresholds of a secure sum are for values of another kind.",
            expected="integers" if are_integers else "floats",
            found=value_type,
            hint="give an int as threshold for integers, a float for floats",
        )
    if not are_integers:
        check_dtype(dtype)
    return dtype


def _bounds_of(upper: object, lower: object) -> _Bounds:
    kind = _kind(upper)
    if kind is None or (lower is not None and _kind(lower) != kind):
        raise KoinonTypeError(
            "The thresholds of a secure sum must both be ints, floats or estimation processes.",
            expected="int, float or EstimationProcess",
            found=" and ".join(type(bound).__qualname__ for bound in (upper, lower) if bound is not None),
            hint="write 1.0 for floats, 1 for integers",
        )
    if kind == "EstimationProcess":
        processes = tuple(process for process in (upper, lower) if isinstance(process, EstimationProcess))
        for process, label in zip(processes, ("upper_bound_threshold", "lower_bound_threshold"), strict=False):
            check_norm_process(process, label)
        return _Bounds(processes, None, are_integers=False)
    as_python: Any = int if kind == "int" else float
    high = as_python(upper)
    low = -high if lower is None else as_python(lower)
    if not (math.isfinite(high) and math.isfinite(low) and high > low):
        raise KoinonValueError(
            "The upper threshold must be above the lower one.",
            expected="a positive number" if lower is None else f"more than {low}",
            found=high,
        )
    return _Bounds((), (high, low), are_integers=kind == "int")


def _kind(bound: object) -> str | None:
    if isinstance(bound, EstimationProcess):
        return "EstimationProcess"
    if isinstance(bound, bool | np.bool_):
        return None
    return "int" if isinstance(bound, int | np.integer) else "float" if isinstance(bound, float | np.floating) else None


@final
class SecureModularSumFactory(UnweightedAggregationFactory):
    """Sums integers modulo a number such that the server sees the sum alone.

    Type: `(<<>@SERVER,{V}@CLIENTS> -> <state=<>@SERVER,result=V@SERVER,measurements=<>@SERVER>)`

    The sum wraps around, whatever the values are, into `[0, modulus)`; or, with `symmetric_range`, into
    `[-(modulus - 1), modulus - 1]`, which is summing modulo `2 * modulus - 1`.

    Args:
      modulus: a positive int.
      symmetric_range: whether the range of the sum is symmetric around zero.

    Raises:
      TypeError: if an argument has another type; at `create`, if the values are no integers.
      ValueError: if the modulus is not positive.
      SecureSumFieldError: at `create`, if the dtype of the values does not hold the numbers below the modulus, with a
        symmetric range those below `2 * modulus - 1`; or if JAX has no integer as large as that number itself.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.SecureModularSumFactory(8, symmetric_range=True).create(ko.types.TensorType("int32"))
      >>> int(process.next(process.initialize(), [1, 2, 3, 4]).result)  # 10 - 15
      -5
    """

    def __init__(self, modulus: int | np.integer, symmetric_range: bool = False) -> None:
        if _kind(modulus) != "int":
            raise KoinonTypeError("A modulus must be an int.", found=repr(modulus))
        if modulus <= 0:
            raise KoinonValueError("A modulus must be positive.", found=modulus)
        if not isinstance(symmetric_range, bool):
            raise KoinonTypeError("`symmetric_range` must be a bool.", found=repr(symmetric_range))
        self._largest = int(modulus) - 1
        self._modulus = 2 * int(modulus) - 1 if symmetric_range else int(modulus)

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`."""
        check_value_type(value_type)
        if not is_structure_of_integers(value_type):
            raise KoinonTypeError("A modular sum needs integers.", found=value_type)
        limits = {np.dtype(spec.dtype): np.iinfo(spec.dtype) for spec in jax.tree.leaves(specs_of(value_type))}
        largest, modulus = self._largest, self._modulus
        is_symmetric = modulus != largest + 1
        held = [jax.dtypes.canonicalize_dtype(dtype) for dtype in (np.int32, np.uint32, np.int64, np.uint64)]
        most = max(int(np.iinfo(dtype).max) for dtype in held)
        for dtype, limit in limits.items():
            most = min(most, int(limit.max) + 1)
            if is_symmetric and limit.min == 0:
                raise SecureSumFieldError(
                    "A symmetric range has negative sums.", expected="values of signed integers", found=dtype
                )
        if modulus > most:
            raise SecureSumFieldError(
                "The modulus is too large for what the values and JAX hold.",
                expected=f"a modulus of at most {(most + 1) // 2 if is_symmetric else most}",
                found=f"{largest + 1}, for {', '.join(map(str, limits)) or 'no values'}",
                hint="take a smaller modulus, or values of a wider dtype",
            )
        bound = next(dtype for dtype in held if modulus <= np.iinfo(dtype).max).type(modulus)

        def around_zero(total: Any) -> Any:
            return jax.tree.map(lambda leaf: jnp.where(leaf > largest, leaf - modulus, leaf), total)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(to_type(())), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            total = federated_secure_modular_sum(value, bound)
            if is_symmetric:
                total = federated_map(around_zero, total)
            return MeasuredProcessOutput(state, total, federated_value((), SERVER))

        return AggregationProcess(initialize_fn, next_fn)
