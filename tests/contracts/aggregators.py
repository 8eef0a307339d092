"""The aggregations that fulfil the contract of aggregators: one row for each, and what the tests run them on.

`python -m tests.contracts.aggregators` prints the types that `aggregator_types.txt` holds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import koinon as ko
from koinon import aggregators, learning
from koinon.aggregators import (
    DifferentiallyPrivateFactory,
    EncodedSumFactory,
    MeanFactory,
    QSGDQuantizer,
    SumFactory,
    TopKSparsifier,
    UniformQuantizer,
)
from koinon.types import TensorType

VALUE = ko.to_type({"a": (jnp.float32, (3,)), "b": jnp.float32})
INTEGERS = ko.to_type({"a": (jnp.int32, (3,)), "b": jnp.int32})
WEIGHT = TensorType(jnp.float32)

# Usual clients, and one with a number that is none. Integers for all dtypes; quarters sum without rounding.
USUAL, BROKEN = (0, 1, 2, 3), 4
_A = np.array([[1.0, -2.0, 0.25], [0.5, 1.0, -0.75], [-1.0, 0.0, 2.0], [0.25, 0.5, 1.5], [1.0, np.nan, 0.0]])
_B = np.array([0.5, -1.0, 1.5, 2.0, 1.0])
_WEIGHTS = np.array([2.0, 1.0, 3.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Row:
    """One aggregation.

    Attributes:
      make: makes the factory.
      value_type: the type of a client's value.
      is_plain: whether it is the plain mathematics: what is not finite goes in and comes out, and nobody is no number.
      depends_on_position: whether clients have random numbers of their own, by their position in the cohort.
      counts_weights: whether it is weighted, and the weights count.
      alone: whether the result for a single client is its value.
      is_slow: whether it takes long to compile, so that only some tests run it by default.
    """

    make: Callable[[], Any]
    value_type: Any = VALUE
    is_plain: bool = False
    depends_on_position: bool = False
    counts_weights: bool = False
    alone: bool = True
    is_slow: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether the values are integers, which are always numbers."""
        return self.value_type is INTEGERS


