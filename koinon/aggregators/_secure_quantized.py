"""Secure sums of values in a range: integers exactly, floats in steps of a 32-bit range."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from koinon._errors import (
    BoundsDifferentSignaturesError,
    BoundsDifferentTypesError,
    BoundsNotPlacedAtServerError,
    KoinonTypeError,
    KoinonValueError,
    PlacementError,
    ScalarBoundSimpleValueDTypeError,
    ScalarBoundStructValueDTypeError,
    StructuredBoundsTypeMismatchError,
    UnsupportedDTypeError,
)
from koinon.aggregators._norms import all_finite
from koinon.aggregators._secure_field import (
    HIGH_MODULUS,
    LOW_MODULUS,
    MOST_CLIENTS,
    MOST_CLIENTS_OF_FLOATS,
    capacity,
    capacity_at_run_time,
    carrier_of,
    check_field,
    check_max_clients,
    from_offset,
    from_residues,
    share_of,
    to_offset,
    to_residues,
)
from koinon.computation import (
    Value,
    federated_broadcast,
    federated_map,
    federated_secure_modular_sum,
    federated_secure_sum,
    federated_value,
)
from koinon.templates._specs import specs_of
from koinon.types import CLIENTS, SERVER, FederatedType, StructType, TensorType, Type, strip_placement

_DTYPES = (np.int32, np.int64, np.float32, np.float64)
Ranges: TypeAlias = list[tuple[Any, Any]]


class Fit(NamedTuple):
    """What bounds that are constants tell before anything runs.

    Attributes:
      clients: for how many clients the sum fits.
      widths: for each tensor, the upper bound minus the lower one.
    """

    clients: int
    widths: tuple[Any, ...]


class Summed(NamedTuple):
    """What comes of a secure sum, placed at the server.

    Attributes:
      total: the sum.
      non_finite: int32, how many clients were left out since a number of theirs was not finite.
    """

    total: Value
    non_finite: Value


def secure_quantized_sum(
    client_value: Any, lower_bound: Any, upper_bound: Any, *, max_clients: int | None = None
) -> Value:
    """Sums values in a range such that the server sees the sum alone: integers exactly, floats in 32-bit steps.

    Each number is clipped to the range. A float is rounded to a multiple of a step, the power of two of which there are
    2**31 to 2**32 in the range; so it is off by at most `(upper - lower) / 2**32`, a zero is a zero, and the sum of
    the rounded numbers is exact up to one rounding to its dtype. Integers are summed exactly.

    A client with a number that is not finite adds nothing.

    Args:
      client_value: `{V}@CLIENTS`, of int32, int64, float32 and float64.
      lower_bound: the least number, for all tensors or in the structure of the value: a constant or a value at the
        server, of the dtype of the value.
      upper_bound: the greatest, likewise.
      max_clients: the size of the cohort, to be checked before anything runs; None for whatever fits.

    Returns:
      `V@SERVER`. A run fails with `SecureSumRangeError` where there are more clients than the sum can hold (which is
      2**29 - 1 for floats), or where bounds that are known only at run time are not finite or the lower one is above
      the upper one: clients then send -1 in place of a count, which is what the message says.

    Raises:
      PlacementError: the value is not placed at the clients.
      UnsupportedDTypeError: it has another dtype.
      BoundsDifferentTypesError: one bound is a constant, the other a value at the server.
      BoundsDifferentSignaturesError: the bounds have different types.
      BoundsNotPlacedAtServerError: they are placed elsewhere.
      StructuredBoundsTypeMismatchError: they are structs of another structure or of other dtypes than the value.
      ScalarBoundStructValueDTypeError: there is one bound for a struct that does not have its dtype everywhere.
      ScalarBoundSimpleValueDTypeError: the bounds have another dtype than the value.
      KoinonValueError: constants of which the lower is above the upper one, or not finite.
      SecureSumFieldError: the sum over `max_clients` does not fit its dtype; the message has the numbers.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> @ko.federated_computation(ko.types.at_clients(jnp.float32))
      ... def total(values):
      ...     return ko.aggregators.secure_quantized_sum(values, -1.0, 1.0)
      >>> float(total([0.25, 0.5, 7.0]))
      1.75
    """
    check_max_clients(max_clients)
    member = _check_value(client_value)
    are_constants = not isinstance(lower_bound, Value)
    if are_constants == isinstance(upper_bound, Value):
        raise BoundsDifferentTypesError(
            "Both bounds must be constants, or both values at the server.",
            found=f"{type(lower_bound).__name__} and {type(upper_bound).__name__}",
        )
    constants = None
    if are_constants:
        constants = (jax.tree.leaves(lower_bound), jax.tree.leaves(upper_bound))
        lower_bound, upper_bound = federated_value(lower_bound, SERVER), federated_value(upper_bound, SERVER)
    _check_bounds(member, lower_bound.type_signature, upper_bound.type_signature)
    fit = None if constants is None else _fit(member, *constants, max_clients)
    return sum_within(client_value, lower_bound, upper_bound, fit, max_clients).total


def sum_within(value: Value, lower: Value, upper: Value, fit: Fit | None, max_clients: int | None = None) -> Summed:
    """The secure sum of `{V}@CLIENTS`, for bounds at the server that fit it.

    Args:
      value: the value.
      lower: one bound for all tensors, or a struct of them.
      upper: likewise.
      fit: what is known of the bounds; None where they are known at run time only.
      max_clients: for how many clients the sum must fit then.
    """
    specs, structure = jax.tree.flatten(specs_of(strip_placement(value.type_signature)))
    dtypes = [np.dtype(spec.dtype) for spec in specs]
    is_whole = [jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes]

    def share_for(ranges: Ranges) -> Any:
        most = jnp.uint32(fit.clients) if fit is not None else _capacity_of(dtypes, ranges)
        return share_of(most).astype(jnp.int32)

    def encode(value: Any, lower: Any, upper: Any) -> tuple[Any, ...]:
        ranges = _ranges(lower, upper, len(dtypes))
        leaves = jax.tree.leaves(value)
        is_finite = all_finite(leaves)
        wholes, lows, highs = [], [], []
        for leaf, (low, high), whole in zip(leaves, ranges, is_whole, strict=True):
            present = jnp.where(is_finite, leaf, jnp.zeros_like(leaf))
            parts = (to_offset(present, low, high),) if whole else to_residues(present, low, high)
            parts = [jnp.where(is_finite, part, jnp.zeros_like(part)) for part in parts]
            for target, part in zip([wholes] if whole else [lows, highs], parts, strict=True):
                target.append(part)
        is_valid = _are_valid(ranges)
        if fit is None and max_clients is not None:
            is_valid &= _capacity_of(dtypes, ranges) >= max_clients
        # An integer out of its range is an error at the server, whose engine says so.
        clients = jnp.where(is_valid, jnp.where(is_finite, share_for(ranges), 0), -1)
        return tuple(wholes), tuple(lows), tuple(highs), (clients, (~is_finite).astype(jnp.int32))

    def decode(wholes: Any, lows: Any, highs: Any, counts: Any, lower: Any, upper: Any) -> tuple[Any, Any]:
        ranges = _ranges(lower, upper, len(dtypes))
        clients = counts[0] // share_for(ranges)
        whole, low_and_high = iter(wholes), zip(lows, highs, strict=True)
        leaves = [
            from_offset(next(whole), low, clients) if is_int else from_residues(*next(low_and_high), low, high, clients)
            for (low, high), is_int in zip(ranges, is_whole, strict=True)
        ]
        return jax.tree.unflatten(structure, leaves), counts[1]

    received = federated_map(encode, (value, federated_broadcast(lower), federated_broadcast(upper)))
    widths = [None] * len(dtypes) if fit is None else fit.widths
    limits = tuple(_limit(dtype, w) for dtype, w, whole in zip(dtypes, widths, is_whole, strict=True) if whole)
    nothing = federated_value((), SERVER)
    share_limit = MOST_CLIENTS if fit is None else share_of(fit.clients)
    total, non_finite = federated_map(
        decode,
        (
            federated_secure_sum(received[0], limits) if limits else nothing,
            federated_secure_modular_sum(received[1], LOW_MODULUS) if not all(is_whole) else nothing,
            federated_secure_modular_sum(received[2], HIGH_MODULUS) if not all(is_whole) else nothing,
            federated_secure_sum(received[3], (share_limit, 1)),
            lower,
            upper,
        ),
    )
    return Summed(total, non_finite)


def fit_of(dtype: Any, lower: Any, upper: Any, max_clients: int | None) -> Fit:
    """What constants tell of a sum of values of one dtype.

    Raises:
      SecureSumFieldError: there are more clients than it fits for.
      KoinonValueError: the range is empty or not finite, or the dtype does not hold it.
    """
    if not (np.isfinite(lower) and np.isfinite(upper) and lower <= upper):
        raise KoinonValueError("A range must be finite, and not empty.", found=f"{lower} to {upper}")
    if np.dtype(dtype).kind == "f":
        most = MOST_CLIENTS_OF_FLOATS
    else:
        limits = np.iinfo(dtype)
        lower, upper = int(lower), int(upper)
        if not limits.min <= lower <= upper <= limits.max:
            raise KoinonValueError(
                "The bounds of a secure sum must be values of its dtype.",
                expected=f"from {limits.min} to {limits.max}, for {np.dtype(dtype)}",
                found=f"{lower} to {upper}",
            )
        most = capacity(dtype, lower, upper)
    check_field(most, max_clients, dtype, lower, upper)
    return Fit(most, (upper - lower,))


def _fit(member: Type, lowers: list[Any], uppers: list[Any], max_clients: int | None) -> Fit:
    """What constants tell, of which there is one for each tensor, or one for all."""
    dtypes = [np.dtype(spec.dtype) for spec in jax.tree.leaves(specs_of(member))]
    pairs = [*zip(lowers, uppers, strict=True)]
    pairs = pairs * len(dtypes) if len(pairs) == 1 else pairs
    if any(np.any(np.greater(low, high)) for low, high in pairs):
        raise KoinonValueError("A range must not be empty.", found=f"{lowers} to {uppers}")
    fits = [
        fit_of(dtype, np.min(low), np.max(high), max_clients) for dtype, (low, high) in zip(dtypes, pairs, strict=True)
    ]
    return Fit(min(fit.clients for fit in fits), tuple(fit.widths[0] for fit in fits))


def _limit(dtype: np.dtype, width: int | None) -> Any:
    """The greatest distance from a lower bound, in the dtype that such are summed in."""
    carrier = carrier_of(dtype)
    return carrier.type(np.iinfo(carrier).max if width is None else width)


def _capacity_of(dtypes: list[np.dtype], ranges: Ranges) -> Any:
    of_each = [
        jnp.uint32(MOST_CLIENTS_OF_FLOATS) if dtype.kind == "f" else capacity_at_run_time(*pair)
        for dtype, pair in zip(dtypes, ranges, strict=True)
    ]
    return jnp.min(jnp.stack(of_each))


def _ranges(lower: Any, upper: Any, count: int) -> Ranges:
    pairs = [*zip(jax.tree.leaves(lower), jax.tree.leaves(upper), strict=True)]
    return pairs * count if len(pairs) == 1 else pairs


def _are_valid(ranges: Ranges) -> jax.Array:
    checks = [(low <= high) & jnp.isfinite(low) & jnp.isfinite(high) for low, high in ranges]
    return jnp.stack([check.all() for check in checks]).all()


def _check_value(value: object) -> Type:
    if not isinstance(value, Value) or not isinstance(value.type_signature, FederatedType):
        raise KoinonTypeError("What is summed must be a value at the clients.", found=type(value).__qualname__)
    if value.type_signature.placement is not CLIENTS:
        raise PlacementError(
            "What is summed must be placed at the clients.", expected="{V}@CLIENTS", found=value.type_signature
        )
    member = value.type_signature.member
    for spec in jax.tree.leaves(specs_of(member)):
        check_dtype(spec.dtype)
    return member


def check_dtype(dtype: Any) -> None:
    """Raises an `UnsupportedDTypeError` unless values of a dtype can be summed in a range."""
    if dtype not in _DTYPES:
        raise UnsupportedDTypeError(
            "Values of this dtype cannot be summed securely within bounds.",
            expected=", ".join(np.dtype(d).name for d in _DTYPES),
            found=dtype,
            hint="cast the values to float32 or int32 at the clients",
        )


def _check_bounds(member: Type, lower: Type, upper: Type) -> None:
    if lower != upper:
        raise BoundsDifferentSignaturesError("The bounds must have the same type.", expected=lower, found=upper)
    if not isinstance(lower, FederatedType) or lower.placement is not SERVER:
        raise BoundsNotPlacedAtServerError("The bounds must be placed at the server.", found=lower)
    bound = lower.member
    if isinstance(bound, StructType):
        if not isinstance(member, StructType) or _dtypes_of(bound) != _dtypes_of(member):
            raise StructuredBoundsTypeMismatchError(
                "Bounds that are a struct must have the structure and the dtypes of the value.",
                expected=member,
                found=bound,
            )
        return
    found = {leaf.dtype for leaf in jax.tree.leaves(specs_of(member))}
    if isinstance(bound, TensorType) and found == {bound.dtype}:
        return
    if isinstance(member, StructType):
        raise ScalarBoundStructValueDTypeError(
            "One bound for a whole struct must have the dtype of all of its tensors.", expected=member, found=bound
        )
    raise ScalarBoundSimpleValueDTypeError("The bounds must have the dtype of the value.", expected=member, found=bound)


def _dtypes_of(type_: Type) -> object:
    if isinstance(type_, StructType):
        return tuple((name, _dtypes_of(child)) for name, child in type_.items())
    return type_.dtype if isinstance(type_, TensorType) else type_
