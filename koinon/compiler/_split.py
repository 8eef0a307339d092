"""The functions of a round of one exchange: what the server prepares, what clients do, how it is folded, the update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from koinon.compiler._monoids import Monoid, monoid_of
from koinon.compiler._plan import Plan, needed_steps
from koinon.compiler._rebuild import expression_of, function_of
from koinon.compiler._steps import AGGREGATIONS, Step, plan_values
from koinon.computation import INTRINSICS, Route
from koinon.computation import _ir as ir
from koinon.types import CLIENTS, SERVER, StructType, Type, strip_placement


class Splitter:
    """Takes a plan of one exchange apart, from a state at the server and clients' values to values at the server."""

    def __init__(self, lowered: Plan) -> None:
        self.plan = lowered
        self.steps = list(lowered.steps())
        parameter = lowered.type.parameter
        assert isinstance(parameter, StructType)
        self.fields = parameter.items()
        self.state_type = strip_placement(parameter[0])
        self.state, *self.data = [value.index for value in plan_values(lowered.parameter)]
        self.server = [s for s in self.steps if s.placement is SERVER]
        self.clients = [s for s in self.steps if s.placement is CLIENTS and s.operator not in AGGREGATIONS]
        self.broadcasts = [s for s in self.clients if s.operator == "federated_broadcast"]
        self.splits = [s for s in self.clients if s.operator == "federated_split_key"]
        aggregations = [s for s in self.steps if s.operator in AGGREGATIONS]
        self.secure = [s for s in aggregations if INTRINSICS[s.operator].route is Route.SECURE]
        self.folds = [s for s in aggregations if s not in self.secure]
        self.monoids = [monoid_of(step, self.server) for step in self.folds]

    def zero(self) -> ir.Lambda:
        """`( -> A)`."""
        return ir.Lambda(None, None, ir.Struct(tuple((None, monoid.zero) for monoid in self.monoids)))

    def accumulate(self) -> ir.Lambda:
        """`(<A,W> -> A)`."""
        return _pairwise(self.monoids, lambda monoid: monoid.accumulate, lambda monoid: monoid.value)

    def merge(self) -> ir.Lambda:
        """`(<A,A> -> A)`."""
        return _pairwise(self.monoids, lambda monoid: monoid.merge, lambda monoid: monoid.accumulator)

    def report(self) -> ir.Lambda:
        """`(A -> F)`."""
        return _each(self.monoids)

    def _sent_type(self) -> StructType:
        return StructType([("broadcast", _members(self.broadcasts)), ("keys", _members(self.splits))])

    def prepare(self) -> ir.Lambda:
        """`(S -> <broadcast=B,keys=K>)`."""
        sent = (tuple(s.operands for s in self.broadcasts), tuple(s.operands for s in self.splits))
        steps = needed_steps(self.server, sent)
        return function_of(self.state_type, lambda state: {self.state: state}, steps, sent, self._sent_type())

    def work(self) -> ir.Lambda:
        """`(<data=D,broadcast=B,keys=K> -> <folded=W,secure=V>)`."""
        fields = [(name, strip_placement(type_)) for name, type_ in self.fields[1:]]
        data_type = fields[0][1] if len(fields) == 1 else StructType([f if f[0] else f[1] for f in fields])
        parameter = StructType([("data", data_type), *self._sent_type().items()])

        def given(argument: ir.Expression) -> dict[int, ir.Expression]:
            data, sent, keys = (ir.Selection(argument, i) for i in range(3))
            parts = [data] if len(fields) == 1 else [ir.Selection(data, i) for i in range(len(fields))]
            values: dict[int, ir.Expression] = dict(zip(self.data, parts, strict=True))
            for source, steps in ((sent, self.broadcasts), (keys, self.splits)):
                values.update({step.output.index: ir.Selection(source, i) for i, step in enumerate(steps)})
            return values

        folded = tuple(s.operands[0] if s.operator == "federated_aggregate" else s.operands for s in self.folds)
        secure = tuple(s.operands[0] for s in self.secure)
        result_type = StructType(
            [("folded", StructType([m.value for m in self.monoids])), ("secure", _members(self.secure))]
        )
        received = (*self.broadcasts, *self.splits)
        work = [s for s in needed_steps(self.clients, (folded, secure)) if s not in received]
        # A constant that the server computes is computed at the clients as well.
        own = needed_steps(_constant_steps(self.server), tuple(step.operands for step in work))
        return function_of(parameter, given, [*own, *work], (folded, secure), result_type)

    def bounds(self) -> ir.Lambda:
        """`( -> <...>)`, one bound for each secure sum."""
        types = [_bound_type(step) for step in self.secure]
        bounds = [expression_of(s.operands[1], t, self.server) for s, t in zip(self.secure, types, strict=True)]
        return ir.Lambda(None, None, ir.Struct(tuple((None, bound) for bound in bounds)))

    def update(self) -> ir.Lambda:
        """`(<state=S,folded=F,secure=V> -> R)`."""
        folded = StructType([_result(step) for step in self.folds])
        parameter = StructType([("state", self.state_type), ("folded", folded), ("secure", _members(self.secure))])

        def given(argument: ir.Expression) -> dict[int, ir.Expression]:
            state, reports, sums = (ir.Selection(argument, i) for i in range(3))
            values: dict[int, ir.Expression] = {self.state: state}
            for source, steps in ((reports, self.folds), (sums, self.secure)):
                values.update({step.output.index: ir.Selection(source, i) for i, step in enumerate(steps)})
            return values

        steps = needed_steps(self.server, self.plan.result)
        return function_of(parameter, given, steps, self.plan.result, strip_placement(self.plan.type.result))


def _constant_steps(steps: Iterable[Step]) -> list[Step]:
    """The steps that depend on nothing but each other."""
    constant: list[Step] = []
    known: set[int] = set()
    for step in steps:
        if all(value.index in known for value in plan_values(step.operands)):
            constant.append(step)
            known.update(value.index for value in plan_values(step.output))
    return constant


def _members(steps: Sequence[Step]) -> StructType:
    return StructType([_result(step) for step in steps])


def _result(step: Step) -> Type:
    return strip_placement(step.node.type.result)


def _bound_type(step: Step) -> Type:
    parameter = step.node.type.parameter
    assert isinstance(parameter, StructType)
    return parameter[1]


def _pairwise(
    monoids: Sequence[Monoid], function: Callable[[Monoid], ir.Expression], second: Callable[[Monoid], Type]
) -> ir.Lambda:
    """`(<<A,...>,<B,...>> -> <A,...>)` of functions `(<A,B> -> A)`."""
    parameter = StructType([StructType([m.accumulator for m in monoids]), StructType([second(m) for m in monoids])])
    argument = ir.Reference("argument", parameter)
    left, right = ir.Selection(argument, 0), ir.Selection(argument, 1)
    results = []
    for i, monoid in enumerate(monoids):
        pair = ir.Struct(((None, ir.Selection(left, i)), (None, ir.Selection(right, i))))
        results.append((None, ir.Call(function(monoid), pair)))
    return ir.Lambda("argument", parameter, ir.Struct(tuple(results)))


def _each(monoids: Sequence[Monoid]) -> ir.Lambda:
    """`(<A,...> -> <R,...>)` of the reports."""
    parameter = StructType([m.accumulator for m in monoids])
    argument = ir.Reference("argument", parameter)
    results = tuple((None, ir.Call(m.report, ir.Selection(argument, i))) for i, m in enumerate(monoids))
    return ir.Lambda("argument", parameter, ir.Struct(results))
