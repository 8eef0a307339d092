"""The sum of values that clients send compressed."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon.aggregators._compressor import Compressor, check_compressor, check_count, leaf_bytes
from koinon.aggregators._factory import (
    UnweightedAggregationFactory,
    ValueType,
    check_floats,
    check_int,
    prints_as_called,
)
from koinon.aggregators._norms import all_finite
from koinon.aggregators._quantizers import UniformQuantizer
from koinon.computation import (
    federated_aggregate,
    federated_computation,
    federated_eval,
    federated_map,
    federated_split_key,
    federated_value,
    federated_zip,
    jax_computation,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.templates._specs import specs_of
from koinon.types import SERVER, at_clients


class LeafCodec:
    """How the leaves of one type of values are sent: large ones compressed, the others as they are.

    Attributes:
      num_bytes: the bytes of all messages of a client.
      uncompressed_num_bytes: the bytes of the leaves.
    """

    def __init__(self, compressor: Compressor | None, threshold: int, value_type: ValueType) -> None:
        self._specs, self._structure = jax.tree.flatten(specs_of(value_type))
        # The compressor of each leaf; None for one that is sent as it is.
        self._compressors = [compressor if math.prod(spec.shape) > threshold else None for spec in self._specs]
        self.uncompressed_num_bytes = sum(leaf_bytes(spec) for spec in self._specs)
        self.num_bytes = sum(
            leaf_bytes(spec) if compressor is None else compressor.num_bytes(math.prod(spec.shape))
            for spec, compressor in zip(self._specs, self._compressors, strict=True)
        )

    def encode(self, value: Any, key: jax.Array | None) -> tuple[Any, ...]:
        """The messages of the leaves of a value."""
        key = jax.random.key(0) if key is None else key
        return tuple(
            leaf
            if compressor is None
            else compressor.encode(leaf.ravel().astype(jnp.float32), jax.random.fold_in(key, i))
            for i, (leaf, compressor) in enumerate(zip(jax.tree.leaves(value), self._compressors, strict=True))
        )

    def decode(self, messages: tuple[Any, ...]) -> Any:
        """The value that messages stand for."""
        leaves = [
            message
            if compressor is None
            else compressor.decode(message, math.prod(spec.shape)).reshape(spec.shape).astype(spec.dtype)
            for message, spec, compressor in zip(messages, self._specs, self._compressors, strict=True)
        ]
        return jax.tree.unflatten(self._structure, leaves)

    def zeros(self) -> Any:
        """A value of zeros."""
        return jax.tree.unflatten(self._structure, [jnp.zeros(spec.shape, spec.dtype) for spec in self._specs])

    def measurements(self) -> OrderedDict[str, Any]:
        """The two numbers of bytes per client, at the server; inside a federated computation."""
        numbers = (
            ("bytes_per_client", self.num_bytes),
            ("uncompressed_bytes_per_client", self.uncompressed_num_bytes),
        )
        return OrderedDict((name, federated_value(jnp.float32(number), SERVER)) for name, number in numbers)


@final
class EncodedSumFactory(UnweightedAggregationFactory):
    """Sums values that clients send compressed, and that the server decodes one by one as it adds them up.

    What goes from a client to the server in the program is the message of the compressor, so a report on the program,
    or an engine that runs it over a network, sees the messages and not the values. Each leaf is compressed by itself;
    `concat_factory` makes one of all, and a rotation around this factory makes quantization err less.

    A client with an element that is not finite, or whose message stands for one, is left out and counted. In a mean
    whose `value_sum_factory` this is, it still has its weight: leave it out before,
    by `excluding_non_finite_factory`, as `koinon.learning.compression_aggregator` does.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    The state is a PRNG key, or `<>` if the compressor draws no numbers. The measurements are `bytes_per_client`, which
    are the bytes of the arrays of the messages of one client, the same for all; `uncompressed_bytes_per_client`, what
    the leaves have; and `non_finite_clients`. One byte more tells the server whether a client is left out.

    Args:
      compressor: how a leaf is sent, as a vector of float32; as it is if None.
      threshold: leaves of at most so many elements are sent as they are.
      seed: where the randomness of the compressor begins; each client of each round has a key of its own, by its
        position in the cohort.

    Raises:
      TypeError: if the compressor is none, or the seed no int; or, at `create`, if a leaf is no float.
      ValueError: if the threshold is not an int that is at least 0.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.EncodedSumFactory(ko.aggregators.UniformQuantizer(8))
      >>> process = factory.create(ko.types.parse("float32[100]"))
      >>> output = process.next(process.initialize(), [[0.0] * 99 + [1.0], [0.0] * 99 + [float("nan")]])
      >>> float(output.result.sum()), int(output.measurements["non_finite_clients"])
      (1.0, 1)
      >>> float(output.measurements["bytes_per_client"])  # 100 codes, and two floats
      108.0
    """

    def __init__(self, compressor: Compressor | None = None, threshold: int = 0, seed: int = 0) -> None:
        if compressor is not None:
            check_compressor(compressor)
        check_count(threshold, "threshold", 0)
        check_int(seed, "seed")
        self._compressor = compressor
        self._threshold = threshold
        self._seed = seed

    @classmethod
    @prints_as_called
    def quantize_above_threshold(
        cls, quantization_bits: int = 8, threshold: int = 20000, seed: int = 0
    ) -> EncodedSumFactory:
        """A sum of uniformly and stochastically quantized leaves, the small ones left as they are.

        Args:
          quantization_bits: bits per number, 1 to 16.
          threshold: leaves of at most so many elements are sent as they are.
          seed: where the randomness of rounding begins.

        Example:
          >>> import koinon as ko
          >>> factory = ko.aggregators.EncodedSumFactory.quantize_above_threshold(4, threshold=10)
          >>> process = factory.create(ko.types.parse("float32[100]"))
          >>> float(process.next(process.initialize(), []).measurements["bytes_per_client"])
          58.0
        """
        return cls(UniformQuantizer(quantization_bits), threshold, seed)

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape.
        """
        check_floats(value_type, "A sum of compressed values")
        codec = LeafCodec(self._compressor, self._threshold, value_type)
        needs_key = self._compressor is not None and self._compressor.needs_key

        def encode(value: Any, key: Any) -> tuple[Any, jax.Array]:
            return codec.encode(value, key), all_finite(value)

        def accumulate(total: Any, client: Any) -> Any:
            messages, is_finite = client
            value = codec.decode(messages)
            is_kept = is_finite & all_finite(value)
            summed = jax.tree.map(lambda sum_, leaf: sum_ + jnp.where(is_kept, leaf, 0), total[0], value)
            return summed, total[1] + jnp.where(is_kept, 0, 1)

        def merge(total: Any, other: Any) -> Any:
            return jax.tree.map(jnp.add, total, other)

        @jax_computation
        def zero() -> Any:
            return codec.zeros(), jnp.int32(0)

        @federated_computation
        def initialize_fn() -> Any:
            return federated_eval(lambda: jax.random.key(self._seed) if needs_key else (), SERVER)

        @federated_computation(initialize_fn.type_signature.result, at_clients(value_type))
        def next_fn(state: Any, value: Any) -> Any:
            if needs_key:
                state, round_key = federated_map(lambda key: tuple(jax.random.split(key)), state)
                messages = federated_map(encode, (value, federated_split_key(round_key)))
            else:
                messages = federated_map(lambda value: encode(value, None), value)
            total, non_finite = federated_aggregate(messages, zero(), accumulate, merge, lambda total: total)
            measurements = codec.measurements()
            measurements["non_finite_clients"] = non_finite
            return MeasuredProcessOutput(state, total, federated_zip(measurements))

        return AggregationProcess(initialize_fn, next_fn)
