"""Every exception that koinon raises on purpose.

    KoinonError
    ├── KoinonTypeError                      (also a TypeError)
    │   ├── TypeNotAssignableError           a value's type cannot be used where another is declared
    │   ├── TypesNotEquivalentError          two types do not accept each other
    │   ├── InvalidNonAllEqualValueError     clients' values are not a sequence with one entry per client
    │   ├── PlacementError                   a value is placed elsewhere than an operator needs
    │   ├── IllTypedError                    (also a ValueError) a type whose parts must not be nested this way
    │   ├── SumIncompatibleError             a type that cannot be summed
    │   ├── MeanIncompatibleError            a type that cannot be averaged
    │   ├── MinMaxIncompatibleError          (also a ValueError) a type that has no order
    │   ├── TracingError                     a traced value used like a concrete one
    │   └── TemplateError                    a process that breaks its template (see `koinon.templates`)
    ├── KoinonValueError                     (also a ValueError)
    │   ├── TypeSyntaxError                  text that is no type
    │   ├── ComputationReturnedNoneError     a traced function without a result
    │   ├── CardinalityError                 clients' arguments of different lengths
    │   ├── UnknownClientError               a client id that the data does not have
    │   ├── UnknownHparamError               a hyperparameter that an optimizer does not have
    │   ├── InvalidIntermediateRepresentationError
    │   └── SerializationError               bytes that are no koinon artifact, or a damaged one
    ├── PrivacyError                         (also an AssertionError) more comes to the server than was asserted
    ├── ContextError                         (also a RuntimeError) an operator used outside its place
    ├── MissingDependencyError               (also an ImportError) an optional package is not installed
    └── ProgramStateError                    checkpoints (see `koinon.program`)

A message has up to five parts, in this order: what went wrong, what was expected, what was found, where the two
differ, where the offending code was written; and it ends with one thing to try.
"""

from __future__ import annotations


def compose_message(
    what: str,
    *,
    expected: object = None,
    found: object = None,
    differs: str | None = None,
    made_in: str | None = None,
    hint: str | None = None,
) -> str:
    """Composes the parts of an error message, one line each; parts that are None are left out."""
    parts = (
        ("expected", expected),
        ("found", found),
        ("differs at", differs),
        ("made in", made_in),
        ("try", hint),
    )
    lines = [f"  {label:<11}{part}" for label, part in parts if part is not None]
    return "\n".join([what, *lines])


class KoinonError(Exception):
    """The base of every error that koinon raises on purpose.

    The keyword arguments are the parts of the message, each also an attribute.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        found: object = None,
        differs: str | None = None,
        made_in: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        self.differs = differs
        self.made_in = made_in
        self.hint = hint
        super().__init__(
            compose_message(what, expected=expected, found=found, differs=differs, made_in=made_in, hint=hint)
        )


class KoinonTypeError(KoinonError, TypeError):
    """A value or a type of the wrong kind."""


class KoinonValueError(KoinonError, ValueError):
    """A value of the right kind that cannot be used."""


class ContextError(KoinonError, RuntimeError):
    """An operator was used outside the place where it has a meaning."""


class MissingDependencyError(KoinonError, ImportError):
    """An optional package is needed and is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package `{package}`, which is not installed; "
            f'install it with: pip install "koinon[{extra}]"'
        )


# --- types -----------------------------------------------------------------------------------------------------------


class TypeNotAssignableError(KoinonTypeError):
    """A value of one type cannot be used where another type is declared."""


class TypesNotEquivalentError(KoinonTypeError):
    """Two types that had to accept each other do not."""


class TypeSyntaxError(KoinonValueError):
    """Text that does not denote a type; `position` is the offset at which reading stopped."""

    def __init__(self, what: str, *, text: str = "", position: int = 0, hint: str | None = None) -> None:
        self.text = text
        self.position = position
        start = max(0, position - 20)
        excerpt = text[start : position + 20]
        super().__init__(what, found=f"{excerpt!r} at position {position}", hint=hint)


class UnsupportedTypeError(KoinonTypeError, NotImplementedError):
    """A dtype or a kind of value that the type system does not have."""


class IllTypedError(KoinonTypeError, ValueError):
    """A type whose parts must not be nested this way, such as a placed value inside a placed value."""


class NotConcreteTypeError(KoinonTypeError):
    """A type that had to be concrete contains a type variable."""


class MismatchedStructureError(KoinonTypeError):
    """A concrete type and a generic type differ in something that no substitution of type variables can mend."""


