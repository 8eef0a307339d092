"""Aggregations of the clients' values, as factories that nest."""

from koinon.aggregators._bucketing import BucketingFactory
from koinon.aggregators._centered_clipping import CenteredClippingFactory
from koinon.aggregators._clip import clipping_factory, zeroing_factory
from koinon.aggregators._compressor import Compressor
from koinon.aggregators._concat import concat_factory
from koinon.aggregators._coordinate_median import CoordinateMedianFactory
from koinon.aggregators._count_sketch import CountSketchFactory
from koinon.aggregators._dp import DifferentiallyPrivateFactory
from koinon.aggregators._dp_process import DPAggregatorState, PrivacyBudget
from koinon.aggregators._dp_query import DPQuery
from koinon.aggregators._dp_read import extract_dp_event_from_state, privacy_spent, with_new_noise
from koinon.aggregators._encoded_sum import EncodedSumFactory
from koinon.aggregators._exclude import excluding_non_finite_factory
from koinon.aggregators._factory import (
    AggregationFactory,
    UnweightedAggregationFactory,
    WeightedAggregationFactory,
    as_weighted_aggregator,
)
from koinon.aggregators._geometric_median import GeometricMedianFactory, UnweightedGeometricMedianFactory
from koinon.aggregators._krum import KrumFactory
from koinon.aggregators._mean import MeanFactory, UnweightedMeanFactory
from koinon.aggregators._measure import add_measurements
from koinon.aggregators._norm_bounding import NormBoundedMeanFactory
from koinon.aggregators._quantile import PrivateQuantileEstimationProcess
from koinon.aggregators._quantizers import QSGDQuantizer, UniformQuantizer
from koinon.aggregators._reservoir import ClientSample
from koinon.aggregators._rotation import DiscreteFourierTransformFactory, HadamardTransformFactory
from koinon.aggregators._sample import UnweightedReservoirSamplingFactory, federated_sample
from koinon.aggregators._secure_quantized import secure_quantized_sum
from koinon.aggregators._secure_sum import SecureModularSumFactory, SecureSumFactory
from koinon.aggregators._sparsifiers import RandomKSparsifier, TopKSparsifier
from koinon.aggregators._sum import SumFactory
from koinon.aggregators._trimmed_mean import TrimmedMeanFactory

__all__ = [
    "AggregationFactory",
    "BucketingFactory",
    "CenteredClippingFactory",
    "ClientSample",
    "Compressor",
    "CoordinateMedianFactory",
    "CountSketchFactory",
    "DPAggregatorState",
    "DPQuery",
    "DifferentiallyPrivateFactory",
    "DiscreteFourierTransformFactory",
    "EncodedSumFactory",
    "GeometricMedianFactory",
    "HadamardTransformFactory",
    "KrumFactory",
    "MeanFactory",
    "NormBoundedMeanFactory",
    "PrivacyBudget",
    "PrivateQuantileEstimationProcess",
    "QSGDQuantizer",
    "RandomKSparsifier",
    "SecureModularSumFactory",
    "SecureSumFactory",
    "SumFactory",
    "TopKSparsifier",
    "TrimmedMeanFactory",
    "UniformQuantizer",
    "UnweightedAggregationFactory",
    "UnweightedGeometricMedianFactory",
    "UnweightedMeanFactory",
    "UnweightedReservoirSamplingFactory",
    "WeightedAggregationFactory",
    "add_measurements",
    "as_weighted_aggregator",
    "clipping_factory",
    "concat_factory",
    "excluding_non_finite_factory",
    "extract_dp_event_from_state",
    "federated_sample",
    "privacy_spent",
    "secure_quantized_sum",
    "with_new_noise",
    "zeroing_factory",
]
