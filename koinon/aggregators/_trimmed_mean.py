"""The mean of each coordinate of the clients' values without its extremes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonTypeError, KoinonValueError
from koinon.aggregators._rows import RobustRule, Rows

# Counting is in exact integers: a fraction with a small denominator times a cohort fits 32 bits.
_MAX_DENOMINATOR = 10_000


@final
class TrimmedMeanFactory(RobustRule):
    """The mean of each coordinate over the clients, without the largest and the smallest values.

    Of `n` clients, `floor(trim_fraction * n)` values are left out at each end, but never all: of one or two clients
    the result is the mean. It is robust while no more than that many clients are corrupted.

    Type: `(<<>@SERVER,{V}@CLIENTS> ->
    <state=<>@SERVER,result=V@SERVER,measurements=<trimmed_clients,non_finite_clients>@SERVER>)`

    A client with an element that is not finite is left out before, and counted in `non_finite_clients`;
    `trimmed_clients` is how many values were left out at each end. Over no client the result is zero. The result does
    not depend on the order of the clients, to the bit. The server holds the values of all clients, in the dtypes that
    they have and once more in float32, and sees each of them, so no secure sum can take the place of the rule.

    Args:
      trim_fraction: beta of the paper, the share that is left out at each end, a float in `[0, 0.5)`; the nearest
        fraction of a denominator up to 10,000 counts, so that 0.29 of 100 clients are 29.

    Raises:
      TypeError: if the share is no float.
      ValueError: if it is out of its range.

    References:
      Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018,
      https://arxiv.org/abs/1803.01498, definition 2.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.TrimmedMeanFactory(0.25).create(ko.types.TensorType("float32"))
      >>> float(process.next(process.initialize(), [1.0, 2.0, -1e30, 4.0]).result)
      1.5
    """

    def __init__(self, trim_fraction: float) -> None:
        if not isinstance(trim_fraction, float):
            raise KoinonTypeError(
                "`trim_fraction` must be a float.", found=repr(trim_fraction), hint="write 0.2 for a fifth at each end"
            )
        if not 0.0 <= trim_fraction < 0.5:
            raise KoinonValueError(
                "`trim_fraction` is left out at each end, so it must be less than a half.",
                expected="a float in [0, 0.5)",
                found=trim_fraction,
                hint="for a half, `CoordinateMedianFactory()`",
            )
        self._fraction = Fraction(trim_fraction).limit_denominator(_MAX_DENOMINATOR)

    @property
    def name(self) -> str:
        """What messages call the rule."""
        return "A trimmed mean"

    def combine(self, rows: Rows) -> tuple[jax.Array, dict[str, Any]]:
        """See `RobustRule.combine`."""
        share = rows.count * self._fraction.numerator // self._fraction.denominator
        trimmed = jnp.clip(share, 0, jnp.maximum(rows.count - 1, 0) // 2)
        kept = jnp.maximum(rows.count - 2 * trimmed, 1).astype(rows.matrix.dtype)

        def mean(block: jax.Array) -> jax.Array:
            # Divided before they are added, so that the sum does not overflow.
            return jax.lax.fori_loop(
                trimmed, rows.count - trimmed, lambda i, total: total + block[i] / kept, jnp.zeros_like(block[0])
            )

        return rows.on_sorted_columns(mean), {"trimmed_clients": trimmed}
