"""A quantile of one number per client, followed from round to round without collecting the numbers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType, check_unweighted_factory
from koinon.aggregators._sum import SumFactory
from koinon.computation import (
    federated_broadcast,
    federated_computation,
    federated_eval,
    federated_map,
    federated_secure_sum_bitwidth,
    federated_value,
    federated_zip,
    jax_computation,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._estimation import EstimationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import SERVER, StructType, TensorType, at_clients, at_server, strip_placement, to_type

_RECORD = StructType([("below", TensorType(jnp.int32)), ("count", TensorType(jnp.int32))], dict)


@final
class PrivateQuantileEstimationProcess(EstimationProcess):
    """Follows the quantile `q` of a float32 per client by geometric updates.

    With `b` the fraction of the clients whose number is at most the estimate `C`,

        C <- C * exp(-learning_rate * (b - q))

    Type: `initialize ( -> S@SERVER)`, `next (<S@SERVER,{float32}@CLIENTS> -> S@SERVER)`,
    `report (S@SERVER -> float32@SERVER)`

    A client sends two bits, whether its number is at most the estimate and a one to be counted, which an aggregation
    of the caller's choice sums; the process is as private as that aggregation. A client whose number is NaN is not
    counted, and a round without clients leaves the estimate as it is. The state is `<current_estimate,record_agg>`.

    Args:
      initial_estimate: the estimate before the first round, a positive float.
      target_quantile: `q`, a float in [0, 1].
      learning_rate: the step size of the logarithm of the estimate, a positive float.
      record_aggregation_factory: sums `<below=int32,count=int32>`, each 0 or 1, over the clients; `SumFactory()` if
        None.

    Raises:
      TypeError: if a number is not a float, or the factory is not an `UnweightedAggregationFactory`.
      ValueError: if a number is out of its range.

    References:
      Galen Andrew, Om Thakkar, H. Brendan McMahan, Swaroop Ramaswamy: Differentially Private Learning with Adaptive
      Clipping, 2021, section 2.1. https://arxiv.org/abs/1905.03871

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.PrivateQuantileEstimationProcess(1.0, 0.5, 0.2)
      >>> state = process.next(process.initialize(), [5.0, 7.0])
      >>> print(f"{float(process.report(state)):.4f}")  # exp(-0.2 * (0 - 0.5))
      1.1052
    """

    def __init__(
        self,
        initial_estimate: float,
        target_quantile: float,
        learning_rate: float,
        record_aggregation_factory: UnweightedAggregationFactory | None = None,
    ) -> None:
        _check_float(initial_estimate, "initial_estimate", "positive", initial_estimate > 0.0)
        _check_float(target_quantile, "target_quantile", "between 0.0 and 1.0", 0.0 <= target_quantile <= 1.0)
        _check_float(learning_rate, "learning_rate", "positive", learning_rate > 0.0)
        factory = SumFactory() if record_aggregation_factory is None else record_aggregation_factory
        check_unweighted_factory(factory, "record_aggregation_factory")
        records = factory.create(_RECORD)

        def make_record(value: jax.Array, estimate: jax.Array) -> dict[str, jax.Array]:
            return {"below": (value <= estimate).astype(jnp.int32), "count": (~jnp.isnan(value)).astype(jnp.int32)}

        def update(estimate: jax.Array, total: dict[str, jax.Array]) -> jax.Array:
            below, count = (total[name].astype(jnp.float32) for name in ("below", "count"))
            excess = jnp.where(count > 0.0, below / jnp.maximum(count, 1.0) - target_quantile, 0.0)
            return estimate * jnp.exp(-learning_rate * excess)

        @federated_computation
        def initialize_fn() -> Any:
            estimate = federated_eval(jax_computation()(lambda: jnp.float32(initial_estimate)), SERVER)
            return federated_zip(OrderedDict(current_estimate=estimate, record_agg=records.initialize()))

        state_type = StructType(
            [("current_estimate", TensorType(jnp.float32)), ("record_agg", strip_placement(records.state_type))],
            OrderedDict,
        )

        @federated_computation(at_server(state_type), at_clients(TensorType(jnp.float32)))
        def next_fn(state: Any, value: Any) -> Any:
            estimate = state["current_estimate"]
            record = federated_map(make_record, (value, federated_broadcast(estimate)))
            total = records.next(state["record_agg"], record)
            new_estimate = federated_map(update, (estimate, total.result))
            return federated_zip(OrderedDict(current_estimate=new_estimate, record_agg=total.state))

        @federated_computation(at_server(state_type))
        def report_fn(state: Any) -> Any:
            return state["current_estimate"]

        super().__init__(initialize_fn, next_fn, report_fn, parts={"record_agg": records})

    @classmethod
    def no_noise(
        cls,
        initial_estimate: float,
        target_quantile: float,
        learning_rate: float,
        multiplier: float = 1.0,
        increment: float = 0.0,
        secure_estimation: bool = False,
    ) -> EstimationProcess:
        """A process that reports `multiplier * C + increment`, for the quantile `C` without noise.

        Without noise there is no differential privacy; a secure sum hides the bits of single clients.

        Args:
          initial_estimate: the estimate of `C` before the first round, a positive float.
          target_quantile: a float in [0, 1].
          learning_rate: a positive float.
          multiplier: a positive float.
          increment: a non-negative float.
          secure_estimation: whether the clients' bits are summed securely.

        Raises:
          TypeError: if a number is not a float, or `secure_estimation` not a bool.
          ValueError: if a number is out of its range.

        Example:
          >>> from koinon.aggregators import PrivateQuantileEstimationProcess
          >>> process = PrivateQuantileEstimationProcess.no_noise(1.0, 0.5, 0.2, multiplier=2.0, increment=1.0)
          >>> float(process.report(process.initialize()))
          3.0
        """
        _check_float(multiplier, "multiplier", "positive", multiplier > 0.0)
        _check_float(increment, "increment", "not negative", increment >= 0.0)
        if not isinstance(secure_estimation, bool):
            raise KoinonTypeError("`secure_estimation` must be a bool.", found=repr(secure_estimation))
        factory = _SecureBitSumFactory() if secure_estimation else SumFactory()
        process = cls(initial_estimate, target_quantile, learning_rate, factory)
        if multiplier == 1.0 and increment == 0.0:
            return process

        @federated_computation(at_server(TensorType(jnp.float32)))
        def transform(estimate: Any) -> Any:
            return federated_map(lambda quantile: multiplier * quantile + increment, estimate)

        return process.map(transform)


@final
class _SecureBitSumFactory(UnweightedAggregationFactory):
    """Sums values that are 0 or 1 by a secure sum of one bit per client."""

    def create(self, value_type: ValueType) -> AggregationProcess:
        @federated_computation
        def initialize_fn() -> Any:
            return federated_value((), SERVER)

        @federated_computation(at_server(to_type(())), at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            total = federated_secure_sum_bitwidth(value, 1)
            return MeasuredProcessOutput(state, total, federated_value((), SERVER))

        return AggregationProcess(initialize_fn, next_fn)


def _check_float(value: object, label: str, range_: str, is_in_range: bool) -> None:
    if not isinstance(value, float):
        raise KoinonTypeError(f"`{label}` must be a float.", found=repr(value), hint="write 1.0, not 1")
    if not is_in_range:
        raise KoinonValueError(f"`{label}` must be {range_}.", found=value)
