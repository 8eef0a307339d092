"""All leaves of a value as one vector, for an inner aggregation."""

from __future__ import annotations

import math
from typing import Any

import jax

from koinon._errors import KoinonTypeError
from koinon._jax import raveled, unraveled
from koinon.aggregators._factory import (
    AggregationFactory,
    ValueType,
    check_factory,
    check_value_type,
    factory_like,
    next_parameter,
    prints_as_called,
)
from koinon.computation import federated_computation, federated_map
from koinon.templates._aggregation import AggregationProcess
from koinon.templates._measured import MeasuredProcessOutput
from koinon.templates._specs import specs_of
from koinon.types import TensorType, is_structure_of_floats, is_structure_of_integers


@prints_as_called
def concat_factory(inner_agg_factory: AggregationFactory) -> AggregationFactory:
    """Joins the leaves of each client's value to one vector, before an inner aggregation, and parts the result.

    `<float32[N],float32[P,Q]>` is `float32[N + P * Q]` to the inner aggregation. Compression and rotation, which look
    at each leaf by itself, then look at the value as a whole.

    Type: `(<S@SERVER,{V}@CLIENTS,*> -> <state=S@SERVER,result=V@SERVER,measurements=M@SERVER>)`

    State and measurements are those of the inner aggregation.

    Args:
      inner_agg_factory: aggregates the vectors; the result is weighted if and only if this is.

    Raises:
      TypeError: if the argument is no factory; or, at `create`, if there is no leaf, or the leaves are not all of one
        dtype, an integer or a float.

    Example:
      >>> import koinon as ko
      >>> factory = ko.aggregators.concat_factory(ko.aggregators.SumFactory())
      >>> process = factory.create(ko.types.parse("<a=float32[2],b=float32>"))
      >>> value = {"a": [1.0, 2.0], "b": 3.0}
      >>> result = process.next(process.initialize(), [value, value]).result
      >>> {name: leaf.tolist() for name, leaf in result.items()}
      {'a': [2.0, 4.0], 'b': 6.0}
    """
    check_factory(inner_agg_factory, "inner_agg_factory")

    def create(value_type: ValueType, *weight_type: ValueType) -> AggregationProcess:
        specs, structure = jax.tree.flatten(specs_of(value_type))
        _check_one_dtype(value_type, {spec.dtype for spec in specs})
        size = sum(math.prod(spec.shape) for spec in specs)
        inner = inner_agg_factory.create(TensorType(specs[0].dtype, (size,)), *weight_type)

        def concat(value: Any) -> jax.Array:
            return raveled(jax.tree.leaves(value))

        def part(vector: jax.Array) -> Any:
            return jax.tree.unflatten(structure, unraveled(vector, [spec.shape for spec in specs]))

        @federated_computation(next_parameter(inner.state_type, value_type, *weight_type))
        def next_fn(arguments: Any) -> Any:
            state, value, *weight = arguments
            output = inner.next(state, federated_map(concat, value), *weight)
            return MeasuredProcessOutput(output.state, federated_map(part, output.result), output.measurements)

        return AggregationProcess(inner.initialize, next_fn, allow_type_change=True, parts={"inner_agg": inner})

    return factory_like(inner_agg_factory, create)


def _check_one_dtype(value_type: ValueType, dtypes: set[Any]) -> None:
    check_value_type(value_type)
    is_number = is_structure_of_floats(value_type) or is_structure_of_integers(value_type)
    if len(dtypes) != 1 or not is_number:
        raise KoinonTypeError(
            "The leaves of a value that are joined to one vector must be of one dtype.",
            expected="tensors of one integer or floating dtype, at least one of them",
            found=value_type,
            hint="cast the values to float32 at the clients",
        )
