"""Abstract interpretation: running expressions and programs of JAX on what is known about values, not on values.

A `Domain` says what is known about one flat leaf, and how an equation of a program passes it on. Structs, closures and
calls are evaluated as they are, so that what is known of one leaf never gets mixed with another's by plumbing; loops
are run until nothing changes.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from koinon._errors import NotCompilableError
from koinon._jax import scan_counts
from koinon.compiler._steps import PlanValue
from koinon.computation import INTRINSICS
from koinon.computation import _ir as ir
from koinon.computation._evaluate import Closure, Evaluator, LocalFunction, OperatorFunction, operand_types
from koinon.computation._flat import leaf_types
from koinon.types import FederatedType, FunctionType, SequenceType, StructType, Type

F = TypeVar("F")


class Domain(abc.ABC, Generic[F]):
    """What is known about a leaf: facts, and how they combine."""

    @property
    @abc.abstractmethod
    def constant(self) -> F:
        """The fact about what depends on nothing."""

    @abc.abstractmethod
    def join(self, first: F, second: F) -> F:
        """The fact about a value that is one or the other."""

    @abc.abstractmethod
    def controlled(self, fact: F, control: F) -> F:
        """The fact about a value that was chosen by another: by the predicate of a branch, the end of a loop."""

    @abc.abstractmethod
    def computed(self, inputs: Sequence[F], operation: str) -> F:
        """The fact about what an operation of which nothing is known makes of its inputs."""

    def equation(self, eqn: Any, inputs: list[F]) -> list[F]:
        """The facts about the outputs of an equation that is no call and no loop."""
        return [self.computed(inputs, eqn.primitive.name)] * len(eqn.outvars)


class AbstractSequence:
    """What is known about a sequence.

    Attributes:
      leaves: facts about its buffers, its offset and its length.
    """

    def __init__(self, leaves: Sequence[Any]) -> None:
        self.leaves = tuple(leaves)


# Primitives that call one program with all their operands, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class Interpreter(Generic[F]):
    """Runs expressions, functions in plans and programs of JAX on facts.

    Args:
      domain: what is known, and how it is passed on.
    """

    def __init__(self, domain: Domain[F]) -> None:
        self.domain = domain
        handlers = {
            "sequence_map": self._sequence_map,
            "sequence_reduce": self._sequence_reduce,
            "sequence_sum": self._sequence_sum,
        }
        self.evaluator = Evaluator({**dict.fromkeys(INTRINSICS, _refuse), **handlers}, self._local)

    # --- values ------------------------------------------------------------------------------------------------------

    def flatten(self, type_: Type, value: Any) -> list[F]:
        """The facts about the flat leaves of a value; constants in it are facts about constants."""
        if isinstance(type_, FederatedType):
            return self.flatten(type_.member, value)
        if isinstance(type_, StructType):
            fields = zip(type_.items(), value, strict=True)
            return [leaf for (_, field), child in fields for leaf in self.flatten(field, child)]
        if isinstance(value, AbstractSequence):
            return list(value.leaves)
        if isinstance(type_, SequenceType):
            return [self.domain.constant] * len(leaf_types(type_))
        return [value if isinstance(value, type(self.domain.constant)) else self.domain.constant]

    def unflatten(self, type_: Type, leaves: Sequence[F]) -> Any:
        """The value that has these facts about its leaves."""
        if isinstance(type_, FederatedType):
            return self.unflatten(type_.member, leaves)
        if isinstance(type_, StructType):
            fields, position = [], 0
            for field in type_:
                width = len(leaf_types(field))
                fields.append(self.unflatten(field, leaves[position : position + width]))
                position += width
            return tuple(fields)
        if isinstance(type_, SequenceType):
            return AbstractSequence(leaves)
        (leaf,) = leaves
        return leaf

    def resolve(self, value: Any, scope: Mapping[int, Any]) -> Any:
        """Operands of a step, with plan values replaced by what is known of them, and functions that run on facts."""
        match value:
            case tuple():
                return tuple([self.resolve(field, scope) for field in value])
            case PlanValue():
                return scope[value.index]
            case Closure():
                names = ir.free_names(value.node)
                captured = {name: self.resolve(value.scope[name], scope) for name in names}
                return Closure(self.evaluator, value.node, captured)
            case LocalFunction() | OperatorFunction():
                return self.evaluator.evaluate(value.node, {})
            case _:
                return value

    # --- functions ---------------------------------------------------------------------------------------------------

    def _local(self, node: ir.Local, argument: Any) -> Any:
        parameter = node.type.parameter
        leaves = [] if parameter is None else self.flatten(parameter, argument)
        return self.unflatten(node.type.result, self.program(node.program, leaves))

    def _sequence_map(self, node: ir.Intrinsic, argument: Any) -> AbstractSequence:
        function, sequence = argument
        function_type, sequence_type = operand_types(node)
        assert isinstance(function_type, FunctionType)
        assert isinstance(sequence_type, SequenceType)
        *rows, offset, length = self.flatten(sequence_type, sequence)
        result = function(self.unflatten(sequence_type.element, rows))
        return AbstractSequence([*self.flatten(function_type.result, result), offset, length])

    def _sequence_reduce(self, node: ir.Intrinsic, argument: Any) -> Any:
        sequence, zero, op = argument
        sequence_type, *_ = operand_types(node)
        assert isinstance(sequence_type, SequenceType)
        *rows, _, length = self.flatten(sequence_type, sequence)
        element = self.unflatten(sequence_type.element, rows)
        type_ = node.type.result

        def step(carry: list[F]) -> list[F]:
            values = self.flatten(type_, op((self.unflatten(type_, carry), element)))
            return [self.domain.controlled(value, length) for value in values]

        return self.unflatten(type_, self.fixpoint(self.flatten(type_, zero), step))

    def _sequence_sum(self, node: ir.Intrinsic, argument: Any) -> Any:
        parameter = node.type.parameter
        assert isinstance(parameter, SequenceType)
        *rows, _, length = self.flatten(parameter, argument)
        sums = [self.domain.computed([row], node.name) for row in rows]
        return self.unflatten(node.type.result, [self.domain.controlled(total, length) for total in sums])

    # --- programs ----------------------------------------------------------------------------------------------------

    def program(self, closed: ClosedJaxpr, arguments: Sequence[F]) -> list[F]:
        """The facts about the results of a program."""
        return self.jaxpr(closed.jaxpr, [*[self.domain.constant] * len(closed.consts), *arguments])

    def jaxpr(self, jaxpr: Jaxpr, arguments: Sequence[F]) -> list[F]:
        """The facts about the results of a jaxpr, given those about its constants and arguments."""
        facts: dict[Any, F] = dict(zip([*jaxpr.constvars, *jaxpr.invars], arguments, strict=True))

        def read(atom: Any) -> F:
            return self.domain.constant if isinstance(atom, Literal) else facts[atom]

        for eqn in jaxpr.eqns:
            facts.update(zip(eqn.outvars, self._equation(eqn, [read(atom) for atom in eqn.invars]), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn: Any, inputs: list[F]) -> list[F]:
        match eqn.primitive.name:
            case "while":
                return self._while(eqn, inputs)
            case "scan":
                return self._scan(eqn, inputs)
            case "cond":
                return self._cond(eqn, inputs)
            case "sequence_reduce":
                return self._fold(eqn, inputs)
            case "optimization_barrier":
                return inputs
            case _:
                called = called_program(eqn)
                return self.domain.equation(eqn, inputs) if called is None else self.program(called, inputs)

    def fixpoint(self, start: Sequence[F], step: Any) -> list[F]:
        """The facts that hold before every step of a loop and after the last."""
        carry = list(start)
        while True:
            joined = [self.domain.join(old, new) for old, new in zip(carry, step(carry), strict=True)]
            if joined == carry:
                return carry
            carry = joined

    def _loop(self, body: ClosedJaxpr, constants: list[F], index: list[F], start: list[F], control: Any) -> list[F]:
        """The carry of a loop; what its body passes on as it is does not depend on how often it runs."""
        position = len(constants) + len(index)
        kept = [out is into for out, into in zip(body.jaxpr.outvars, body.jaxpr.invars[position:], strict=False)]

        def step(carry: list[F]) -> list[F]:
            values = self.program(body, [*constants, *index, *carry])
            end = control(carry)
            return [
                value if same else self.domain.controlled(value, end) for value, same in zip(values, kept, strict=True)
            ]

        return self.fixpoint(start, step)

    def _while(self, eqn: Any, inputs: list[F]) -> list[F]:
        tests, steps = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        test_constants, constants, start = inputs[:tests], inputs[tests : tests + steps], inputs[tests + steps :]

        def end(carry: list[F]) -> F:
            (fact,) = self.program(eqn.params["cond_jaxpr"], [*test_constants, *carry])
            return fact

        return self._loop(eqn.params["body_jaxpr"], constants, [], start, end)

    def _fold(self, eqn: Any, inputs: list[F]) -> list[F]:
        length, *operands = inputs
        count = eqn.params["num_consts"]
        index = [self.domain.constant]
        return self._loop(eqn.params["jaxpr"], operands[:count], index, operands[count:], lambda _: length)

    def _scan(self, eqn: Any, inputs: list[F]) -> list[F]:
        consts, carries = scan_counts(eqn.params)
        constants, start, rows = inputs[:consts], inputs[consts : consts + carries], inputs[consts + carries :]

        def body(carry: list[F]) -> list[F]:
            return self.program(eqn.params["jaxpr"], [*constants, *carry, *rows])

        carry = self.fixpoint(start, lambda carry: body(carry)[:carries])
        return [*carry, *body(carry)[carries:]]

    def _cond(self, eqn: Any, inputs: list[F]) -> list[F]:
        predicate, *operands = inputs
        branches: Sequence[ClosedJaxpr] = eqn.params["branches"]
        results = [self.program(branch, operands) for branch in branches]
        outputs = []
        for position, facts in enumerate(zip(*results, strict=True)):
            joined = facts[0]
            for fact in facts[1:]:
                joined = self.domain.join(joined, fact)
            sources = {_passed_on(branch.jaxpr, position) for branch in branches}
            chosen = len(sources) > 1 or sources == {None}
            outputs.append(self.domain.controlled(joined, predicate) if chosen else joined)
        return outputs


def called_program(eqn: Any) -> ClosedJaxpr | None:
    """The program that an equation calls with all its operands, None where it does something else."""
    parameter = _CALLS.get(eqn.primitive.name)
    if parameter is None:
        return None
    called = eqn.params[parameter]
    return called if isinstance(called, ClosedJaxpr) else ClosedJaxpr(called, [])


def _passed_on(jaxpr: Jaxpr, position: int) -> int | None:
    """The number of the input that an output is, None where it is computed."""
    out = jaxpr.outvars[position]
    return next((number for number, into in enumerate(jaxpr.invars) if into is out), None)


def _refuse(node: ir.Intrinsic, argument: Any) -> Any:
    raise NotCompilableError(f"The operator {node.name} cannot be used inside a function that is mapped.")
