"""What differs between the versions of JAX that koinon runs on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

# To type checkers `jax.Device` is a variable and no type.
Device = Any


def shapes_of(avals: Iterable[Any]) -> list[jax.ShapeDtypeStruct]:
    """The shapes and dtypes of abstract values, as functions of JAX take them."""
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """The number of constants and of carried values of a `scan` equation, from its parameters."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def compiler_options(**options: Any) -> dict[str, Any]:
    """Those of some options of XLA's compiler that the installed version knows."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


def _is_known(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options={name: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
