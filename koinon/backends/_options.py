"""The options of the local engine: what a user may set, checked, and what follows from it."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from koinon._errors import KoinonValueError
from koinon._jax import Device
from koinon.backends._schedule import ACCELERATOR_LANES, TINY_LANES, available_cores
from koinon.computation._transfer import default_count

_STRATEGIES: dict[str, dict[str, Any]] = {
    "sequential": {"lanes": 1, "threads": 1, "devices": 1},
    "lanes": {"threads": 1, "devices": 1},
    "sharded": {"lanes": 1},
}


@dataclasses.dataclass(frozen=True)
class LocalOptions:
    """How the local engine runs; see `LocalBackend`. None leaves the choice to the engine."""

    default_num_clients: int = 0
    lanes: int | None = None
    threads: int | None = None
    devices: tuple[Device, ...] | None = None
    deterministic: bool = False

    @functools.cached_property
    def homes(self) -> tuple[Device | None, ...]:
        """The devices that share the clients; None is the default device, to which nothing is bound."""
        if self.devices is None:
            local = jax.local_devices()
            return (None, *local[1:]) if local[0].platform != "cpu" else (None,)
        return (None, *self.devices[1:])


def resolve_options(
    default_num_clients: int, strategy: str | None, options: dict[str, Any], deterministic: bool
) -> LocalOptions:
    """The options that a user's come to.

    Args:
      default_num_clients: not negative.
      strategy: a name, or None.
      options: `lanes`, `threads` and `devices`, each a positive int of Python or NumPy, or None; `devices` may be
        devices.
      deterministic: whether sums are taken in the order of the cohort.

    Raises:
      KoinonValueError: if one of them is something else or out of range, or two contradict each other.
    """
    default_num_clients = default_count(default_num_clients)
    options = {name: _option_of(name, option) for name, option in options.items()}
    chosen = options if strategy is None else _options_of(strategy, options)
    lanes = chosen["lanes"]
    if deterministic and lanes not in (None, 1):
        raise KoinonValueError("Lanes add up in another order than that of the cohort.", found=f"lanes={lanes}")
    return LocalOptions(
        default_num_clients,
        1 if deterministic else lanes,
        chosen["threads"],
        _devices_of(chosen["devices"]),
        deterministic,
    )


def _is_count(option: Any) -> bool:
    return isinstance(option, (int, np.integer)) and not isinstance(option, bool) and int(option) >= 1


def _option_of(name: str, option: Any) -> int | tuple[Device, ...] | None:
    """An option as an int, or as devices where these are given."""
    if option is None:
        return None
    if _is_count(option):
        return int(option)
    devices = _listed_devices(option) if name == "devices" else None
    if devices is None:
        kinds = "a positive int, devices of JAX, or None" if name == "devices" else "a positive int, or None"
        raise KoinonValueError(f"The option `{name}` must be {kinds}.", found=repr(option))
    return devices


def _listed_devices(option: Any) -> tuple[Device, ...] | None:
    try:
        devices = tuple(option)
    except TypeError:
        return None
    return devices if all(isinstance(device, jax.Device) for device in devices) else None


def _options_of(strategy: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a strategy stands for, with those that are given beside it."""
    if not isinstance(strategy, str) or strategy not in _STRATEGIES:
        expected = ", ".join(map(repr, _STRATEGIES))
        raise KoinonValueError("There is no such strategy.", expected=expected, found=repr(strategy))
    chosen = {**options, **_STRATEGIES[strategy]}
    for name, option in options.items():
        if option is not None and chosen[name] != option:
            raise KoinonValueError(f"The strategy {strategy!r} has {name}={chosen[name]}.", found=f"{name}={option}")
    if strategy == "lanes" and chosen["lanes"] is None:
        chosen["lanes"] = TINY_LANES if jax.default_backend() == "cpu" else ACCELERATOR_LANES
    if strategy == "sharded" and chosen["threads"] is None:
        chosen["threads"] = available_cores()
    return chosen


def _devices_of(devices: int | tuple[Device, ...] | None) -> tuple[Device, ...] | None:
    if devices is None:
        return None
    local = jax.local_devices()
    if isinstance(devices, tuple):
        if devices[:1] != tuple(local[:1]):
            raise KoinonValueError(
                "The first of the devices does the server's work, so it must be JAX's default device.",
                expected=str(local[0]),
                found=", ".join(map(str, devices)) or "no device",
            )
        return devices
    if devices > len(local):
        raise KoinonValueError(
            "There are not so many devices.",
            expected=f"at most {len(local)}, which are {', '.join(map(str, local))}",
            found=f"devices={devices}",
            hint="On CPUs, `jax.config.update('jax_num_cpu_devices', n)` before anything is computed makes n of them.",
        )
    return tuple(local[:devices])
