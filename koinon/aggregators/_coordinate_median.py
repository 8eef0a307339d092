"""The median of each coordinate of the clients' values."""

from __future__ import annotations

from typing import Any, final

import jax

from koinon.aggregators._rows import RobustRule, Rows


@final
class CoordinateMedianFactory(RobustRule):
    """The median of each coordinate over the clients: robust while fewer than half of them are corrupted.

    Of an even number of clients it is the mean of the two values in the middle, as in numpy.

    Type: `(<<>@SERVER,{V}@CLIENTS> -> <state=<>@SERVER,result=V@SERVER,measurements=<non_finite_clients>@SERVER>)`

    A client with an element that is not finite is left out, and counted in `non_finite_clients`; over no client the
    result is zero. The result does not depend on the order of the clients, to the bit. The server holds the values of
    all clients, in the dtypes that they have and once more in float32, and sees each of them, so no secure sum can
    take the place of the rule.

    References:
      Yin et al., Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates, ICML 2018,
      https://arxiv.org/abs/1803.01498, definition 1.

    Example:
      >>> import koinon as ko
      >>> process = ko.aggregators.CoordinateMedianFactory().create(ko.types.TensorType("float32"))
      >>> output = process.next(process.initialize(), [1.0, 2.0, 1e30, float("nan")])
      >>> float(output.result), int(output.measurements["non_finite_clients"])
      (2.0, 1)
    """

    @property
    def name(self) -> str:
        """What messages call the rule."""
        return "The coordinate median"

    def combine(self, rows: Rows) -> tuple[jax.Array, dict[str, Any]]:
        """See `RobustRule.combine`."""
        return rows.coordinate_median(), {}
