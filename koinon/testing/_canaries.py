"""An audit of an aggregation as it is: with canaries for clients."""

from __future__ import annotations

from typing import Any

import numpy as np

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators import UnweightedAggregationFactory
from koinon.aggregators._factory import named
from koinon.privacy.audit import canary_epsilon
from koinon.types import TensorType


def audit_with_canaries(
    factory: UnweightedAggregationFactory,
    *,
    delta: float,
    norm: float = 1.0,
    canaries: int = 300,
    dimensions: int = 20_000,
    seed: int = 0,
) -> float:
    """An estimate of the epsilon of one round of an aggregation, from what it makes of canaries.

    The clients are canaries: random vectors of a length that is not clipped. How much longer than usual the result
    reaches in their directions tells how well one could know who took part. See `canary_epsilon`: this is an estimate,
    and biased upwards where there are few dimensions. Noise that hides nothing is estimated far above any claim.

    Args:
      factory: makes the aggregation that is audited, of vectors of float32.
      delta: in (0, 1).
      norm: the length of the canaries; the clipping norm, so that they count as much as a client can.
      canaries: their number, at least two.
      dimensions: the number of elements of a vector.
      seed: of the canaries, not of the noise.

    Raises:
      TypeError: if the factory is not an `UnweightedAggregationFactory`.
      ValueError: if a number is out of its range, or the result of the aggregation is zero or not finite.

    References:
      Galen Andrew, Peter Kairouz, Sewoong Oh, Alina Oprea, H. Brendan McMahan, Vinith Suriyakumar: One-shot Empirical
      Privacy Estimation for Federated Learning, 2023. https://arxiv.org/abs/2302.03098

    >>> import koinon as ko
    >>> make = ko.aggregators.DifferentiallyPrivateFactory.gaussian_fixed
    >>> private, leaky = (make(noise, 100.0, 1.0, seed=0) for noise in (2.0, 0.1))
    >>> options = {"delta": 1e-5, "canaries": 100, "dimensions": 5000}
    >>> ko.testing.audit_with_canaries(private, **options) < 10.0 < ko.testing.audit_with_canaries(leaky, **options)
    True
    """
    if not isinstance(factory, UnweightedAggregationFactory):
        raise KoinonTypeError(
            "What is audited must be an unweighted aggregation: a weight would be a second secret of a client.",
            expected="UnweightedAggregationFactory",
            found=named(factory),
            hint="audit what is inside `as_weighted_aggregator`",
        )
    if canaries < 2 or dimensions < 1 or not norm > 0.0:
        raise KoinonValueError(
            "An audit needs two canaries or more, of a positive length.",
            found=f"{canaries} canaries of {dimensions} dimensions and length {norm}",
        )
    process = factory.create(TensorType(np.float32, (dimensions,)))
    directions = np.random.default_rng(seed).normal(size=(canaries, dimensions))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # A little shorter, so that rounding clips none of them.
    clients = list((directions * (norm * (1.0 - 1e-6))).astype(np.float32))
    released: Any = np.asarray(process.next(process.initialize(), clients).result, np.float64)
    length = float(np.linalg.norm(released))
    if not 0.0 < length < np.inf:
        raise KoinonValueError(
            "The aggregation gave no direction to compare those of the canaries with.",
            expected="a result that is finite, and not zero",
            found=f"a result of the norm {length}",
        )
    return canary_epsilon(directions @ released / length, dimensions, delta)
