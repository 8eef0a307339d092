"""The local engine: a whole round is one XLA program, or a few that all cores of this machine share."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Literal

from koinon._jax import Device
from koinon.backends._executable import Executable
from koinon.backends._explain import Explanation
from koinon.backends._feed import NotOneProgramError
from koinon.backends._options import resolve_options
from koinon.backends._reference import ReferenceBackend
from koinon.computation import Computation
from koinon.computation._arguments import match_arguments


class LocalBackend:
    """Runs a computation as compiled programs; a second call with arguments of the same shapes compiles nothing.

    One seed and one cohort give the same bits on every run with the same options.

    Args:
      default_num_clients: how many clients there are in a call that has no argument placed at the clients.
      strategy: "sequential" for one client after the other, "lanes" for clients side by side in one loop, "sharded"
        for clients dealt out to threads or devices; None lets the engine choose among them and combine them. It stands
        for values of `lanes`, `threads` and `devices`, which may be given instead.
      lanes: how many clients run side by side in one loop; None lets the engine choose by the size of a step.
      threads: on how many threads the clients run; None lets the engine choose, up to the cores of the machine.
      devices: the devices that share a round's clients, or how many of JAX's local devices do; the data is copied to
        each of them once. None for all accelerators that there are, or for one CPU, whose cores are shared by threads.
      deterministic: whether sums are taken in one order, that of the cohort, whatever the number of threads and
        devices, so that their bits do not depend on the machine's size; slower where lanes would help.

    Raises:
      KoinonValueError: if an option is out of range, or there are not so many devices.

    Example:
      >>> import numpy as np, koinon as ko
      >>> total = ko.federated_computation(ko.types.at_clients(np.int32))(lambda v: ko.federated_sum(v))
      >>> with ko.backends.use(ko.backends.LocalBackend(threads=1)):
      ...     print(total([1, 2]))
      3
    """

    def __init__(
        self,
        *,
        default_num_clients: int = 0,
        strategy: Literal["sequential", "lanes", "sharded"] | None = None,
        lanes: int | None = None,
        threads: int | None = None,
        devices: int | Iterable[Device] | None = None,
        deterministic: bool = False,
    ) -> None:
        self.options = resolve_options(
            default_num_clients, strategy, {"lanes": lanes, "threads": threads, "devices": devices}, deterministic
        )
        self._executables: weakref.WeakKeyDictionary[Computation, Executable] = weakref.WeakKeyDictionary()

    def __repr__(self) -> str:
        options = self.options
        return (
            f"LocalBackend(default_num_clients={options.default_num_clients}, lanes={options.lanes}, "
            f"threads={options.threads}, devices={options.devices and len(options.devices)}, "
            f"deterministic={options.deterministic})"
        )

    def invoke(self, computation: Computation, argument: Any) -> Any:
        """Runs a computation on an argument given in a user's containers."""
        try:
            return self._executable(computation)(argument)
        except NotOneProgramError:
            return ReferenceBackend(default_num_clients=self.options.default_num_clients).invoke(computation, argument)

    def explain(self, computation: Computation, *args: Any, **kwargs: Any) -> Explanation:
        """How this engine runs a call of a computation, and why: nothing is run.

        Args:
          computation: the computation.
          args: the arguments of the call.
          kwargs: likewise, by name.

        >>> import jax.numpy as jnp, koinon as ko
        >>> mean = ko.federated_computation(ko.types.at_clients(jnp.float32))(lambda v: ko.federated_mean(v))
        >>> ko.backends.LocalBackend().explain(mean, [1.0, 2.0]).lanes
        1
        """
        argument = match_arguments(computation.type_signature.parameter, args, kwargs)
        try:
            return self._executable(computation).explain(argument)
        except NotOneProgramError as error:
            return Explanation(computation.name, reason=str(error))

    def _executable(self, computation: Computation) -> Executable:
        executable = self._executables.get(computation)
        if executable is None:
            executable = self._executables[computation] = Executable(computation, self.options)
        return executable


def explain(computation: Computation, *args: Any, **kwargs: Any) -> Explanation:
    """How the local engine, with its default options, runs a call of a computation, and why: nothing is run.

    Args:
      computation: the computation.
      args: the arguments of the call.
      kwargs: likewise, by name.

    >>> import jax.numpy as jnp, koinon as ko
    >>> total = ko.federated_computation(ko.types.at_clients(jnp.float32))(lambda v: ko.federated_sum(v))
    >>> print(ko.backends.local.explain(total, [1.0, 2.0]))  # doctest: +ELLIPSIS
    lambda: 2 clients
      work       no fold over a sequence: each client's work runs as a whole
    ...
    """
    return LocalBackend().explain(computation, *args, **kwargs)
