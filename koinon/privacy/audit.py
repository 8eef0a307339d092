"""Audits of differential privacy: what can be learned from outputs, against what a mechanism claims.

An audit draws outputs with and without a contribution, and bounds epsilon from below. It cannot prove a claim; it can
refute one, and finds noise that is too small, or that has bit patterns which give the contribution away.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from koinon._errors import KoinonValueError, MissingDependencyError

__all__ = ["canary_epsilon", "epsilon_lower_bound", "gaussian_epsilon", "impossible_share"]


def impossible_share(outputs: Any, possible: Any) -> float:
    """The share of outputs that a neighbouring data set cannot give, whatever the noise; 0 if nothing leaks so.

    Args:
      outputs: what a mechanism gave for one data set.
      possible: all values that it can give for the other.

    Raises:
      KoinonValueError: where there is no output.

    References:
      Ilya Mironov: On Significance of the Least Significant Bits for Differential Privacy, 2012.
      https://doi.org/10.1145/2382196.2382264

    >>> import numpy as np, koinon as ko
    >>> ko.privacy.audit.impossible_share(np.array([0.0, 0.5, 1.0, 0.3]), np.array([0.0, 0.5, 1.0]))
    0.25
    """
    values = np.asarray(outputs)
    if not values.size:
        raise KoinonValueError("An audit of bit patterns needs outputs.", expected="at least one", found="none")
    return 1.0 - float(np.isin(values, np.asarray(possible)).mean())


def epsilon_lower_bound(
    with_contribution: Any, without: Any, delta: float, *, confidence: float = 0.999, thresholds: int = 200
) -> float:
    """A lower bound of epsilon from one score for each run with, and for each run without, a contribution.

    For each threshold, the rates of scores above it are bounded by Clopper and Pearson's intervals, all of them at
    once with the confidence given; epsilon is at least `log((high - delta) / low)` of the two rates, in both
    directions.

    Args:
      with_contribution: scores of runs with the contribution, which should be larger.
      without: scores of runs without it.
      delta: the delta of the claim.
      confidence: how likely the bound holds.
      thresholds: how many thresholds are tried, between the least and the greatest score.

    Returns:
      0.0 where the scores show nothing.

    Raises:
      MissingDependencyError: where SciPy is not installed.
      KoinonValueError: where there is no score, or one that is no number, or delta or the confidence is no
        probability.

    References:
      C. J. Clopper, E. S. Pearson: The Use of Confidence or Fiducial Limits, 1934.
      https://doi.org/10.1093/biomet/26.4.404
      Matthew Jagielski, Jonathan Ullman, Alina Oprea: Auditing Differentially Private Machine Learning, 2020.
      https://arxiv.org/abs/2006.07709

    >>> import numpy as np, koinon as ko
    >>> rng = np.random.default_rng(0)
    >>> with_canary, without = rng.normal(1.0, 1.0, 100_000), rng.normal(0.0, 1.0, 100_000)
    >>> 2.0 < ko.privacy.audit.epsilon_lower_bound(with_canary, without, 1e-5) < 4.38
    True
    """
    inside, outside = np.sort(np.asarray(with_contribution)), np.sort(np.asarray(without))
    if not len(inside) or not len(outside) or not 0.0 <= delta < 1.0 or not 0.0 < confidence < 1.0:
        raise KoinonValueError(
            "An audit needs scores of both kinds, and probabilities.",
            expected="at least one score of each kind, delta in [0, 1), confidence in (0, 1)",
            found=f"{len(inside)} and {len(outside)} scores, delta {delta}, confidence {confidence}",
        )
    _check_finite("The scores of an audit", inside, outside)
    # Four bounds are used at each threshold: of both rates, above and below it.
    error = (1.0 - confidence) / (4 * thresholds)
    cuts = np.linspace(min(inside[0], outside[0]), max(inside[-1], outside[-1]), thresholds)
    above_in, above_out = (len(scores) - np.searchsorted(scores, cuts) for scores in (inside, outside))
    best = 0.0
    for hits, n_hits, misses, n_misses in (
        (above_in, len(inside), above_out, len(outside)),
        (len(outside) - above_out, len(outside), len(inside) - above_in, len(inside)),
    ):
        low, high = _lower_limit(hits, n_hits, error), _upper_limit(misses, n_misses, error)
        best = max(best, float(np.max(np.log(np.maximum(low - delta, 1e-300) / high))))
    return best


def canary_epsilon(observed: Any, dimensions: int, delta: float) -> float:
    """An estimate of epsilon from one training run with canaries: random unit vectors in place of some updates.

    Without canaries, the cosine between a random unit vector and the sum of what was released has the distribution
    `N(0, 1 / dimensions)`. Epsilon is that of telling this from the normal distribution of the cosines observed. It
    is an estimate and no bound, and biased upwards where there are few dimensions.

    Args:
      observed: the cosine of each canary with the final model's change; at least two.
      dimensions: the number of elements of the model.
      delta: in (0, 1).

    Raises:
      KoinonValueError: where there are fewer than two canaries, or one whose cosine is no number, or delta is no
        probability.

    References:
      Galen Andrew, Peter Kairouz, Sewoong Oh, Alina Oprea, H. Brendan McMahan, Vinith Suriyakumar: One-shot Empirical
      Privacy Estimation for Federated Learning, 2023, algorithm 2. https://arxiv.org/abs/2302.03098

    >>> import numpy as np, koinon as ko
    >>> nothing = np.random.default_rng(0).normal(0.0, 0.01, 300)
    >>> ko.privacy.audit.canary_epsilon(nothing, 10_000, 1e-5) < 0.8
    True
    """
    cosines = np.asarray(observed, np.float64)
    if len(cosines) < 2 or not 0.0 < delta < 1.0:
        raise KoinonValueError(
            "An estimate needs two canaries or more, and a delta in (0, 1).",
            found=f"{len(cosines)} canaries, delta {delta}",
        )
    _check_finite("The cosines of canaries", cosines)
    return gaussian_epsilon((0.0, dimensions**-0.5), (float(cosines.mean()), float(cosines.std(ddof=1))), delta)


def gaussian_epsilon(first: tuple[float, float], second: tuple[float, float], delta: float) -> float:
    """The least epsilon for which two normal distributions, given as means and deviations, are (epsilon, delta)-close.

    Args:
      first: the mean and the deviation of one.
      second: those of the other.
      delta: from 0 to 1; for 0, two that differ are never close.

    Returns:
      Infinity where none is large enough, or a deviation is 0 and the two are not the same.

    Raises:
      KoinonValueError: where a deviation is negative, a number is not finite, or delta is no probability.

    >>> import koinon as ko
    >>> f"{ko.privacy.audit.gaussian_epsilon((0.0, 1.0), (1.0, 1.0), 1e-5):.3f}"
    '4.377'
    """
    _check_finite("The means and deviations of an audit", np.array((first, second), np.float64))
    if not 0.0 <= delta <= 1.0 or min(first[1], second[1]) < 0.0:
        raise KoinonValueError(
            "An epsilon is told of two deviations and a probability.",
            expected="deviations that are not negative, delta in [0, 1]",
            found=f"deviations {first[1]} and {second[1]}, delta {delta}",
        )
    if first == second or delta == 1.0:
        return 0.0
    if 0.0 in (first[1], second[1], delta):
        return math.inf

    def too_small(epsilon: float) -> bool:
        return max(_divergence(first, second, epsilon), _divergence(second, first, epsilon)) > delta

    if not too_small(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while too_small(high):
        low, high = high, 2.0 * high
        if high > 1e6:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if too_small(middle) else (low, middle)
    return high


def _check_finite(what: str, *arrays: np.ndarray) -> None:
    """Raises an error where a number is not finite: no comparison holds for NaN, and the audit would find nothing."""
    bad = sum(int((~np.isfinite(array)).sum()) for array in arrays)
    if bad:
        raise KoinonValueError(
            f"{what} must be finite numbers.",
            expected="numbers that are finite",
            found=f"{bad} that are not",
            hint="see whether what is audited gives NaN",
        )


def _divergence(first: tuple[float, float], second: tuple[float, float], epsilon: float) -> float:
    """`max P(S) - exp(epsilon) Q(S)` over sets S: where the log of the ratio of the densities exceeds epsilon."""
    (m1, s1), (m2, s2) = first, second
    # The log of the ratio is a x^2 + b x + c.
    a = 0.5 / s2**2 - 0.5 / s1**2
    b = m1 / s1**2 - m2 / s2**2
    c = 0.5 * (m2 / s2) ** 2 - 0.5 * (m1 / s1) ** 2 + math.log(s2 / s1) - epsilon
    total = 0.0
    for low, high in _positive_intervals(a, b, c):
        p, q = _log_mass(low, high, first), _log_mass(low, high, second)
        total += math.exp(p) - (math.exp(epsilon + q) if epsilon + q < 700.0 else math.inf)
    return max(total, 0.0)


def _positive_intervals(a: float, b: float, c: float) -> list[tuple[float, float]]:
    """Where `a x^2 + b x + c > 0`."""
    inf = math.inf
    if a == 0.0:
        if b == 0.0:
            return [(-inf, inf)] if c > 0.0 else []
        return [(-c / b, inf)] if b > 0.0 else [(-inf, -c / b)]
    discriminant = b * b - 4.0 * a * c
    if discriminant <= 0.0:
        return [(-inf, inf)] if a > 0.0 else []
    # The stable forms of the two roots: no difference of nearly equal numbers.
    half = -0.5 * (b + math.copysign(math.sqrt(discriminant), b))
    low, high = sorted((half / a, c / half))
    return [(-inf, low), (high, inf)] if a > 0.0 else [(low, high)]


def _log_mass(low: float, high: float, normal: tuple[float, float]) -> float:
    mean, deviation = normal
    z_low, z_high = (low - mean) / deviation, (high - mean) / deviation
    if z_low > 0.0:  # in the lower tail, where the distribution function has its digits
        z_low, z_high = -z_high, -z_low
    mass = _cdf(z_high) - _cdf(z_low)
    return math.log(mass) if mass > 0.0 else -math.inf


def _cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _lower_limit(hits: np.ndarray, count: int, error: float) -> np.ndarray:
    return np.where(hits > 0, _beta_quantile(error, np.maximum(hits, 1), count - hits + 1), 0.0)


def _upper_limit(hits: np.ndarray, count: int, error: float) -> np.ndarray:
    return np.where(hits < count, _beta_quantile(1.0 - error, hits + 1, np.maximum(count - hits, 1)), 1.0)


def _beta_quantile(probability: float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    try:
        special = importlib.import_module("scipy.special")
    except ImportError:
        raise MissingDependencyError("scipy", extra="dp", purpose="The audit of epsilon") from None
    return special.betaincinv(a, b, probability)
