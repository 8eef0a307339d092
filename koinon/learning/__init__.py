"""Federated learning: models, optimizers, metrics, the templates of a round, and algorithms composed of them."""

from koinon.learning import algorithms, losses, metrics, models, optimizers, programs, templates
from koinon.learning._client_weighting import ClientWeighting

__all__ = ["ClientWeighting", "algorithms", "losses", "metrics", "models", "optimizers", "programs", "templates"]