class MismatchedConcreteTypesError(KoinonTypeError):
    """One type variable would have to stand for two types that do not accept each other."""


class UnassignableConcreteTypesError(KoinonTypeError):
    """A type variable would have to stand for a type that a use of it does not accept."""


class MissingDefiningUsageError(KoinonTypeError):
    """A type variable occurs where it is used, and nowhere where it is defined."""


# --- computations ----------------------------------------------------------------------------------------------------


class InvalidNonAllEqualValueError(KoinonTypeError):
    """The values of the clients were not given as a list or tuple with one entry per client."""


class PlacementError(KoinonTypeError):
    """A value is placed elsewhere than the operator needs it."""


class SumIncompatibleError(KoinonTypeError):
    """A type whose values cannot be summed."""


class MeanIncompatibleError(KoinonTypeError):
    """A type whose values cannot be averaged."""


class MinMaxIncompatibleError(KoinonTypeError, ValueError):
    """A type whose values have no minimum and maximum."""


class TracingError(KoinonTypeError):
    """A traced value was used like a concrete one."""


class OperandError(KoinonTypeError, ValueError):
    """An operator was given an operand that it does not have a meaning for."""


class FieldNotFoundError(KoinonError, AttributeError):
    """A struct was asked for a field that it does not have."""


class FieldIndexError(KoinonError, IndexError):
    """A struct was asked for a field at an index that it does not have."""


class NotCallableError(KoinonError, TypeError, SyntaxError):
    """A traced value that is no function was called."""

    __str__ = Exception.__str__


class ArgumentError(KoinonTypeError):
    """The arguments of a call do not fit the parameter of the computation."""


class ComputationReturnedNoneError(KoinonValueError):
    """A traced function returned None."""


class CardinalityError(KoinonValueError):
    """The arguments of a call disagree on the number of clients, or do not tell it."""


class UnknownClientError(KoinonValueError, KeyError):
    """A client id that the data does not have."""

    __str__ = Exception.__str__


class InvalidIntermediateRepresentationError(KoinonValueError):
    """An expression of the intermediate representation is ill-typed or refers to what it cannot see."""


class SerializationError(KoinonValueError):
    """Bytes that are not a koinon artifact, are damaged, or were written by an unknown version."""


class NotCompilableError(KoinonValueError):
    """A computation that cannot be brought into the requested form; the message names the expression."""


class PrivacyError(KoinonError, AssertionError):
    """A computation lets more of the clients' data come to the server than was asserted; the message says what."""


class SecureSumRangeError(KoinonValueError):
    """An integer of a client, or a sum of them, is outside the range that a secure sum was declared for."""


class SecureSumFieldError(KoinonValueError):
    """The integers that a secure sum is made with are too few for the number of clients; known before it runs."""


class UnboundedLoopError(KoinonTypeError):
    """Reverse-mode differentiation reached a loop whose number of steps has no static bound."""


class NoDerivativeError(KoinonTypeError):
    """A program that was loaded was differentiated, and holds no derivative."""


# --- templates -------------------------------------------------------------------------------------------------------


class TemplateError(KoinonTypeError):
    """A process that breaks the contract of its template."""


class TemplateInitFnParamNotEmptyError(TemplateError):
    """`initialize` of a process takes a parameter."""


class TemplateStateNotAssignableError(TemplateError):
    """A state that the process makes cannot be given back to it."""


class TemplateNotMeasuredProcessOutputError(TemplateError):
    """`next` of a measured process does not return a `MeasuredProcessOutput`."""


class TemplateNextFnNumArgsError(TemplateError):
    """`next` of a process has the wrong number of parameters."""


class TemplateNotFederatedError(TemplateError):
    """A value of a process that has to be placed is not."""


class TemplatePlacementError(TemplateError):
    """A value of a process is placed where it must not be."""


class AggregationNotFederatedError(TemplateNotFederatedError):
    """A value of an aggregation process that has to be placed is not."""


class AggregationPlacementError(TemplatePlacementError):
    """A value of an aggregation process is placed where it must not be."""


class AggregationValueTypeMismatchError(TemplateError):
    """The result of an aggregation process does not have the type of the values that it aggregates."""


class EstimateNotAssignableError(TemplateError):
    """A function mapped over an estimation process does not accept its estimate."""


class ClientDataTypeError(TemplateError):
    """The data of a client work is not a (structure of) sequence."""


