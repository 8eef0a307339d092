"""What a test can ask of a computation besides its result.

How much Python a call runs and whether it compiles, which are the same at each run, so that a test of speed can hold
them; and how much an aggregation with differential privacy gives away, by clients that are canaries. Audits of scores
that a test has made itself are in `koinon.privacy.audit`.

>>> import koinon as ko
>>> private, leaky = (
...     ko.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(noise, 100.0, 1.0, seed=0) for noise in (2.0, 0.1)
... )
>>> options = {"delta": 1e-5, "canaries": 100, "dimensions": 5000}
>>> ko.testing.audit_with_canaries(private, **options) < 10.0 < ko.testing.audit_with_canaries(leaky, **options)
True
"""

from koinon.testing._canaries import audit_with_canaries
from koinon.testing._counts import CompilationCount, FrameCount, count_compilations, count_frames

__all__ = [
    "CompilationCount",
    "FrameCount",
    "audit_with_canaries",
    "count_compilations",
    "count_frames",
]
