"""Aggregations of the clients' values, as factories that nest."""

from koinon.aggregators._clip import clipping_factory, zeroing_factory
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
    "MeanFactory",
    "PrivateQuantileEstimationProcess",
    "SumFactory",
    "UnweightedAggregationFactory",
    "UnweightedMeanFactory",
    "WeightedAggregationFactory",
    "add_measurements",
    "as_weighted_aggregator",
    "clipping_factory",
    "zeroing_factory",
]