def _dp(name: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(DifferentiallyPrivateFactory, name)(*arguments, **options)


_private = functools.partial(Row, alone=False, is_slow=True)

# The first word of the name of a row is the public name that it stands for.
AGGREGATORS: dict[str, Row] = {
    "SumFactory": Row(SumFactory, is_plain=True),
    "SumFactory of integers": Row(SumFactory, INTEGERS),
    "MeanFactory": Row(MeanFactory, is_plain=True, counts_weights=True),
    "MeanFactory without NaN": Row(
        lambda: MeanFactory(no_nan_division=True), is_plain=True, counts_weights=True, is_slow=True
    ),
    "UnweightedMeanFactory": Row(aggregators.UnweightedMeanFactory, is_plain=True),
    "as_weighted_aggregator": Row(lambda: aggregators.as_weighted_aggregator(EncodedSumFactory())),
    "add_measurements": Row(
        lambda: aggregators.add_measurements(EncodedSumFactory(), server_measurement_fn=lambda total: {"total": total})
    ),
    "clipping_factory": Row(
        lambda: aggregators.excluding_non_finite_factory(
            aggregators.clipping_factory(
                aggregators.PrivateQuantileEstimationProcess(5.0, 0.8, 0.2), MeanFactory(no_nan_division=True)
            )
        ),
        counts_weights=True,
    ),
    "zeroing_factory": Row(lambda: aggregators.zeroing_factory(100.0, SumFactory())),
    "excluding_non_finite_factory": Row(
        lambda: aggregators.excluding_non_finite_factory(MeanFactory(no_nan_division=True)), counts_weights=True
    ),
    "concat_factory": Row(lambda: aggregators.concat_factory(EncodedSumFactory())),
    "HadamardTransformFactory": Row(lambda: aggregators.HadamardTransformFactory(EncodedSumFactory())),
    "DiscreteFourierTransformFactory": Row(
        lambda: aggregators.DiscreteFourierTransformFactory(EncodedSumFactory()), is_slow=True
    ),
    "EncodedSumFactory": Row(EncodedSumFactory),
    "EncodedSumFactory to the nearest": Row(
        lambda: EncodedSumFactory(UniformQuantizer(16, stochastic=False)), alone=False
    ),
    "EncodedSumFactory at random": Row(
        lambda: EncodedSumFactory(QSGDQuantizer(3)), depends_on_position=True, alone=False
    ),
    "EncodedSumFactory of sparse values": Row(lambda: EncodedSumFactory(TopKSparsifier(0.4)), alone=False),
    "CountSketchFactory": Row(lambda: aggregators.CountSketchFactory(2, 1), alone=False),
    "UnweightedReservoirSamplingFactory": Row(
        lambda: aggregators.UnweightedReservoirSamplingFactory(5), depends_on_position=True, alone=False
    ),
    "UnweightedReservoirSamplingFactory with metadata": Row(
        lambda: aggregators.UnweightedReservoirSamplingFactory(5, return_sampling_metadata=True),
        depends_on_position=True,
        alone=False,
        is_slow=True,
    ),
    "CoordinateMedianFactory": Row(aggregators.CoordinateMedianFactory),
    "TrimmedMeanFactory": Row(lambda: aggregators.TrimmedMeanFactory(0.3)),
    "GeometricMedianFactory": Row(aggregators.GeometricMedianFactory, counts_weights=True, is_slow=True),
    "UnweightedGeometricMedianFactory": Row(aggregators.UnweightedGeometricMedianFactory),
    "KrumFactory": Row(lambda: aggregators.KrumFactory(0)),
    "CenteredClippingFactory": Row(lambda: aggregators.CenteredClippingFactory(1.0, 2), alone=False),
    "NormBoundedMeanFactory": Row(lambda: aggregators.NormBoundedMeanFactory(1.0), alone=False),
    "BucketingFactory": Row(lambda: aggregators.BucketingFactory(aggregators.CoordinateMedianFactory()), is_slow=True),
    "SecureSumFactory": Row(lambda: aggregators.SecureSumFactory(10.0)),
    "SecureSumFactory of integers": Row(lambda: aggregators.SecureSumFactory(100, -100), INTEGERS),
    "SecureModularSumFactory": Row(lambda: aggregators.SecureModularSumFactory(1000, symmetric_range=True), INTEGERS),
    "DifferentiallyPrivateFactory": _private(_dp("gaussian_fixed", 0.5, 3.0, 1.0, seed=1)),
    "DifferentiallyPrivateFactory with adaptive clipping": _private(
        _dp("gaussian_adaptive", 0.5, 3.0, clipped_count_stddev=1.0, seed=1)
    ),
    "DifferentiallyPrivateFactory of a tree": _private(_dp("tree_aggregation", 0.5, 3.0, 1.0, noise_seed=1)),
    "DifferentiallyPrivateFactory of a tree with adaptive clipping": _private(
        _dp("tree_adaptive", 0.5, 3.0, clipped_count_stddev=1.0, noise_seed=1)
    ),
    "DifferentiallyPrivateFactory of a matrix": _private(
        _dp("banded_matrix_factorization", 0.5, 3.0, 1.0, bands=3, seed=1)
    ),
    "DifferentiallyPrivateFactory of the clients": _private(
        _dp("distributed", 0.5, 3.0, 1.0), depends_on_position=True
    ),
    "DifferentiallyPrivateFactory of each client": _private(_dp("local", 0.5, 3.0, 1.0), depends_on_position=True),
    "DifferentiallyPrivateFactory of floats": _private(_dp("gaussian_fixed", 0.5, 3.0, 1.0, seed=1, float_noise=True)),
    "add_debug_measurements": Row(
        lambda: learning.add_debug_measurements(MeanFactory(no_nan_division=True)), is_plain=True, counts_weights=True
    ),
    "robust_aggregator": Row(learning.robust_aggregator, counts_weights=True, alone=False),
    "robust_aggregator without weights": Row(
        lambda: learning.robust_aggregator(weighted=False), alone=False, is_slow=True
    ),
    "secure_aggregator": Row(learning.secure_aggregator, counts_weights=True, alone=False, is_slow=True),
    "compression_aggregator": Row(
        lambda: learning.compression_aggregator(threshold=0),
        depends_on_position=True,
        counts_weights=True,
        alone=False,
        is_slow=True,
    ),
    "error_feedback_aggregator": Row(
        lambda: learning.error_feedback_aggregator(TopKSparsifier(0.4)), counts_weights=True, alone=False
    ),
    "dp_aggregator": _private(lambda: learning.dp_aggregator(0.5, 3.0, seed=1)),
}


@functools.cache
def make_process(name: str) -> Any:
    """The process of a row; the same object each time, so that its programs are compiled once."""
    row = AGGREGATORS[name]
    factory = row.make()
    weight_type = (WEIGHT,) if isinstance(factory, aggregators.WeightedAggregationFactory) else ()
    return factory.create(row.value_type, *weight_type)


def arguments(name: str, cohort: tuple[int, ...], weights: Any = _WEIGHTS) -> tuple[Any, ...]:
    """What the clients of a cohort give to the process of a row: their values, and their weights if it has any."""
    kind = AGGREGATORS[name].value_type["a"].dtype
    values = [
        {"a": (4 * _A[i]).astype(kind) if kind.kind == "i" else _A[i].astype(kind), "b": kind.type(_B[i])}
        for i in cohort
    ]
    given = [np.float32(weights[i]) for i in cohort]
    return (values, given) if make_process(name).is_weighted else (values,)


@functools.cache
def play(name: str, *cohorts: tuple[int, ...], backend: str = "local") -> tuple[Any, ...]:
    """The outputs of the rounds with some cohorts, one after the other."""
    process = make_process(name)
    outputs = []
    with ko.backends.use(backend):
        state = process.initialize()
        for cohort in cohorts:
            outputs.append(process.next(state, *arguments(name, cohort)))
            state = outputs[-1].state
    return tuple(outputs)


def golden_types() -> str:
    """The types of `next` of all rows, as they are kept in `aggregator_types.txt`."""
    return "".join(f"{name}\n  {make_process(name).next.type_signature}\n" for name in AGGREGATORS)


if __name__ == "__main__":
    print(golden_types(), end="")
