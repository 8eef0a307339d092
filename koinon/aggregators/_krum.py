"""Krum and multi-Krum: the clients' values that have the nearest neighbours."""

from __future__ import annotations

from typing import Any, final

import jax
import jax.numpy as jnp

from koinon._errors import KoinonValueError
from koinon.aggregators._factory import check_int
from koinon.aggregators._rows import RobustRule, Rows, distance, norm


@final
class KrumFactory(RobustRule):
    """The value that is nearest to its neighbours, or the mean of several such values.

    The score of a client is the sum of the squared distances to its `n - f - 2` nearest neighbours, of `n` clients of
    which `f` may be corrupted; the values of the lowest scores are selected. With `num_selected=1` this is Krum, else
    multi-Krum.

    Type: `(<<>@SERVER,{V}@CLIENTS> ->
    <state=<>@SERVER,result=V@SERVER,measurements=<too_few_clients,non_finite_clients>@SERVER>)`

    The rule withstands `f` corrupted clients if there are at least `2 f + 3`. In a round of fewer, the result is the
    coordinate median instead, and the measurement `too_few_clients` is 1; that withstands less than half of them.
    Distances are norms of differences, over all leaves together, in float32; so an offset that all clients have in
    common costs no precision. Time grows with the square of the number of clients.

    A client with an element that is not finite is left out before, and counted in `non_finite_clients`; over no client
    the result is zero. The result does not depend on the order of the clients, to the bit. The server holds the values
    of all clients, in the dtypes that they have and once more in float32, and sees each of them, so no secure sum can
    take the place of the rule.

    Args:
      num_byzantine: f, how many clients of a round may be corrupted, a non-negative int.
      num_selected: m, how many values are averaged, a positive int; None for all but `num_byzantine`. At most so many
        are.

    Raises:
      TypeError: if an argument has another type.
      ValueError: if one is out of its range.

    References:
      Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, NeurIPS 2017,
      https://papers.nips.cc/paper/6617, section 4.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.KrumFactory(num_byzantine=1).create(ko.types.TensorType("float32"))
      >>> float(process.next(process.initialize(), [1.0, 1.1, 1.5, 3.0, -100.0]).result)
      1.100000023841858
    """

    def __init__(self, num_byzantine: int, num_selected: int | None = 1) -> None:
        check_int(num_byzantine, "num_byzantine")
        if num_selected is not None:
            check_int(num_selected, "num_selected")
        if num_byzantine < 0:
            raise KoinonValueError("`num_byzantine` must not be negative.", expected="at least 0", found=num_byzantine)
        if num_selected is not None and num_selected < 1:
            raise KoinonValueError("`num_selected` must be positive.", expected="at least 1", found=num_selected)
        self._num_byzantine, self._num_selected = num_byzantine, num_selected

    @property
    def name(self) -> str:
        """What messages call the rule."""
        return "Krum"

    def combine(self, rows: Rows) -> tuple[jax.Array, dict[str, Any]]:
        """See `RobustRule.combine`."""
        is_too_few = rows.count < 2 * self._num_byzantine + 3
        result = jax.lax.cond(is_too_few, rows.coordinate_median, lambda: self._krum(rows))
        return result, {"too_few_clients": is_too_few.astype(jnp.int32)}

    def _krum(self, rows: Rows) -> jax.Array:
        honest = rows.count - self._num_byzantine
        selected = honest if self._num_selected is None else jnp.minimum(self._num_selected, honest)
        scores = _scores(_distances(rows), honest - 2)
        best = jnp.argsort(scores, stable=True)
        numbers = jnp.arange(best.shape[0], dtype=jnp.int32)
        is_selected = jnp.zeros(best.shape, bool).at[best].set(numbers < selected)
        return rows.sum(jnp.where(is_selected, 1 / selected.astype(rows.matrix.dtype), 0))


def _distances(rows: Rows) -> jax.Array:
    """The distances between the rows that count, in their order; infinite from each to itself, and to all others."""
    size = rows.order.shape[0]

    def from_one(i: Any, table: jax.Array) -> jax.Array:
        row = rows[i]

        def to_another(j: Any, table: jax.Array) -> jax.Array:
            length = distance(row, rows[j])
            return table.at[i, j].set(length).at[j, i].set(length)

        return jax.lax.fori_loop(i + 1, rows.count, to_another, table)

    table = jnp.full((size, size), jnp.inf, rows.matrix.dtype)
    return jax.lax.fori_loop(0, rows.count, from_one, table)


def _scores(table: jax.Array, neighbours: jax.Array) -> jax.Array:
    """The square root of each row's score, which has the same order and does not overflow."""
    nearest = jnp.sort(table, axis=1)
    is_neighbour = jnp.arange(table.shape[1], dtype=jnp.int32) < neighbours
    farthest = jnp.max(jnp.where(is_neighbour, nearest, 0), axis=1)
    return jnp.where(jnp.isfinite(farthest), jax.vmap(norm)(jnp.where(is_neighbour, nearest, 0)), jnp.inf)
