"""What every engine holds of secure sums: inputs in their range, and totals that their dtype can hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.core import Tracer

from koinon._errors import SecureSumRangeError, TracingError


def python_integers(operator: str, leaf: Any) -> np.ndarray:
    """An array of integers as Python's, which never overflow.

    Raises:
      TracingError: where JAX is tracing, so that there are no integers yet.
    """
    if isinstance(leaf, Tracer):
        raise TracingError(
            f"The reference engine cannot run `{operator}` while JAX traces it.",
            expected="integers, which it sums and checks in Python",
            found=leaf.aval,
            hint='trace the call on the local engine: with ko.backends.use("local")',
        )
    return np.asarray(leaf).astype(object)


def check_secure_inputs(operator: str, rows: list[list[Any]], bounds: list[int]) -> None:
    """Checks integers of clients, as numpy arrays of Python integers, against the largest allowed of each leaf."""
    for client, row in enumerate(rows):
        for leaf, bound in zip(row, bounds, strict=True):
            flat = np.ravel(leaf)
            if flat.size and (min(flat) < 0 or max(flat) > bound):
                raise input_out_of_range(operator, f"the client at position {client} of the cohort")


def check_secure_total(operator: str, total: Any, dtype: Any) -> None:
    """Checks that exact totals fit the dtype of the result."""
    limits = np.iinfo(dtype)
    flat = np.ravel(total)
    if flat.size and (min(flat) < limits.min or max(flat) > limits.max):
        raise total_out_of_range(operator, dtype)


def check_moduli(operator: str, moduli: list[int], dtypes: list[Any]) -> None:
    """Checks the modulus of each leaf of a modular sum against the dtype of the leaf, where it was not a constant."""
    if any(modulus < 1 for modulus in moduli):
        raise modulus_not_positive(operator)
    for modulus, dtype in zip(moduli, dtypes, strict=True):
        if modulus - 1 > np.iinfo(dtype).max:
            raise total_out_of_range(operator, dtype)


def modulus_not_positive(operator: str) -> SecureSumRangeError:
    """The error for a modulus below 1."""
    return SecureSumRangeError(
        f"The modulus of `{operator}` must be positive.", expected="an integer of at least 1", found="one below it"
    )


def input_out_of_range(operator: str, where: str) -> SecureSumRangeError:
    """The error for a client's integer outside the declared range."""
    return SecureSumRangeError(
        f"`{operator}` met an integer of a client outside the declared range.",
        expected="integers from 0 to the declared maximum",
        differs=where,
        hint="clip the values before they are summed, or declare a larger range",
    )


def total_out_of_range(operator: str, dtype: Any) -> SecureSumRangeError:
    """The error for a sum that its dtype cannot hold."""
    return SecureSumRangeError(
        f"The result of `{operator}` does not fit its dtype.",
        expected=f"a sum that {np.dtype(dtype)} holds",
        hint="use a wider integer dtype, or a smaller range or modulus",
    )
