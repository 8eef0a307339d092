"""Aggregators of model updates that are recommended: robust, compressed, secret, differentially private."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from koinon._errors import KoinonTypeError
from koinon.aggregators import (
    AggregationFactory,
    DifferentiallyPrivateFactory,
    EncodedSumFactory,
    MeanFactory,
    PrivacyBudget,
    PrivateQuantileEstimationProcess,
    SecureSumFactory,
    UnweightedAggregationFactory,
    WeightedAggregationFactory,
    clipping_factory,
    excluding_non_finite_factory,
    zeroing_factory,
)
from koinon.aggregators._factory import ValueType, next_parameter, prints_as_called
from koinon.aggregators._secure_absent import absent_as_nan_factory
from koinon.aggregators._secure_sum import SumOfPresentFactory
from koinon.computation import federated_computation, federated_value
from koinon.privacy import FixedSizeSampling, NoSampling, PoissonSampling, calibrate_noise_multiplier
from koinon.templates import AggregationProcess, EstimationProcess
from koinon.types import CLIENTS, TensorType


@prints_as_called
def robust_aggregator(
    *,
    zeroing: bool = True,
    clipping: bool = True,
    weighted: bool = True,
    debug_measurements_fn: Callable[[AggregationFactory], AggregationFactory] | None = None,
) -> AggregationFactory:
    """The mean, where clients that send absurd values count as zero, and no client leads with a long update.

    Values of an infinity norm far beyond those seen so far are zeroed, and values are clipped to a quantile of the
    L2 norms; both norms adapt. A client with a value or a weight that is not finite is left out, and counted in
    `non_finite_clients`; a cohort without any weight gives zeros.

    Args:
      zeroing: whether absurd values are zeroed.
      clipping: whether values are clipped.
      weighted: whether the mean is weighted.
      debug_measurements_fn: wraps the mean inside, to measure more of it; such as `add_debug_measurements`.

    Example:
      >>> import koinon as ko
      >>> scalar = ko.types.TensorType("float32")
      >>> process = ko.learning.robust_aggregator().create(scalar, scalar)
      >>> output = process.next(process.initialize(), [0.5, 1e6, float("nan")], [1.0, 1.0, 1.0])
      >>> float(output.result), int(output.measurements["non_finite_clients"])  # (0.5 + 0) / 2
      (0.25, 1)
    """
    return _bounded(MeanFactory(no_nan_division=True), zeroing, clipping, weighted, debug_measurements_fn)


@prints_as_called
def compression_aggregator(
    *,
    zeroing: bool = True,
    clipping: bool = True,
    weighted: bool = True,
    debug_measurements_fn: Callable[[AggregationFactory], AggregationFactory] | None = None,
    quantization_bits: int = 8,
    threshold: int = 20_000,
    seed: int = 0,
) -> AggregationFactory:
    """`robust_aggregator`, where clients send the large leaves of their weighted updates in a few bits per number.

    Each leaf of more than `threshold` elements is quantized uniformly between its least and greatest element, and
    stochastically, so the mean is unbiased. With the defaults, training is hardly changed by it. The bytes that a
    client sends are the measurement `bytes_per_client`, among those of the mean's sum of values, `mean_value`.

    Args:
      zeroing: whether absurd values are zeroed.
      clipping: whether values are clipped, before they are quantized.
      weighted: whether the mean is weighted.
      debug_measurements_fn: wraps the mean inside, to measure more of it; such as `add_debug_measurements`.
      quantization_bits: bits per number, 1 to 16.
      threshold: leaves of at most so many elements are sent as they are.
      seed: where the randomness of rounding begins.

    Raises:
      ValueError: if a number is out of its range.

    References:
      Suresh et al., Distributed Mean Estimation with Limited Communication, ICML 2017.
      https://arxiv.org/abs/1611.00429

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> factory = ko.learning.compression_aggregator(zeroing=False, clipping=False)
      >>> process = factory.create(ko.types.parse("float32[30000]"), ko.types.parse("float32"))
      >>> output = process.next(process.initialize(), [jnp.ones(30000), jnp.zeros(30000)], [3.0, 1.0])
      >>> float(output.result[0]), float(output.measurements["mean_value"]["bytes_per_client"])
      (0.75, 30008.0)
    """
    quantized_sum = EncodedSumFactory.quantize_above_threshold(quantization_bits, threshold, seed)
    factory = MeanFactory(quantized_sum, no_nan_division=True)
    return _bounded(factory, zeroing, clipping, weighted, debug_measurements_fn)


@prints_as_called
def dp_aggregator(
    noise_multiplier: float | None = None,
    clients_per_round: float | None = None,
    zeroing: bool | None = None,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    rounds: int | None = None,
    sampling: PoissonSampling | FixedSizeSampling | NoSampling | None = None,
    seed: int | None = None,
) -> UnweightedAggregationFactory:
    """The mean with differential privacy: adaptive clipping, and noise on an integer grid.

    Either the noise multiplier is given, or what it must be enough for: `epsilon` and `delta` after so many `rounds`,
    with cohorts that are drawn as `sampling` says. The divisor of the sum then follows from the sampling where
    that tells the number of clients. With a `delta`, the epsilon that is spent so far is the measurement
    `privacy_spent` of every round.

    With `zeroing`, values of an infinity norm far beyond those seen so far are zeroed first. That norm adapts to the
    clients without noise, so no epsilon covers it, the one that is measured neither; a privacy report lists it.

    Args:
      noise_multiplier: the standard deviation of the noise over the clipping norm, a non-negative float.
      clients_per_round: the expected number of clients, a positive number; of a `FixedSizeSampling` it is known.
      zeroing: whether absurd values are zeroed; None for no where an epsilon is asked for, which is then that of all
        that is sent but counts of clients, and for yes where the noise is given, as in TFF.
      epsilon: a positive float.
      delta: in (0, 1).
      rounds: how many rounds there will be.
      sampling: how the cohorts are drawn; None for any cohorts.
      seed: of the noise, for simulations; None for the operating system's entropy.

    Raises:
      TypeError, ValueError: where a number has another type or is out of its range, or too much or too little is given.
      MissingDependencyError: where sampling is to be accounted for, and the package `dp_accounting` is not installed.

    Example:
      >>> import koinon as ko
      >>> sampling = ko.privacy.PoissonSampling(0.01)
      >>> factory = ko.learning.dp_aggregator(
      ...     clients_per_round=100, epsilon=4.0, delta=1e-6, rounds=500, sampling=sampling
      ... )
      >>> process = factory.create(ko.types.TensorType("float32"))
      >>> state = process.initialize()
      >>> for _ in range(3):
      ...     state, _, measured = process.next(state, [0.1, 0.2])
      >>> 0.0 < float(measured["privacy_spent"]["epsilon"]) < 4.0
      True
    """
    if clients_per_round is None and isinstance(sampling, FixedSizeSampling):
        clients_per_round = float(sampling.cohort)
    if clients_per_round is None:
        raise KoinonTypeError("`clients_per_round` is what the sum is divided by.", expected="a positive number")
    sampling = NoSampling() if sampling is None else sampling
    if zeroing is None:
        zeroing = noise_multiplier is not None
    if noise_multiplier is None:
        if epsilon is None or delta is None or rounds is None:
            raise KoinonTypeError(
                "The noise must be given, or what it must be enough for.",
                expected="`noise_multiplier`; or `epsilon`, `delta`, `rounds` and `sampling`",
                hint="`epsilon=4.0, delta=1e-6, rounds=500, sampling=ko.privacy.PoissonSampling(0.01)`",
            )
        noise_multiplier = calibrate_noise_multiplier(epsilon, delta, rounds, sampling)
    elif epsilon is not None or rounds is not None:
        raise KoinonTypeError(
            "Either the noise is given, or what it must be enough for.",
            expected="`noise_multiplier` alone or with `delta` and `sampling`",
            found="`noise_multiplier` and `epsilon` or `rounds`",
        )
    budget = None if delta is None else PrivacyBudget(delta, sampling)
    # Where the cohort is small for so much noise, a twentieth of it would not hide who was clipped.
    is_small = isinstance(noise_multiplier, float) and noise_multiplier > 0.05 * clients_per_round
    factory = DifferentiallyPrivateFactory.gaussian_adaptive(
        noise_multiplier,
        clients_per_round,
        clipped_count_stddev=noise_multiplier if is_small else None,
        seed=seed,
        budget=budget,
    )
    if not zeroing:
        return factory
    return zeroing_factory(zeroing_norm(), factory, pass_non_finite=True)  # pyright: ignore[reportReturnType]


@prints_as_called
def secure_aggregator(*, zeroing: bool = True, clipping: bool = True, weighted: bool = True) -> AggregationFactory:
    """`robust_aggregator`, where the server sees nothing of the clients but sums.

    The weighted values, the weights, and all that is measured of them are summed securely. A weighted number is clipped
    to twice a quantile of the greatest numbers that clients had so far, and is off by at most 2**-31 of that; a weight
    is clipped to `2**20 - 1`, in steps of 2**-12. `secure_upper_clipped_count` and the like tell how many were clipped.

    A client with a value or a weight that is not finite is left out, and counted in `non_finite_clients`; one of weight
    zero leaves no trace. A cohort without any weight gives zeros.

    Args:
      zeroing: whether absurd values are zeroed.
      clipping: whether values are clipped to a norm.
      weighted: whether the mean is weighted.

    Raises:
      UnsupportedDTypeError: at `create`, if the values are neither float32 nor float64.
      SecureSumRangeError: in a round where a client's weight is negative.

    References:
      Keith Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017.
      https://doi.org/10.1145/3133956.3133982

    Example:
      >>> import koinon as ko
      >>> scalar = ko.types.TensorType("float32")
      >>> process = ko.learning.secure_aggregator().create(scalar, scalar)
      >>> ko.compiler.assert_no_unsecure_aggregation(process.next)
      >>> output = process.next(process.initialize(), [0.5, 1e6, float("nan")], [1.0, 1.0, 1.0])
      >>> float(output.result), int(output.measurements["non_finite_clients"])  # (0.5 + 0) / 2
      (0.25, 1)
    """
    weights = SumOfPresentFactory(2.0**20 - 1.0, 0.0)
    factory: Any = MeanFactory(SumOfPresentFactory(secure_clipping_bound()), weights, no_nan_division=True)
    counts = SecureSumFactory(1, 0)
    factory = clipping_factory(clipping_norm(secure=True), factory, counts) if clipping else factory
    if zeroing:
        norm = zeroing_norm(secure=True)
        factory = zeroing_factory(norm, factory, zeroed_count_sum_factory=counts, pass_non_finite=True)
    factory = absent_as_nan_factory(factory)
    return factory if weighted else _EqualWeights(factory)


def _bounded(
    mean: Any,
    zeroing: bool,
    clipping: bool,
    weighted: bool,
    debug_measurements_fn: Callable[[AggregationFactory], AggregationFactory] | None,
) -> AggregationFactory:
    """A weighted mean behind all that protects it from single clients."""
    factory: Any = mean if debug_measurements_fn is None else debug_measurements_fn(mean)
    factory = clipping_factory(clipping_norm(), factory) if clipping else factory
    factory = zeroing_factory(zeroing_norm(), factory) if zeroing else factory
    factory = excluding_non_finite_factory(factory)
    return factory if weighted else _EqualWeights(factory)


def zeroing_norm(*, secure: bool = False) -> EstimationProcess:
    """A norm that grows fast to somewhat more than the largest seen so far: absurd is what lies beyond."""
    return PrivateQuantileEstimationProcess.no_noise(
        initial_estimate=10.0,
        target_quantile=0.98,
        learning_rate=math.log(10.0),
        multiplier=2.0,
        increment=1.0,
        secure_estimation=secure,
    )


def clipping_norm(*, secure: bool = False) -> EstimationProcess:
    """A norm that adapts to a moderately high one: the longest fifth of the updates are shortened."""
    return PrivateQuantileEstimationProcess.no_noise(
        initial_estimate=1.0, target_quantile=0.8, learning_rate=0.2, secure_estimation=secure
    )


def secure_clipping_bound() -> EstimationProcess:
    """A bound of single numbers that few clients reach: twice the quantile 0.95 of their greatest absolute values."""
    return PrivateQuantileEstimationProcess.no_noise(
        initial_estimate=50.0, target_quantile=0.95, learning_rate=1.0, multiplier=2.0, secure_estimation=True
    )


class _EqualWeights(UnweightedAggregationFactory):
    """A weighted aggregation where every client has the weight 1."""

    def __init__(self, inner: WeightedAggregationFactory) -> None:
        self._inner = inner

    def create(self, value_type: ValueType) -> AggregationProcess:
        weight_type = TensorType(jnp.float32)
        inner = self._inner.create(value_type, weight_type)

        @federated_computation(next_parameter(inner.state_type, value_type))
        def next_fn(arguments: Any) -> Any:
            state, value = arguments
            return inner.next(state, value, federated_value(jnp.float32(1.0), CLIENTS))

        parts = {"inner_agg": inner}
        return AggregationProcess(inner.initialize, next_fn, allow_type_change=True, parts=parts)
