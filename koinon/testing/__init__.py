"""What a test can ask of a computation besides its result.

How much Python a call runs and whether it compiles, which are the same at each run, so that a test of speed can hold
them; and how much an aggregation with differential privacy gives away, in audits that bound or estimate epsilon from
outputs alone, and so find noise that is less than what is claimed.

>>> import numpy as np, koinon as ko
>>> rng = np.random.default_rng(0)
>>> claim = ko.testing.gaussian_epsilon((0.0, 1.0), (1.0, 1.0), delta=1e-5)  # sensitivity 1, standard deviation 1
>>> honest = rng.normal(1.0, 1.0, 100_000), rng.normal(0.0, 1.0, 100_000)  # with a contribution, and without
>>> ko.testing.epsilon_lower_bound(*honest, delta=1e-5) <= claim
True
>>> halved = rng.normal(1.0, 0.5, 100_000), rng.normal(0.0, 0.5, 100_000)
>>> ko.testing.epsilon_lower_bound(*halved, delta=1e-5) > claim
True
"""

from koinon.privacy.audit import canary_epsilon, epsilon_lower_bound, gaussian_epsilon, impossible_share
from koinon.testing._canaries import audit_with_canaries
from koinon.testing._counts import CompilationCount, FrameCount, count_compilations, count_frames

__all__ = [
    "CompilationCount",
    "FrameCount",
    "audit_with_canaries",
    "canary_epsilon",
    "count_compilations",
    "count_frames",
    "epsilon_lower_bound",
    "gaussian_epsilon",
    "impossible_share",
]