class ClientResultTypeError(TemplateError):
    """The result of a client work is not a `ClientResult`."""


class FinalizerResultTypeError(TemplateError):
    """The result of a finalizer does not have the type of the value that it updates."""


class GetHparamsTypeError(TemplateError):
    """`get_hparams` does not accept the state of its process."""


class SetHparamsTypeError(TemplateError):
    """`set_hparams` does not take the state and hyperparameters, or does not return the state."""


class LearningProcessPlacementError(TemplatePlacementError):
    """A value of a learning process is placed where it must not be."""


class LearningProcessOutputError(TemplateError):
    """`next` of a learning process does not return a `LearningProcessOutput`."""


class LearningProcessSequenceTypeError(TemplateError):
    """The second argument of a learning process is not a (structure of) sequence at the clients."""


class GetModelWeightsTypeSignatureError(TemplateError):
    """`get_model_weights` does not take the state of its learning process."""


class SetModelWeightsTypeSignatureError(TemplateError):
    """`set_model_weights` does not take the state and the weights, or does not return the state."""


# --- aggregators -----------------------------------------------------------------------------------------------------


class ExtractingDpEventFromInitialStateError(KoinonValueError):
    """The state of a differentially private aggregation was asked for its noise before the first round."""


class RobustOverSecureSumError(KoinonTypeError):
    """A rule that looks at the value of each client was put where the server sees sums only, or the other way round."""


class BoundsDifferentTypesError(KoinonTypeError):
    """One bound of a secure sum is a constant, and the other a placed value."""


class BoundsDifferentSignaturesError(KoinonTypeError):
    """The two bounds of a secure sum have different types."""


class BoundsNotPlacedAtServerError(KoinonTypeError):
    """The bounds of a secure sum are placed elsewhere than at the server."""


class StructuredBoundsTypeMismatchError(KoinonTypeError):
    """Bounds of a secure sum that are a struct do not have the structure and the dtypes of the values."""


class ScalarBoundStructValueDTypeError(KoinonTypeError):
    """One bound was given for all values of a struct, which do not all have its dtype."""


class ScalarBoundSimpleValueDTypeError(KoinonTypeError):
    """The bounds of a secure sum have another dtype than the values."""


class UnsupportedDTypeError(KoinonTypeError):
    """Values of a dtype that a secure sum does not quantize."""


# --- secure sums between machines ------------------------------------------------------------------------------------


class SecureMessageError(KoinonValueError):
    """A message of the secure sum protocol is malformed, tampered with, repeated, or not meant for this party."""


class SecureRequestRefusedError(KoinonError, RuntimeError):
    """A client refuses a request that could show its own number, or that of another client, to the server."""


class SecureSumAbortedError(KoinonError, RuntimeError):
    """A secure sum ended without a result, since too few clients were left; nothing of it was shown to anybody."""


# --- learning --------------------------------------------------------------------------------------------------------


class UnknownHparamError(KoinonValueError, KeyError):
    """An optimizer has no hyperparameter of this name."""

    __str__ = Exception.__str__


# --- programs --------------------------------------------------------------------------------------------------------


class ProgramStateError(KoinonError):
    """The base of errors about saved program states."""


class ProgramStateNotFoundError(ProgramStateError, KeyError):
    """No program state of the requested version is saved."""

    __str__ = Exception.__str__


class ProgramStateExistsError(ProgramStateError):
    """A program state of this version is saved already."""


class ProgramStateCorruptedError(ProgramStateError, ValueError):
    """A saved program state is damaged or truncated, or is no program state at all."""


class ProgramStateStructureError(ProgramStateError, TypeError):
    """A saved program state is sound, and has other fields, shapes or dtypes than the structure to restore into."""


class ProgramStateWriteError(ProgramStateError, OSError):
    """The operating system refused to write a file of a program; what was saved before is untouched.

    `errno` is that of the cause.
    """

    __str__ = Exception.__str__

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(
            f"Writing {path!r} failed; the file is as it was before.",
            found=f"{type(cause).__name__}: {cause}",
            hint="free space or fix the permissions, and save again",
        )
        self.errno = cause.errno


class ReleasedValueNotFoundError(KoinonError, KeyError):
    """No value was released under this key."""

    __str__ = Exception.__str__


class NotFilterableError(KoinonTypeError):
    """A filter of released values takes away a field of a NamedTuple, which cannot lose one."""


class CSVKeyFieldnameNotFoundError(KoinonValueError):
    """A CSV file that values are to be released to has no column for the key."""
