"""A distribution that sends fewer bits than the server has."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon._jax import extremes
from koinon.aggregators._compressor import leaf_bytes, pack_codes, unpack_codes
from koinon.computation import federated_broadcast, federated_computation, federated_eval, federated_map
from koinon.learning._distribute import DistributionProcess
from koinon.templates import MeasuredProcessOutput
from koinon.templates._specs import specs_of
from koinon.types import (
    SERVER,
    StructType,
    TensorType,
    Type,
    at_server,
    contains_federated_types,
    is_structure_of_tensors,
)

_BITS = (1, 2, 4, 8, 16)


class QuantizedLeaf(NamedTuple):
    """An array on the wire.

    Attributes:
      codes: uint8, or uint16 for 16 bits, `[bytes]`: the codes of its elements, the first in the lowest bits.
      low: float32, what the code 0 stands for.
      step: float32, how far codes are apart.
    """

    codes: Any
    low: Any
    step: Any


def build_quantized_broadcast_process(
    value_type: Type, *, bits: int = 8, stochastic: bool = True, min_elements: int = 64, seed: int = 0
) -> DistributionProcess:
    """The distribution that sends every float as one of `2 ** bits` levels between the extremes of its array.

        for each large array x of floats, with n = 2^bits - 1:
            low, step = min(x), (max(x) - min(x)) / n
            code      = floor((x - low) / step + u)         # u uniform in [0, 1), or 1/2 without `stochastic`
        clients receive low + step * code

    Stochastic rounding is unbiased: the mean of what clients would receive over many rounds is what the server has. All
    clients of a round receive the same. What they return as their change begins at what they have received.

    Type: `(<S@SERVER,V@SERVER> -> <state=S@SERVER,result={V}@CLIENTS,measurements=M@SERVER>)`

    The measurements are `bytes_per_client` and `uncompressed_bytes_per_client`, and `quantization_error`, the L2 norm
    of the difference.

    Args:
      value_type: the unplaced type of what is sent, made of tensors of known shapes.
      bits: bits per number, one of 1, 2, 4, 8 and 16.
      stochastic: whether rounding is random and unbiased; otherwise it is to the nearest level.
      min_elements: arrays with fewer elements are sent as they are, as are those that hold no floats.
      seed: where the randomness of rounding begins.

    Raises:
      KoinonTypeError: `value_type` is another kind of type, or is placed.
      KoinonValueError: `bits` is another number.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> process = ko.learning.templates.build_quantized_broadcast_process(
      ...     ko.types.TensorType(jnp.float32, (3,)), bits=2, stochastic=False, min_elements=1
      ... )
      >>> output = process.next(process.initialize(), jnp.array([0.0, 1.2, 3.0]))  # levels 0, 1, 2, 3
      >>> float(output.measurements["bytes_per_client"])  # six bits in a byte, and two floats
      9.0

    References:
      Suresh et al., Distributed Mean Estimation with Limited Communication, ICML 2017,
      https://arxiv.org/abs/1611.00429, section 2.2. Caldas et al., Expanding the Reach of Federated Learning by
      Reducing Client Resource Requirements, 2018, https://arxiv.org/abs/1812.07210.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or bits not in _BITS:
        raise KoinonValueError("`bits` must be one of 1, 2, 4, 8 and 16.", found=repr(bits))
    is_usable = isinstance(value_type, TensorType | StructType) and is_structure_of_tensors(value_type)
    if not is_usable or contains_federated_types(value_type):
        raise KoinonTypeError(
            "What is broadcast must be declared by an unplaced type of tensors.",
            expected="TensorType, or StructType of them",
            found=f"{type(value_type).__qualname__} {value_type}",
        )
    specs = specs_of(value_type)
    leaf_specs, structure = jax.tree.flatten(specs)
    is_quantized = [_is_float(leaf) and math.prod(leaf.shape) >= min_elements for leaf in leaf_specs]
    numbers = {"bytes_per_client": 0.0, "uncompressed_bytes_per_client": 0.0}
    for leaf, quantized in zip(leaf_specs, is_quantized, strict=True):
        size = math.prod(leaf.shape)
        plain = leaf_bytes(leaf)
        numbers["bytes_per_client"] += -(-size * bits // 8) + 2 * 4 if quantized else plain
        numbers["uncompressed_bytes_per_client"] += plain

    def encode(key: Any, value: Any) -> dict[str, Any]:
        next_key, key = jax.random.split(key)
        encoded = [
            _encode(leaf, bits, jax.random.fold_in(key, i) if stochastic else None) if quantized else leaf
            for i, (leaf, quantized) in enumerate(zip(jax.tree.leaves(value), is_quantized, strict=True))
        ]
        pairs = zip(jax.tree.leaves(value), decode_leaves(tuple(encoded)), is_quantized, strict=True)
        errors = [_square_distance(old, new) for old, new, quantized in pairs if quantized]
        error = jnp.sqrt(sum(errors, jnp.float32(0.0)))
        measured = {name: jnp.float32(number) for name, number in numbers.items()}
        return {"key": next_key, "sent": tuple(encoded), "measured": {**measured, "quantization_error": error}}

    def decode_leaves(encoded: tuple[Any, ...]) -> list[Any]:
        return [
            _decode(leaf, spec, bits) if quantized else leaf
            for leaf, spec, quantized in zip(encoded, leaf_specs, is_quantized, strict=True)
        ]

    def decode(encoded: Any) -> Any:
        return jax.tree.unflatten(structure, decode_leaves(encoded))

    @federated_computation
    def initialize_fn() -> Any:
        return federated_eval(lambda: jax.random.key(seed), SERVER)

    @federated_computation(initialize_fn.type_signature.result, at_server(value_type))
    def next_fn(state: Any, value: Any) -> Any:
        encoded = federated_map(encode, (state, value))
        received = federated_map(decode, federated_broadcast(encoded["sent"]))
        return MeasuredProcessOutput(encoded["key"], received, encoded["measured"])

    return DistributionProcess(initialize_fn, next_fn)


def _encode(leaf: Any, bits: int, key: Any) -> QuantizedLeaf:
    values = leaf.astype(jnp.float32).ravel()
    low, high = extremes(values)
    step = (high - low) / (2**bits - 1)
    shift = 0.5 if key is None else jax.random.uniform(key, values.shape)
    levels = jnp.floor((values - low) / jnp.where(step > 0, step, 1) + shift)
    codes = jnp.clip(levels, 0, 2**bits - 1).astype(jnp.uint32)
    return QuantizedLeaf(pack_codes(codes, bits), low, step)


def _decode(leaf: QuantizedLeaf, spec: Any, bits: int) -> Any:
    codes = unpack_codes(leaf.codes, bits, math.prod(spec.shape))
    return (leaf.low + leaf.step * codes.astype(jnp.float32)).reshape(spec.shape).astype(spec.dtype)


def _square_distance(old: Any, new: Any) -> Any:
    return jnp.sum((old.astype(jnp.float32) - new.astype(jnp.float32)) ** 2)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
