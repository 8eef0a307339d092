"""A process whose step also returns a result and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from koinon._errors import TemplateNotMeasuredProcessOutputError
from koinon.computation import Computation
from koinon.templates._iterative import IterativeProcess, state_not_returned_error
from koinon.types import StructType, register_container


class MeasuredProcessOutput(NamedTuple):
    """What a step of a measured process returns.

    Attributes:
      state: the state for the next step.
      result: what the step is for.
      measurements: what is worth knowing about the step.
    """

    state: Any
    result: Any
    measurements: Any


register_container("koinon.MeasuredProcessOutput", MeasuredProcessOutput)


class MeasuredProcess(IterativeProcess):
    """A process whose step returns a `MeasuredProcessOutput`.

    Type: `initialize ( -> S)`, `next (<S,...> -> <state=S,result=R,measurements=M>)`

    The container counts, not only the names of the fields: a tuple, a dict, or another NamedTuple with the same fields
    is refused.

    Args:
      initialize_fn: a `Computation` without parameter that returns the first state.
      next_fn: a `Computation` that takes the state first and returns a `MeasuredProcessOutput`.
      next_is_multi_arg: see `IterativeProcess`.
      parts: see `IterativeProcess`.

    Raises:
      TypeError, TemplateInitFnParamNotEmptyError, TemplateNextFnNumArgsError, TemplateStateNotAssignableError: see
        `IterativeProcess`; the state is the field `state` of the result.
      TemplateNotMeasuredProcessOutputError: if `next_fn` returns anything else than a `MeasuredProcessOutput`.

    Example:
      >>> import jax.numpy as jnp, koinon as ko
      >>> @ko.jax_computation(jnp.int32, jnp.float32)
      ... def step(count, value):
      ...     return ko.templates.MeasuredProcessOutput(count + 1, value * value, {"count": count})
      >>> square = ko.templates.MeasuredProcess(ko.jax_computation()(lambda: jnp.int32(0)), step)
      >>> print(square.next.type_signature)
      (<count=int32,value=float32> -> <state=int32,result=float32,measurements=<count=int32>>)
      >>> float(square.next(square.initialize(), 3.0).result)
      9.0
    """

    # The containers that `next` may return; a template with further fields in its output extends it.
    _outputs: ClassVar[tuple[type, ...]] = (MeasuredProcessOutput,)

    def __init__(
        self,
        initialize_fn: Computation,
        next_fn: Computation,
        next_is_multi_arg: bool | None = None,
        *,
        parts: Mapping[str, IterativeProcess] | None = None,
    ) -> None:
        super().__init__(initialize_fn, next_fn, next_is_multi_arg, parts=parts)
        template = type(self).__name__
        result = next_fn.type_signature.result
        if not isinstance(result, StructType) or result.container not in self._outputs:
            raise TemplateNotMeasuredProcessOutputError(
                f"{template}: `next` must return a `MeasuredProcessOutput`.",
                expected="<state=S,result=R,measurements=M> as MeasuredProcessOutput",
                found=repr(result),
                hint="return `MeasuredProcessOutput(state, result, measurements)` from `next`",
            )
        # Stricter than the check of the base class, which is content where the whole result could be the state.
        if not self.state_type.is_assignable_from(result["state"]):
            raise state_not_returned_error(template, self.state_type, result["state"])
