"""Secrets in shares, of which so many tell the secret and fewer tell nothing."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable, Mapping, Sequence

# The least prime above 2**256, so that a secret of 32 bytes is an element of its field.
PRIME = 2**256 + 297
SHARE_BYTES = 33


def split(secret: bytes, points: Sequence[int], threshold: int) -> dict[int, int]:
    """A share for each point, of which any `threshold` tell the secret.

    The secret is the value at 0 of a polynomial of degree `threshold - 1`, whose other coefficients are random, and a
    share is its value at a point.

    Args:
      secret: at most 32 bytes.
      points: distinct and positive.
      threshold: from 1 to the number of points.

    References:
      Adi Shamir: How to Share a Secret, Communications of the ACM 22(11), 1979. https://doi.org/10.1145/359168.359176
    """
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {point: _value_at(coefficients, point) for point in points}


def combine(shares: Mapping[int, int]) -> bytes | None:
    """The secret of 32 bytes that shares tell, by their points; None where it is none, so that a share is wrong."""
    secret = sum(share * factor for share, factor in zip(shares.values(), _factors(tuple(shares)), strict=True)) % PRIME
    return secret.to_bytes(32, "big") if secret < 2**256 else None


@functools.lru_cache(maxsize=8)
def _factors(points: tuple[int, ...]) -> tuple[int, ...]:
    """What the values of a polynomial at some points are multiplied by, to give its value at 0 (Lagrange).

    The shares of all clients' secrets are at the same points, so this is computed once for all of them.
    """
    factors = []
    for point in points:
        numerator, denominator = 1, 1
        for other in points:
            if other != point:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - point) % PRIME
        factors.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return tuple(factors)


def _value_at(coefficients: Iterable[int], point: int) -> int:
    value = 0
    for coefficient in reversed([*coefficients]):
        value = (value * point + coefficient) % PRIME
    return value
