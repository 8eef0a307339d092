"""Differential privacy: noise that hides what it is added to, accounting of what was spent, and audits of both."""

from koinon.privacy import audit
from koinon.privacy._accounting import (
    calibrate_noise_multiplier,
    compute_epsilon,
    dp_event,
    epsilon_of_event,
)
from koinon.privacy._chacha import noise_key, random_words
from koinon.privacy._cohorts import FixedSizeSampling, NoSampling, PoissonSampling
from koinon.privacy._samplers import IntegerSampler, discrete_gaussian, skellam

__all__ = [
    "FixedSizeSampling",
    "IntegerSampler",
    "NoSampling",
    "PoissonSampling",
    "audit",
    "calibrate_noise_multiplier",
    "compute_epsilon",
    "discrete_gaussian",
    "dp_event",
    "epsilon_of_event",
    "noise_key",
    "random_words",
    "skellam",
]
