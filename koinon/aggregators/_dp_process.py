"""The aggregation process of a differentially private query, and its state."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon._jax import raveled
from koinon.aggregators._dp_query import DPQuery
from koinon.aggregators._factory import UnweightedAggregationFactory, ValueType
from koinon.aggregators._norms import all_finite
from koinon.aggregators._rows import to_value
from koinon.aggregators._secure_field import share_of
from koinon.computation import (
    federated_broadcast,
    federated_computation,
    federated_eval,
    federated_map,
    federated_secure_sum,
    federated_split_key,
    federated_zip,
    jax_computation,
)
from koinon.privacy._accounting import ORDERS, epsilon_offsets, rdp_per_round
from koinon.privacy._cohorts import (
    CohortSampling,
    FixedSizeSampling,
    NoSampling,
    PoissonSampling,
    check_cohort_sampling,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.types import (
    SERVER,
    TensorType,
    at_clients,
    preorder_types,
    register_container,
)

# So many cohorts of one size are not drawn by Poisson sampling: a size of even ten clients hardly repeats so often.
TELLING_ROUNDS = 8

# An epsilon of float32 numbers is rounded up by more than they are rounded.
_ROUNDED_UP = 1.0 + 2.0**-20


class CohortSizes(NamedTuple):
    """The sizes of the cohorts so far, of those clients whose values are finite.

    Attributes:
      rounds: int32, how many rounds there were.
      least: int32, the size of the smallest cohort.
      most: int32, that of the largest.
    """

    rounds: Any
    least: Any
    most: Any


def contradicts(sampling: CohortSampling, sizes: CohortSizes) -> Any:
    """Whether cohorts of these sizes were surely not drawn as claimed, so that no epsilon can be told of them."""
    if isinstance(sampling, PoissonSampling) and sampling.probability < 1.0:
        return (sizes.rounds >= TELLING_ROUNDS) & (sizes.least == sizes.most)
    if isinstance(sampling, FixedSizeSampling):
        # A client whose value is not finite is not counted, so a cohort may seem smaller than it was.
        return sizes.most > sampling.cohort
    return False


class DPAggregatorState(NamedTuple):
    """The state of a differentially private aggregation.

    Attributes:
      query_state: that of the query: the key of the noise, the clipping norm, what later noise depends on.
      agg_state: that of the aggregation of the records.
      dp_event: what noise was added; see `extract_dp_event_from_state`.
      is_init_state: bool, whether there was no round yet.
      cohorts: the sizes of the cohorts so far.
    """

    query_state: Any
    agg_state: Any
    dp_event: Any
    is_init_state: Any
    cohorts: Any


register_container("koinon.CohortSizes", CohortSizes)
register_container("koinon.DPAggregatorState", DPAggregatorState)


@dataclasses.dataclass(frozen=True)
class PrivacyBudget:
    """What epsilon is measured for.

    Attributes:
      delta: in (0, 1).
      sampling: how the cohorts are drawn; `NoSampling()` holds for any cohorts.

    Raises:
      KoinonTypeError, KoinonValueError: where an attribute has another type or is out of its range.
    """

    delta: float
    sampling: CohortSampling = dataclasses.field(default_factory=NoSampling)

    def __post_init__(self) -> None:
        epsilon_offsets(self.delta)
        check_cohort_sampling(self.sampling)


def dp_process(
    query: DPQuery,
    record_factory: UnweightedAggregationFactory,
    value_type: ValueType,
    budget: PrivacyBudget | None,
) -> AggregationProcess:
    """The process that asks a query of values of a type."""
    layout = _Layout(value_type)
    share = share_of(query.most_clients)
    spent = _Spending(query, budget)

    def initial_query_state() -> tuple[Any, Any, Any, Any]:
        zero = jnp.int32(0)
        return (
            query.initialize(layout.size),
            query.no_event(),
            jnp.bool_(True),
            CohortSizes(zero, jnp.int32(jnp.iinfo(jnp.int32).max), zero),
        )

    first = initial_query_state()  # once, since a query draws its key here
    first_fn = jax_computation()(lambda: first)

    def encode(value: Any, params: Any, key: Any) -> Any:
        vector = layout.flatten(value)
        is_finite = all_finite(vector)
        record = query.encode(params, jnp.where(is_finite, vector, 0.0), is_finite, key)
        return record, OrderedDict(clients=is_finite * jnp.int32(share), non_finite=(~is_finite).astype(jnp.int32))

    params_fn = jax_computation(first_fn.type_signature.result[0])(query.params)
    params_type = params_fn.type_signature.result
    if query.client_noise:
        key_type = TensorType(jax.eval_shape(lambda: jax.random.key(0)).dtype)
        encode_fn = jax_computation(value_type, params_type, key_type)(encode)
    else:
        encode_fn = jax_computation(value_type, params_type)(lambda value, params: encode(value, params, None))
    records = record_factory.create(encode_fn.type_signature.result[0])

    @federated_computation
    def initialize_fn() -> Any:
        query_state, event, is_init, cohorts = federated_eval(first_fn, SERVER)
        return federated_zip(DPAggregatorState(query_state, records.initialize(), event, is_init, cohorts))

    def decode(query_state: Any, cohorts: Any, total: Any, counts: Any) -> Any:
        clients = counts["clients"] // share
        decoded = query.decode(query_state, total, clients)
        sizes = CohortSizes(cohorts.rounds + 1, jnp.minimum(cohorts.least, clients), jnp.maximum(cohorts.most, clients))
        measured = OrderedDict(
            dp_query_metrics=OrderedDict(query.metrics(decoded.state)),
            non_finite_clients=counts["non_finite"],
            privacy_spent=spent(decoded.state, decoded.event, sizes),
        )
        return layout.unflatten(decoded.vector), decoded.state, decoded.event, jnp.bool_(False), sizes, measured

    @federated_computation(initialize_fn.type_signature.result, at_clients(value_type))
    def next_fn(state: Any, value: Any) -> Any:
        params = federated_broadcast(federated_map(params_fn, state.query_state))
        arguments = [value, params]
        if query.client_noise:
            arguments.append(federated_split_key(federated_map(query.client_key, state.query_state)))
        record, counted = federated_map(encode_fn, tuple(arguments))
        total = records.next(state.agg_state, record)
        counts = federated_secure_sum(counted, OrderedDict(clients=share, non_finite=1))
        result, query_state, event, is_init, sizes, measured = federated_map(
            decode, (state.query_state, state.cohorts, total.result, counts)
        )
        measurements = OrderedDict(
            dp_query_metrics=measured["dp_query_metrics"],
            dp=total.measurements,
            non_finite_clients=measured["non_finite_clients"],
            privacy_spent=measured["privacy_spent"],
        )
        return MeasuredProcessOutput(
            federated_zip(DPAggregatorState(query_state, total.state, event, is_init, sizes)),
            result,
            federated_zip(measurements),
        )

    return AggregationProcess(initialize_fn, next_fn, parts={"record_agg": records})


class _Layout:
    """The leaves of a type one after the other in a vector."""

    def __init__(self, value_type: ValueType) -> None:
        self._type = value_type
        leaves = [leaf for leaf in preorder_types(value_type) if isinstance(leaf, TensorType)]
        shapes = [leaf.shape for leaf in leaves if leaf.shape is not None and None not in leaf.shape]
        if len(shapes) < len(leaves):
            raise KoinonTypeError("Differential privacy needs values of known shapes.", found=value_type)
        self.size = sum(math.prod(size or 0 for size in shape) for shape in shapes)
        if self.size == 0:
            raise KoinonTypeError("There is nothing to aggregate.", found=value_type)

    def flatten(self, value: Any) -> jax.Array:
        """The elements as one float32 vector."""
        return raveled(leaf.astype(jnp.float32) for leaf in jax.tree.leaves(value))

    def unflatten(self, vector: jax.Array) -> Any:
        """The value that a vector stands for."""
        return to_value(self._type, vector)


class _Spending:
    """What was spent, computed in every round."""

    def __init__(self, query: DPQuery, budget: PrivacyBudget | None) -> None:
        self._query = query
        self._budget = budget
        self._per_round: np.ndarray | None = None
        if budget is None or isinstance(budget.sampling, NoSampling):
            return
        multiplier = query.noise_multiplier
        if multiplier is None:
            raise KoinonValueError(
                "Sampling amplifies the privacy of rounds that are independent and alike, with noise of the server, "
                "which these are not.",
                expected="NoSampling()",
                found=repr(budget.sampling),
                hint="what this aggregation promises holds for any cohorts",
            )
        self._per_round = rdp_per_round(multiplier, budget.sampling)

    def __call__(self, state: Any, event: Any, sizes: CohortSizes) -> OrderedDict[str, jax.Array]:
        rounds = sizes.rounds
        rho, xi = self._query.spent(state, event)
        measured = OrderedDict(rounds=rounds, zcdp_rho=rho)
        if self._budget is None:
            return measured
        orders = jnp.asarray(ORDERS, jnp.float32)
        if self._per_round is None:
            divergence = xi + rho * orders
        else:
            divergence = rounds.astype(jnp.float32) * jnp.asarray(self._per_round, jnp.float32)
        offsets = jnp.asarray(epsilon_offsets(self._budget.delta), jnp.float32)
        epsilon = _ROUNDED_UP * jnp.maximum(jnp.min(divergence + offsets), 0.0)
        measured["epsilon"] = jnp.where(contradicts(self._budget.sampling, sizes), jnp.inf, epsilon)
        measured["delta"] = jnp.float32(self._budget.delta)
        return measured
