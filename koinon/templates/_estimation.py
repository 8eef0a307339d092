"""The template of estimates that are updated round by round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from koinon._errors import EstimateNotAssignableError, TemplateError, TemplateStateNotAssignableError
from koinon.computation import Computation, federated_computation
from koinon.templates._checks import check_computation, mismatch
from koinon.templates._iterative import IterativeProcess
from koinon.types import Type


class EstimationProcess(IterativeProcess):
    """A process whose state can be read: `report` returns the current estimate.

    Type: `initialize ( -> S)`, `next (<S,...> -> <S,...>)`, `report (S -> R)`

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state.
      next_fn: a `Computation` that takes the state first and returns the new state.
      report_fn: a `Computation` that takes the state and returns the estimate.
      next_is_multi_arg: see `IterativeProcess`.
      parts: see `IterativeProcess`.

    Raises:
      TypeError, TemplateInitFnParamNotEmptyError, TemplateNextFnNumArgsError: see `IterativeProcess`.
      TemplateStateNotAssignableError: see `IterativeProcess`; also if `report_fn` does not accept the state.

    Example:
      >>> import koinon as ko
      >>> median = ko.aggregators.PrivateQuantileEstimationProcess.no_noise(1.0, 0.5, 0.2)
      >>> print(median.report.type_signature.result)
      float32@SERVER
      >>> state = median.next(median.initialize(), [0.5, 0.25])
      >>> print(f"{float(median.report(state)):.4f}")  # exp(-0.2 * (1 - 0.5))
      0.9048
    """

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        report_fn: Computation,
        next_is_multi_arg: bool | None = None,
        *,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg, parts=parts)
        template = type(self).__name__
        check_computation(report_fn, "report_fn", template)
        taken = report_fn.type_signature.parameter
        if taken is None or not taken.is_assignable_from(self.state_type):
            raise _not_accepted(
                TemplateStateNotAssignableError,
                f"{template}: `report` must accept the state.",
                taken,
                self.state_type,
                hint="declare the parameter of `report` as the type of the state",
            )
        self._report = report_fn

    @property
    def report(self) -> Computation:
        """The computation of the current estimate from the state."""
        return self._report

    def map(self, fn: Computation) -> EstimationProcess:
        """The process that reports `fn` of this one's estimate; `initialize` and `next` are the same.

        Args:
          fn: a `Computation` that takes what `report` returns.

        Raises:
          TypeError: if `fn` is not a `Computation`.
          EstimateNotAssignableError: if `fn` does not accept the estimate.

        Example:
          >>> import jax.numpy as jnp, koinon as ko
          >>> median = ko.aggregators.PrivateQuantileEstimationProcess.no_noise(1.0, 0.5, 0.2)
          >>> @ko.federated_computation(ko.types.at_server(jnp.float32))
          ... def double(estimate):
          ...     return ko.federated_map(lambda x: 2.0 * x, estimate)
          >>> doubled = median.map(double)
          >>> float(doubled.report(doubled.initialize()))
          2.0
        """
        check_computation(fn, "fn", f"{type(self).__name__}.map")
        taken = fn.type_signature.parameter
        estimate = self.report.type_signature.result
        if taken is None or not taken.is_assignable_from(estimate):
            raise _not_accepted(
                EstimateNotAssignableError,
                "The function mapped over an estimation process must accept its estimate.",
                taken,
                estimate,
                hint="declare the parameter of the function as `process.report.type_signature.result`",
            )
        report = self.report

        @federated_computation(self.report.type_signature.parameter)
        def mapped_report(state: Any) -> Any:
            return fn(report(state))

        return EstimationProcess(self.initialize, self.next, mapped_report, parts=self.parts)


def _not_accepted(error: type[TemplateError], what: str, taken: Type | None, given: Type, hint: str) -> TemplateError:
    if taken is None:
        return error(what, expected=f"a parameter of type {given}", found="no parameter", hint=hint)
    return mismatch(error, what, taken, given, hint)
