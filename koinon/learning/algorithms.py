"""Federated learning algorithms, each a `LearningProcess` composed of its pieces."""

from koinon.learning._fed_avg import build_unweighted_fed_avg, build_weighted_fed_avg
from koinon.learning._fed_eval import build_fed_eval, build_per_client_eval_computation

__all__ = [
    "build_fed_eval",
    "build_per_client_eval_computation",
    "build_unweighted_fed_avg",
    "build_weighted_fed_avg",
]
