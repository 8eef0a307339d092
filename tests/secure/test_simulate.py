"""The protocol as a whole: an exact sum over whoever is left, or an abort that shows nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon import secure
from koinon.errors import KoinonTypeError, KoinonValueError, SecureSumAbortedError, SecureSumFieldError

STAGES = ("advertise", "share", "mask", "unmask")


def check(values, threshold, dropouts, modulus=None):
    """Compares a run with what must come of it, and returns whether it ended with a sum."""
    left = [sum(client not in dropouts or STAGES.index(dropouts[client]) > i for client in range(len(values)))
            for i in range(len(STAGES))]  # fmt: skip
    received = []
    run = lambda: secure.simulate(  # noqa: E731
        values, threshold, dropouts, modulus=modulus, observe=received.append
    )
    if min(left) < threshold:
        with pytest.raises(SecureSumAbortedError, match="Too few clients"):
            run()
        shares = [m for m in received if isinstance(m, secure.UnmaskShares)]
        assert len(shares) < threshold  # so nothing could have been put together
        return False
    result = run()
    summed = tuple(c for c in range(len(values)) if dropouts.get(c, "unmask") == "unmask")
    total = [sum(int(values[c][i]) for c in summed) for i in range(len(values[0]))]
    assert result.clients == summed
    assert result.total.tolist() == [t if modulus is None else t % modulus for t in total]
    assert_no_client_is_open(received, threshold)
    return True


def assert_no_client_is_open(received, threshold):
    """The server has enough shares of one secret of each client at most."""
    answers = [m for m in received if isinstance(m, secure.UnmaskShares)]
    clients = {c for m in answers for c in (*m.self_shares, *m.key_shares)}
    for client in clients:
        seeds = sum(client in m.self_shares for m in answers)
        keys = sum(client in m.key_shares for m in answers)

        assert min(seeds, keys) == 0
        assert max(seeds, keys) >= threshold


def values_of(count, length=3):
    """A vector for each client."""
    rng = np.random.default_rng(count)
    return [rng.integers(0, 1000, length) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_any_set_of_clients_may_drop_out_at_a_stage(count):
    """For each stage and each subset: the sum of the others is exact, or there is none."""
    threshold = max(2, 2 * count // 3 + 1)
    sets = itertools.chain.from_iterable(itertools.combinations(range(count), size) for size in range(count + 1))
    ended = [check(values_of(count), threshold, dict.fromkeys(gone, stage)) for gone in sets for stage in STAGES]

    assert any(ended)
    assert not all(ended)


@pytest.mark.parametrize(
    ("count", "threshold"),
    [(3, 2), (4, 3), *(pytest.param(*case, marks=pytest.mark.soak) for case in [(5, 4), (6, 4)])],
)
def test_clients_may_drop_out_in_every_way(count, threshold):
    """All 5**n ways in which clients stay, or go away at one of four stages."""
    for stages in itertools.product((None, *STAGES), repeat=count):
        check(values_of(count), threshold, {c: stage for c, stage in enumerate(stages) if stage is not None})


@settings(max_examples=20)
@given(st.data())
def test_sums_are_exact_for_every_modulus(data):
    """Powers of two, odd moduli and those near the ends, with values at the ends."""
    modulus = data.draw(st.integers(2, 2**63) | st.sampled_from([2, 3, 2**31 - 1, 2**32, 2**61 - 1, 2**63 - 1, 2**63]))
    count = data.draw(st.integers(2, 6))
    numbers = st.integers(0, modulus - 1) | st.sampled_from([0, modulus - 1])
    values = [data.draw(st.lists(numbers, min_size=2, max_size=2)) for _ in range(count)]
    dropouts = data.draw(st.dictionaries(st.integers(0, count - 1), st.sampled_from(STAGES), max_size=2))
    check([np.array(v, object) for v in values], max(2, count // 2 + 1), dropouts, modulus)


def test_fifty_clients_with_dropouts_at_every_stage():
    """A cohort of the size of a round."""
    dropouts = {3: "advertise", 17: "share", 18: "share", 30: "mask", 44: "mask", 5: "unmask"}

    assert check(values_of(50, 10), 34, dropouts)


def test_a_server_that_is_not_trusted_changes_no_sum():
    """Signed keys, a threshold above two thirds, and a stage more, before which clients may go away too."""
    values, everyone = [[1], [2], [3], [4]], (0, 1, 2, 3)
    for dropouts, clients in (
        ({2: "mask"}, (0, 1, 3)),
        ({2: "confirm"}, everyone),
        ({2: "unmask"}, everyone),
        ({}, everyone),
    ):
        result = secure.simulate(values, dropouts=dropouts, active_server=True)

        assert result.clients == clients
        assert result.total.tolist() == [sum(values[client][0] for client in clients)]
    with pytest.raises(SecureSumAbortedError, match="after the stage `confirm`"):
        secure.simulate(values, dropouts={2: "mask", 1: "confirm"}, active_server=True)
    with pytest.raises(KoinonValueError, match="Nobody can drop out"):
        secure.simulate(values, dropouts={2: "confirm"})


def test_the_modulus_is_sized_for_the_clients():
    """Of n clients with b bits the sum has ceil(log2(n * (2**b - 1) + 1)) bits, and 63 are the most."""
    for bits, clients in ((1, 2), (8, 256), (8, 257), (32, 1000), (53, 1024)):
        setup = secure.Setup.for_sums_of(range(clients), max_input=2**bits - 1, length=1)
        largest = clients * (2**bits - 1)

        assert setup.modulus // 2 <= largest < setup.modulus
    with pytest.raises(SecureSumFieldError) as caught:
        secure.Setup.for_sums_of(range(3), max_input=2**62 - 1, length=1)
    assert "64 bits for 3 clients with integers of up to 62 bits; 2 clients are allowed" in str(caught.value)
    assert secure.Setup.for_sums_of(range(2), max_input=2**62 - 1, length=1).modulus == 2**63


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"clients": [1]}, "2 to 65536 clients"),
        ({"clients": []}, "2 to 65536 clients"),
        ({"clients": [1, 1, 2]}, "distinct ids"),
        ({"clients": [-1, 1, 2]}, "ids from 0"),
        ({"threshold": 2, "clients": range(4)}, "a threshold from 3 to 4, more than half"),
        ({"threshold": 5, "clients": range(4)}, "a threshold from 3 to 4, more than half"),
        ({"threshold": 4, "clients": range(6), "active_server": True}, "from 5 to 6, more than two thirds"),
        ({"modulus": 1}, "a modulus from 2"),
        ({"modulus": 2**63 + 1}, "a modulus from 2"),
        ({"length": 0}, "a length from 1"),
        ({"max_input": 10}, "`max_input` from 0"),
        ({"round_id": b"short"}, "16 bytes"),
        ({"active_server": True}, "public keys as `identities`"),
        ({"identities": {0: b""}}, "a public key of 32 bytes"),
    ],
)
def test_a_setup_that_protects_nobody_is_refused(arguments, expected):
    """Every part of the agreement has a range."""
    with pytest.raises(KoinonValueError) as caught:
        secure.Setup(**{"clients": range(3), "modulus": 10, "length": 1, **arguments})
    assert expected in str(caught.value)


def test_a_simulation_needs_vectors_and_stages():
    """What cannot be run is refused before it starts."""
    with pytest.raises(KoinonTypeError, match="all have one length"):
        secure.simulate([[1], [2, 3]])
    with pytest.raises(KoinonTypeError, match="are integers"):
        secure.Setup([0, 1], modulus=2.0, length=1)
    with pytest.raises(KoinonValueError, match="drop out"):
        secure.simulate([[1], [2]], dropouts={0: "late"})
