"""Tests of the options of the local engine: what is refused, and what numbers may be written as."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import koinon as ko
from koinon.backends import LocalBackend, ReferenceBackend
from koinon.errors import KoinonValueError
from koinon.types import CLIENTS

WRONG = [object(), [3], "two", 0, -1, 1.5, True, np.bool_(True), np.float32(2), np.asarray(2), np.int32(0)]


@pytest.mark.parametrize("name", ["lanes", "threads", "devices"])
@pytest.mark.parametrize("value", WRONG)
def test_what_is_no_positive_int_is_refused(name: str, value: Any) -> None:
    """Whatever it is, the error is one of koinon, and says what was given."""
    with pytest.raises(KoinonValueError, match=rf"The option `{name}` must be a positive int, .*or None") as caught:
        LocalBackend(**{name: value})
    assert caught.value.found == repr(value)


@pytest.mark.parametrize("engine", [LocalBackend, ReferenceBackend])
@pytest.mark.parametrize("value", [-1, "x", None, True, 1.0, np.float32(1), np.int32(-1), [1]])
def test_the_number_of_clients_is_not_negative(engine: Any, value: Any) -> None:
    """Anything but an int from zero on is refused when the engine is made."""
    with pytest.raises(KoinonValueError, match="`default_num_clients` must be an int, and not negative") as caught:
        engine(default_num_clients=value)
    assert caught.value.found == repr(value)


def test_numbers_may_be_those_of_numpy() -> None:
    """They are the same options as ints of Python."""
    count: Any = np.int64(1)
    assert LocalBackend(lanes=count, threads=count).options == LocalBackend(lanes=1, threads=1).options
    assert LocalBackend(devices=count).options == LocalBackend(devices=1).options
    draw = ko.federated_computation(lambda: ko.federated_eval(lambda: 3, CLIENTS))
    with ko.backends.use(LocalBackend(default_num_clients=2 * count)):
        assert draw() == [3, 3]


def test_devices_may_come_in_any_container() -> None:
    """A list, a tuple, or what is iterated once; each must be a device of JAX."""
    first = jax.local_devices()[0]
    for devices in ([first], (first,), iter([first])):
        assert LocalBackend(devices=devices).options.devices == (first,)
    with pytest.raises(KoinonValueError, match="The option `devices` must be a positive int, devices of JAX, or None"):
        LocalBackend(devices=[first, "cpu:1"])
    with pytest.raises(KoinonValueError, match="The first of the devices") as caught:
        LocalBackend(devices=[])
    assert caught.value.found == "no device"


def test_a_strategy_is_a_name() -> None:
    """Something else is refused like a name that there is not."""
    wrong: Any = ["lanes"]
    with pytest.raises(KoinonValueError, match="There is no such strategy"):
        LocalBackend(strategy=wrong)
