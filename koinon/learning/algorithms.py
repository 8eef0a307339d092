"""Federated learning algorithms, each a `LearningProcess` composed of its pieces."""

from koinon.learning._ditto import build_ditto
from koinon.learning._fed_avg import build_unweighted_fed_avg, build_weighted_fed_avg
from koinon.learning._fed_avg_schedule import build_weighted_fed_avg_with_optimizer_schedule
from koinon.learning._fed_eval import build_fed_eval, build_per_client_eval_computation
from koinon.learning._fed_nova import build_fed_nova
from koinon.learning._fed_opt import build_fed_adagrad, build_fed_adam, build_fed_yogi
from koinon.learning._fed_prox import build_fed_prox, build_unweighted_fed_prox, build_weighted_fed_prox
from koinon.learning._fed_sgd import build_fed_sgd
from koinon.learning._kmeans import build_fed_kmeans
from koinon.learning._mime import (
    build_mime_lite,
    build_mime_lite_with_optimizer_schedule,
    build_unweighted_mime_lite,
    build_weighted_mime_lite,
)
from koinon.learning._personalization import build_fine_tuning_fn, build_personalization_eval_computation
from koinon.learning._scaffold import build_scaffold

__all__ = [
    "build_ditto",
    "build_fed_adagrad",
    "build_fed_adam",
    "build_fed_eval",
    "build_fed_kmeans",
    "build_fed_nova",
    "build_fed_prox",
    "build_fed_sgd",
    "build_fed_yogi",
    "build_fine_tuning_fn",
    "build_mime_lite",
    "build_mime_lite_with_optimizer_schedule",
    "build_per_client_eval_computation",
    "build_personalization_eval_computation",
    "build_scaffold",
    "build_unweighted_fed_avg",
    "build_unweighted_fed_prox",
    "build_unweighted_mime_lite",
    "build_weighted_fed_avg",
    "build_weighted_fed_avg_with_optimizer_schedule",
    "build_weighted_fed_prox",
    "build_weighted_mime_lite",
]
