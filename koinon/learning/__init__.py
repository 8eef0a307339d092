"""Federated learning: models, optimizers, metrics, the templates of a round, and algorithms composed of them."""

from koinon.learning import algorithms, losses, metrics, models, optimizers, programs, templates
from koinon.learning._client_weighting import ClientWeighting
from koinon.learning._debug_measurements import add_debug_measurements
from koinon.learning._error_feedback import error_feedback_aggregator
from koinon.learning._recommend import compression_aggregator, dp_aggregator, robust_aggregator, secure_aggregator

__all__ = [
    "ClientWeighting",
    "add_debug_measurements",
    "algorithms",
    "compression_aggregator",
    "dp_aggregator",
    "error_feedback_aggregator",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "programs",
    "robust_aggregator",
    "secure_aggregator",
    "templates",
]
