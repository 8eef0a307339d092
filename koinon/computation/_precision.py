"""Dtypes of 64 bits: honoured where JAX holds them, refused where it would narrow them silently."""

from __future__ import annotations

import jax

from koinon._errors import UnsupportedTypeError
from koinon.types import TensorType, Type, preorder_types


def check_precision(type_: Type, made_in: str | None) -> None:
    """Checks that JAX, as it is configured now, holds every tensor in a type without narrowing it."""
    for part in preorder_types(type_):
        if not isinstance(part, TensorType) or jax.dtypes.issubdtype(part.dtype, jax.dtypes.extended):
            continue
        held = jax.dtypes.canonicalize_dtype(part.dtype)
        if held != part.dtype:
            raise UnsupportedTypeError(
                f"JAX holds no {part.dtype} as it is configured now, and koinon narrows no value silently.",
                expected=str(part),
                found=f"an array of JAX would be {held}",
                made_in=made_in,
                hint=f"declare {held}, or set jax.config.update('jax_enable_x64', True) before anything else",
            )
