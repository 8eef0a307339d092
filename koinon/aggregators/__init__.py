"""Aggregations of the clients' values, as factories that nest."""

from koinon.aggregators._clip import clipping_factory, zeroing_factory
from koinon.aggregators._dp import DifferentiallyPrivateFactory
from koinon.aggregators._dp_process import DPAggregatorState, PrivacyBudget
from koinon.aggregators._dp_query import DPQuery
from koinon.aggregators._dp_read import extract_dp_event_from_state, privacy_spent, with_new_noise
from koinon.aggregators._exclude import excluding_non_finite_factory
from koinon.aggregators._factory import (
    AggregationFactory,
    UnweightedAggregationFactory,
    WeightedAggregationFactory,
    as_weighted_aggregator,
)
from koinon.aggregators._mean import MeanFactory, UnweightedMeanFactory
from koinon.aggregators._measure import add_measurements
from koinon.aggregators._quantile import PrivateQuantileEstimationProcess
from koinon.aggregators._sum import SumFactory

__all__ = [
    "AggregationFactory",
    "DPAggregatorState",
    "DPQuery",
    "DifferentiallyPrivateFactory",
    "MeanFactory",
    "PrivacyBudget",
    "PrivateQuantileEstimationProcess",
    "SumFactory",
    "UnweightedAggregationFactory",
    "UnweightedMeanFactory",
    "WeightedAggregationFactory",
    "add_measurements",
    "as_weighted_aggregator",
    "clipping_factory",
    "excluding_non_finite_factory",
    "extract_dp_event_from_state",
    "privacy_spent",
    "with_new_noise",
    "zeroing_factory",
]
