"""Work in another thread that means what it would mean in this one."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

import jax


def carry_settings(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` for use in another thread: with the backend, JAX's default device and the precision in use here and now.

    All of these are settings of a thread, and a new thread begins without them.
    """
    config: Any = jax.config
    device, enable_x64 = config.jax_default_device, config.jax_enable_x64
    context = contextvars.copy_context()

    def call(*args: Any) -> Any:
        with contextlib.ExitStack() as stack:
            # Only what differs: a setting of a thread makes JAX compile anew, even where it has the global value.
            if config.jax_default_device != device:
                stack.enter_context(jax.default_device(device))
            if config.jax_enable_x64 != enable_x64:
                stack.enter_context(jax.enable_x64(enable_x64))
            return context.copy().run(fn, *args)

    return call
