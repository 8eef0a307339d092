"""Random rotations, which spread a value evenly over its coordinates, before an inner aggregation."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.aggregators._compressor import key_type
from koinon.aggregators._factory import (
    UnweightedAggregationFactory,
    ValueType,
    check_floats,
    check_int,
    check_unweighted_factory,
)
from koinon.aggregators._keyed import keyed_process
from koinon.aggregators._sum import SumFactory
from koinon.computation import (
    jax_computation,
)
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._specs import specs_of


class _RotationFactory(UnweightedAggregationFactory):
    """What the two rotations share: keys from round to round, and what happens to each leaf."""

    _name: str

    def __init__(
        self, inner_agg_factory: UnweightedAggregationFactory | None = None, num_repeats: int = 1, seed: int = 0
    ) -> None:
        self._inner = SumFactory() if inner_agg_factory is None else inner_agg_factory
        check_unweighted_factory(self._inner, "inner_agg_factory")
        self.needs_each_value = self._inner.needs_each_value
        if not isinstance(num_repeats, int) or isinstance(num_repeats, bool) or num_repeats < 1:
            raise KoinonValueError("`num_repeats` must be a positive int.", found=repr(num_repeats))
        check_int(seed, "seed")
        self._num_repeats = num_repeats
        self._seed = seed

    @staticmethod
    def padded(size: int) -> int:
        """The number of coordinates that vectors of a size are padded to."""
        raise NotImplementedError

    @staticmethod
    def rotate(vector: jax.Array, key: jax.Array) -> jax.Array:
        """A vector of a padded size, rotated at random."""
        raise NotImplementedError

    @staticmethod
    def rotate_back(vector: jax.Array, key: jax.Array) -> jax.Array:
        """The inverse of `rotate` with the same key."""
        raise NotImplementedError

    def create(self, value_type: ValueType) -> AggregationProcess:
        """See `UnweightedAggregationFactory.create`.

        Raises:
          TypeError: if `value_type` has a leaf that is not a float or not of a known shape.
        """
        check_floats(value_type, "A rotation")
        specs = specs_of(value_type)

        def keys_of(key: jax.Array, index: int) -> list[jax.Array]:
            return list(jax.random.split(jax.random.fold_in(key, index), self._num_repeats))

        @jax_computation(value_type, key_type())
        def at_client(value: Any, key: Any) -> Any:
            def forward(leaf: jax.Array, index: int) -> jax.Array:
                vector = leaf.ravel().astype(jnp.float32)
                vector = jnp.pad(vector, (0, self.padded(vector.size) - vector.size))
                for own_key in keys_of(key, index):
                    vector = self.rotate(vector, own_key)
                return vector

            leaves, structure = jax.tree.flatten(value)
            return jax.tree.unflatten(structure, [forward(leaf, i) for i, leaf in enumerate(leaves)])

        inner = self._inner.create(at_client.type_signature.result)

        def at_server(value: Any, key: Any) -> Any:
            def backward(vector: jax.Array, spec: Any, index: int) -> jax.Array:
                for own_key in reversed(keys_of(key, index)):
                    vector = self.rotate_back(vector, own_key)
                return vector[: math.prod(spec.shape)].reshape(spec.shape).astype(spec.dtype)

            leaves, structure = jax.tree.flatten(value)
            pairs = zip(leaves, jax.tree.leaves(specs), strict=True)
            return jax.tree.unflatten(structure, [backward(leaf, spec, i) for i, (leaf, spec) in enumerate(pairs)])

        def measurements(measured: Any) -> Any:
            return OrderedDict([(self._name, measured)])

        return keyed_process(value_type, at_client, inner, at_server, measurements, self._seed)


@final
class HadamardTransformFactory(_RotationFactory):
    """Rotates each leaf of a value by a Hadamard matrix and random signs, before an inner aggregation.

        x -> H D x / sqrt(n)        # D: random signs, H: the Walsh-Hadamard matrix, n: the padded size

    The rotated coordinates are all about as large as `||x|| / sqrt(n)`, so quantizing them costs less. The result of
    the inner aggregation is rotated back, so one that is linear, such as a sum, is what it is without rotation. Leaves
    are flattened, and padded with zeros to a power of two. The signs are the same for all clients, new in each round,
    and drawn from a key in the state. A value that is not finite stays one; what happens to it, the inner aggregation
    decides.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=<hd=M>@SERVER>)`

    The state is the pair of the inner state and the key. The inner aggregation is given float32 vectors.

    Args:
      inner_agg_factory: aggregates the rotated values; `SumFactory()` if None.
      num_repeats: how often signs and matrix are applied, each time with new signs.
      seed: where the randomness of the signs begins.

    Raises:
      TypeError: if the factory is not an `UnweightedAggregationFactory`, or the seed no int.
      ValueError: if `num_repeats` is not a positive int.

    References:
      Suresh et al., Distributed Mean Estimation with Limited Communication, ICML 2017, section 3.
      https://arxiv.org/abs/1611.00429

    Example:
      >>> import koinon as ko
      >>> quantized = ko.aggregators.EncodedSumFactory(ko.aggregators.UniformQuantizer(4))
      >>> process = ko.aggregators.HadamardTransformFactory(quantized).create(ko.types.parse("float32[3]"))
      >>> output = process.next(process.initialize(), [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
      >>> output.result.round(4)  # of a unit vector, all rotated coordinates are 1/2 or -1/2
      Array([2., 0., 0.], dtype=float32)
    """

    _name = "hd"

    @staticmethod
    def padded(size: int) -> int:
        """The least power of two that is not less."""
        return 1 << max(size - 1, 0).bit_length()

    @staticmethod
    def rotate(vector: jax.Array, key: jax.Array) -> jax.Array:
        """Random signs, then the matrix."""
        return _hadamard(vector * jax.random.rademacher(key, vector.shape, jnp.float32))

    @staticmethod
    def rotate_back(vector: jax.Array, key: jax.Array) -> jax.Array:
        """The matrix, which is its own inverse, then the signs."""
        return _hadamard(vector) * jax.random.rademacher(key, vector.shape, jnp.float32)


@final
class DiscreteFourierTransformFactory(_RotationFactory):
    """Rotates each leaf of a value by a discrete Fourier transform and random phases, before an inner aggregation.

        x -> F D x / sqrt(n/2)      # of x as n/2 complex numbers; D: random phases, F: the Fourier matrix

    Like `HadamardTransformFactory`, but leaves are padded to an even size only, not to a power of two; the first half
    of a leaf are the real parts, the second half the imaginary ones.

    Type: `(<S@SERVER,{V}@CLIENTS> -> <state=S@SERVER,result=V@SERVER,measurements=<dft=M>@SERVER>)`

    The state is the pair of the inner state and the key. The inner aggregation is given float32 vectors.

    Args:
      inner_agg_factory: aggregates the rotated values; `SumFactory()` if None.
      num_repeats: how often phases and transform are applied, each time with new phases.
      seed: where the randomness of the phases begins.

    Raises:
      TypeError: if the factory is not an `UnweightedAggregationFactory`, or the seed no int.
      ValueError: if `num_repeats` is not a positive int.

    References:
      Kairouz, Liu, Steinke: The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
      Aggregation, ICML 2021, section 5, on rotation before quantization. https://arxiv.org/abs/2102.06387

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.DiscreteFourierTransformFactory().create(ko.types.parse("float32[3]"))
      >>> process.next(process.initialize(), [[1.0, 2.0, 3.0], [1.0, 0.0, -3.0]]).result.round(3) + 0
      Array([2., 2., 0.], dtype=float32)
    """

    _name = "dft"

    @staticmethod
    def padded(size: int) -> int:
        """The least even number that is not less, and not zero, which has no transform."""
        return max(size + size % 2, 2)

    @staticmethod
    def rotate(vector: jax.Array, key: jax.Array) -> jax.Array:
        """Random phases, then the transform."""
        real, imaginary = vector.reshape(2, -1)
        return _as_real(jnp.fft.fft(jax.lax.complex(real, imaginary) * _phases(key, real.shape), norm="ortho"))

    @staticmethod
    def rotate_back(vector: jax.Array, key: jax.Array) -> jax.Array:
        """The inverse transform, then the opposite phases."""
        real, imaginary = vector.reshape(2, -1)
        turned = jnp.fft.ifft(jax.lax.complex(real, imaginary), norm="ortho")
        return _as_real(turned * jnp.conj(_phases(key, real.shape)))


def _hadamard(vector: jax.Array) -> jax.Array:
    """The Walsh-Hadamard transform of a vector whose size is a power of two, scaled so that it keeps norms."""
    size = vector.size
    # Scaled before it is added up, so that what fits a float32 at the end fits it on the way.
    vector = vector * jnp.float32(size**-0.5)
    half = 1
    while half < size:
        pairs = vector.reshape(-1, 2, half)
        first, second = pairs[:, 0], pairs[:, 1]
        vector = jnp.stack([first + second, first - second], axis=1).ravel()
        half *= 2
    return vector


def _phases(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    angles = jax.random.uniform(key, shape, maxval=2 * math.pi)
    return jax.lax.complex(jnp.cos(angles), jnp.sin(angles))


def _as_real(vector: jax.Array) -> jax.Array:
    return jnp.concatenate([vector.real, vector.imag])
