"""Secure sums of many clients on the local engine."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon.computation import ClientRows
from koinon.types import TensorType, at_clients


@pytest.mark.parametrize(("clients", "value"), [(2**17, 2**31), (2**16, 2**32 - 1), (2, 2**31)])
def test_a_total_that_is_a_multiple_of_two_to_the_32_does_not_come_out_as_zero(clients, value):
    """However far a sum is beyond its dtype, it is an error; one that just fits is exact."""

    @ko.federated_computation(at_clients(jnp.uint32))
    def total(values):
        return ko.federated_secure_sum(values, np.uint32(2**32 - 1))

    def rows(numbers):
        return ClientRows(TensorType(jnp.uint32), [jnp.asarray(numbers, jnp.uint32)], len(numbers))

    numbers = np.full(clients, value, np.uint32)
    with pytest.raises(ko.errors.SecureSumRangeError, match="does not fit"):
        total(rows(numbers))
    share = (2**32 - 1) // clients
    assert int(total(rows(np.full(clients, share, np.uint32)))) == clients * share
